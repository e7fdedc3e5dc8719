"""What the administration is sent: bodies of a few fields, none of them unknown."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.sources.folder import NAME
from adapters.sources.source import SourceError, parse_source
from gateway.domain.errors import InvalidRequest, TooLarge, UnsupportedMediaType

MAX_BYTES = 64 * 1024
VERSION = re.compile(r"[0-9a-f]{12,64}", re.ASCII)

Name = Annotated[
    str, Field(pattern=f"^{NAME.pattern}$", description="a-z, 0-9, '.', '_' and '-', at most 64; no sign first.")
]
Version = Annotated[
    str,
    Field(
        pattern=f"^({NAME.pattern}@)?{VERSION.pattern}$",
        description="The first 12 hex digits of the version's digest, or more of them.",
    ),
]
Source = Annotated[
    str,
    Field(
        description="hf://ORG/REPO@REVISION, modelscope://ORG/REPO@REVISION, https://…#sha256=… or "
        "s3://BUCKET/KEY#sha256=…; folders and archives are uploaded.",
    ),
]
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"]
Right = Literal["adapters", "chat_template", "kv_transfer_params", "priority", "request_id"]
Upstreams = Annotated[tuple[Name, ...], Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """A body; fields that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class Settings(Body):
    """How an adapter is served; what is not given stays as it is."""

    pinned: bool = Field(default=False, description="The current version is never evicted.")
    load: Literal["eager", "lazy"] | None = Field(default=None, description="null: as the configuration says.")
    upstreams: Upstreams | None = Field(default=None, description="null: wherever it fits.")

    def given(self) -> dict[str, Any]:
        """Those that were given."""
        return self.model_dump(include={"pinned", "load", "upstreams"}, exclude_unset=True)


class Upload(Settings):
    """What goes with an archive, in the query."""

    model_config = ConfigDict(strict=False)

    promote: bool = Field(default=False, description="The name moves to this version as soon as it is Ready.")


class NewVersion(Settings):
    """A source to import."""

    name: Name
    source: Source
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file at a URL.")] | None = None
    promote: bool = Field(default=False, description="The name moves to this version as soon as it is Ready.")


class Chosen(Body):
    """A version."""

    version: Version


class Choice(Body):
    """A version, or what the plain name stands for."""

    version: Version | None = None


class Share(Body):
    """A version's part of the plain name's traffic."""

    version: Version
    weight: float = Field(ge=0, le=100, description="Percent; 0 ends the canary.")


KeyText = Annotated[
    str,
    Field(max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", description="At most 256 characters, no control ones."),
]
KeyPattern = Annotated[
    str,
    Field(
        pattern=r"^[^\s\x00-\x1f\x7f-\x9f]{1,256}$", description="A name of a model, or a pattern such as 'support-*'."
    ),
]
Metadata = Annotated[
    dict[Annotated[str, Field(pattern="^[A-Za-z0-9_.-]{1,64}$")], KeyText], Field(max_length=16, description="Yours.")
]
_LAST_SECOND = 253_402_300_799  # of the year 9999


class KeySettings(Body):
    """What is set of a key; what is not given stays as it is."""

    name: Name = Field(default="", validate_default=False, description="What people call it; in logs and metrics.")
    owner: KeyText = Field(default="", description="Whose it is.")
    team: KeyText = Field(default="", description="The team that it belongs to.")
    models: Annotated[tuple[KeyPattern, ...], Field(min_length=1, max_length=256)] = Field(
        default=("*",), description="Names, or patterns of names, that exist for it."
    )
    endpoints: Annotated[tuple[Endpoint, ...], Field(min_length=1, max_length=32)] | None = Field(
        default=None, description="Paths of the inference endpoints that it may use; null: all."
    )
    allow: Annotated[tuple[Right, ...], Field(max_length=32)] = Field(default=(), description="Further rights.")
    metadata: Metadata = Field(default={}, description="Yours: at most 16 short texts.")
    expires: Annotated[int, Field(ge=0, le=_LAST_SECOND)] | None = Field(
        default=None, description="Unix seconds from which on it is refused; null: never."
    )

    def given(self) -> dict[str, Any]:
        """Those that were given."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}


class CreateKey(KeySettings):
    """A key to make."""

    name: Name = Field(description="What people call it; in logs and metrics.")


class Rotation(Body):
    """How the secret before ends."""

    grace: int = Field(default=0, ge=0, le=31 * 86_400, description="Seconds for which it is let in still.")


class Keys(Body):
    """A part of the list of keys."""

    model_config = ConfigDict(strict=False)

    after: Annotated[str, Field(max_length=64)] = Field(default="", description="The id of the last key that is known.")
    limit: int = Field(default=100, ge=1, le=1000, description="At most so many.")


class Span(Body):
    """A part of the audit."""

    model_config = ConfigDict(strict=False)

    after: int = Field(default=0, ge=0, le=2**53, description="The number of the last row that is known.")
    limit: int = Field(default=100, ge=1, le=1000, description="At most so many.")


T = TypeVar("T", bound=BaseModel)


async def read(request: Request, model: type[T], *, optional: bool = False) -> T:
    """The request's body.  `optional`: none at all is an empty object.

    Raises UnsupportedMediaType, TooLarge and InvalidRequest, which names the field.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            raise TooLarge(f"The body exceeds {MAX_BYTES} bytes.")
    if optional and not body:
        body = b"{}"
    elif request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("Send the body as 'Content-Type: application/json'.")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _wrong(error, model) from None


def query(request: Request, model: type[T]) -> T:
    """The request's query; `upstreams` may be there several times, or hold commas.  Raises InvalidRequest."""
    fields: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name == "upstreams":
            fields[name] = (*fields.get(name, ()), *value.split(","))
        elif name in fields:
            raise InvalidRequest(f"{name[:64]} may be given only once.", param=name[:64])
        else:
            fields[name] = value
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _wrong(error, model) from None


def checked_source(source: str, digest: str | None) -> str:
    """A source that is elsewhere: never a path on this machine.  Raises InvalidRequest."""
    try:
        parse_source(source, digest)
    except SourceError as error:
        raise InvalidRequest(f"source: {error}", param="source") from None
    return source


def named(name: str) -> str:
    """The adapter's name in a path.  Raises InvalidRequest."""
    if NAME.fullmatch(name) is None:
        raise InvalidRequest(f"{name[:64]!r} is no adapter's name: it must match {NAME.pattern}.", param="name")
    return name


def digits(name: str, version: str) -> str:
    """The hex digits of a version of this adapter, given as they are or as `name@digits`.  Raises InvalidRequest."""
    adapter, at, found = version.rpartition("@")
    if at and adapter != name:
        raise InvalidRequest(f"{version[:140]} is not a version of {name}.", param="version")
    if VERSION.fullmatch(found) is None:
        raise InvalidRequest("A version is 12 to 64 hex digits, a-f in small letters.", param="version")
    return found


def _wrong(error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part)[:64] for part in first["loc"])
    field = model.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    if first["type"] in ("missing", "extra_forbidden"):
        hint = f" (the fields are {', '.join(model.model_fields)})"
    else:
        hint = f" ({field.description})" if field is not None and field.description else ""
    return InvalidRequest(f"{place or 'The body'}: {first['msg']}{hint}", param=place or None)
