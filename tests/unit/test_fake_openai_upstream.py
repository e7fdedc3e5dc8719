"""The fake upstream is a fair OpenAI server: the official SDK finds nothing to complain of, and its ledger is true."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import openai
import pytest

from tests import wire
from tests.fakes import faults
from tests.fakes.openai_dialect import PIECES
from tests.fakes.openai_upstream import Behaviour, OpenAIUpstream, Script
from tests.patience import LATE
from tests.sdk import openai_client

ASK = [{"role": "user", "content": "Name five numbers."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIUpstream]:
    async with OpenAIUpstream(api_key="sk-right") as server:
        yield server


@pytest.fixture
async def sdk(upstream: OpenAIUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_client(upstream.url, "sk-right") as client:
        yield client


async def test_models_are_listed_and_found_one_by_one(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["m"]
    assert (await sdk.models.retrieve("m")).object == "model"
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("other")


async def test_a_whole_chat_answer_has_usage_and_as_many_choices_as_asked(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="m", messages=ASK, n=2)
    assert [choice.message.content for choice in answer.choices] == ["One two three four five"] * 2
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 10, 13)


@pytest.mark.parametrize("asked", [True, False])
async def test_the_usage_chunk_comes_only_when_it_is_asked_for(sdk: openai.AsyncOpenAI, asked: bool) -> None:
    stream = await sdk.chat.completions.create(
        model="m", messages=ASK, stream=True, stream_options={"include_usage": asked}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "One two three four five"
    assert [chunk.usage is not None for chunk in chunks].count(True) == (1 if asked else 0)
    assert (not chunks[-1].choices) == asked


async def test_limits_and_stop_words_end_an_answer(sdk: openai.AsyncOpenAI) -> None:
    short = await sdk.chat.completions.create(model="m", messages=ASK, max_tokens=2)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("One two", "length")
    stopped = await sdk.chat.completions.create(model="m", messages=ASK, stop=["three"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("One two ", "stop")


async def test_tools_are_called_whole_and_in_a_stream_until_they_have_answered(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="m", messages=ASK, tools=[TOOL])
    (call,) = answer.choices[0].message.tool_calls or ()
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    async with sdk.chat.completions.stream(model="m", messages=ASK, tools=[TOOL | {"strict": True}]) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"city": "Rome"}
    told = [*ASK, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    after = await sdk.chat.completions.create(model="m", messages=told, tools=[TOOL])
    assert after.choices[0].message.content


async def test_a_json_schema_is_kept_to(sdk: openai.AsyncOpenAI) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "size": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    answer = await sdk.chat.completions.create(model="m", messages=ASK, response_format=wanted)
    assert json.loads(answer.choices[0].message.content or "") == {"city": "Rome", "size": 1}


async def test_logprobs_stand_beside_each_token(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="m", messages=ASK, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert [token.token for token in logprobs.content or ()] == list(PIECES)
    stream = await sdk.chat.completions.create(model="m", messages=ASK, logprobs=True, stream=True)
    seen = [chunk.choices[0].logprobs async for chunk in stream]
    assert [part.content[0].token for part in seen if part and part.content] == [
        "One",
        " two",
        " three",
        " four",
        " five",
    ]


async def test_completions_echo_and_stream(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.completions.create(model="m", prompt="Zero ", echo=True, logprobs=1)
    assert answer.choices[0].text == "Zero One two three four five"
    stream = await sdk.completions.create(model="m", prompt="Zero", stream=True, max_tokens=2)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "One two"


async def test_embeddings_are_the_same_as_floats_and_as_base64(sdk: openai.AsyncOpenAI) -> None:
    floats = await sdk.embeddings.create(model="m", input=["a", "b"], encoding_format="float", dimensions=16)
    packed = await sdk.embeddings.create(model="m", input=["a", "b"], dimensions=16)  # base64 is the SDK's own default
    assert [item.embedding for item in packed.data] == [item.embedding for item in floats.data]
    assert [len(item.embedding) for item in floats.data] == [16, 16]
    assert floats.data[0].embedding != floats.data[1].embedding


async def test_each_error_has_the_class_that_the_sdk_knows(upstream: OpenAIUpstream, sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        await sdk.with_options(api_key="sk-wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        await sdk.chat.completions.create(model="other", messages=ASK)
    with pytest.raises(openai.BadRequestError):
        await sdk.chat.completions.create(model="m", messages=[])
    with pytest.raises(openai.BadRequestError):
        await sdk.chat.completions.create(model="m", messages=ASK, temperature=9)
    upstream.models["m"] = faults.refuse(429, headers=[("retry-after", "7")])
    with pytest.raises(openai.RateLimitError) as limited:
        await sdk.chat.completions.create(model="m", messages=ASK)
    assert limited.value.response.headers["retry-after"] == "7"


async def test_the_ledger_tells_what_was_asked_and_how_much_was_said(
    upstream: OpenAIUpstream, sdk: openai.AsyncOpenAI
) -> None:
    await sdk.chat.completions.create(model="m", messages=ASK, extra_body={"unknown": 1})
    (attempt,) = upstream.ledger
    assert attempt.request.json == {"messages": ASK, "model": "m", "unknown": 1}
    assert attempt.request.header("authorization") == "Bearer sk-right"
    await asyncio.wait_for(attempt.over.wait(), LATE)
    assert (attempt.tokens, attempt.outcome) == (5, "answered")


@pytest.mark.parametrize("leave", ["close", "reset", "half_close"])
async def test_the_ledger_tells_when_the_client_left(leave: str) -> None:
    async with (
        OpenAIUpstream({"m": Script(after=3, fault=faults.hang)}) as upstream,
        wire.connected(upstream.url) as client,
    ):
        await client.post("/v1/chat/completions", {"model": "m", "messages": ASK, "stream": True})
        await client.head()
        for _ in range(4):  # the role and three tokens
            await client.chunk()
        left = asyncio.get_running_loop().time()
        getattr(client, leave)()
        attempt = await upstream.attempt(0)
        await asyncio.wait_for(attempt.over.wait(), LATE)
        assert (attempt.tokens, attempt.outcome) == (3, "left")
        assert 0 <= attempt.ended - left < LATE


@pytest.mark.parametrize(
    ("fault", "complete"), [(faults.cut, False), (faults.reset, False), (faults.end_without_done, True)]
)
async def test_a_fault_comes_after_exactly_so_many_tokens(fault: Behaviour, complete: bool) -> None:
    async with OpenAIUpstream({"m": Script(after=3, fault=fault)}) as upstream:
        reply = await wire.post(upstream.url, "/v1/chat/completions", {"model": "m", "messages": ASK, "stream": True})
        assert (reply.text, reply.complete, reply.done) == ("One two three", complete, False)
        assert upstream.ledger[0].tokens == 3


@pytest.mark.parametrize(("slices", "newline"), [(1, b"\n"), (7, b"\r\n"), (0, b"\r")])
async def test_slices_and_line_ends_are_as_scripted(slices: int, newline: bytes) -> None:
    script = Script(slices=slices, newline=newline, prelude=b": note" + newline)
    async with OpenAIUpstream({"m": script}) as upstream:
        reply = await wire.post(upstream.url, "/v1/chat/completions", {"model": "m", "messages": ASK, "stream": True})
    events = reply.body.split(newline * 2)
    assert events[-2:] == [b": note" + newline + b"data: [DONE]", b""]
    assert reply.complete


async def test_a_closed_port_refuses_and_a_black_hole_says_nothing() -> None:
    with faults.closed_port() as url, pytest.raises(ConnectionRefusedError):
        await wire.get(url, "/v1/models")
    with faults.black_hole() as url, pytest.raises(TimeoutError):
        await wire.get(url, "/v1/models", within=0.3)
