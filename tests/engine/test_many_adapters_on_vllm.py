"""More adapters than the engine computes with at once, and than it keeps: everybody is answered, and rightly."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from itertools import chain, count
from pathlib import Path

import pytest

from tests.engine.crowd import LONGEST, Crowd, Registrar, Signpost
from tests.real import BASE, JSON, PIRATE, Served
from tests.voices import SENTENCES, packed, variant

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(LONGEST * 3)]

NAMES = [f"singer-{number}" for number in range(12)]
COMPUTED, KEPT = 2, 8  # --max-loras and --max-cpu-loras that the engine was made with, for its two first adapters
PEOPLE = 16
QUESTIONS = 120
ZIPF = [1 / (1 + rank) for rank in range(len(NAMES))]
WAITED = "gateway_wait_seconds_count"
DEFERRED = "vllm:num_requests_waiting_by_reason"


@pytest.fixture
async def singers(real: Served, voices: dict[str, Path], tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """Twelve adapters, half of each voice and no two alike: name → version, as an engine names it."""
    registrar = Registrar(real.gateway)
    folders = list(voices.values())

    async def add(number: int) -> str:
        content = packed(variant(folders[number % 2], 100 + number, tmp_path / NAMES[number]))
        return f"{NAMES[number]}@{await registrar.add(NAMES[number], content, within=LONGEST)}"

    added = []
    for number in range(0, len(NAMES), 3):
        added += await asyncio.gather(*(add(n) for n in range(number, number + 3)))
    yield dict(zip(NAMES, added, strict=True))
    for name in NAMES:
        await registrar.remove(name)
    await asyncio.to_thread(real.wait_for_models, PIRATE, JSON)


async def test_twelve_adapters_share_two_places_and_nobody_starves(real: Served, singers: dict[str, str]) -> None:
    line = real.engine.cmdline()
    assert [line[line.index(flag) + 1] for flag in ("--max-loras", "--max-cpu-loras")] == [str(COMPUTED), str(KEPT)]
    sentences = {version: {list(SENTENCES.values())[NAMES.index(name) % 2]} for name, version in singers.items()}
    crowd = Crowd(real.gateway, sentences, {name: Signpost(version) for name, version in singers.items()})
    rng = random.Random(4711)
    choices = chain(rng.sample(NAMES, len(NAMES)), (rng.choices(NAMES, ZIPF)[0] for _ in count()))
    computed, kept, deferred = [], [], []
    waits = await asyncio.to_thread(real.metric, WAITED, upstream="local", reason="adapter")

    def look() -> None:
        computed.append(real.metric("gateway_adapters_active", upstream="local"))
        kept.append(len([m for m in real.engine_page("/v1/models").json()["data"] if m["parent"] is not None]))
        deferred.append(real.engine_metric(DEFERRED, reason="deferred"))

    async with crowd.chatting(*[lambda: next(choices)] * (PEOPLE - 2), *[lambda: BASE] * 2):
        while len(crowd.told) < QUESTIONS:
            await crowd.hear(5)
            await asyncio.to_thread(look)

    assert not crowd.wrong
    asked = Counter(told.model for told in crowd.told)
    del asked[BASE]
    assert set(asked) == set(NAMES), "all were asked for, the rarest too"
    assert max(computed) <= COMPUTED
    assert max(kept) <= KEPT
    assert not any(deferred), "the engine was sent more adapters than it computes with"
    for name, version in singers.items():
        counted = await asyncio.to_thread(
            real.metric, "gateway_adapter_requests_total", adapter=name, version=version.partition("@")[2],
            reason="completed",
        )  # fmt: skip
        assert counted == asked[name]
    assert await asyncio.to_thread(real.metric, WAITED, upstream="local", reason="adapter") > waits
    took = sorted(told.seconds for told in crowd.told)
    print(f"{len(took)} answers, after {took[len(took) // 2]:.1f} s (median), {took[-1]:.1f} s (longest)")  # noqa: T201
