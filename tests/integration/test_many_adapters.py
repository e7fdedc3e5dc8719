"""A thousand adapters, of which an engine holds eight: everybody is answered, nobody waits longer than those before him
take, and what is measured of it is so."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate
from random import Random

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.dataplane.admission import TURN
from tests.fakes.lora_engine import LoraEngine
from tests.gateway import sample
from tests.integration.adapter_rig import Answer, Caller, Shelf, Town, town
from tests.patience import LATE
from tests.tiers import repeated

REGISTERED = 1000
ROOM = 8
CROWD = 24
NAMES = [f"bot-{number:04}" for number in range(REGISTERED)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """A store and a storage with a thousand adapters, for one gateway after the other."""
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    asyncio.run(shelf.stock({name: [number] for number, name in enumerate(NAMES)}))
    return shelf


@asynccontextmanager
async def running_with(
    shelf: Shelf, max_loras: int, load: str = "lazy", step: float = 0.02, **places: int
) -> AsyncIterator[tuple[Town, LoraEngine]]:
    """A gateway with these adapters before an engine with room for eight."""
    engine = LoraEngine(str(shelf.base), max_loras=max_loras, max_cpu_loras=ROOM, step=step)
    async with engine, town(shelf, engine, adapters={"load": load}, concurrency=places) as running:
        yield running, engine
        running.sound()


def zipf(count: int, exponent: float, seed: int) -> list[str]:
    """So many requests: the first name is the most popular, and most are hardly ever asked for."""
    weights = list(accumulate(1 / (rank + 1) ** exponent for rank in range(REGISTERED)))
    return Random(seed).choices(NAMES, cum_weights=weights, k=count)


class Watch:
    """Looks at the metrics all the time.  `most`: the highest that each of them was."""

    def __init__(self, running: Town) -> None:
        self.most: Counter[str] = Counter()
        self._running = running

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        async def look() -> None:
            caller = await self._running.caller()
            while True:
                page = (await caller.call("GET", "/metrics")).body.decode()
                for name in ("gateway_requests_waiting", "gateway_adapters_active", "gateway_requests_in_flight"):
                    self.most[name] = max(self.most[name], round(sample(page, name)))
                await asyncio.sleep(0.1)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait({looking})


async def ask_all(callers: Sequence[Caller], names: list[str], words: int) -> tuple[list[Answer], float]:
    """All of them, as many at once as there are callers; the answers, and the longest that somebody had to wait."""
    waiting, answers, longest = names[::-1], [], 0.0

    async def ask(caller: Caller) -> None:
        nonlocal longest
        while waiting:
            name, began = waiting.pop(), time.monotonic()
            answers.append(await caller.ask(name, words, within=12 * LATE))
            longest = max(longest, time.monotonic() - began)

    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(ask(caller))
    return answers, longest


def bound(engine: LoraEngine) -> float:
    """The longest that anybody may wait, by what this engine took for a load and an answer (`residency.residents` and
    `admission` say why): as many rounds as the crowd needs to have each had a place, and then one turn of the adapters
    that share the engine."""
    turn = TURN + engine.longest_answer
    rounds = math.ceil(CROWD / ROOM) * (turn + (ROOM + 1) * engine.longest_load)
    return rounds + math.ceil(ROOM / engine.max_loras) * turn + engine.longest_answer


def requests(page: str, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """A counter's samples, by these labels."""
    lines = "".join(f"{line}\n" for line in page.splitlines() if name.removesuffix("_total") in line)
    found: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(lines):
        for one in family.samples:
            if one.name == name:
                found[tuple(one.labels[label] for label in labels)] += round(one.value)
    return dict(found)


