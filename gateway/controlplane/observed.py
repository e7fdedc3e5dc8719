"""What the control plane sees of the world: frozen values that its pure decisions (compile, diff) start from.

Times are seconds of the monotonic clock unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from gateway.domain.keys import NO_KEYS, KeyTable
from gateway.domain.listing import ListedModel
from gateway.domain.secret import Secret


@dataclass(frozen=True, slots=True)
class EngineEndpoint:
    """Where a running engine listens, and the key that it asks for.  Both are new after each start."""

    host: str
    port: int
    key: Secret


class UpstreamState(StrEnum):
    """How an upstream is."""

    UP = "up"
    STARTING = "starting"  # an engine boots, or an upstream was not asked yet: worth waiting for
    DOWN = "down"
    FAILED = "failed"  # an engine that is not started again


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """What is known of one upstream.

    `models`: the last list that it gave, kept while it is down.  `since`: when it came into this state.
    `endpoint`: where it listens, for an engine that the gateway runs.  `message` is for the operator; `progress`, what
    an engine does while it boots, for everybody.  `max_loras`: different adapters that it computes with at once, as the
    gateway has started it or must suppose; 0: no limit.  `held`: the adapters that the engine has now, by their names
    in it.
    """

    state: UpstreamState
    since: float
    message: str = ""
    progress: str = ""
    models: tuple[ListedModel, ...] = ()
    endpoint: EngineEndpoint | None = None
    max_loras: int = 0
    held: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        adapters = (model.id for model in self.models if model.parent is not None)
        object.__setattr__(self, "held", frozenset(adapters if self.state is UpstreamState.UP else ()))


class Phase(StrEnum):
    """Where a version of an adapter is in its life (DESIGN.md, "Seams")."""

    PENDING = "Pending"
    FETCHING = "Fetching"
    VALIDATING = "Validating"
    LOADING = "Loading"
    READY = "Ready"
    DRAINING = "Draining"
    UNLOADED = "Unloaded"
    FAILED = "Failed"


#: Phases of versions that answer, or are loaded when they are asked for.
_ASKABLE = (Phase.LOADING, Phase.READY, Phase.UNLOADED, Phase.DRAINING)


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """One version of an adapter.

    `version` is the first 12 hex digits of `digest`; both are "" while the content is not known.  `path` is its
    folder in the store.  `base` is what the adapter says it was trained on.  `upstreams` are those that it fits,
    `refused` those of them that do not take it, and why; `candidates`, while it fits none that is
    known, those of which that is not known yet: requests wait there.  `held`: those of `upstreams` that a request for
    it may be sent to now.  `current`: the adapter's plain name points to this version; `canary`: the percentage of the plain name's
    traffic that this other version gets.
    """

    name: str
    phase: Phase
    version: str = ""
    digest: str = ""
    path: str = ""
    base: str = ""
    reason: str = ""
    upstreams: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    candidates: tuple[str, ...] = ()
    held: frozenset[str] = frozenset()
    current: bool = False
    canary: float = 0.0

    @property
    def engine_name(self) -> str:
        """Its name in an engine, and its exact public name: `name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def routed(self) -> bool:
        """Whether requests may name it: on its way, serving, loaded when it is asked for, perhaps so when more is known,
        or as long as its plain name points to it."""
        return self.current or bool(self.candidates) or (self.phase in _ASKABLE and bool(self.upstreams))

    @property
    def places(self) -> tuple[str, ...]:
        """The upstreams that a request for it may go to, now or when it has waited."""
        return self.upstreams or self.candidates


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything at one moment.  `salts`: of the names whose traffic is split.  `started`: when the control plane
    started, as Unix time.  `keys`: who is let in, replaced with each change."""

    upstreams: Mapping[str, UpstreamStatus] = field(default_factory=lambda: MappingProxyType({}))
    adapters: tuple[AdapterStatus, ...] = ()
    salts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    now: float = 0.0
    started: int = 0
    keys: KeyTable = NO_KEYS
