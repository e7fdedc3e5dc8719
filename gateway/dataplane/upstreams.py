"""The live side of the snapshot's upstreams: connections, places, and who uses which adapter."""

from __future__ import annotations

import asyncio
from collections import Counter

from gateway.dataplane.admission import Slots
from gateway.dataplane.client import UpstreamClient
from gateway.domain.snapshot import EMPTY, Snapshot, Upstream


class LiveUpstream:
    """What of an upstream outlives a snapshot."""

    __slots__ = ("client", "slots")

    def __init__(self, upstream: Upstream) -> None:
        self.client = UpstreamClient(upstream)
        self.slots = Slots(upstream.concurrency)


class Upstreams:
    """All live upstreams, by name."""

    def __init__(self) -> None:
        self._live: dict[str, LiveUpstream] = {}
        #: Adapter (`name@version`) → requests that were admitted to it and have not ended.
        self.in_use: Counter[str] = Counter()

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
                live.slots.bounds = upstream.concurrency
        return live

    def items(self) -> list[tuple[str, LiveUpstream]]:
        """For the gauges."""
        return list(self._live.items())

    def release_adapter(self, adapter: str) -> None:
        """A request that was admitted to this adapter ended."""
        self.in_use[adapter] -= 1
        if self.in_use[adapter] <= 0:
            del self.in_use[adapter]

    def close(self) -> None:
        """Closes every idle connection."""
        for live in self._live.values():
            live.client.close()


class SnapshotHolder:
    """The current snapshot.  Publishing is one assignment; who waits for a change is woken."""

    def __init__(self) -> None:
        self.current: Snapshot = EMPTY
        self._changed: asyncio.Future[None] | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """Hands over a new snapshot; requests keep the one they were admitted with."""
        self.current = snapshot
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    async def changed(self) -> None:
        """Returns after the next `publish`."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)
