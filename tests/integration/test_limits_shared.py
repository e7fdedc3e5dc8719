"""Several gateways count as one, through whatever becomes of the Valkey that they count in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.domain.limits import Meter, Unit
from gateway.domain.secret import Secret
from gateway.limits.grants import MINUTE, Bill, Denied, Grant, Spent
from gateway.limits.shared import Mode, SharedMeters
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.gateway import Running, gateway_process, running_gateway
from tests.integration.limited import answer, ask, body, configuration, running, statuses
from tests.patience import LATE
from tests.tiers import repeated
from tests.valkey import Valkey, valkey

_PROCESSES = 4
_REQUESTS = 500
_RECOVERY = 5.0  # seconds
_LEASE = 10_000  # milliseconds after which nothing is left of what a killed process held

PER_MINUTE = Meter("key:a/requests", "key:a", Unit.REQUESTS, 10)
PLACES = Meter("key:a/concurrent", "key:a", Unit.CONCURRENT, 10)
PLACES_OF_MANY = Meter("many", "key:many", Unit.CONCURRENT, 10_000)
BUDGET = Meter("key:a/token_budget/total", "key:a", Unit.TOKEN_BUDGET, 1000, "total")


class Book:
    """A ledger in which each test writes what was used."""

    def __init__(self, tokens: int = 0) -> None:
        self.tokens = tokens

    async def spent(self, scope: str, period: str) -> Spent:
        return Spent(self.tokens, 0)


class Gauge:
    """Hears each change of mode."""

    def __init__(self) -> None:
        self.mode: Mode | None = None
        self._changed = asyncio.Event()

    def __call__(self, mode: Mode) -> None:
        self.mode = mode
        self._changed.set()

    async def reaches(self, mode: Mode, within: float = LATE) -> None:
        async with asyncio.timeout(within):
            while self.mode != mode:
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def meters(
    server: Valkey, book: Book | None = None, *, timeout: float = LATE, replicas: int = 1, gauge: Gauge | None = None
) -> AsyncIterator[SharedMeters]:
    shared = SharedMeters(
        Secret(server.url), book or Book(), timeout=timeout, replicas=replicas, tell=gauge or (lambda mode: None)
    )
    await shared.start()
    try:
        yield shared
    finally:
        await shared.close()


async def admitted(shared: SharedMeters, meter: Meter, asked: int) -> list[Grant]:
    answers = await asyncio.gather(*(shared.acquire(Bill([meter]), 1, 0) for _ in range(asked)))
    return [each for each in answers if isinstance(each, Grant)]


async def killed(server: Valkey, shared: SharedMeters, gauge: Gauge) -> None:
    """Kills it, and returns when that was noticed."""
    server.kill()
    await admitted(shared, replace(PER_MINUTE, name="whoever asks next"), 1)
    await gauge.reaches("local")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of limits."""
    return [record.getMessage() for record in caplog.records if record.name == "gateway.limits"]


ALONE, AGAIN = "limits are counted in this process alone", "limits are shared again"


@repeated(quick=1, long=20)
async def test_four_gateways_admit_exactly_as_many_as_one_would(tmp_path: Path, repetitions: int) -> None:
    request = len(json.dumps(body(max_tokens=5)).encode()) // 4 + 5
    keys = {
        "places": {"concurrent": 100},
        "rate": {"requests_per_minute": 5},  # another one every 12 seconds
        "tokens": {"tokens_per_minute": 5 * request},
    }
    secrets = {name: f"gw-{name}-8d2f6b1c90e7" for name in keys}
    expected = {"places": 100, "rate": 5, "tokens": 5}
    models = {"m": Script(), "held": Script(on_demand=True)}
    async with OpenAIUpstream(models) as upstream:
        with valkey(tmp_path) as server, server.client() as client, contextlib.ExitStack() as processes:
            config = configuration(
                upstream,
                keys=[{"name": name, "key": secrets[name], "limits": limits} for name, limits in keys.items()],
                url=server.url,
            )
            gateways: list[Running] = []
            for number in range(_PROCESSES):
                folder = tmp_path / str(number)
                folder.mkdir()
                gateways.append(processes.enter_context(gateway_process(config, folder)))
            await asyncio.gather(*(gateway.ready() for gateway in gateways))
            for _ in range(repetitions):
                for name, count in expected.items():
                    client.flushall()
                    upstream.ledger.clear()
                    began = time.monotonic()
                    held = name != "rate"  # what ends gives its tokens back, and its place
                    asked = [
                        asyncio.create_task(
                            ask(
                                gateways[number % _PROCESSES].url,
                                key=secrets[name],
                                model="held" if held else "m",
                                stream=held,
                                max_tokens=5,
                            )
                        )
                        for number in range(_REQUESTS)
                    ]
                    if held:
                        await running(upstream, count)
                        async with asyncio.timeout(6 * LATE):
                            while sum(map(asyncio.Task.done, asked)) < _REQUESTS - count:
                                await asyncio.sleep(0.01)  # each is refused or runs
                        await answer(upstream)
                    found = await statuses(asked)
                    more = (
                        0 if name == "places" else int((time.monotonic() - began) / 12)
                    )  # what a slow machine gives time for
                    assert count <= found[200] <= count + more, (name, found)
                    assert found[200] + found[429] == _REQUESTS


