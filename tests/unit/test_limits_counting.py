"""What meters promise, in this process and in Valkey alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.domain.limits import MAX_BUDGET, MAX_RATE, Allowance, Budget, Limits, Meter, Unit, meters_of
from gateway.domain.secret import Secret
from gateway.limits.grants import MINUTE, Bill, Denied, Grant, Spent
from gateway.limits.memory import DEBT, Counts, MemoryMeters
from gateway.limits.script import LEASE, SCRIPT
from gateway.limits.shared import SharedMeters
from tests.patience import LATE
from tests.valkey import Valkey, valkey

PER_MINUTE = Meter("key:a/requests", "key:a", Unit.REQUESTS, 30)
TOKENS = Meter("key:a/tokens", "key:a", Unit.TOKENS, 1000)
PLACES = Meter("key:a/concurrent", "key:a", Unit.CONCURRENT, 3)
BUDGET = Meter("key:a/token_budget/total", "key:a", Unit.TOKEN_BUDGET, 5000, "total")
MONEY = Meter("key:a/money_budget/total", "key:a", Unit.MONEY_BUDGET, 70_000, "total")
ALL = (PER_MINUTE, TOKENS, PLACES, BUDGET, MONEY)


class Book:
    """A ledger that says the same of everybody."""

    def __init__(self, tokens: int = 0, micros: int = 0) -> None:
        self.said = Spent(tokens, micros)
        self.asked: list[tuple[str, str]] = []

    async def spent(self, scope: str, period: str) -> Spent:
        self.asked.append((scope, period))
        return self.said


def granted(answer: object) -> Grant:
    assert isinstance(answer, Grant), answer
    return answer


def take(counts: Counts, meter: Meter, amount: int, now: int) -> Grant | None:
    answer = counts.take(Bill([meter]), amount, amount, now)
    return answer if isinstance(answer, Grant) else None


@given(
    limit=st.integers(1, 200),
    steps=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 50)), min_size=1, max_size=120),
)
def test_in_no_interval_is_more_admitted_than_a_minutes_worth_and_the_rate(limit: int, steps: list[tuple[int, int]]):
    meter = replace(TOKENS, limit=limit)
    counts, now, admitted = Counts(), 0, list[tuple[int, int]]()
    for wait, amount in steps:
        now += wait
        if take(counts, meter, amount, now):
            admitted.append((now, min(amount, limit)))
    for first in range(len(admitted)):
        total = 0
        for at, amount in admitted[first:]:
            total += amount
            assert total * MINUTE <= limit * MINUTE + limit * (at - admitted[first][0])


@given(limit=st.integers(1, 500), asked=st.integers(1, 600))
def test_a_burst_is_a_minutes_worth_to_the_last_request(limit: int, asked: int):
    counts = Counts()
    meter = replace(PER_MINUTE, limit=limit)
    assert sum(take(counts, meter, 1, 5) is not None for _ in range(asked)) == min(limit, asked)


def test_who_waits_as_long_as_told_is_admitted_and_a_millisecond_earlier_is_not():
    counts, meter = Counts(), replace(PER_MINUTE, limit=7)
    for _ in range(7):
        assert take(counts, meter, 1, 0)
    denied = counts.take(Bill([meter]), 1, 0, 0)
    assert isinstance(denied, Denied)
    assert denied.retry_after is not None
    wait = round(denied.retry_after * 1000)
    assert take(counts, meter, 1, wait - 1) is None
    assert take(counts, meter, 1, wait)


def test_when_one_meter_says_no_nothing_is_taken_from_the_others():
    counts = Counts()
    counts.seed(BUDGET, 4999, 0)
    counts.seed(MONEY, 0, 0)
    for _ in range(100):
        denied = counts.take(Bill(ALL), 2, 5, 0)
        assert isinstance(denied, Denied)
        assert denied.meter is BUDGET
    granted(counts.take(Bill(ALL), 1, 70_000, 0))
    assert take(counts, TOKENS, 999, 0)


def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_taken():
    counts = Counts()
    granted_ = granted(counts.take(Bill([TOKENS]), 1000, 0, 0))
    assert take(counts, TOKENS, 1, 0) is None
    counts.give_back(granted_, 300, 0, 0)
    assert take(counts, TOKENS, 701, 0) is None
    second = take(counts, TOKENS, 700, 0)
    assert second is not None
    counts.give_back(second, 2700, 0, 0)  # 2000 more than it was let in for
    assert take(counts, TOKENS, 1, 119_999) is None
    assert take(counts, TOKENS, 1, 121_000)


def test_what_has_drained_meanwhile_is_not_given_back_again():
    counts = Counts()
    old = granted(counts.take(Bill([TOKENS]), 1000, 0, 0))
    assert take(counts, TOKENS, 1000, MINUTE)
    counts.give_back(old, 0, 0, MINUTE)
    assert take(counts, TOKENS, 1, MINUTE) is None


def test_settling_twice_gives_back_once():
    counts = Counts()
    first, second = (granted(counts.take(Bill([PLACES]), 1, 0, 0)) for _ in range(2))
    for _ in range(5):
        counts.give_back(first, 0, 0, 0)
    assert take(counts, PLACES, 1, 0)
    assert take(counts, PLACES, 1, 0)
    assert take(counts, PLACES, 1, 0) is None
    counts.give_back(second, 0, 0, 0)
    assert take(counts, PLACES, 1, 0)


@given(
    amounts=st.lists(st.integers(0, 2**63), min_size=1, max_size=10),
    used=st.integers(0, 2**40),
    limit=st.sampled_from([1, 7, MAX_RATE]),
)
def test_no_amount_makes_a_meter_negative_or_overflow(amounts: list[int], used: int, limit: int):
    counts = Counts()
    bill = Bill(replace(meter, limit=limit) for meter in ALL)
    for meter in bill.budgets:
        counts.seed(meter, 0, 0)
    for now, amount in enumerate(amounts):
        answer = counts.take(bill, amount, min(amount, MAX_BUDGET), now)
        assert not isinstance(answer, tuple)
        if isinstance(answer, Denied):
            assert 0 <= answer.remaining <= limit
            assert answer.retry_after is None or 0 < answer.retry_after <= 3600
        else:
            for standing in (answer.rate_of_requests, answer.rate_of_tokens):
                assert standing is not None
                assert 0 <= standing[1] <= limit * MINUTE
            counts.give_back(answer, used, used, now)


def test_meters_that_nobody_uses_are_forgotten():
    counts = Counts()
    for number in range(20_000):
        meter = replace(PER_MINUTE, name=f"user:{number}/requests")
        assert take(counts, meter, 1, number * 10_000)
    assert len(counts) < 500  # 60 come in the ten minutes that one is remembered, and slack


def test_a_debt_is_not_forgotten_by_a_limit_that_was_there_before():
    counts, meter = Counts(), replace(TOKENS, limit=2)
    assert take(counts, replace(meter, limit=MAX_RATE), 1, 0)
    grant = take(counts, meter, 2, MINUTE)
    assert grant is not None
    counts.give_back(grant, 100, 0, MINUTE)  # most of an hour's worth
    for number in range(5):
        assert take(counts, replace(PER_MINUTE, name=f"user:{number}/requests"), 1, 12 * MINUTE)
    assert take(counts, meter, 1, 12 * MINUTE) is None


def test_who_comes_back_after_his_meter_was_forgotten_is_counted_with_everybody_else_on_it():
    counts, meter = Counts(), replace(PER_MINUTE, limit=1)
    his, others = Bill([meter]), Bill([meter])
    granted(counts.take(his, 1, 0, 0))
    for number in range(5):
        assert take(counts, replace(PER_MINUTE, name=f"user:{number}/requests"), 1, 11 * MINUTE)
    assert len(counts) == 5, "his is not forgotten"
    granted(counts.take(others, 1, 0, 11 * MINUTE))
    assert isinstance(counts.take(his, 1, 0, 11 * MINUTE), Denied)


async def test_a_budget_begins_with_what_the_ledger_says_and_asks_it_once():
    book = Book(tokens=4990)
    meters = MemoryMeters(book)
    assert isinstance(await meters.acquire(Bill([BUDGET]), 11, 0), Denied)
    grant = granted(await meters.acquire(Bill([BUDGET]), 10, 0))
    meters.release(grant, 3, 0)
    granted(await meters.acquire(Bill([BUDGET]), 7, 0))
    assert isinstance(await meters.acquire(Bill([BUDGET]), 1, 0), Denied)
    assert book.asked == [("key:a", "total")]


async def test_a_top_up_is_refused_whole_where_one_budget_cannot_pay_it():
    meters = MemoryMeters(Book())
    grant = granted(await meters.acquire(Bill([BUDGET, MONEY]), 1000, 60_000))
    assert await meters.top_up(grant, 1000, 10_000) is None
    denied = await meters.top_up(grant, 1000, 1)
    assert isinstance(denied, Denied)
    assert denied.meter is MONEY
    assert (grant.tokens, grant.micros) == (2000, 70_000)


def test_periods_are_named_and_end_by_the_calendar_in_utc():
    allowance = Allowance(
        Limits(requests_per_minute=5),
        (Budget(1, 2, "day"), Budget(None, 3, "month"), Budget(4, None, "total")),
    )
    december = 20_818  # 2026-12-31
    assert [(m.name, m.limit, m.ends) for m in meters_of("user:u", allowance, december)] == [
        ("user:u/requests", 5, 0),
        ("user:u/money_budget/2026-12-31", 1, 1_798_761_600),
        ("user:u/token_budget/2026-12-31", 2, 1_798_761_600),
        ("user:u/token_budget/2026-12", 3, 1_798_761_600),
        ("user:u/money_budget/total", 4, 0),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


# So small that sequences reach every edge: one request a minute's third, a token each three seconds.
_SMALL = tuple(replace(meter, limit=limit) for meter, limit in zip(ALL, (3, 20, 2, 60, 700), strict=True))
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([1, 999, 1000, 2999, 3000, 3001, 19_999, 20_000, 30_000])),
        st.tuples(st.just("take"), st.integers(1, 24)),
        st.tuples(st.just("take"), st.integers(1, 24)),
        st.tuples(st.just("more"), st.integers(1, 20)),
        st.tuples(st.just("end"), st.integers(0, 45)),
    ),
    min_size=10,
    max_size=40,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS, parts=st.sets(st.sampled_from(range(5)), min_size=1))
async def test_valkey_and_memory_decide_the_same(server: Valkey, steps: list[tuple[str, int]], parts: set[int]):
    with server.client() as client:
        client.flushall()
    now = 1_800_000_000_000
    shared = SharedMeters(Secret(server.url), Book(5, 50), timeout=LATE, now=lambda: now)
    memory = MemoryMeters(Book(5, 50), lambda: now)
    bill = Bill(_SMALL[part] for part in sorted(parts))
    held: list[tuple[Grant, Grant]] = []
    await shared.start()
    try:
        for step, amount in steps:
            if step == "wait":
                now += amount
                shared.renew()
            elif step == "take":
                ours, theirs = [await meters.acquire(bill, amount, amount) for meters in (shared, memory)]
                if isinstance(ours, Grant) and isinstance(theirs, Grant):
                    assert ours.rate_of_requests == theirs.rate_of_requests
                    assert ours.rate_of_tokens == theirs.rate_of_tokens
                    held.append((ours, theirs))
                else:
                    assert ours == theirs
            elif held and step == "more":
                ours, theirs = held[amount % len(held)]
                assert await shared.top_up(ours, amount, amount) == await memory.top_up(theirs, amount, amount)
                assert (ours.tokens, ours.micros) == (theirs.tokens, theirs.micros)
            elif held:
                ours, theirs = held.pop(amount % len(held))
                shared.release(ours, amount, 10 * amount)
                memory.release(theirs, amount, 10 * amount)
    finally:
        await shared.close()


async def test_every_key_in_valkey_goes_away_by_itself(server: Valkey):
    with server.client() as client:
        client.flushall()
        shared = SharedMeters(Secret(server.url), Book(), timeout=LATE)
        await shared.start()
        try:
            grant = granted(await shared.acquire(Bill(ALL), 10, 10))
            await shared.top_up(grant, 5, 5)
            shared.renew()
            shared.release(grant, 3, 3)
            granted(await shared.acquire(Bill(ALL), 10, 10))
            keys = list(client.scan_iter())
            assert len(keys) == len(ALL) + 1
            assert all(client.ttl(key) > 0 for key in keys), {key: client.ttl(key) for key in keys}
            assert all(key.startswith("{lora-gateway}:") for key in keys)
        finally:
            await shared.close()


def test_the_script_counts_with_the_numbers_of_the_gateway():
    assert f"MINUTE, DEBT, LEASE, DAY = {MINUTE}, {DEBT}, {LEASE}, 86400000" in SCRIPT
