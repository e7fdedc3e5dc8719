"""A thousand adapters on an engine that computes with eight: nobody starves, however rare its adapter is."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from gateway.dataplane.admission import TURN, Admission, Place, WaitsFor
from gateway.domain.snapshot import Concurrency

ADAPTERS, PLACES = 1000, 8
LONGEST = 3.0  # seconds that an answer takes at most
WEIGHTS = [1 / rank for rank in range(1, ADAPTERS + 1)]


@dataclass
class Served:
    """One request.  `began` is when it had its adapter's place, and what else it needs; `ahead`: adapters that waited
    for a place when it came."""

    adapter: int | None
    came: float
    ahead: int = 0
    began: float = 0.0

    @property
    def waited(self) -> float:
        return self.began - self.came


class World:
    """Requests at random, Zipf over the adapters, one in ten without one, on a clock that jumps from event to event."""

    def __init__(self, *, rate: float, seconds: float, limit: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0.0
        self.limit = limit
        self.admission = Admission(Concurrency(limit, 1_000_000), PLACES, clock=lambda: self.now)
        self.served: list[Served] = []
        self.waiting: dict[Place, Served] = {}
        self.most_adapters = self.most_requests = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._rate = rate
        self._end = seconds
        self._at(0.0, self._arrive)

    def run(self) -> None:
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
            for place in [place for place in self.waiting if place.come]:
                self._begin(self.waiting.pop(place))
            self.most_adapters = max(self.most_adapters, self.admission.adapters)
            self.most_requests = max(self.most_requests, self.admission.held)

    def of(self, ranks: range) -> Iterator[Served]:
        return (one for one in self.served if one.adapter in ranks)

    def _arrive(self) -> None:
        chosen = None if self.chance.random() < 0.1 else self.chance.choices(range(ADAPTERS), WEIGHTS)[0]
        adapter = None if chosen is None else f"a{chosen}"
        aside = {place.adapter for place in self.waiting if place.waits_for is WaitsFor.ADAPTER}
        one = Served(chosen, self.now, len(aside))
        if self.admission.try_enter(adapter):
            self._begin(one)
        else:
            self.waiting[self.admission.enqueue(adapter, "local")] = one
        if self.now < self._end:
            self._at(self.chance.expovariate(self._rate), self._arrive)

    def _begin(self, one: Served) -> None:
        one.began = self.now
        self.served.append(one)
        adapter = None if one.adapter is None else f"a{one.adapter}"
        self._at(min(LONGEST, self.chance.expovariate(2)), lambda: self.admission.release(adapter))

    def _at(self, delay: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, event))


@pytest.mark.parametrize("rate", [15, 30], ids=["busy", "more than it can do"])
async def test_how_long_an_adapter_waits_is_bounded_by_those_that_waited_before_it(rate: float) -> None:
    """When a request has waited for as many turns as there are places, nobody is let in before it: then each place is
    free after the longest answer, for the next in line."""
    world = World(rate=rate, seconds=200, limit=100_000, seed=rate)
    world.run()
    assert world.most_adapters == PLACES
    longest = Counter[int]()
    for one in world.served:
        if one.adapter is None:
            assert one.waited == 0, "a request without an adapter waited for one"
        else:
            bound = PLACES * TURN + math.ceil((one.ahead + 1) / PLACES) * LONGEST
            assert one.waited <= bound + 1e-6
            longest[one.adapter] += 1
    assert len(longest) > 400, "too few adapters took part"


async def test_a_rare_adapter_waits_no_longer_than_a_popular_one() -> None:
    """The most popular ten get a third of all requests, and could keep the eight places for ever."""
    world = World(rate=30, seconds=200, limit=64, seed=3)
    world.run()
    popular = sorted(one.waited for one in world.of(range(10)))
    rare = sorted(one.waited for one in world.of(range(500, ADAPTERS)))
    assert len(popular) > 1000
    assert len(rare) > 300
    assert rare[-1] < 1.5 * popular[-1]


async def test_with_both_limits_reached_all_are_served_and_neither_is_broken() -> None:
    world = World(rate=60, seconds=60, limit=16, seed=4)
    world.run()
    assert (world.most_adapters, world.most_requests) == (PLACES, 16)
    assert not world.waiting
    assert world.admission.held == world.admission.adapters == 0