@repeated(quick=1, long=20)
async def test_a_budget_for_fifty_pays_for_fifty_of_two_hundred_at_four_gateways(
    tmp_path: Path, repetitions: int
) -> None:
    meter = replace(BUDGET, limit=50 * 31)
    with valkey(tmp_path) as server:
        async with contextlib.AsyncExitStack() as stack:
            four = [await stack.enter_async_context(meters(server)) for _ in range(_PROCESSES)]
            for _ in range(repetitions):
                with server.client() as client:
                    client.flushall()
                answers = await asyncio.gather(
                    *(four[n % _PROCESSES].acquire(Bill([meter]), 31, 0) for n in range(200))
                )
                granted = [(n, each) for n, each in enumerate(answers) if isinstance(each, Grant)]
                assert len(granted) == 50
                for number, grant in granted:
                    four[number % _PROCESSES].release(grant, 30, 0)
                # 50 tokens are left, whoever asks for them, and not one more.
                denied = await four[3].acquire(Bill([replace(meter, name=meter.name)]), 51, 0)
                assert isinstance(denied, Denied)
                last = await four[0].acquire(Bill([meter]), 50, 0)
                assert isinstance(last, Grant)
                four[0].release(last, 50, 0)
                denied = await four[1].acquire(Bill([meter]), 1, 0)
                assert isinstance(denied, Denied)
                assert (denied.spent, denied.remaining) == (meter.limit, 0)


@repeated(quick=1, long=20)
async def test_what_a_killed_gateway_held_is_free_after_ten_seconds(tmp_path: Path, repetitions: int) -> None:
    places, budget = replace(PLACES, name="key:one/concurrent", limit=3), replace(BUDGET, limit=3 * 4200)
    async with OpenAIUpstream({"m": Script(on_demand=True)}) as upstream:
        with valkey(tmp_path) as server, server.client() as client:
            limits = {"limits": {"concurrent": 3}, "budgets": [{"tokens": budget.limit, "per": "total"}]}
            config = configuration(upstream, key=limits, url=server.url)
            budget = replace(budget, name="key:one/token_budget/total")
            async with meters(server) as survivor:
                for number in range(repetitions):
                    client.flushall()
                    upstream.ledger.clear()
                    folder = tmp_path / str(number)
                    folder.mkdir()
                    with gateway_process(config, folder) as gateway:
                        await gateway.ready()
                        asked = [asyncio.create_task(ask(gateway.url, stream=True)) for _ in range(3)]
                        await running(upstream, 3)
                        assert not await admitted(survivor, places, 1)
                        assert isinstance(await survivor.acquire(Bill([budget]), 1000, 0), Denied)
                        assert gateway.process is not None
                        gateway.process.kill()
                        gateway.process.wait()
                        seconds, fraction = client.time()
                        killed = seconds * 1000 + fraction // 1000
                        leases = client.zrange("{lora-gateway}:1:key:one/concurrent", 0, -1, withscores=True)
                        assert [ends - killed <= _LEASE for _, ends in leases] == [True] * 3
                        await asyncio.wait(asked)
                        freed: list[Grant] = []
                        async with asyncio.timeout(_LEASE / 1000 + LATE):
                            while len(freed) < 3:
                                freed += await admitted(survivor, places, 1)
                                await asyncio.sleep(0.05)  # until then it is refused
                        whole = await survivor.acquire(Bill([budget]), budget.limit, 0)
                        assert isinstance(whole, Grant), whole
                        for grant in (*freed, whole):
                            survivor.release(grant, 0, 0)


