"""Places on an upstream: for requests, and for the adapters that it computes with at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from gateway.dataplane.admission import TURN, Admission, Place, WaitsFor
from gateway.domain.errors import Overloaded
from gateway.domain.snapshot import Concurrency
from tests.patience import LATE


class Upstream:
    """Admission to an upstream named `local`, on a clock that the test sets."""

    def __init__(self, *, limit: int = 100, queue: int = 100, adapters: int = 0) -> None:
        self.now = 0.0
        self.admission = Admission(Concurrency(limit, queue), adapters, clock=lambda: self.now)

    def ask(self, adapter: str | None = None) -> Place | None:
        """One request: its place in the queue, None when it went straight through."""
        if self.admission.try_enter(adapter):
            return None
        return self.admission.enqueue(adapter, "local")

    def waits(self, adapter: str | None = None) -> Place:
        place = self.ask(adapter)
        assert place is not None
        return place

    def passes(self, adapter: str | None = None) -> None:
        assert self.ask(adapter) is None

    def end(self, adapter: str | None = None) -> None:
        self.admission.release(adapter)


# ---- places for requests


async def test_requests_get_their_places_in_order() -> None:
    upstream = Upstream(limit=1)
    upstream.passes()
    first, second = upstream.waits(), upstream.waits()
    assert [upstream.admission.position(place) for place in (first, second)] == [1, 2]
    upstream.end()
    assert (first.come, second.come) == (True, False)
    assert [upstream.admission.position(place) for place in (first, second)] == [0, 1]


async def test_one_who_leaves_makes_room_for_those_behind() -> None:
    upstream = Upstream(limit=1, queue=2)
    upstream.passes()
    first, second = upstream.waits(), upstream.waits()
    upstream.admission.leave(first)
    assert upstream.admission.position(second) == 1
    third = upstream.waits()
    upstream.end()
    assert (first.come, second.come, third.come) == (False, True, False)


async def test_a_place_that_is_given_to_one_who_leaves_in_that_moment_goes_to_the_next() -> None:
    upstream = Upstream(limit=1)
    upstream.passes("a")
    first, second = upstream.waits("a"), upstream.waits("b")
    upstream.end("a")
    assert first.come
    upstream.admission.leave(first)
    assert second.come
    assert (upstream.admission.held, upstream.admission.adapters) == (1, 1)


async def test_a_full_queue_is_told_with_its_figures() -> None:
    upstream = Upstream(limit=1, queue=1)
    upstream.passes()
    upstream.waits()
    with pytest.raises(Overloaded) as refusal:
        upstream.ask()
    assert refusal.value.message == (
        "The upstream 'local' has 1 requests and 1 more are waiting; try again in a moment."
    )


async def test_more_places_are_given_at_once() -> None:
    upstream = Upstream(limit=1, adapters=1)
    upstream.passes("a")
    others = [upstream.waits("b"), upstream.waits("c")]
    upstream.admission.resize(Concurrency(3, 9), 3)
    assert all(place.come for place in others)


async def test_with_fewer_places_nobody_comes_in_until_there_are_no_more_than_that() -> None:
    upstream = Upstream(adapters=3)
    for adapter in "abc":
        upstream.passes(adapter)
    upstream.admission.resize(Concurrency(100, 9), 1)
    place = upstream.waits("d")
    upstream.end("a")
    upstream.end("b")
    assert not place.come
    upstream.end("c")
    assert place.come


# ---- places for adapters


async def test_an_upstream_without_a_limit_takes_any_number_of_adapters() -> None:
    upstream = Upstream()
    for number in range(100):
        upstream.passes(f"a{number}")
    assert upstream.admission.adapters == 100


async def test_one_adapter_more_than_there_is_room_for_waits_until_another_has_ended() -> None:
    upstream = Upstream(adapters=2)
    upstream.passes("a")
    upstream.passes("a")
    upstream.passes("b")
    place = upstream.waits("c")
    assert place.waits_for is WaitsFor.ADAPTER
    assert upstream.admission.waiting == {"slot": 0, "adapter": 1}
    upstream.end("a")
    assert not place.come, "a has a request yet"
    upstream.end("a")
    assert place.come
    assert upstream.admission.waiting == {"slot": 0, "adapter": 0}


async def test_an_adapter_that_is_there_lets_its_requests_in_at_once() -> None:
    upstream = Upstream(adapters=1)
    upstream.passes("a")
    upstream.waits("b")
    upstream.now = TURN * 0.9
    upstream.passes("a")


async def test_when_another_has_waited_for_a_turn_the_one_that_is_there_longest_lets_nobody_in() -> None:
    upstream = Upstream(adapters=2)
    upstream.passes("a")
    upstream.passes("b")
    other = upstream.waits("c")
    upstream.now = TURN
    late = upstream.waits("a")
    upstream.passes("b")
    upstream.end("a")
    assert other.come
    assert not late.come
    upstream.end("b")
    assert not late.come
    upstream.end("b")
    assert late.come


async def test_if_it_takes_long_about_its_end_the_next_one_is_closed_too() -> None:
    """A stream of an hour on the one that is closed keeps nobody waiting for an hour."""
    upstream = Upstream(adapters=2)
    upstream.passes("hour")
    upstream.passes("b")
    other = upstream.waits("c")
    upstream.now = 2 * TURN
    upstream.waits("b")
    upstream.end("b")
    assert other.come


async def test_who_was_closed_opens_again_when_the_one_it_was_closed_for_has_a_place() -> None:
    upstream = Upstream(adapters=2)
    upstream.passes("hour")
    upstream.passes("b")
    other = upstream.waits("c")
    upstream.now = TURN
    late = upstream.waits("hour")
    upstream.end("b")
    assert other.come
    assert late.come, "nobody waits for its place any more"
    upstream.passes("hour")


async def test_who_was_closed_opens_again_when_the_one_it_was_closed_for_has_left() -> None:
    upstream = Upstream(adapters=1)
    upstream.passes("a")
    other = upstream.waits("b")
    upstream.now = TURN
    late = upstream.waits("a")
    upstream.admission.leave(other)
    assert late.come


async def test_who_is_no_longer_closed_opens_although_somebody_else_waits_for_a_place() -> None:
    upstream = Upstream(adapters=2)
    upstream.passes("hour")
    upstream.passes("b")
    first = upstream.waits("c")
    upstream.now = TURN / 2
    second = upstream.waits("d")
    upstream.now = TURN
    late = upstream.waits("hour")
    upstream.end("b")
    assert (first.come, second.come) == (True, False)
    assert late.come, "the second has not waited for a turn yet"


async def test_who_was_let_in_again_begins_a_turn_of_its_own() -> None:
    upstream = Upstream(adapters=2)
    upstream.passes("hour")
    upstream.passes("b")
    upstream.waits("c")
    upstream.now = TURN
    late = upstream.waits("hour")
    upstream.end("b")
    assert late.come
    upstream.waits("d")
    upstream.now = 2 * TURN
    upstream.passes("hour")
    upstream.waits("c")


async def test_nobody_is_closed_for_one_that_has_a_place() -> None:
    upstream = Upstream(adapters=3)
    for adapter in "abd":
        upstream.passes(adapter)
    upstream.waits("c")
    upstream.now = TURN
    upstream.waits("a")
    upstream.now = 2 * TURN
    upstream.waits("b")
    upstream.passes("d")


async def test_all_that_wait_for_an_adapter_come_in_with_it() -> None:
    upstream = Upstream(adapters=1)
    upstream.passes("a")
    places = [upstream.waits(adapter) for adapter in "bcb"]
    assert [upstream.admission.position(place) for place in places] == [1, 3, 2]
    upstream.end("a")
    assert [place.come for place in places] == [True, False, True]


async def test_a_request_without_an_adapter_is_never_behind_those_that_wait_for_one() -> None:
    upstream = Upstream(adapters=1, limit=2, queue=3)
    upstream.passes("a")
    for adapter in "bcd":
        upstream.waits(adapter)
    upstream.passes()
    place = upstream.waits()  # both places are taken; the queue is full for adapters only
    assert upstream.admission.position(place) == 1
    upstream.end()
    assert place.come
    with pytest.raises(Overloaded):
        upstream.ask("e")


async def test_who_has_its_adapters_place_still_waits_for_one_of_its_own() -> None:
    upstream = Upstream(adapters=1, limit=1)
    upstream.passes("a")
    other = upstream.waits("b")
    plain = upstream.waits()
    assert (other.waits_for, plain.waits_for) == (WaitsFor.ADAPTER, WaitsFor.SLOT)
    upstream.end("a")
    assert (other.come, plain.come) == (False, True)
    assert other.waits_for is WaitsFor.SLOT
    assert upstream.admission.adapters == 1
    upstream.waits("c")
    assert upstream.admission.waiting == {"slot": 1, "adapter": 1}
    upstream.end()
    assert other.come


# ---- a place without a request


async def test_a_reservation_keeps_an_adapters_place_and_needs_none_for_a_request() -> None:
    upstream = Upstream(adapters=2, limit=1)
    upstream.passes("a")
    async with upstream.admission.reserve("b"):
        assert (upstream.admission.held, upstream.admission.adapters) == (1, 2)
        place = upstream.waits("c")
        upstream.now = TURN
        upstream.end("a")
        assert place.come
    upstream.end("c")
    assert (upstream.admission.held, upstream.admission.adapters) == (0, 0)


async def test_a_reservation_waits_for_its_turn_and_closes_others_as_a_request_does() -> None:
    upstream = Upstream(adapters=1)
    upstream.passes("a")
    reserved = asyncio.Event()

    async def load() -> None:
        async with upstream.admission.reserve("b"):
            reserved.set()

    async with asyncio.timeout(LATE), asyncio.TaskGroup() as group:
        group.create_task(load())
        await asyncio.sleep(0)
        assert not reserved.is_set()
        assert upstream.admission.waiting == {"slot": 0, "adapter": 0}, "it is no request"
        upstream.now = TURN
        place = upstream.waits("a")
        upstream.end("a")
        await reserved.wait()
    assert place.come, "the reservation has ended, and its place went on"


async def test_a_reservation_that_is_given_up_leaves_nothing_behind() -> None:
    upstream = Upstream(adapters=1)
    upstream.passes("a")

    async def load() -> None:
        async with upstream.admission.reserve("b"):
            pytest.fail("there was no room")

    task = asyncio.create_task(load())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    upstream.now = TURN
    upstream.passes("a")


# ---- nothing is lost, whoever leaves when


async def test_no_place_is_lost_and_no_limit_is_broken_however_requests_come_and_go() -> None:
    """A thousand steps of ten worlds against a model that counts on its fingers."""
    for seed in range(10):
        chance = random.Random(seed)
        limit, adapters, queue = chance.randrange(1, 8), chance.randrange(1, 5), chance.randrange(1, 20)
        upstream = Upstream(limit=limit, queue=queue, adapters=adapters)
        admission = upstream.admission
        running: list[str | None] = []
        waiting: dict[Place, str | None] = {}
        for _ in range(1000):
            upstream.now += chance.expovariate(2 / TURN)
            step = chance.random()
            if step < 0.5:
                adapter = chance.choice([None, *"abcdefgh"])
                ahead = admission.waiting["slot"] + (0 if adapter is None else admission.waiting["adapter"])
                try:
                    place = upstream.ask(adapter)
                except Overloaded:
                    assert ahead >= queue
                else:
                    assert place is None or ahead < queue
                    if place is None:
                        before = [p for p, other in waiting.items() if other == adapter and not p.come]
                        assert not before, "it overtook its own"
                        running.append(adapter)
                    else:
                        waiting[place] = adapter
            elif step < 0.85 and running:
                adapter = running.pop(chance.randrange(len(running)))
                upstream.end(adapter)
            elif waiting:
                place = chance.choice([*waiting])  # perhaps one that has been given its place just now
                del waiting[place]
                admission.leave(place)
            if chance.random() < 0.5:  # the others find out later
                running += [waiting.pop(place) for place in [*waiting] if place.come]
            given = [adapter for place, adapter in waiting.items() if place.come]
            still = [place for place in waiting if not place.come]
            assert admission.held == len(running) + len(given) <= limit
            in_line = [place.adapter for place in still if place.waits_for is WaitsFor.SLOT]
            having = {*running, *given, *in_line} - {None}
            assert admission.adapters == len(having) <= adapters
            assert all(place.adapter is not None for place in still if place.waits_for is WaitsFor.ADAPTER)
            assert Counter(admission.waiting) == Counter(place.waits_for.value for place in still)
            assert sorted(map(admission.position, still)) == list(range(1, len(still) + 1))
            assert not in_line or admission.held == limit, "somebody waits in front of a free place"
            assert len(in_line) == len(still) or len(having) == adapters, "an adapter waits in front of a free place"
        for place in [*waiting]:
            if place.come:
                upstream.end(waiting.pop(place))
            else:
                admission.leave(place)
        for adapter in running:
            upstream.end(adapter)
        assert admission.held == admission.adapters == sum(admission.waiting.values()) == 0


async def test_no_place_is_lost_when_tasks_are_cancelled_at_any_moment() -> None:
    chance = random.Random(7)
    upstream = Upstream(limit=3, adapters=2, queue=1000)
    admission = upstream.admission
    most = 0

    async def request(adapter: str | None) -> None:
        nonlocal most
        if not admission.try_enter(adapter):
            place = admission.enqueue(adapter, "local")
            try:
                await place.wait()
            except BaseException:
                admission.leave(place)
                raise
        try:
            most = max(most, admission.held)
            assert admission.held <= 3
            assert admission.adapters <= 2
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            admission.release(adapter)

    async def load(adapter: str) -> None:
        async with admission.reserve(adapter):
            assert admission.adapters <= 2
            await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    for _ in range(2000):
        adapter = chance.choice([None, *"abcd"])
        body = load(adapter) if adapter is not None and chance.random() < 0.1 else request(adapter)
        tasks.append(asyncio.create_task(body))
        upstream.now += 0.2
        if chance.random() < 0.4:
            chance.choice(tasks[-20:]).cancel()
        if chance.random() < 0.6:
            await asyncio.sleep(0)
    done, pending = await asyncio.wait(tasks, timeout=LATE)
    assert not pending
    assert [task.exception() for task in done if not task.cancelled() and task.exception()] == []
    assert any(task.cancelled() for task in done)
    assert most == 3
    assert admission.held == admission.adapters == sum(admission.waiting.values()) == 0
