"""OpenAI's client gets from every kind of upstream what it gets from OpenAI: chat, completions, tools, formats."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest

from tests.contract.places import NAMED, Place
from tests.contract.sdk import Sdk, text_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK: list[Any] = [{"role": "user", "content": "What is the capital of Italy?"}]
BRIEF: dict[str, Any] = {"messages": ASK, "max_tokens": 10, "temperature": 0}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Milan"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class City(pydantic.BaseModel):
    """What a structured answer is to be."""

    model_config = pydantic.ConfigDict(extra="forbid")
    capital: bool


def tools_of(place: Place) -> dict[str, Any]:
    """A request that makes any model call the tool: a small one is told which, or that it must."""
    choice = next(one for one in (NAMED, "required", "auto") if str(one) not in place.lacks)
    return {"tools": [WEATHER], "tool_choice": choice, "messages": ASK, "max_tokens": 80, "temperature": 0}


async def test_a_chat_is_answered_and_counted(place: Place, sdk: Sdk) -> None:
    answer = await sdk.ask("chat.completions.create", model=place.chat, **BRIEF)
    assert answer.model == place.chat
    assert answer.object == "chat.completion"
    assert answer.created > 1_700_000_000
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.completion_tokens <= 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_a_limit_ends_the_answer_and_is_told(place: Place, sdk: Sdk) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = await sdk.ask("chat.completions.create", model=place.chat, messages=ASK, **{name: 2})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 2


async def test_a_stream_is_the_whole_answer_in_pieces(place: Place, sdk: Sdk) -> None:
    whole = await sdk.ask("chat.completions.create", model=place.chat, **BRIEF)
    chunks = await sdk.stream("chat.completions.create", model=place.chat, **BRIEF)
    assert text_of(chunks) == whole.choices[0].message.content
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 1
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].model == place.chat
    assert chunks[0].choices[0].delta.role == "assistant"
    finished = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert finished == [whole.choices[0].finish_reason]


async def test_usage_ends_a_stream_that_asks_for_it(place: Place, sdk: Sdk) -> None:
    whole = await sdk.ask("chat.completions.create", model=place.chat, **BRIEF)
    chunks = await sdk.stream(
        "chat.completions.create", model=place.chat, stream_options={"include_usage": True}, **BRIEF
    )
    *before, last = chunks
    assert not any(chunk.usage for chunk in before)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


@pytest.mark.parametrize("asked", [{}, {"stream_options": {"include_usage": False}}])
async def test_usage_stays_away_from_a_stream_that_does_not(place: Place, sdk: Sdk, asked: dict[str, Any]) -> None:
    chunks = await sdk.stream("chat.completions.create", model=place.chat, **BRIEF, **asked)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_the_clients_own_accumulation_of_a_stream_works(place: Place, sdk: Sdk) -> None:
    hello = [{"role": "user", "content": "Say hello."}]  # to its end: the helper refuses an answer that is cut off
    asked = {"messages": hello, "temperature": 0, "max_tokens": 60, "stream_options": {"include_usage": True}}
    deltas, final = await sdk.helper(model=place.chat, **asked)
    assert "".join(deltas) == final.choices[0].message.content
    assert final.usage.completion_tokens > 1
    assert final.model == place.chat


async def test_a_tool_is_called_with_arguments_that_fit(place: Place, sdk: Sdk) -> None:
    answer = await sdk.ask("chat.completions.create", model=place.chat, **tools_of(place))
    if "tools" in place.lacks:  # its template leaves them out, which is no error
        assert answer.choices[0].message.content
        return
    (call,) = answer.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert call.id
    assert json.loads(call.function.arguments)["city"]
    assert answer.choices[0].finish_reason in ("tool_calls", "stop", "length")


async def test_a_streamed_tool_call_is_the_same(place: Place, sdk: Sdk) -> None:
    chunks = await sdk.stream("chat.completions.create", model=place.chat, **tools_of(place))
    if "tools" in place.lacks:
        assert text_of(chunks)
        return
    deltas = [call for chunk in chunks for c in chunk.choices for call in c.delta.tool_calls or ()]
    assert {call.index for call in deltas} == {0}
    assert "".join(call.function.name or "" for call in deltas) == "weather"
    assert len([call.id for call in deltas if call.id]) >= 1
    assert json.loads("".join(call.function.arguments or "" for call in deltas))["city"]


async def test_a_tools_result_goes_back(place: Place, sdk: Sdk) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    history = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = await sdk.ask("chat.completions.create", model=place.chat, messages=history, max_tokens=8)
    assert answer.choices[0].message.content


async def test_a_schema_binds_the_answer(place: Place, sdk: Sdk) -> None:
    answer = await sdk.ask(
        "chat.completions.parse", model=place.chat, messages=ASK, response_format=City, max_tokens=40, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, City)


async def test_a_schema_binds_a_stream(place: Place, sdk: Sdk) -> None:
    schema = {"name": "city", "schema": City.model_json_schema(), "strict": True}
    chunks = await sdk.stream(
        "chat.completions.create", model=place.chat, messages=ASK, max_tokens=40, temperature=0,
        response_format={"type": "json_schema", "json_schema": schema},
    )  # fmt: skip
    assert City.model_validate_json(text_of(chunks))


async def test_log_probabilities_come_with_each_token(place: Place, sdk: Sdk) -> None:
    asked = {"model": place.chat, "logprobs": True, "top_logprobs": 2, **BRIEF}
    answer = await sdk.ask("chat.completions.create", **asked)
    found = answer.choices[0].logprobs.content
    assert "".join(one.token for one in found).strip().startswith(answer.choices[0].message.content.strip())
    assert all(one.logprob <= 0 and len(one.top_logprobs) == 2 for one in found)
    chunks = await sdk.stream("chat.completions.create", **asked)
    streamed = [one for chunk in chunks for c in chunk.choices if c.logprobs for one in c.logprobs.content or ()]
    assert [one.token for one in streamed] == [one.token for one in found]


async def test_several_choices_or_a_clear_refusal(place: Place, sdk: Sdk) -> None:
    asked = {"model": place.chat, "messages": ASK, "max_tokens": 6, "temperature": 1.0, "n": 2}
    if "n" in place.lacks:
        with pytest.raises(openai.BadRequestError, match="'n' must be 1") as caught:
            await sdk.ask("chat.completions.create", **asked)
        assert caught.value.param == "n"
        return
    answer = await sdk.ask("chat.completions.create", **asked)
    assert [choice.index for choice in answer.choices] == [0, 1]
    chunks = await sdk.stream("chat.completions.create", **asked)
    assert all(text_of(chunks, index) for index in (0, 1))


async def test_a_stop_ends_the_answer_before_it(place: Place, sdk: Sdk) -> None:
    whole = await sdk.ask("chat.completions.create", model=place.chat, **BRIEF)
    words = whole.choices[0].message.content.split()
    for stop in (words[2], [words[2], "never said"]):
        answer = await sdk.ask("chat.completions.create", model=place.chat, stop=stop, **BRIEF)
        assert words[2] not in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"


async def test_completions_whole_and_streamed(place: Place, sdk: Sdk) -> None:
    asked = {"model": place.chat, "prompt": "The capital of Italy is", "max_tokens": 5, "temperature": 0}
    answer = await sdk.ask("completions.create", **asked)
    assert (answer.object, answer.model) == ("text_completion", place.chat)
    assert answer.choices[0].text
    assert answer.usage.completion_tokens == 5
    chunks = await sdk.stream("completions.create", stream_options={"include_usage": True}, **asked)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == answer.choices[0].text
    assert chunks[-1].usage.completion_tokens == 5
    assert {chunk.model for chunk in chunks} == {place.chat}


async def test_completions_have_log_probabilities(place: Place, sdk: Sdk) -> None:
    asked = {"model": place.chat, "prompt": "The capital of Italy is", "max_tokens": 3, "logprobs": 1}
    answer = await sdk.ask("completions.create", **asked)
    found = answer.choices[0].logprobs
    if place.chat == "smollm2-gguf":
        return  # llama.cpp gives them in the form of chats
    assert "".join(found.tokens) == answer.choices[0].text
    assert all(value <= 0 for value in found.token_logprobs)
    assert len(found.text_offset) == 3
