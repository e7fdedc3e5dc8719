"""What the administration is sent: bodies of a few fields, none of them unknown."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from adapters.sources.folder import NAME
from adapters.sources.source import SourceError, parse_source
from gateway.domain.entry import BY, By
from gateway.domain.errors import InvalidRequest, TooLarge, UnsupportedMediaType
from gateway.domain.limits import MAX_BUDGET, MAX_RATE, Budget, Limits, Period
from gateway.domain.money import micros

MAX_BYTES = 64 * 1024
VERSION = re.compile(r"[0-9a-f]{12,64}", re.ASCII)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def _day(value: object) -> object:
    """Only one way to write a day; pydantic knows several, numbers of seconds among them."""
    if isinstance(value, str) and _DAY.fullmatch(value) is None:
        raise ValueError("a day is YYYY-MM-DD")
    return value


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
Day = Annotated[date, BeforeValidator(_day)]
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


class Window(Body):
    """Days, in a query."""

    model_config = ConfigDict(strict=False)

    since: Day | None = Field(default=None, description="The first day, in UTC: YYYY-MM-DD.")
    until: Day | None = Field(default=None, description="The last day, in UTC: YYYY-MM-DD.")
    format: Literal["json", "csv"] = Field(default="json", description="json or csv.")


class Report(Window):
    """A report of what was used."""

    by: By = Field(default="day", description=f"One of {', '.join(BY)}.")


class RequestsPage(Window):
    """A page of single requests."""

    after: str | None = Field(
        default=None, max_length=64, description="The request_id of the last row of the page before."
    )
    limit: int = Field(default=1000, ge=1, le=1000, description="1 to 1000 rows.")


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
Rate = Annotated[int, Field(ge=1, le=MAX_RATE)] | None
_LAST_SECOND = 253_402_300_799  # of the year 9999


class KeyLimits(Body):
    """How fast, and how much at once; null: not limited."""

    requests_per_minute: Rate = Field(default=None, description="As many may come at once.")
    tokens_per_minute: Rate = Field(default=None, description="Of prompts and answers together.")
    concurrent: Rate = Field(default=None, description="Requests at once.")

    def of_domain(self) -> Limits:
        """As the data plane knows them."""
        return Limits(**self.model_dump())


class KeyBudget(Body):
    """How much in a period: money, tokens or both."""

    money: Annotated[float, Field(ge=0, le=1_000_000_000, strict=False)] | None = Field(
        default=None, description="In the currency of the prices."
    )
    tokens: Annotated[int, Field(ge=0, le=MAX_BUDGET)] | None = Field(
        default=None, description="Of prompts and answers together."
    )
    per: Period = Field(description="`day` and `month` are those of the calendar in UTC.")

    def of_domain(self) -> Budget:
        """As the data plane knows it.  Raises ValueError for one that bounds nothing."""
        return Budget(None if self.money is None else micros(self.money), self.tokens, self.per)


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
    limits: KeyLimits | None = Field(default=None, description="null: what holds for all keys, unless it has budgets.")
    budgets: Annotated[tuple[KeyBudget, ...], Field(max_length=8)] = Field(
        default=(), description="One for each period at most."
    )
    metadata: Metadata = Field(default={}, description="Yours: at most 16 short texts.")
    expires: Annotated[int, Field(ge=0, le=_LAST_SECOND)] | None = Field(
        default=None, description="Unix seconds from which on it is refused; null: never."
    )
    log_content: bool = Field(
        default=False, description="Its prompts and answers are written to log.content, and its answers say so."
    )

    def given(self) -> dict[str, Any]:
        """Those that were given.  Raises InvalidRequest for a budget that bounds nothing, or two for one period."""
        given = {name: getattr(self, name) for name in sorted(self.model_fields_set)}
        if self.limits is not None:
            given["limits"] = self.limits.of_domain()
        if "budgets" in given:
            given["budgets"] = self._budgets()
        return given

    def _budgets(self) -> tuple[Budget, ...]:
        if len({budget.per for budget in self.budgets}) < len(self.budgets):
            raise InvalidRequest("budgets: two are for the same period.", param="budgets")
        try:
            return tuple(budget.of_domain() for budget in self.budgets)
        except ValueError as error:
            raise InvalidRequest(f"budgets: {error}.", param="budgets") from None


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
