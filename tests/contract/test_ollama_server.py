"""The Ollama dialect on a real Ollama server.  Collected only where OLLAMA_URL names one (conftest.py); it must hold a
model that can chat.

    OLLAMA_URL=http://127.0.0.1:11434 pytest tests/contract/test_ollama_server.py
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests import wire
from tests.contract.sdk import Sdk, text_of
from tests.gateway import Running, running_gateway

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

URL = os.environ["OLLAMA_URL"]
NUM_CTX = 2048
ASK: list[Any] = [{"role": "user", "content": "What is the capital of Italy? One word."}]
SCHEMA = {"type": "object", "properties": {"capital": {"type": "boolean"}}, "required": ["capital"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    upstream = {"name": "ollama", "kind": "ollama", "base_url": URL, "options": {"num_ctx": NUM_CTX}}
    async with running_gateway({"upstreams": [upstream]}, tmp_path_factory.mktemp("ollama")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", params=[openai.OpenAI, openai.AsyncOpenAI])
async def sdk(request: pytest.FixtureRequest, gateway: Running) -> AsyncIterator[Sdk]:
    async with Sdk.open(request.param, gateway, timeout=300) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def model(sdk: Sdk) -> str:
    """The first that is there to chat with."""
    listed = (await sdk.ask("models.list")).data
    chatting = [model.id for model in listed if not model.model_extra["info"]["meta"].get("hidden")]
    assert chatting, f"{URL} has no model to chat with: pull a small one"
    return str(chatting[0])


async def test_it_answers_and_counts(sdk: Sdk, model: str) -> None:
    answer = await sdk.ask("chat.completions.create", model=model, messages=ASK, max_tokens=400, temperature=0)
    assert answer.model == model
    assert answer.usage.prompt_tokens > 5
    assert answer.usage.completion_tokens > 0


async def test_it_streams_with_usage(sdk: Sdk, model: str) -> None:
    asked = {"model": model, "messages": ASK, "temperature": 0, "reasoning_effort": "none"}
    chunks = await sdk.stream("chat.completions.create", stream_options={"include_usage": True}, **asked)
    assert text_of(chunks)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[-1].usage.completion_tokens > 0


async def test_a_schema_binds_the_answer(sdk: Sdk, model: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    asked = {"model": model, "messages": ASK, "temperature": 0, "reasoning_effort": "none"}
    answer = await sdk.ask("chat.completions.create", response_format=form, **asked)
    assert isinstance(json.loads(answer.choices[0].message.content)["capital"], bool)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_would_be_cut_is_refused(sdk: Sdk, model: str, stream: bool) -> None:
    long = [{"role": "user", "content": "word " * NUM_CTX * 2}, {"role": "assistant", "content": "ok"}, *ASK]
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.ask("chat.completions.create", model=model, messages=long, stream=stream)
    assert caught.value.code == "context_length_exceeded"


async def test_a_completion_is_raw(sdk: Sdk, model: str) -> None:
    answer = await sdk.ask("completions.create", model=model, prompt="1, 2, 3, 4,", max_tokens=5, temperature=0)
    assert "5" in answer.choices[0].text


async def test_it_stays_unmanaged(gateway: Running, sdk: Sdk, model: str) -> None:
    body = {"model": model, "name": model}
    for path in ("/api/delete", "/v1/api/delete", "/api/pull", "/api/create"):
        reply = await wire.post(gateway.url, path, body, list(gateway.headers.items()))
        assert reply.status in (404, 405)
    assert model in [listed.id for listed in (await sdk.ask("models.list")).data]
