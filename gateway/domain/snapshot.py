"""The immutable picture that the control plane compiles and the data plane serves from.

A request keeps the snapshot that it was admitted with.  A new one is handed over by one assignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from gateway.domain.keys import UNPEPPERED, Pepper
from gateway.domain.limits import Allowances, Metered
from gateway.domain.money import Price
from gateway.domain.people import People
from gateway.domain.principal import Principal
from gateway.domain.secret import Secret

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, all on the monotonic clock (defaults: the table in docs/configuration.md).

    `first_byte` counts from the sent request to the first event of a stream; `answer` is its twin for answers that
    come whole, whose first byte is also their last.  `byte_idle`: nothing at all came; `token_idle`: bytes came (an
    upstream's keep-alive comments) but no event.
    """

    connect: float = 2.0
    first_byte: float = 120.0
    answer: float = 600.0
    byte_idle: float = 60.0
    token_idle: float = 300.0
    total: float = 3600.0


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many requests an upstream gets at once, how many may wait for a place, and for how long (seconds)."""

    limit: int = 256
    queue: int = 512
    queue_timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class ParameterPolicy:
    """What happens to a request's parameters on the way to an upstream, in this order: `rename`, `drop`, the
    backend's own allow-list (widened by `allow`; "*" lets everything through), `set`."""

    allow: frozenset[str] = frozenset()
    rename: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    drop: frozenset[str] = frozenset()
    set: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A configured endpoint: everything that a backend and the transport need to speak to it.

    `host` may be an IPv6 address without brackets.  `path` is the base path without a trailing slash (`/v1`, or "").
    `headers` are sent with each request (names lower-case); their values are secrets, because the key is among them.
    `query` is appended to each request's path (Azure's `api-version=…`), without "?".
    `max_loras`: different adapters that it can compute with at once, 0 for no limit.
    `options` belong to the backend (Ollama's `num_ctx`, `keep_alive` …).
    """

    name: str
    kind: str
    scheme: str
    host: str
    port: int
    path: str = ""
    headers: tuple[tuple[str, Secret], ...] = ()
    query: str = ""
    ca_file: str | None = None
    timeouts: Timeouts = Timeouts()
    concurrency: Concurrency = Concurrency()
    max_loras: int = 0
    options: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)


class Readiness(StrEnum):
    """Whether a target can be sent a request now."""

    READY = "ready"
    LOADING = "loading"  # an engine starts or an adapter loads: worth waiting for
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Target:
    """One place that can answer for a model.

    `model` is the name in the upstream (an engine's `name@sha12` for an adapter); `adapter` is `name@version` when
    an adapter answers.  `note` says why it is not ready, for people.  `strip_tools`: the model cannot use tools, so
    they are taken out; `strip_thinking`: it does not think, and is not asked to.  `developer_role` false: role
    `developer` becomes `system`.  `metered`: the model's own limits, None for none.
    """

    upstream: str
    model: str
    adapter: str | None = None
    readiness: Readiness = Readiness.READY
    note: str = ""
    parameters: ParameterPolicy = ParameterPolicy()
    strip_tools: bool = False
    strip_thinking: bool = False
    developer_role: bool = True
    context_length: int | None = None
    price: Price | None = None
    metered: Metered | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """Another version that gets a share of a name's traffic, and where it is answered, in order.  `below`: callers
    whose share (see `Split`) is below this, and not below that of the variant before it, are its own."""

    below: float
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """How a name's callers are divided.  A caller's share, in [0, 1), is a hash of `salt` and what the caller is known
    by: the same for as long as the salt is, in every process.  `variants` are in rising order of `below`; who is in
    none of them gets the route's own targets."""

    salt: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """A public model name and where it is answered, in order."""

    model: str
    targets: tuple[Target, ...]
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that serving a request needs.  `people`: who may be behind a key.

    `keys`: digest of a key by `pepper` → who it is; `admin_key`: the digest of that one; `keys_partial`: whether
    there may be keys of ours that are not among them.  `cards`: public model name →
    its object in `/v1/models`, as JSON bytes, in the order of the list.  `task_models`: Open WebUI's task name (or "*")
    → public model name.
    """

    version: int
    routes: Mapping[str, Route]
    upstreams: Mapping[str, Upstream]
    cards: Mapping[str, bytes]
    keys: Mapping[bytes, Principal]
    auth_required: bool = True
    admin_key: bytes | None = None
    pepper: Pepper = UNPEPPERED
    keys_partial: bool = False
    task_models: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    people: People = field(default_factory=People)
    allowances: Allowances = field(default_factory=Allowances)

    @property
    def ready(self) -> bool:
        """Whether at least one model can be served now."""
        return any(t.readiness is Readiness.READY for r in self.routes.values() for t in r.targets)


EMPTY = Snapshot(0, _EMPTY, _EMPTY, _EMPTY, MappingProxyType({}))