async def check_metrics(running: Town, engine: LoraEngine, answers: Sequence[Answer], watch: Watch) -> None:
    """They say what the engine and the crowd say."""
    page = (await (await running.caller()).call("GET", "/metrics")).body.decode()
    heard = Counter((answer.model, str(answer.adapter)) for answer in answers)
    assert requests(page, "gateway_requests_total", "model", "adapter", "status", "reason") == {
        (model, adapter, "200", "completed"): count for (model, adapter), count in heard.items()
    }
    assert requests(page, "gateway_adapter_requests_total", "adapter", "version", "reason") == {
        (*adapter.split("@"), "completed"): count for (_, adapter), count in heard.items()
    }
    assert engine.answered == {adapter: count for (_, adapter), count in heard.items()}
    assert sample(page, "gateway_adapter_state") == REGISTERED
    assert sample(page, "gateway_adapter_state", phase="Ready") == len(engine.adapters)
    # Whoever had an adapter loaded has waited for it; those that there was room for at first were loaded for nobody.
    waited = sample(page, "gateway_wait_seconds_count", reason="loading")
    assert len(engine.loads) - ROOM <= waited <= len(answers)
    for gauge in ("gateway_requests_waiting", "gateway_requests_in_flight", "gateway_adapters_active"):
        assert sample(page, gauge) == 0
    assert 0 < watch.most["gateway_requests_waiting"] <= CROWD, "they could be seen while they waited"
    assert 0 < watch.most["gateway_requests_in_flight"] <= CROWD
    assert 0 < watch.most["gateway_adapters_active"] <= engine.max_loras


@repeated(200, 10_000)
@pytest.mark.parametrize(("max_loras", "exponent", "load"), [(8, 1.0, "lazy"), (2, 2.0, "eager")])
async def test_everybody_is_answered_in_time_and_the_metrics_are_right(
    repetitions: int, max_loras: int, exponent: float, load: str, shelf: Shelf
) -> None:
    async with running_with(shelf, max_loras, load) as (running, engine):
        watch = Watch(running)
        async with watch.looking():
            answers, longest = await ask_all(await running.callers(CROWD), zipf(repetitions, exponent, seed=1), words=8)
        assert len(answers) == repetitions
        for answer in answers:
            assert answer.whole, answer
            assert answer.adapter == f"{answer.model}@{shelf.version(NAMES.index(answer.model))}"
        assert longest <= bound(engine)
        await check_metrics(running, engine, answers, watch)


async def test_who_finds_the_queue_full_hears_so_at_once_and_the_others_are_served(shelf: Shelf) -> None:
    async with running_with(shelf, max_loras=2, limit=2, queue=4) as (running, engine):
        callers = await running.callers(CROWD)
        answers = await asyncio.gather(*(caller.ask(name) for caller, name in zip(callers, NAMES[100:], strict=False)))
        served = [answer for answer in answers if answer.whole]
        assert len(served) == 2 + 4
        assert sum(engine.answered.values()) == len(served)
        for answer in answers:
            if answer not in served:
                assert answer.status == 503
                assert "model_loading" in answer.problem


async def test_adapters_that_nobody_asks_for_are_neither_loaded_nor_in_anybodys_way(shelf: Shelf) -> None:
    async with running_with(shelf, max_loras=2) as (running, engine):
        caller, mover = await running.caller(), await running.mover()
        assert len((await caller.call("GET", "/v1/models")).json["data"]) == REGISTERED + 1
        assert engine.loads == []
        for _ in range(3):
            assert (await caller.ask(NAMES[7])).whole
        rows = (await mover.call("GET", "/admin/v1/adapters")).json["data"]
        assert [row["name"] for row in rows if row["phase"] == "Ready"] == [NAMES[7]]
        assert len(rows) == REGISTERED
        assert engine.loads == [f"{NAMES[7]}@{shelf.version(7)}"]


async def test_the_page_of_metrics_is_written_beside_the_requests(shelf: Shelf) -> None:
    async with running_with(shelf, max_loras=2) as (running, _):
        assert running.gateway.inside is not None
        metrics, threads = running.gateway.inside.metrics, []
        write = metrics.exposition

        def exposition() -> bytes:
            threads.append(threading.current_thread())
            return write()

        metrics.exposition = exposition  # type: ignore[method-assign]
        async with asyncio.timeout(LATE):
            while await running.gateway.metric("gateway_adapter_state", phase="Unloaded") != REGISTERED:
                pass  # the engine was ready a moment ago
        assert threads
        assert threading.main_thread() not in threads, "half a second, in which nobody would be answered"
