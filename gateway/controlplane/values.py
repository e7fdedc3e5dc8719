"""What a single value of the configuration may be.  Pure: a validator returns the value or says what is wrong.

A message never repeats the value, which may be a secret in the wrong place.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from gateway.domain.call import Endpoint
from gateway.domain.limits import MAX_RATE
from gateway.domain.principal import ADAPTERS_RIGHT, PRIVILEGED_PARAMETERS
from gateway.domain.secret import Secret

_VISIBLE = r"[^\s\x00-\x1f\x7f]"
_MAX_TEXT = 8192  # characters of a credential, a header or a URL: what servers take in one header line
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # a token, RFC 9110 5.6.2
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_DURATION = re.compile(
    r"-?\d+(\.\d+)?|(-?\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+"
)  # Go's time.ParseDuration, which Ollama uses

#: What upstreams, keys and adapters may be called.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)

#: Headers that the gateway or the connection sets: RFC 9110 7.6.1 and those that frame the body.
RESERVED_HEADERS = frozenset(
    "connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    "upgrade host content-length content-type content-encoding accept-encoding expect".split()
)


class Address(NamedTuple):
    """Where a base URL points: `path` without a trailing slash, `host` without the brackets of an IPv6 address."""

    scheme: str
    host: str
    port: int
    path: str


def wrong(message: str, hint: str = "") -> PydanticCustomError:
    """The error of a validator: what is wrong, and what to write instead."""
    return PydanticCustomError("value", "{message}", {"message": message, "hint": hint})


def address(url: str) -> Address:
    """Splits a base URL.  Raises PydanticCustomError for one that is not `http(s)://host[:port][/path]`."""
    if not url.isascii() or len(url) > _MAX_TEXT or re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise wrong("holds a character that a URL cannot have", "write it as http://host:port/v1")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong("is not a URL with a valid host and port", "write it as http://host:port/v1") from None
    if parts.scheme not in {"http", "https"}:
        raise wrong("must begin with http:// or https://", "write it as http://host:port/v1")
    if parts.username is not None or parts.password is not None:
        raise wrong("must not hold a user name or a password", "put the credential in api_key or headers")
    if "?" in url or "#" in url:
        raise wrong("must not hold a query or a fragment", "put what follows the ? into query")
    if not parts.hostname or not _is_host(parts.hostname):
        raise wrong("has no valid host name", "write it as http://host:port/v1")
    if port == 0:
        raise wrong("has port 0, where nothing can listen")
    default = 443 if parts.scheme == "https" else 80
    return Address(parts.scheme, parts.hostname, port or default, parts.path.rstrip("/"))


def base_url(value: object) -> str:
    """A base URL, without a trailing slash."""
    url = _text(value)
    address(url)
    return url.rstrip("/")


def host(value: object) -> str:
    """An address or a host name to listen on."""
    name = _text(value)
    if not _is_host(name):
        raise wrong("is not an IP address or a host name", "write 127.0.0.1, or 0.0.0.0 for every interface")
    return name


def is_loopback(name: str) -> bool:
    """Whether only this machine can reach what listens on `name`."""
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def network(value: object) -> str:
    """An address or a network in CIDR notation."""
    text = _text(value)
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise wrong("is not an IP address or a network", "write 10.0.0.5, or 10.0.0.0/8 without host bits") from None


def number(value: object) -> object:
    """Lets everything pass that pydantic can judge; YAML's true and false are no numbers, though Python thinks so."""
    if isinstance(value, bool):
        raise wrong("must be a number, not true or false")
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value) else value


#: Annotates a number; it comes last, so that the number's bounds are judged after it.
NUMERIC = BeforeValidator(number)


def path(value: object) -> Path:
    """A path of the file system; a relative one counts from the current directory."""
    text = _text(value)
    if not text or "\0" in text:
        raise wrong("must be a path")
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


def engine_path(value: object) -> str:
    """An absolute path as an engine sees it, maybe on another machine: no home of this one, no current directory."""
    text = _text(value)
    if not text.startswith("/") or "\0" in text:
        raise wrong("must be an absolute path", "write it as the engine sees it, for example /mnt/adapters")
    return text.rstrip("/") or "/"


def header_name(value: object) -> str:
    """The name of a header that an operator may set, in lower case."""
    name = _text(value).lower()
    if not _HEADER_NAME.fullmatch(name):
        raise wrong("is not a valid header name")
    if name in RESERVED_HEADERS:
        raise wrong("is set by the gateway itself and cannot be set here")
    return name


def keep_alive(value: object) -> object:
    """Ollama's `keep_alive`: seconds as a number, or a duration such as 10m."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value):
        return int(value)
    if (isinstance(value, int) and not isinstance(value, bool)) or value is None:
        return value
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return value
    raise wrong("is not a duration", 'write seconds, or a duration such as "10m"')


def think(value: object) -> object:
    """Ollama's `think`: a switch, or a level for the models that have levels."""
    if value is None or isinstance(value, bool) or value in ("low", "medium", "high"):
        return value
    raise wrong("must be true, false, low, medium or high")


def unless_never(value: object) -> object:
    """Lets "never" stand beside a number of seconds; it becomes None."""
    if isinstance(value, str) and not re.fullmatch(r"[-+.\d]\S*", value):
        if value == "never":
            return None
        raise wrong("must be a number of seconds, or never")
    return value


def everything(value: object) -> object:
    """Lets "*" stand for a list of all."""
    return ("*",) if value == "*" else value


