"""How what an engine holds differs from what it is to hold, and what is done about it.  Pure."""

from __future__ import annotations

import math
import os.path
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.domain.snapshot import Upstream


@dataclass(frozen=True, slots=True)
class Hub:
    """A repository on the Hugging Face hub, at a commit."""

    repo: str
    revision: str


@dataclass(frozen=True, slots=True)
class Copy:
    """A version as an engine is told of it.  `path`: its folder, as the engine sees the store.  `hub`: where the engine
    may fetch it from by itself when it does not see the store."""

    path: str
    digest: str
    hub: Hub | None = None

    @property
    def roots(self) -> tuple[str, ...]:
        """Where the engine may say that it has read it."""
        return (self.path,) if self.hub is None else (self.path, self.hub.repo)


@dataclass(frozen=True, slots=True)
class View:
    """An engine that is up, and what it is to hold, at one moment.

    `life`: another number is perhaps another process.  `steady`: it may be sent a load while it computes answers.
    `listed`: adapter → where the engine says that it has read it, for every adapter that it lists.  `store`: the
    gateway's store as the engine sees it.  `residents`: what it is to hold, in the order to load.  `copies`: every
    version that somebody wants on it, a resident or not.  `room`: places for the gateway's adapters, 0 for no limit.
    """

    upstream: Upstream
    life: int
    steady: bool
    listed: Mapping[str, str]
    store: str
    residents: Sequence[str]
    copies: Mapping[str, Copy]
    room: int = 0

    @property
    def engine(self) -> tuple[Upstream, int]:
        """Which engine it is, and in which life."""
        return self.upstream, self.life

    @property
    def ours(self) -> frozenset[str]:
        """What the gateway has loaded, before it was started again, too."""
        return ours(self.listed, self.copies, self.store)

    @property
    def impostors(self) -> Mapping[str, str]:
        """Wanted names under which somebody else has loaded something else, and from where."""
        ours = self.ours
        return {name: root for name, root in self.listed.items() if name in self.copies and name not in ours}


def ours(listed: Mapping[str, str], copies: Mapping[str, Copy], store: str) -> frozenset[str]:
    """Which of the adapters that an engine lists the gateway has loaded: `name@version`, read from where that version
    is.  Nobody else's is ever touched, whatever its name."""
    return frozenset(
        name
        for name, root in listed.items()
        if (root in copies[name].roots if name in copies else _is_version(name, root, store))
    )


def _is_version(name: str, root: str, store: str) -> bool:
    """Whether this is a version from the store that nobody wants any more."""
    plain, _, version = name.rpartition("@")
    folder = os.path.basename(root)
    inside = os.path.normpath(root) == root and root.startswith(os.path.join(store, ""))
    return bool(plain) and len(version) == 12 and inside and folder.startswith(version)


@dataclass(frozen=True, slots=True)
class Load:
    """Have the engine load this version."""

    adapter: str


@dataclass(frozen=True, slots=True)
class Prove:
    """See that the engine answers with what it lists."""

    adapter: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Make the engine forget this name."""

    adapter: str


Action = Load | Prove | Unload


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of an engine beyond what it lists.

    `proven`: what it has answered with.  `unwanted_since`: of ours, what nobody wants any more.  `retry_at`: what
    failed, and is not tried before.
    """

    proven: Collection[str] = frozenset()
    unwanted_since: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    retry_at: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def diff(view: View, memory: Memory, in_use: Callable[[str], int], now: float, grace: float) -> tuple[Action, ...]:
    """What is to be done now, in order: what gives way is unloaded, what is listed is proven, what is missing is loaded
    as far as there is room.

    Nothing is unloaded that a request uses.  Requests are counted from the moment that they are sent there, and none is
    sent to what is no resident, so the count only falls.  What somebody still wants, and has to give way, goes at once;
    what nobody wants any more goes `grace` seconds later, or when its place is needed.
    """

    def due(adapter: str) -> bool:
        return memory.retry_at.get(adapter, now) <= now

    def goes_at(adapter: str) -> float:
        return -math.inf if adapter in view.copies else memory.unwanted_since.get(adapter, now) + grace

    ours = view.ours
    unused = [name for name in ours.difference(view.residents) if due(name) and in_use(name) == 0]
    proofs = [Prove(name) for name in view.residents if name in ours and name not in memory.proven and due(name)]
    loads = [Load(name) for name in view.residents if name not in view.listed and due(name)]
    needed = len(ours) + len(loads) - view.room if view.room else 0
    leaving = sorted(unused, key=lambda name: (goes_at(name), name))
    unloads = [Unload(name) for number, name in enumerate(leaving) if number < needed or goes_at(name) <= now]
    if view.room:
        loads = loads[: max(0, view.room - len(ours) + len(unloads))]
    return (*unloads, *proofs, *loads)
