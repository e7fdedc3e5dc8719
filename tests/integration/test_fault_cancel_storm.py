"""F-9: clients that come and go by the hundred leave nothing behind.  httpx 0.28's pool is dead for good after it."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests import wire
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.integration.conftest import Serve
from tests.integration.rig import AUTH, chat
from tests.tiers import repeated

WORKERS = 40
PLACES = 10
AFTER = 20
VISITS = 40  # of each worker


@repeated(1, 15)
@pytest.mark.parametrize("stream", [True, False])
async def test_after_a_storm_of_cancellations_everything_works(serve: Serve, stream: bool, repetitions: int) -> None:
    script = Script(ttft=0.02, itl=0.01)
    async with OpenAIUpstream({"m": script}) as upstream:
        async with serve({"one": upstream}, concurrency={"limit": PLACES, "queue": 1000}) as gateway:

            async def come_and_go(seed: int) -> None:
                chance = random.Random(seed)
                for _ in range(VISITS):
                    async with wire.connected(gateway.url) as client:
                        await client.post("/v1/chat/completions", chat(stream=stream), AUTH)
                        await asyncio.sleep(chance.random() * 0.05)
                        (client.reset if chance.random() < 0.5 else client.close)()

            for _ in range(repetitions):
                await asyncio.gather(*(come_and_go(seed) for seed in range(WORKERS)))
                for reply in await asyncio.gather(*(gateway.chat(stream=stream) for _ in range(AFTER))):
                    assert reply.status == 200
                    assert reply.complete
                await gateway.quiet()
            assert await gateway.total("gateway_requests_in_flight") == 0
            busy = [attempt for attempt in upstream.ledger if not attempt.over.is_set()]
            assert not busy
