"""A thousand adapters and eight places, on a clock of the test's own: nobody waits longer than the rules promise."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from gateway.controlplane.residency import Wish, residents

ADAPTERS, ROOM, PINNED = 1000, 8, 2
TURN, IDLE = 1.0, 30.0
LONGEST, LOAD, UNLOAD = 6.0, 0.08, 0.005  # seconds: a request, a load, an unload
FREE = ROOM - PINNED
ROUND = TURN + LONGEST + (FREE + 1) * (LOAD + UNLOAD)
NAMES = [f"adapter-{number}" for number in range(ADAPTERS)]


@dataclass
class Engine:
    """The engine, its reconciler and the data plane, as far as the rules see them.

    One load or unload at a time; requests of one adapter run side by side.
    """

    now: float = 0.0
    since: dict[str, float] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    in_use: Counter[str] = field(default_factory=Counter)
    waiting: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # how long each may, and its service
    arrived: dict[str, float] = field(default_factory=dict)  # adapter → since when somebody waits
    served: Counter[str] = field(default_factory=Counter)  # requests since it was loaded
    waited_for: set[str] = field(default_factory=set)
    loads: int = 0
    busy_until: float = 0.0
    job: tuple[str, bool] | None = None  # what the engine is at, and whether that is a load
    resident: tuple[str, ...] = ()
    look: float = 0.0
    events: list[tuple[float, int, str, float]] = field(default_factory=list)
    number: int = 0

    def at(self, moment: float, what: str, service: float = 0.0) -> None:
        self.number += 1
        heapq.heappush(self.events, (moment, self.number, what, service))

    def run(self) -> None:
        while self.events:
            self.now, _, what, service = heapq.heappop(self.events)
            kind, _, adapter = what.partition(" ")
            if kind == "ask":
                self._ask(adapter, service)
            elif kind == "end":
                self.in_use[adapter] -= 1
            elif kind == "done":
                self._done()
            self._advance()

    def _ask(self, adapter: str, service: float) -> None:
        self.asked[adapter] = self.now
        if adapter in self.resident and adapter in self.since:
            self._serve(adapter, service)
            return
        ahead = sorted({*self.arrived.values(), self.arrived.setdefault(adapter, self.now)})
        position = ahead.index(self.arrived[adapter]) + 1
        until = self.now + math.ceil(position / FREE) * ROUND
        self.waiting.setdefault(adapter, []).append((until, service))

    def _serve(self, adapter: str, service: float) -> None:
        self.in_use[adapter] += 1
        self.served[adapter] += 1
        self.at(self.now + service, f"end {adapter}")

    def _done(self) -> None:
        assert self.job is not None
        adapter, load = self.job
        self.job = None
        if load:
            self.since[adapter] = self.now
            self.served[adapter] = 0
            self.loads += 1
            if adapter in self.arrived:
                self.waited_for.add(adapter)
        else:
            assert self.served[adapter] or adapter not in self.waited_for, f"{adapter} was loaded for nothing"
            self.waited_for.discard(adapter)

    def _wishes(self) -> Iterator[Wish]:
        for name in dict.fromkeys((*NAMES[:PINNED], *self.asked)):  # the others are wishes that nobody has
            yield Wish(
                name, "", "", pinned=name in NAMES[:PINNED], asked=self.asked.get(name, -math.inf),
                waiting=self.arrived.get(name), in_use=self.in_use[name], since=self.since.get(name),
            )  # fmt: skip

    def _advance(self) -> None:
        found = residents(list(self._wishes()), ROOM, self.now, idle=IDLE, turn=TURN)
        self.resident = found.adapters
        if found.changes_at is not None and not self.now < self.look <= found.changes_at:
            self.look = found.changes_at
            self.at(self.look, "look")
        for adapter in self.resident:
            if adapter in self.since and adapter in self.arrived:
                arrived = self.arrived.pop(adapter)
                for until, service in self.waiting.pop(adapter):
                    assert self.now <= until, f"{adapter} waited {self.now - arrived:.2f} s"
                    self._serve(adapter, service)
        self._reconcile()

    def _reconcile(self) -> None:
        if self.job is not None:
            return
        for adapter in tuple(self.since):
            if adapter not in self.resident and self.in_use[adapter] == 0:
                assert NAMES.index(adapter) >= PINNED, "a pinned one was displaced"
                del self.since[adapter]
                self.job = (adapter, False)
                self.at(self.now + UNLOAD, "done")
                return
        for adapter in self.resident:
            if adapter not in self.since and len(self.since) < ROOM:
                self.job = (adapter, True)
                self.at(self.now + LOAD, "done")
                return


def crowd(seed: int, requests: int, rate: float) -> Engine:
    chance = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(ADAPTERS)]  # Zipf
    names = list(NAMES)
    chance.shuffle(names)  # popularity has nothing to do with the pins
    engine = Engine()
    moment = 0.0
    for name in chance.choices(names, weights, k=requests):
        moment += chance.expovariate(rate)
        engine.at(moment, f"ask {name}", min(LONGEST, chance.expovariate(0.7)))
    return engine


@pytest.mark.parametrize(("seed", "rate"), [(1, 0.5), (2, 5.0), (3, 40.0)])
def test_nobody_waits_longer_than_promised_and_no_load_is_for_nothing(seed: int, rate: float) -> None:
    engine = crowd(seed, 1000, rate)
    engine.run()
    assert not engine.arrived, "somebody was never served"
    assert sum(engine.in_use.values()) == 0
    assert engine.loads > 100, "the eight places must be fought for"


def test_when_all_have_left_only_the_pinned_ones_stay() -> None:
    engine = crowd(4, 200, 20.0)
    engine.run()
    assert set(engine.since) == set(NAMES[:PINNED])
