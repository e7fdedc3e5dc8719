"""The rounds of a probe: whoever asks for one gets one that began after the question, also in the middle of another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.backends import BACKENDS
from gateway.backends.base import Discovery
from gateway.controlplane.contact import Contact
from gateway.controlplane.probes import Probe
from gateway.domain.snapshot import Upstream
from gateway.server import listen
from tests.fakes.fake_vllm_http import VLLM
from tests.patience import LATE


class Gate:
    """Holds each round up before it ends."""

    def __init__(self) -> None:
        self.inside = asyncio.Semaphore(0)
        self.through = asyncio.Semaphore(0)

    async def __call__(self, contact: Contact, upstream: Upstream) -> str:
        self.inside.release()
        await self.through.acquire()
        return ""


@asynccontextmanager
async def probed(vllm: VLLM, gate: Gate) -> AsyncIterator[Probe]:
    """A probe in the middle of its first round, which would not look again for an hour."""
    discover = BACKENDS["vllm"].discover
    probe = Probe("gpu", discover, 3600, changed=lambda: None, jitter=lambda: 1.0, identify=gate)
    host, port = vllm.url.removeprefix("http://").removesuffix("/v1").split(":")
    probe.retarget(Upstream("gpu", "vllm", "http", host, int(port), "/v1"))
    running = asyncio.create_task(probe.run())
    try:
        async with asyncio.timeout(3 * LATE):
            await gate.inside.acquire()
            yield probe
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_who_asks_in_the_middle_of_a_round_gets_the_next_one_at_once() -> None:
    gate = Gate()
    async with VLLM() as vllm, probed(vllm, gate) as probe:
        asking = asyncio.create_task(probe.refresh())
        await asyncio.sleep(0)
        gate.through.release()
        await gate.inside.acquire()
        assert not asking.done(), "the round began before the question"
        gate.through.release()
        assert await asking


async def test_a_suspicion_in_the_middle_of_a_round_is_looked_into_after_it() -> None:
    gate = Gate()
    async with VLLM() as vllm, probed(vllm, gate) as probe:
        for _ in range(5):
            probe.suspect()
        gate.through.release()
        await gate.inside.acquire()
        gate.through.release()
        assert vllm.listed == 2


async def test_an_engine_that_was_down_for_long_is_asked_as_often_as_one_that_just_went() -> None:
    rounds = asyncio.Semaphore(0)

    def discover(upstream: Upstream) -> Discovery:
        rounds.release()
        return BACKENDS["vllm"].discover(upstream)

    probe = Probe("gpu", discover, 3600, changed=lambda: None, jitter=lambda: 1.0, retry=0.01)
    with listen("127.0.0.1", 0) as nobody:
        probe.retarget(Upstream("gpu", "vllm", "http", "127.0.0.1", nobody.getsockname()[1], "/v1"))
    running = asyncio.create_task(probe.run())
    try:
        async with asyncio.timeout(3 * LATE):
            for _ in range(20):  # twice as long between two each time, it would be for years
                await rounds.acquire()
    finally:
        running.cancel()
        await asyncio.wait({running})
