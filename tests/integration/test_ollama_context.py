"""A prompt that does not fit is a clear error, and never cut: Ollama itself cuts in silence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.ollama import OllamaServer, Pace, refusal
from tests.fakes.ollama_dialect import Model
from tests.integration.ollama_gateway import ASK, ollama_gateway, sdk

FIRST = {"role": "user", "content": "my name is Ada " * 20}
LONG = [{"role": "system", "content": "Be brief."}, FIRST, {"role": "assistant", "content": "Hello Ada."}, *ASK]


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    models = {"m:1b": Model(), "vectors:1b": Model(("embedding",)), "short:1b": Model(trained=64)}
    async with OllamaServer(models) as running:
        yield running


@pytest.fixture
async def client(server: OllamaServer, tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with ollama_gateway(tmp_path, server, {"num_ctx": 32}) as gateway, sdk(gateway) as made:
        yield made


def assert_told(error: openai.APIStatusError, param: str) -> None:
    assert isinstance(error, openai.BadRequestError)
    assert (error.code, error.type, error.param) == ("context_length_exceeded", "invalid_request_error", param)
    assert "longer than the context" in error.message
    assert "num_ctx" in error.message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("messages", [LONG, [FIRST]], ids=["conversation", "one message"])
async def test_a_chat_that_would_be_cut_is_refused(
    client: openai.AsyncOpenAI, server: OllamaServer, messages: Any, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(model="m:1b", messages=messages, stream=stream)
    assert_told(caught.value, "messages")
    assert not any(server.cuts)


async def test_a_completion_that_would_be_cut_is_refused(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.completions.create(model="m:1b", prompt="word " * 40)
    assert_told(caught.value, "prompt")
    assert not any(server.cuts)


async def test_a_text_that_would_be_cut_is_not_embedded(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.embeddings.create(model="vectors:1b", input=["short", "word " * 40])
    assert_told(caught.value, "input")
    assert not any(server.cuts)


async def test_without_num_ctx_nothing_is_cut_either(server: OllamaServer, tmp_path: Path) -> None:
    async with ollama_gateway(tmp_path, server) as gateway, sdk(gateway) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="short:1b", messages=LONG)
    assert_told(caught.value, "messages")


async def test_an_answer_that_reaches_the_end_of_the_context_says_so(server: OllamaServer, tmp_path: Path) -> None:
    async with ollama_gateway(tmp_path, server, {"num_ctx": 6}) as gateway, sdk(gateway) as client:
        answer = await client.chat.completions.create(model="m:1b", messages=ASK)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("One two three", "length")


@pytest.mark.parametrize(
    "words",
    [
        "the input length exceeds the context length",
        "the prompt is longer than the context length currently available to the model; shorten the prompt",
        "input length (5000 tokens) exceeds the model's maximum context length (4096 tokens)",
        "input (900 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
        '{"error":{"code":400,"message":"request (52 tokens) exceeds the available context size (32 tokens)",'
        '"type":"exceed_context_size_error","n_prompt_tokens":52,"n_ctx":32}}',
    ],
)
@pytest.mark.parametrize("status", [400, 500])
async def test_all_of_ollamas_words_for_it_are_understood(
    client: openai.AsyncOpenAI, server: OllamaServer, words: str, status: int
) -> None:
    server.paces["m:1b"] = Pace(instead=refusal(status, words))
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(model="m:1b", messages=ASK)
    assert_told(caught.value, "messages")
