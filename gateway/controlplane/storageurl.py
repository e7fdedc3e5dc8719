"""Where the state is kept: the setting `storage.url`, and what of it may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from gateway.controlplane.values import wrong
from gateway.domain.secret import Secret

_SQLITE = "sqlite:///"
_POSTGRESQL = frozenset({"postgresql", "postgres"})
_EXAMPLE = "write postgresql://user:password@host:5432/database"
_PORT = 5432

#: What may stand behind the `?`, as libpq understands it: TLS, and which of several servers is meant.
PARAMETERS = frozenset(
    "sslmode sslrootcert sslcert sslkey sslcrl sslnegotiation ssl_min_protocol_version channel_binding gssencmode "
    "require_auth target_session_attrs application_name".split()
)


@dataclass(frozen=True, slots=True)
class PostgreSQL:
    """Where a PostgreSQL is.  "": what libpq takes for it."""

    host: str
    port: int
    database: str
    user: str
    password: Secret
    parameters: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class StorageURL:
    """`sqlite:///PATH`, or `postgresql://…` for a database that several gateways share.  Shown without its password."""

    shown: str
    postgresql: PostgreSQL | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises PydanticCustomError, whose text never repeats the URL."""
        if url.startswith(_SQLITE) and len(url) > len(_SQLITE) and "\0" not in url:
            return cls(url)
        if url.partition("://")[0] not in _POSTGRESQL:
            hint = "write sqlite:///var/gateway.db or postgresql://user:password@host/database"
            raise wrong("must be sqlite:/// and the path of a file, or postgresql:// and a place", hint)
        place = _place(url)
        user = f"{place.user}{':***' if place.password else ''}@" if place.user else ""
        host = f"[{place.host}]" if ":" in place.host else place.host
        query = f"?{urlencode(place.parameters)}" if place.parameters else ""
        return cls(f"postgresql://{user}{host}:{place.port}/{place.database}{query}", place)

    @property
    def is_shared(self) -> bool:
        """Whether other gateways may use it as well."""
        return self.postgresql is not None

    def __str__(self) -> str:
        return self.shown

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._read, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "pattern": r"^(?:sqlite:///.+|postgres(?:ql)?://.+)$|\$\{"}

    @classmethod
    def _read(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise wrong("must be text", "put it in quotes")
        return cls.parse(value)


def _place(url: str) -> PostgreSQL:
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise wrong("holds a character that a URL cannot have", "write it as %, followed by two digits: %20 is a space")
    try:
        parts = urlsplit(url)
        port = parts.port
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else ())
    except ValueError:
        raise wrong("is not a URL with a valid host and port", _EXAMPLE) from None
    database = unquote(parts.path.removeprefix("/"))
    if not parts.hostname or port == 0:
        raise wrong("names no host and port", _EXAMPLE)
    if not database or "/" in database:
        raise wrong("names no database", _EXAMPLE)
    if parts.fragment or "#" in url:
        raise wrong("must not hold a #", "write %23 for one in the password")
    if strange := sorted(parameters.keys() - PARAMETERS):
        raise wrong(
            f"has parameters that are not taken: {', '.join(strange)[:200]}", f"take {', '.join(sorted(PARAMETERS))}"
        )
    user, password = unquote(parts.username or ""), Secret(unquote(parts.password or ""))
    return PostgreSQL(parts.hostname, port or _PORT, database, user, password, MappingProxyType(parameters))
