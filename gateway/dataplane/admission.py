"""Places on an upstream: how many requests it has at once, and a bounded queue of those that wait."""

from __future__ import annotations

import asyncio
from collections import deque

from gateway.domain.errors import Overloaded
from gateway.domain.snapshot import Concurrency


class Slots:
    """First come, first served.  A place is held from `acquire` to `release`."""

    __slots__ = ("_queue", "bounds", "held")

    def __init__(self, bounds: Concurrency) -> None:
        self.bounds = bounds
        self.held = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def try_acquire(self) -> bool:
        """Takes a place if one is free and nobody waits."""
        if self.held < self.bounds.limit and not self._queue:
            self.held += 1
            return True
        return False

    def enqueue(self, upstream: str) -> asyncio.Future[None]:
        """A place in the queue; whoever gets the future awaits it and then holds a place, or calls `leave`.

        Raises Overloaded when the queue is full.
        """
        if len(self._queue) >= self.bounds.queue:
            raise Overloaded(
                f"The upstream '{upstream}' has {self.held} requests and {len(self._queue)} more are waiting; "
                "try again in a moment.",
                retry_after=2,
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        return place

    def position(self, place: asyncio.Future[None]) -> int:
        """How many are ahead, counted from 1; 0 when it is not waiting."""
        try:
            return self._queue.index(place) + 1
        except ValueError:
            return 0

    def leave(self, place: asyncio.Future[None]) -> None:
        """The one who waited gives up.  It may have been given its place in the same moment: then that goes on."""
        if place.done() and not place.cancelled():
            self.release()
        elif place in self._queue:
            self._queue.remove(place)

    def release(self) -> None:
        """Gives a place back; the first in the queue gets it."""
        self.held -= 1
        while self._queue and self.held < self.bounds.limit:
            place = self._queue.popleft()
            if not place.done():
                self.held += 1
                place.set_result(None)
