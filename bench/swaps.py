"""What it takes to publish a version of an adapter while people chat: `python -m bench.swaps` from the root.

A gateway process, an engine of the tests' own kind (tests/fakes/lora_engine.py), adapters of rank 16 in the shapes of
SmolLM2.  Three figures: from the call that moves a name, and from its being accepted, to the first answer of the
version that it leads to; from `add` to Ready; the time to first byte of everybody else while names move, beside quiet
moments of the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fakes.adapter_corpus import SMOLLM2, Craft, write_base
from tests.fakes.lora_engine import LoraEngine
from tests.gateway import ADMIN_KEY, CLIENT_KEY, gateway_process
from tests.integration.adapter_rig import Mover
from tests.voices import packed
from tests.wire import Wire, connected

RANK = 16
MOVES, ADDS = 500, 20
ROUNDS, SECONDS = 8, 5.0  # a quiet moment and a restless one in each round
TALKERS, PACE = 16, 0.05  # each of whom asks so many seconds after the last answer
MOVE_EVERY = 0.1  # seconds, in a restless moment
QUESTION = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1, "stream": True}


async def first_byte(wire: Wire, model: str) -> float:
    """Milliseconds from a question to the head of its answer, which comes with its first byte."""
    began = time.perf_counter()
    await wire.post("/v1/chat/completions", {"model": model, **QUESTION}, [("authorization", f"Bearer {CLIENT_KEY}")])
    head = await wire.head()
    took = (time.perf_counter() - began) * 1000
    reply = await wire.rest(*head)
    assert reply.status == 200, reply
    return took


def contents(folder: Path, count: int) -> list[bytes]:
    """So many adapters, packed for the upload."""
    craft = Craft(SMOLLM2)
    craft.config["r"] = RANK
    craft.tensors.clear()
    for module in SMOLLM2.modules():
        craft.factors(module, RANK)
    first = next(iter(craft.tensors))
    archives = []
    for number in range(count):
        craft.poke(first, 1 + number / 1024, index=0)
        craft.write(folder / str(number))
        archives.append(packed(folder / str(number)))
    return archives


async def move(mover: Mover, versions: Sequence[str], number: int) -> None:
    if number % 2:
        await mover.rollback("bot")
    else:
        await mover.promote("bot", versions[1])


async def moves(mover: Mover, wire: Wire, versions: Sequence[str]) -> tuple[list[float], list[float]]:
    """Milliseconds of each call, and from its being accepted to the first byte of the next answer."""
    calls, answers = [], []
    for number in range(MOVES):
        began = time.perf_counter()
        await move(mover, versions, number)
        calls.append((time.perf_counter() - began) * 1000)
        answers.append(await first_byte(wire, "bot"))
    return calls, answers


async def others(wires: Sequence[Wire], seconds: float) -> list[float]:
    """Milliseconds to the first byte of those who ask for the base model meanwhile."""
    until = time.monotonic() + seconds
    took: list[float] = []

    async def talk(wire: Wire, number: int) -> None:
        await asyncio.sleep(PACE * number / len(wires))
        while time.monotonic() < until:
            took.append(await first_byte(wire, "base"))
            await asyncio.sleep(PACE)

    await asyncio.gather(*(talk(wire, number) for number, wire in enumerate(wires)))
    return took


async def unrest(mover: Mover, versions: Sequence[str], seconds: float) -> None:
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until or number % 2:
        await move(mover, versions, number)
        await asyncio.sleep(MOVE_EVERY)
        number += 1


def line(what: str, took: Sequence[float]) -> str:
    cuts = statistics.quantiles(took, n=100)
    return f"{what:<58} {cuts[49]:8.2f} {cuts[98]:8.2f} {max(took):8.2f} {len(took):7}"


async def measure(folder: Path) -> None:
    base = write_base(folder / "base", SMOLLM2, weights=False)
    archives = contents(folder / "drafts", 2 + ADDS)
    async with (
        LoraEngine(str(base), step=0.001, max_cpu_loras=ADDS + 4) as engine,
        contextlib.AsyncExitStack() as stack,
    ):
        config = {
            "log": {"level": "warning"},
            "upstreams": [{"name": "box", "kind": "vllm", "base_url": engine.url}],
            "adapters": {"store": str(folder / "store"), "keep_versions": 100},
        }
        gateway = stack.enter_context(gateway_process(config, folder))
        await gateway.ready()

        async def wire() -> Wire:
            return await stack.enter_async_context(connected(gateway.url))

        mover = Mover(await wire(), ADMIN_KEY)
        versions = [await mover.add("bot", archive) for archive in archives[:2]]
        await mover.promote("bot", versions[0])
        for model in ("base", "bot"):
            for _ in range(50):
                await first_byte(await wire(), model)
        print(f"{'milliseconds':<58} {'p50':>8} {'p99':>8} {'max':>8} {'times':>7}")
        usual = [await first_byte(one, "bot") for one in [await wire()] for _ in range(MOVES)]
        print(line("an answer's first byte, when nothing moves", usual))
        calls, answers = await moves(mover, await wire(), versions)
        print(line("the call that moves a name (promote, rollback)", calls))
        print(line("from its being accepted to the next answer's first byte", answers))
        both = [sum(each) for each in zip(calls, answers, strict=True)]
        print(line("both together", both))
        talkers = [await wire() for _ in range(TALKERS)]
        quiet: list[float] = []
        restless: list[float] = []
        ratios = []
        for _ in range(ROUNDS):
            calm = await others(talkers, SECONDS)
            stirred, _ = await asyncio.gather(others(talkers, SECONDS), unrest(mover, versions, SECONDS))
            ratios.append(statistics.quantiles(stirred, n=100)[98] / statistics.quantiles(calm, n=100)[98])
            quiet += calm
            restless += stirred
        print(line("others' first byte, while nothing moves", quiet))
        print(line(f"others' first byte, while a name moves every {MOVE_EVERY:g} s", restless))
        added = []
        for archive in archives[2:]:
            began = time.perf_counter()
            await mover.add("bot", archive)
            added.append((time.perf_counter() - began) * 1000)
        print(line(f"from add to Ready, rank {RANK}, {len(archives[0]) / 2**20:.1f} MiB", added))
        print(f"others, restless ÷ quiet, p99, median of {ROUNDS} rounds: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder)))
    sys.exit(0)
