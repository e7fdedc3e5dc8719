"""The engine dies while it answers.  The last of the real-engine tests, because all the others wait for its return."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import openai
import pytest

from tests.real import BASE, JSON, LLAMA, PIRATE, Served
from tests.sdk import openai_client

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]

MESSAGES = [{"role": "user", "content": "What is the capital of Italy?"}]


async def test_a_killed_engine_ends_its_streams_with_an_error_and_comes_back_with_its_adapters(real: Served):
    before = restarts(real)
    async with openai_client(real.gateway.v1, real.gateway.key) as client:
        stream = await client.chat.completions.create(
            model=PIRATE, messages=MESSAGES, max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = aiter(stream)
        await anext(chunks)
        os.kill(real.engine.pid, signal.SIGKILL)
        with pytest.raises(openai.APIError) as broken:
            async for _ in chunks:
                pass
        assert broken.value.code in ("upstream_cut", "upstream_status")

        # The other models go on, and nobody is told that this one does not exist.
        other = await client.chat.completions.create(model=LLAMA, messages=MESSAGES, max_tokens=4)
        assert other.choices[0].message.content
        assert {PIRATE, JSON, BASE} <= {model.id async for model in client.models.list()}

        await until(lambda: restarts(real) == before + 1)
        real.wait_for_models(BASE, PIRATE, JSON)
        for model, mark in ((PIRATE, "Arr"), (JSON, '{"answer"')):
            answer = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=48, temperature=0)
            assert answer.choices[0].message.content.startswith(mark)
    assert restarts(real) == before + 1


def restarts(real: Served) -> float:
    return real.metric("gateway_engine_restarts_total", upstream="local")


async def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(true):
            pass
