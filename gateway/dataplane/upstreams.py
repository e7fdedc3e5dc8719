"""The live side of the snapshot: connections, places, who uses and who wants which adapter, who waits for a change."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

from gateway.dataplane.admission import Admission, WaitsFor
from gateway.dataplane.client import UpstreamClient
from gateway.domain.snapshot import EMPTY, Route, Snapshot, Target, Upstream
from gateway.telemetry.metrics import Occupancy

Held = tuple[tuple[str, str], ...]  # (upstream, adapter) that a request is counted at


class LiveUpstream:
    """What of an upstream outlives a snapshot."""

    __slots__ = ("admission", "client")

    def __init__(self, upstream: Upstream) -> None:
        self.client = UpstreamClient(upstream)
        self.admission = Admission(upstream.concurrency, upstream.max_loras)


class _Wanted:
    """An adapter that requests wait for: how many, and since when."""

    __slots__ = ("requests", "since")

    def __init__(self, since: float) -> None:
        self.requests = 0
        self.since = since


class Upstreams:
    """All live upstreams, by name.

    `idle` is called with an upstream and an adapter (`name@version`) when the last request that could have been sent
    there has ended; it must not block.
    """

    def __init__(self, idle: Callable[[str, str], None]) -> None:
        self._live: dict[str, LiveUpstream] = {}
        self._idle = idle
        #: (Upstream, adapter) → requests that may be sent there or were, and have not ended.
        self.in_use: Counter[tuple[str, str]] = Counter()
        #: Adapter → when a request last asked for it or was done with it (monotonic).  No more than there are routes.
        self.last_asked: dict[str, float] = {}
        #: Upstream → requests that wait until it, or an adapter on it, can be sent anything.
        self.loading: Counter[str] = Counter()
        self._wanted: dict[str, _Wanted] = {}

    def get(self, upstream: Upstream) -> LiveUpstream:
        """The live state for a snapshot's upstream, made when it is first used.

        One whose address or credentials changed (an engine came back on another port) gets new connections and keeps
        its places.
        """
        live = self._live.get(upstream.name)
        if live is None:
            live = self._live[upstream.name] = LiveUpstream(upstream)
        elif live.client.upstream is not upstream:
            if live.client.upstream == upstream:
                live.client.upstream = upstream  # so that the next look need not compare them
            else:
                live.client.close()
                live.client = UpstreamClient(upstream)
                live.admission.resize(upstream.concurrency, upstream.max_loras)
        return live

    def reserve(self, upstream: Upstream, adapter: str) -> AbstractAsyncContextManager[None]:
        """A place for this adapter among those that the upstream computes with, without a request (`Admission`)."""
        live = self._live.get(upstream.name) or self.get(upstream)
        return live.admission.reserve(adapter)

    def occupancy(self) -> Iterator[Occupancy]:
        """For the gauges.  Any thread may look."""
        for name in dict.fromkeys((*self._live, *self.loading)):
            waiting: dict[str, int] = {WaitsFor.LOADING: self.loading[name]}
            if (live := self._live.get(name)) is None:
                yield Occupancy(name, 0, 0, waiting)
            else:
                admission = live.admission
                yield Occupancy(name, admission.held, admission.adapters, waiting | admission.waiting)

    def hold(self, snapshot: Snapshot, targets: Iterable[Target]) -> Held:
        """Counts a request at every target that it may be sent to, until it is `release`d.  Called in the moment of its
        plan, with no await between: what a request may still be sent to is never taken for unused."""
        held = tuple({(target.upstream, target.adapter) for target in targets if target.adapter})
        for upstream, adapter in held:
            self.in_use[upstream, adapter] += 1
            self._asked(adapter, snapshot)
        return held

    def release(self, held: Held) -> None:
        """The request has ended, or goes elsewhere."""
        for place in held:
            self.in_use[place] -= 1
            if place[1] in self.last_asked:
                self.last_asked[place[1]] = time.monotonic()
            if not self.in_use[place]:
                del self.in_use[place]
                self._idle(*place)

    def users(self, upstream: str, adapter: str) -> int:
        """Requests that may be sent to the adapter there or were, and have not ended."""
        return self.in_use.get((upstream, adapter), 0)

    def wanted_since(self, adapter: str) -> float | None:
        """Since when requests wait for this adapter to be loaded (monotonic), None when nobody does."""
        wanted = self._wanted.get(adapter)
        return None if wanted is None else wanted.since

    @contextmanager
    def wanting(self, snapshot: Snapshot, adapters: Collection[str], since: float) -> Iterator[None]:
        """A request waits for these adapters, and has since then."""
        for adapter in adapters:
            self._asked(adapter, snapshot)
            self._wanted.setdefault(adapter, _Wanted(since)).requests += 1
        try:
            yield
        finally:
            for adapter in adapters:
                self._wanted[adapter].requests -= 1
                if not self._wanted[adapter].requests:
                    del self._wanted[adapter]

    def close(self) -> None:
        """Closes every idle connection."""
        for live in self._live.values():
            live.client.close()

    def _asked(self, adapter: str, snapshot: Snapshot) -> None:
        self.last_asked[adapter] = time.monotonic()
        if len(self.last_asked) > len(snapshot.routes):  # each version is a route: the others are of versions gone
            for gone in self.last_asked.keys() - snapshot.routes.keys():
                del self.last_asked[gone]


class SnapshotHolder:
    """The current snapshot.  Publishing is one assignment; who waits for another route of a name is woken by that one
    alone, so that a thousand who wait for a thousand adapters are woken a thousand times and not a million."""

    def __init__(self) -> None:
        self.current: Snapshot = EMPTY
        self._waiting: dict[str, asyncio.Event] = {}  # public name → set when its route is another; each is a route

    def publish(self, snapshot: Snapshot) -> None:
        """Hands over a new snapshot; requests keep the one they were admitted with."""
        before, self.current = self.current.routes, snapshot
        for model in [name for name in self._waiting if snapshot.routes.get(name) != before.get(name)]:
            self._waiting.pop(model).set()

    async def rerouted(self, route: Route) -> None:
        """Returns when this is not how its name is routed, or was not for a moment."""
        if self.current.routes.get(route.model) == route:
            await self._waiting.setdefault(route.model, asyncio.Event()).wait()