@repeated(quick=0, long=60)
async def test_a_gateway_serves_on_while_valkey_is_frozen_killed_and_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, repetitions: int
) -> None:
    """`repetitions`: seconds of each outage, beyond those in which it serves fifty."""
    caplog.set_level(logging.INFO)
    async with OpenAIUpstream() as upstream:
        with valkey(tmp_path) as server:
            config = configuration(
                upstream,
                key={"limits": {"requests_per_minute": 1_000_000, "concurrent": 500}},
                url=server.url,
                timeout=0.25,
            )
            async with running_gateway(config, tmp_path) as gateway:
                logging.getLogger("gateway").propagate = True
                seen: list[int] = []
                loading = asyncio.create_task(_load(gateway.url, seen))
                try:
                    for stop, start in ((server.freeze, server.thaw), (server.kill, server.start)):
                        stop()
                        await _mode(gateway, "local", 2 * LATE)
                        before, until = len(seen), time.monotonic() + repetitions
                        while len(seen) < before + 50 or time.monotonic() < until:
                            await asyncio.sleep(0.01)  # it serves meanwhile
                        start()
                        began = time.monotonic()
                        await _mode(gateway, "shared", _RECOVERY + LATE)
                        assert time.monotonic() - began < _RECOVERY
                finally:
                    loading.cancel()
                    await asyncio.wait([loading])
                assert set(seen) == {200}
                assert lines(caplog) == [ALONE, AGAIN, ALONE, AGAIN]


async def _load(url: str, seen: list[int]) -> None:
    async def one() -> None:
        while True:
            seen.append((await ask(url)).status)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(one())


async def _mode(gateway: Running, mode: str, within: float) -> None:
    async with asyncio.timeout(within):
        while await gateway.metric("gateway_limits_mode", mode=mode) != 1:
            await asyncio.sleep(0.02)  # a gauge has no event to wait for


@repeated(quick=1, long=10)
async def test_a_gateway_that_starts_without_valkey_serves_and_joins_when_it_comes(
    tmp_path: Path, repetitions: int
) -> None:
    async with OpenAIUpstream() as upstream:
        for number in range(repetitions):
            folder = tmp_path / str(number)
            folder.mkdir()
            with valkey(folder, started=False) as server:
                config = configuration(upstream, key={"limits": {"requests_per_minute": 4}}, url=server.url, replicas=2)
                async with running_gateway(config, folder) as gateway:
                    assert await statuses([asyncio.create_task(ask(gateway.url)) for _ in range(6)]) == {200: 2, 429: 4}
                    assert await gateway.metric("gateway_limits_mode", mode="local") == 1
                    server.start()
                    began = time.monotonic()
                    await _mode(gateway, "shared", 10 + LATE)
                    assert time.monotonic() - began < 10
                    # It told what it had admitted, and of the others it knows now that there are none.
                    assert await statuses([asyncio.create_task(ask(gateway.url)) for _ in range(6)]) == {200: 2, 429: 4}


async def test_alone_each_process_grants_its_part_and_tells_it_when_it_is_not_alone_any_more(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        gauges = [Gauge(), Gauge()]
        async with meters(server, gauge=gauges[0]) as one, meters(server, gauge=gauges[1]) as two:
            assert len(await admitted(one, PER_MINUTE, 4)) == 4
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LATE):
                    while one._share != 2:  # until it has heard of the other
                        await asyncio.sleep(0.05)
            await killed(server, one, gauges[0])
            await killed(server, two, gauges[1])
            assert [len(await admitted(each, PER_MINUTE, 20)) for each in (one, two)] == [5, 5]
            server.start()
            for gauge in gauges:
                await gauge.reaches("shared", _RECOVERY + LATE)
            assert isinstance(await two.acquire(Bill([PER_MINUTE]), 1, 0), Denied)


async def test_what_was_used_alone_makes_nobody_wait_longer_than_a_minute_however_often_it_is_told(
    tmp_path: Path,
) -> None:
    with valkey(tmp_path) as server:
        gauge = Gauge()
        async with meters(server, gauge=gauge) as one:
            await killed(server, one, gauge)
            assert len(await admitted(one, PER_MINUTE, 20)) == 10
            told = one.greeting()
            server.start()
            await gauge.reaches("shared", _RECOVERY + LATE)
            for _ in range(3):  # as after greetings that were heard, and whose answers were not
                for call in told:
                    await one._link.call(call)
            denied = await one.acquire(Bill([PER_MINUTE]), 1, 0)
            assert isinstance(denied, Denied)
            assert denied.retry_after is not None
            assert denied.retry_after <= 6