def limits_url(value: Secret) -> Secret:
    """Where limits are counted: this process, or a Valkey or Redis.  The URL is a secret: it may hold a password."""
    url = value.reveal()
    hint = "write memory://, or redis://host:6379/0"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong("is not a URL with a valid host and port", hint) from None
    if url == "memory://":
        return value
    if parts.scheme not in {"redis", "rediss", "valkey", "valkeys"}:
        raise wrong("must begin with memory://, redis://, rediss:// or valkey://", hint)
    if not parts.hostname or not _is_host(parts.hostname) or port == 0:
        raise wrong("has no valid host", hint)
    if parts.query or parts.fragment:
        raise wrong("must not hold a query or a fragment", hint)
    if not re.fullmatch(r"(/\d{0,5})?", parts.path):
        raise wrong("has a path that is not the number of a database", hint)
    return value


def free(value: object) -> object:
    """Lets "free" stand beside a price."""
    if isinstance(value, str):
        if value == "free":
            return {"input": 0, "output": 0}
        raise wrong("must be a price or free", "write {input: 0.25, output: 2}, or free")
    return value


class Pattern:
    """Annotates text that must match a regular expression; `hint` says in words what may be written."""

    def __init__(self, regex: str | re.Pattern[str], hint: str) -> None:
        self._regex = re.compile(regex)
        self._hint = hint

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "pattern": rf"^(?:{self._regex.pattern})$|\$\{{"}

    def _check(self, value: object) -> str:
        text = _text(value)
        if not self._regex.fullmatch(text):
            raise wrong("is empty" if not text else "is not written as it must be", self._hint)
        return text


class Right:
    """Annotates a right of a key: a parameter that reaches into the engine, or `ADAPTERS_RIGHT`."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(sorted({*PRIVILEGED_PARAMETERS, ADAPTERS_RIGHT}))


class EndpointPath:
    """Annotates the path of an inference endpoint."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(sorted(endpoint.value for endpoint in Endpoint))


class SecretSchema:
    """Annotates a `Secret`: a string in the file, and never shown again.  `header`: it must fit into a header."""

    def __init__(self, *, header: bool) -> None:
        self._header = header

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._read, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string"}

    def _read(self, value: object) -> Secret:
        text = value.reveal() if isinstance(value, Secret) else _text(value)
        if len(text) > _MAX_TEXT or "\0" in text:
            raise wrong(f"is longer than {_MAX_TEXT} characters or holds a zero byte")
        # RFC 9110 5.5: whatever else a header may hold is not understood alike by all servers.
        if self._header and re.search(r"[^\t\x20-\x7e]", text):
            raise wrong("holds a character that is not printable ASCII", "look for a line break or a curly quote in it")
        return Secret(text)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise wrong("must be text", "put it in quotes")
    return value


def _is_host(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return len(name) <= 253 and _HOSTNAME.fullmatch(name) is not None
    return True


# The types of the configuration's keys.
Name = Annotated[str, Pattern(NAME, "write at most 64 of a-z, 0-9, dot, dash and underscore")]
ModelId = Annotated[str, Pattern(_VISIBLE + "{1,256}", "write at most 256 characters, without spaces")]
Prefix = Annotated[str, Pattern(_VISIBLE + "{0,64}", "write at most 64 characters, without spaces")]
ModelPattern = Annotated[str, Pattern(_VISIBLE + "{1,256}", 'write a name, or a pattern as "support-*"')]
NamePattern = Annotated[str, Pattern(r"[^\x00-\x1f\x7f,]{1,256}", 'write a name, or a pattern as "*@example.org"')]
UserId = Annotated[str, Pattern(r"[^\x00-\x1f\x7f]{1,256}", "write the id as the access log has it")]
RoleName = Annotated[str, Pattern(r"[A-Za-z0-9_-]{1,64}", "write a role as Open WebUI has it: admin, user")]
ParameterName = Annotated[str, Pattern(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}", "write a parameter's name")]
TaskName = Annotated[str, Pattern(r"\*|[a-z][a-z0-9_]{0,63}", 'write a task as title_generation, or "*"')]
VariableName = Annotated[str, Pattern(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "write letters, digits and underscores")]
QueryName = Annotated[str, Pattern(r"[A-Za-z0-9._~-]{1,128}", "write letters, digits, dot, dash and underscore")]
Everything = Annotated[
    tuple[Annotated[str, Pattern(r"\*|[A-Za-z_][A-Za-z0-9_.-]{0,127}", "write a parameter's name")], ...],
    BeforeValidator(everything, json_schema_input_type=Literal["*"] | tuple[ParameterName, ...]),
]
HeaderName = Annotated[str, BeforeValidator(header_name)]
Word = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128)]
Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=4096)]
Network = Annotated[str, BeforeValidator(network)]
FilePath = Annotated[Path, BeforeValidator(path)]
EnginePath = Annotated[str, BeforeValidator(engine_path)]
SecretText = Annotated[Secret, SecretSchema(header=True)]
AnySecret = Annotated[Secret, SecretSchema(header=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400), NUMERIC]
Rate = Annotated[int, Field(ge=1, le=MAX_RATE), NUMERIC]
Count = Annotated[int, Field(ge=1, le=1_000_000), NUMERIC]
Tokens = Annotated[int, Field(ge=1, le=100_000_000), NUMERIC]
Loras = Annotated[int, Field(ge=1, le=1024), NUMERIC]
CpuLoras = Annotated[int, Field(ge=1, le=65_536), NUMERIC]
LoraRank = Annotated[Literal[1, 8, 16, 32, 64, 128, 256, 320, 512], NUMERIC]
