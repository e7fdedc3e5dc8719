"""Places on an upstream: how many requests it has at once, how many adapters it computes with at once, and who waits.

    request ──▶ a place of its adapter ──▶ a place for itself ──▶ upstream
                (one turn an adapter)      (first come, first served)

A request without an adapter needs the second only, so that it is never behind one that waits for the first.  Who has
come through to the second holds its adapter's place, on the upstream or not yet: that place is free again when the last
of them has gone.

Adapters take turns.  One that has its place lets its further requests in at once, until adapters without a place have
waited for a turn's time: then as many of those that have had theirs longest let nobody in any more, and so drain.  If
they take long about it, another one is closed with each further turn.  In the end nobody lets anybody in, the first
place to become free goes to the adapter that began to wait first, with all of its requests that wait: so none starves,
however popular the others are and however long their answers take.

Nothing here has a task or a timer.  Whether an adapter is closed is worked out when it matters, from the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from itertools import islice

from gateway.domain.errors import Overloaded
from gateway.domain.snapshot import Concurrency

TURN = 1.0  # seconds that an adapter waits for a place before others are closed for it


class WaitsFor(StrEnum):
    """What a request waits for; the values are labels of metrics."""

    SLOT = "slot"  # one of the upstream's places for requests
    ADAPTER = "adapter"  # a place for its adapter
    LOADING = "loading"  # its engine or its adapter, before it is sent to any upstream


class Place:
    """What somebody who waits holds.  `waits_for` is what is missing now."""

    __slots__ = ("_come", "adapter", "is_request", "waits_for")

    def __init__(self, adapter: str | None, is_request: bool) -> None:
        self.adapter = adapter
        self.is_request = is_request  # false: it wants the adapter's place alone (`reserve`)
        self.waits_for = WaitsFor.SLOT
        self._come: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def come(self) -> bool:
        """Whether the place is there."""
        return self._come.done()

    async def wait(self, seconds: float | None = None) -> bool:
        """Returns when the place is there or the time is up: whether it is there."""
        await asyncio.wait((self._come,), timeout=seconds)  # cancelled or not, the future stays whole
        return self._come.done()

    def give(self) -> None:
        """It is there."""
        self._come.set_result(None)


class _Turn:
    """An adapter that waits for its place, or for its turn to let in more.  `since`: when it began to."""

    __slots__ = ("places", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.places: dict[Place, None] = {}  # in the order in which they came


class Admission:
    """The places of one upstream.

    `bounds.queue` limits who waits: requests without an adapter count only those that wait for what they wait for.
    `max_loras` 0: any number of adapters at once.  `clock`: monotonic seconds.
    """

    __slots__ = ("_adapters", "_aside", "_clock", "_line", "_turns", "bounds", "held", "max_loras")

    def __init__(self, bounds: Concurrency, max_loras: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds = bounds
        self.max_loras = max_loras
        self.held = 0  # requests on the upstream
        self._clock = clock
        self._adapters: dict[str, int] = {}  # adapter → who holds its place; the one that has it longest comes first
        self._line: dict[Place, None] = {}  # who waits for a place for itself, in order
        self._turns: dict[str, _Turn] = {}  # who waits for a place of its adapter, in the order of the adapters' turns
        self._aside = 0  # requests in `_turns`

    @property
    def adapters(self) -> int:
        """How many adapters have a place."""
        return len(self._adapters)

    @property
    def waiting(self) -> dict[str, int]:
        """Requests in the queue, by what they wait for."""
        return {WaitsFor.SLOT: len(self._line), WaitsFor.ADAPTER: self._aside}

    def resize(self, bounds: Concurrency, max_loras: int) -> None:
        """The limits are others from now on; who has a place keeps it."""
        self.bounds = bounds
        self.max_loras = max_loras
        self._advance()

    def try_enter(self, adapter: str | None) -> bool:
        """Takes a place if that is possible at once."""
        if self._line or self.held >= self.bounds.limit:
            return False
        if adapter is not None:
            if not self._is_open(adapter):
                return False
            self._take(adapter)
        self.held += 1
        return True

    def enqueue(self, adapter: str | None, upstream: str) -> Place:
        """A place in the queue; whoever gets it waits for it and then holds a place on the upstream, or calls `leave`.

        Raises Overloaded when the queue is full.
        """
        waiting = len(self._line)
        if adapter is not None:
            waiting += self._aside
        if waiting >= self.bounds.queue:
            raise Overloaded(
                f"The upstream '{upstream}' has {self.held} requests and {waiting} more are waiting; "
                "try again in a moment.",
                retry_after=2,
            )
        place = Place(adapter, is_request=True)
        if adapter is not None and not self._is_open(adapter):
            self._set_aside(place, adapter)
        else:
            self._take(adapter)
            self._line[place] = None
        return place

    def position(self, place: Place) -> int:
        """Its number in the queue, from 1; 0 when it is not waiting."""
        if place in self._line:
            return 1 + list(self._line).index(place)
        position = 1 + len(self._line)
        for adapter, turn in self._turns.items():
            if adapter == place.adapter and place in turn.places:
                return position + list(turn.places).index(place)
            position += len(turn.places)
        return 0

    def leave(self, place: Place) -> None:
        """The one who waited gives up.  It may have been given its place in the same moment: then that goes on."""
        if place.come:
            self._give_back(place)
        elif place in self._line:
            del self._line[place]
            self._drop(place.adapter)
        elif place.adapter is not None and (turn := self._turns.get(place.adapter)) and place in turn.places:
            del turn.places[place]
            self._aside -= place.is_request
            if not turn.places:
                del self._turns[place.adapter]
        self._advance()

    def release(self, adapter: str | None) -> None:
        """A request has left the upstream; `adapter` is what it came in with."""
        self.held -= 1
        if adapter is not None:
            self._drop(adapter)
        if self._line or self._turns:
            self._advance()

    @asynccontextmanager
    async def reserve(self, adapter: str) -> AsyncIterator[None]:
        """Holds a place of this adapter without a request, and waits for it in turn, without a bound of its own."""
        place = Place(adapter, is_request=False)
        if self._is_open(adapter):
            self._take(adapter)
            place.give()
        else:
            self._set_aside(place, adapter)
        try:
            await place.wait()
            yield
        finally:
            self.leave(place)

    # -- an adapter's place

    def _is_open(self, adapter: str) -> bool:
        """Whether one more may take this adapter's place at once."""
        if not self._turns:
            return adapter in self._adapters or self._has_room()
        if adapter not in self._adapters:
            return False  # behind the others that wait for a place
        # Nobody waits for one that is open: more are closed as time goes, and `_advance` sees when it is fewer.
        return adapter in islice(self._adapters, self._closed(), None)

    def _has_room(self) -> bool:
        return self.max_loras == 0 or len(self._adapters) < self.max_loras

    def _closed(self) -> int:
        """How many adapters let nobody in now, counted from the one that has its place longest: one for each turn's
        time that each adapter without a place has waited.  Not more are looked at than there are places."""
        now = self._clock()
        closed = 0
        for adapter, turn in self._turns.items():
            if adapter in self._adapters:
                continue  # it has a place, and no other need be closed for it
            turns = int((now - turn.since) / TURN)
            closed += turns
            if turns == 0 or closed >= len(self._adapters):
                break
        return closed

    def _take(self, adapter: str | None) -> None:
        if adapter is not None:
            self._adapters[adapter] = self._adapters.get(adapter, 0) + 1

    def _drop(self, adapter: str | None) -> None:
        if adapter is not None:
            self._adapters[adapter] -= 1
            if not self._adapters[adapter]:
                del self._adapters[adapter]

    def _give_back(self, place: Place) -> None:
        self.held -= place.is_request
        self._drop(place.adapter)

    # -- who waits

    def _set_aside(self, place: Place, adapter: str) -> None:
        turn = self._turns.get(adapter)
        if turn is None:
            turn = self._turns[adapter] = _Turn(self._clock())
        turn.places[place] = None
        place.waits_for = WaitsFor.ADAPTER
        self._aside += place.is_request

    def _advance(self) -> None:
        """Gives what is free to those whose turn it is."""
        while self._turns:
            adapter = next(iter(self._turns))
            if adapter in self._adapters:  # it was closed, and whom it was closed for has a place by now
                self._adapters[adapter] = self._adapters.pop(adapter)  # a turn begins: others are closed before it
            elif not self._has_room():
                break
            self._let_through(adapter)
        if self._turns:
            for adapter in [a for a in islice(self._adapters, self._closed(), None) if a in self._turns]:
                self._let_through(adapter)  # closed no longer: whom it was closed for has left, or has a place
        while self._line and self.held < self.bounds.limit:
            place = next(iter(self._line))
            del self._line[place]
            self.held += 1
            place.give()

    def _let_through(self, adapter: str) -> None:
        for place in self._turns.pop(adapter).places:
            self._take(adapter)
            if place.is_request:
                self._aside -= 1
                place.waits_for = WaitsFor.SLOT
                self._line[place] = None
            else:
                place.give()
