"""One model on four engines, the real one and three that are taken away and come back: they hold what they are to hold,
and are sent nothing before.

The engine is that of another gateway, which leaves the adapters of this one alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import http
from tests.engine.crowd import LONGEST, Crowd, Registrar, Signpost
from tests.fakes.lora_engine import LoraEngine
from tests.gateway import running_gateway
from tests.patience import LATE
from tests.real import MODEL, Served
from tests.voices import SENTENCES, TOKENS, packed, variant

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(LONGEST * 2)]

NAME = "ranger"
BOXES = ("box-0", "box-1", "box-2")
REAL = "real"  # the last of the four: it is sent what none of the others can be
ROUNDS = 7
PROMISED = 2.0  # seconds from an engine that answers again to one that is sent requests


@dataclass
class Fleet:
    """A gateway's four engines.  `versions`: of the one adapter, as engines name them."""

    boxes: list[LoraEngine]
    registrar: Registrar
    crowd: Crowd
    signpost: Signpost
    versions: list[str]

    async def promote(self, version: str) -> None:
        with self.signpost.turning(version):
            await self.registrar.promote(NAME, version.partition("@")[2])

    async def states(self) -> dict[str, set[str]]:
        """Engine → how the versions stand there."""
        rows = [row["replicas"] for row in await self.registrar.rows() if row["name"] == NAME and row["digest"]]
        return {upstream: {row[upstream]["state"] for row in rows} for upstream in (*BOXES, REAL)}

    async def until(self, state: str, *upstreams: str) -> None:
        """Returns when both versions stand so on these."""
        async with asyncio.timeout(6 * LATE):
            while any(states[upstream] != {state} for states in [await self.states()] for upstream in upstreams):
                await asyncio.sleep(0.02)  # the page is looked at, as every client does

    async def leave(self) -> None:
        """All but the real one are gone, and the gateway knows it."""
        for box in self.boxes:
            await box.stop()
        await self.until("away", *BOXES)

    async def come_back(self, number: int) -> float:
        """Seconds from the engine that answers again to the one that has both versions."""
        clock = asyncio.get_running_loop().time
        await self.boxes[number].start()
        began = clock()
        await self.until("ready", BOXES[number])
        return clock() - began


@pytest.fixture
async def fleet(real: Served, voices: dict[str, Path], tmp_path: Path) -> AsyncIterator[Fleet]:
    url, key = real.engine_address
    engine = {"name": REAL, "kind": "vllm", "base_url": f"{url}/v1", "api_key": key, "adapters": {"max_loras": 2}}
    async with AsyncExitStack() as stack:
        boxes = [await stack.enter_async_context(LoraEngine(str(MODEL))) for _ in BOXES]
        attached = [{"name": name, "kind": "vllm", "base_url": box.url} for name, box in zip(BOXES, boxes, strict=True)]
        gateway = await stack.enter_async_context(running_gateway({"upstreams": [*attached, engine]}, tmp_path))
        registrar, signpost = Registrar(gateway), Signpost()
        answers: dict[str, set[str]] = {}
        for voice, folder in voices.items():
            content = packed(variant(folder, 200, tmp_path / voice))
            digits = await registrar.add(NAME, content, within=LONGEST)
            answers[f"{NAME}@{digits}"] = {SENTENCES[voice], " ".join([digits] * TOKENS)}
        crowd = Crowd(gateway, answers, {NAME: signpost}, streams=False)  # an answer that began to come cannot be saved
        fleet = Fleet(boxes, registrar, crowd, signpost, list(answers))
        await fleet.until("ready", *BOXES, REAL)
        await fleet.promote(fleet.versions[0])
        yield fleet
    async with http.client(base_url=url, headers={"authorization": f"Bearer {key}"}) as by_hand:
        for version in answers:
            await by_hand.post("/v1/unload_lora_adapter", json={"lora_name": version})


async def test_a_replica_that_comes_back_is_sent_nothing_before_it_has_the_versions_and_has_them_soon(
    fleet: Fleet,
) -> None:
    crowd, took = fleet.crowd, []
    async with crowd.chatting(*[lambda: NAME] * 4):
        await crowd.hear(4)
        for number in range(ROUNDS):
            await fleet.leave()
            await fleet.promote(fleet.versions[(number + 1) % 2])  # while they are away
            await crowd.hear(4)
            took += await asyncio.gather(*(fleet.come_back(box) for box in range(len(BOXES))))
            await crowd.hear(4)
    assert not crowd.wrong
    assert {told.upstream for told in crowd.told} >= {BOXES[0], REAL}
    for box in fleet.boxes:
        assert not box.violations, "it was asked for what it did not have"
        assert set(box.loads[-2:]) == set(fleet.versions)
        assert all(box.probed[version] == 1 + ROUNDS for version in fleet.versions), "one proof for each of its lives"
    took.sort()
    nearly_all = took[int(len(took) * 0.95)]
    print(f"converged after {took[len(took) // 2]:.2f} s (median), {nearly_all:.2f} s (p95)")  # noqa: T201
    assert nearly_all < PROMISED * 5  # on a machine that is five times slower


async def test_what_somebody_unloads_by_hand_is_back_before_anybody_notices(real: Served, fleet: Fleet) -> None:
    url, key = real.engine_address
    crowd = fleet.crowd
    await fleet.leave()
    async with http.client(base_url=url, headers={"authorization": f"Bearer {key}"}) as somebody:
        async with crowd.chatting(*[lambda: NAME] * 4):
            for version in fleet.versions:
                await crowd.hear(4)
                said = await somebody.post("/v1/unload_lora_adapter", json={"lora_name": version})
                assert said.status_code == 200, said.text
            await crowd.hear(8)
            await fleet.until("ready", REAL)
        listed = {model["id"] for model in (await somebody.get("/v1/models")).json()["data"]}
    assert not crowd.wrong
    assert set(fleet.versions) <= listed