async def test_places_that_are_held_through_an_outage_are_held_after_it(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        gauge = Gauge()
        async with meters(server, gauge=gauge) as one:
            grants = await admitted(one, PLACES, 6)
            await killed(server, one, gauge)
            grants += await admitted(one, PLACES, 6)
            assert len(grants) == 10
            one.release(grants.pop(0), 0, 0)
            one.release(grants.pop(), 0, 0)
            server.start()
            await gauge.reaches("shared", _RECOVERY + LATE)
            assert len(await admitted(one, PLACES, 6)) == 2
            for grant in grants:
                one.release(grant, 0, 0)
            assert len(await admitted(one, PLACES, 20)) == 8


@pytest.mark.parametrize("keeps", [True, False], ids=["with its data", "empty"])
async def test_a_valkey_that_comes_back_knows_what_was_spent(tmp_path: Path, keeps: bool) -> None:
    with valkey(tmp_path, keeps=keeps) as server:
        gauge, book = Gauge(), Book()
        async with meters(server, book, gauge=gauge) as one:
            for _ in range(3):
                (grant,) = await admitted(one, BUDGET, 1)
                one.release(grant, 100, 0)
                book.tokens += 100
            (open_,) = await admitted(one, BUDGET, 1)
            await killed(server, one, gauge)
            one.release(open_, 50, 0)
            book.tokens += 50
            server.start()
            await gauge.reaches("shared", _RECOVERY + LATE)
            denied = await one.acquire(Bill([BUDGET]), 651, 0)
            assert isinstance(denied, Denied)
            assert (denied.spent, denied.remaining) == (350, 650)


async def test_while_it_counts_alone_nobody_waits(tmp_path: Path) -> None:
    with valkey(tmp_path, started=False) as server:
        gauge = Gauge()
        async with meters(server, gauge=gauge) as one:
            await gauge.reaches("local")
            for _ in range(100):
                asking = one.acquire(Bill([PER_MINUTE, PLACES]), 1, 0)
                with pytest.raises(StopIteration):
                    asking.send(None)  # it is through without having waited once


async def test_whoever_leaves_while_asking_takes_nobodys_answer_and_leaves_nothing_held(tmp_path: Path) -> None:
    dice = random.Random(4)
    with valkey(tmp_path) as server, server.client() as client:
        async with meters(server) as one:
            for _ in range(20):
                limits = [dice.randrange(1, 10**6) for _ in range(100)]
                asked = [
                    asyncio.create_task(
                        one.acquire(Bill([replace(PER_MINUTE, name=f"k{limit}", limit=limit), PLACES_OF_MANY]), 1, 0)
                    )
                    for limit in limits
                ]
                for task in dice.sample(asked, 50):
                    for _ in range(dice.randrange(3)):
                        await asyncio.sleep(0)
                    task.cancel()
                for limit, each in zip(limits, await asyncio.gather(*asked, return_exceptions=True), strict=True):
                    if not isinstance(each, asyncio.CancelledError):
                        assert isinstance(each, Grant)
                        assert each.rate_of_requests is not None
                        its, level = each.rate_of_requests
                        assert its == limit
                        assert 0 < level <= limit * MINUTE
                        one.release(each, 0, 0)
                client.flushdb()
            grants = await admitted(one, PLACES_OF_MANY, 7)
            assert len(client.zrange("{lora-gateway}:1:many", 0, -1)) == 7
            for grant in grants:
                one.release(grant, 0, 0)


async def test_a_password_opens_and_a_wrong_one_is_said_without_being_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with valkey(tmp_path, password="correct-horse-7431") as server:
        gauge = Gauge()
        async with meters(server, gauge=gauge) as one:
            assert gauge.mode == "shared"
            assert len(await admitted(one, PER_MINUTE, 20)) == 10
        logging.getLogger("gateway").propagate = True
        server.url = server.url.replace("correct-horse", "wrong-horse")
        async with meters(server, gauge=gauge):
            await gauge.reaches("local")
            async with asyncio.timeout(LATE):
                while not caplog.records:
                    await asyncio.sleep(0.02)  # until it gives up
        (record,) = [record for record in caplog.records if record.name == "gateway.limits"]
        assert "horse" not in f"{record.__dict__}"


async def test_a_script_that_valkey_has_forgotten_is_told_again(tmp_path: Path) -> None:
    with valkey(tmp_path) as server, server.client() as client:
        async with meters(server) as one:
            assert len(await admitted(one, PER_MINUTE, 4)) == 4
            client.script_flush()
            assert len(await admitted(one, PER_MINUTE, 20)) == 6
