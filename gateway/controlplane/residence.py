"""Which adapters each engine is to hold now: the state behind the rules of `residency`.

Requests ask for adapters, people eject and load them, engines list what they have; from all of it follows, at one
moment, how each engine stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from types import MappingProxyType
from typing import Protocol

from gateway.controlplane.config import Adapters
from gateway.controlplane.observed import UpstreamStatus
from gateway.controlplane.residency import residents
from gateway.controlplane.versions import Demand, Holding, Host, Index, Indexed, Standing
from gateway.domain.snapshot import Upstream

_TURN = 1.0  # seconds that somebody waits for room before a busy adapter must make some


class Traffic(Protocol):
    """What the data plane knows of adapters (`name@version`)."""

    @property
    def last_asked(self) -> Mapping[str, float]:
        """When a request last asked for an adapter or was done with it, on the monotonic clock."""
        ...

    def users(self, upstream: str, adapter: str) -> int:
        """Requests that may be sent to the adapter there or were, and have not ended."""
        ...

    def wanted_since(self, adapter: str) -> float | None:
        """Since when requests wait for the adapter, None when none does."""
        ...

    def reserve(self, upstream: Upstream, adapter: str) -> AbstractAsyncContextManager[None]:
        """A place among the adapters that the upstream computes with at once, without a request."""
        ...


class Residence:
    """Remembers who waits for which adapter, and what was ejected.

    `grace`: seconds that a version stays after its last request when no name points to it.  `clock` is monotonic.
    """

    def __init__(self, settings: Adapters, traffic: Traffic, *, grace: float, clock: Callable[[], float]) -> None:
        self.changes_at: float | None = None  # when time alone changes what engines are to hold
        self._idle = settings.idle_unload
        self._traffic = traffic
        self._grace = grace
        self._clock = clock
        self._demanded: set[str] = set()  # what requests said that they wait for; whether they still do, they know
        self._called: dict[str, list[float]] = {}  # adapter → since when people wait for it
        self._answered: dict[str, float] = {}  # adapter → when the last of them went away
        self._ejected: set[str] = set()

    def demand(self, adapter: str) -> None:
        """Requests wait for the adapter."""
        self._demanded.add(adapter)
        self._ejected.discard(adapter)

    @contextmanager
    def calling(self, adapter: str) -> Iterator[None]:
        """Somebody waits for the adapter who is no request."""
        now = self._clock()
        self._ejected.discard(adapter)
        self._called.setdefault(adapter, []).append(now)
        try:
            yield
        finally:
            self._called[adapter].remove(now)
            if not self._called[adapter]:
                del self._called[adapter]
            self._answered[adapter] = self._clock()

    def eject(self, adapter: str) -> None:
        """It goes when it has no more requests, and is not loaded until somebody waits for it."""
        self._ejected.add(adapter)

    def leaves(self, adapter: str) -> bool:
        """Whether it goes when it has no more requests."""
        return adapter in self._ejected

    def waiting(self) -> Mapping[str, float]:
        """The adapters that somebody waits for, and since when."""
        requests = {adapter: since for adapter in self._demanded if (since := self._traffic.wanted_since(adapter))}
        self._demanded.intersection_update(requests)
        return {**requests, **{adapter: min(since) for adapter, since in self._called.items()}}

    def standings(
        self,
        upstreams: Mapping[str, UpstreamStatus],
        hosts: Mapping[str, Host],
        holdings: Mapping[str, Holding],
        index: Index,
        taken: Collection[str],
    ) -> Mapping[str, Standing]:
        """How each engine stands now.  `holdings`: what each has, by upstream; `taken`: names of other models."""
        now = self._clock()
        self._ejected.intersection_update(index.by_adapter)
        self._answered = {adapter: at for adapter, at in self._answered.items() if adapter in index.by_adapter}
        demand = self._demand(now, taken)
        standings = {}
        changes = []
        for name, holding in holdings.items():
            chosen: dict[str, Indexed] = {}
            if (host := hosts.get(name)) is not None:
                wishes = index.wishes(name, host, holding, demand)
                residency = residents(wishes, host.room, now, idle=self._idle, turn=_TURN)
                chosen = {adapter: index.by_adapter[adapter] for adapter in residency.adapters}
                changes += [residency.changes_at] if residency.changes_at is not None else []
                # What is not kept leaves when it was not asked for during the grace.
                changes += [demand.asked(a) + self._grace for a in residency.adapters if a not in index.kept]
            standings[name] = Standing(
                upstreams[name].state,
                host,
                frozenset(holding.since),
                holding.proven,
                MappingProxyType(chosen),
                MappingProxyType(dict(holding.troubles)),
            )
        self.changes_at = min((at for at in changes if at > now), default=None)
        return MappingProxyType(standings)

    def _demand(self, now: float, taken: Collection[str]) -> Demand:
        requested, called = self._traffic.last_asked, self._answered
        asked = {**requested, **{adapter: max(at, requested.get(adapter, at)) for adapter, at in called.items()}}
        recently = [adapter for adapter, at in asked.items() if self._idle is None or now - at < self._idle]
        return Demand(
            now,
            self._grace,
            lambda adapter: asked.get(adapter, -math.inf),
            sorted(recently, key=asked.__getitem__, reverse=True),
            self.waiting(),
            self._traffic.users,
            self._ejected,
            taken,
        )
