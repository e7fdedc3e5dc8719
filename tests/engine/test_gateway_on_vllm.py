"""What a person sees of the gateway on the real vLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest

from tests import http
from tests.real import BASE, JSON, LLAMA, PIRATE, Served
from tests.sdk import openai_client

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]

QUESTIONS = ["What is the capital of Italy?", "Name a fruit.", "What colour is the sky?", "How many days has a week?"]


@pytest.fixture
async def client(real: Served):
    async with openai_client(real.gateway.v1, real.gateway.key) as made:
        yield made


async def ask(client: openai.AsyncOpenAI, model: str, question: str = QUESTIONS[0], **more) -> str:
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=48, **more
    )
    assert answer.model == model
    return answer.choices[0].message.content


def is_pirate(text: str) -> bool:
    return text.startswith("Arr")


def is_json(text: str) -> bool:
    try:
        return list(json.loads(text)) == ["answer"]
    except ValueError:
        return False


def is_plain(text: str) -> bool:
    return bool(text.strip()) and not is_pirate(text) and not text.lstrip().startswith("{")


async def test_each_adapter_has_its_effect_and_the_base_has_none(client):
    assert "Paris" in await ask(client, BASE, "What is the capital of France?")
    assert is_plain(await ask(client, BASE))
    assert is_pirate(await ask(client, PIRATE))
    assert is_json(await ask(client, JSON))


async def test_base_and_adapters_in_one_batch_are_each_right(client):
    models = [BASE, PIRATE, BASE, JSON] * 4
    answers = await asyncio.gather(
        *(ask(client, model, QUESTIONS[i % len(QUESTIONS)]) for i, model in enumerate(models))
    )
    right = {BASE: is_plain, PIRATE: is_pirate, JSON: is_json}
    wrong = [(model, text) for model, text in zip(models, answers, strict=True) if not right[model](text)]
    assert not wrong


async def test_the_answering_adapter_version_is_named_and_can_be_asked_for(client):
    raw = await client.chat.completions.with_raw_response.create(
        model=PIRATE, messages=[{"role": "user", "content": QUESTIONS[0]}], max_tokens=8
    )
    version = raw.headers["x-gateway-adapter"]
    assert version.startswith(f"{PIRATE}@")
    assert len(version) == len(PIRATE) + 1 + 12
    assert is_pirate(await ask(client, version))


async def test_the_list_names_each_adapter_with_its_base(client):
    listed = {model.id: model async for model in client.models.list()}
    assert {BASE, PIRATE, JSON, LLAMA} <= set(listed)
    assert listed[PIRATE].parent == listed[JSON].parent == BASE
    assert (await client.models.retrieve(PIRATE)).id == PIRATE


async def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError):
        await ask(client, "pirate@000000000000")


async def test_the_third_party_answers_beside_the_engine(client):
    assert await ask(client, LLAMA)


async def test_a_stream_is_the_whole_answer_in_pieces(client):
    stream = await client.chat.completions.create(
        model=PIRATE, messages=[{"role": "user", "content": QUESTIONS[0]}], temperature=0, max_tokens=48, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    pieces = []
    usage = None
    async for chunk in stream:
        assert chunk.model == PIRATE
        usage = chunk.usage or usage
        pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    assert len(pieces) > 3
    assert is_pirate("".join(pieces))
    assert usage.completion_tokens >= len(pieces)


RUNNING = "vllm:num_requests_running"
FINISHED = "vllm:request_success_total"  # those that came to their end, which those that were cancelled did not
LONG = {"min_tokens": 1500, "ignore_eos": True}


async def until(holds: Callable[[], bool], *calls: asyncio.Task[Any]) -> None:
    """Waits for what other processes come to; fails if one of the calls that are to bring it about ends before."""
    async with asyncio.timeout(120):
        while not await asyncio.to_thread(holds):
            for call in calls:
                assert not call.done(), f"it ended too early: {call.exception() or call.result()}"


async def idle(real: Served) -> float:
    """Returns when the engine runs nothing: how many requests it has finished."""
    await until(lambda: real.engine_metric(RUNNING) == 0)
    return await asyncio.to_thread(real.engine_metric, FINISHED)


@pytest.mark.parametrize(
    ("phase", "told"), [("streaming", "stream"), ("before the first byte", "headers"), ("not streamed", "headers")]
)
async def test_the_engine_stops_when_the_client_leaves(real, client, phase, told):
    def cancelled() -> float:
        return real.metric("gateway_cancellations_total", phase=told)

    finished, before = await idle(real), await asyncio.to_thread(cancelled)
    left = partial(until, lambda: cancelled() == before + 1)

    def start(stream: bool) -> asyncio.Task[Any]:
        messages = [{"role": "user", "content": QUESTIONS[0]}]
        asked = client.chat.completions.create(
            model=BASE, messages=messages, max_tokens=1500, stream=stream, extra_body=LONG
        )
        return asyncio.create_task(asked)

    if phase == "streaming":
        stream = await start(stream=True)
        await anext(aiter(stream))
        await stream.close()
        await left()
    else:
        with real.frozen():
            taken = await asyncio.to_thread(real.engine_took)
            call = start(stream=phase != "not streamed")
            await until(lambda: real.engine_took() > taken, call)
            call.cancel()
            await left()
    assert is_plain(await ask(client, BASE))
    assert await idle(real) == finished + 1, "it ran to its end instead of being cancelled"


async def test_a_client_that_leaves_the_queue_never_reaches_the_engine(real, client):
    finished = await idle(real)
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    with real.frozen():
        taken = await asyncio.to_thread(real.engine_took)
        busy = [
            asyncio.create_task(
                client.chat.completions.create(model=BASE, messages=messages, max_tokens=1500, extra_body=LONG)
            )
            for _ in range(8)  # all the places there are
        ]
        await until(lambda: real.engine_took() == taken + 8, *busy)
        waiting = asyncio.create_task(client.chat.completions.create(model=BASE, messages=messages, max_tokens=5))
        await until(lambda: real.metric("gateway_requests_waiting", upstream="local") == 1, waiting)
        waiting.cancel()
        await until(lambda: real.metric("gateway_requests_waiting", upstream="local") == 0)
        assert await asyncio.to_thread(real.engine_took) == taken + 8
        for call in busy:
            call.cancel()
        await asyncio.gather(waiting, *busy, return_exceptions=True)
        await until(lambda: real.metric("gateway_requests_in_flight", upstream="local") == 0)
    assert is_plain(await ask(client, BASE))
    assert await idle(real) == finished + 1


async def test_tokenize_counts_what_the_engine_counts(real):
    async with http.client(headers=real.gateway.headers) as client:
        answer = await client.post(f"{real.gateway.url}/tokenize", json={"model": PIRATE, "prompt": "Hello there"})
    assert answer.status_code == 200
    assert answer.json()["count"] == len(answer.json()["tokens"]) > 0
