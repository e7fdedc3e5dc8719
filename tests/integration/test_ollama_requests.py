"""What a request becomes on its way to Ollama: everything of OpenAI's that has a counterpart, and nothing that could
make Ollama refuse or cut it."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.fakes.ollama import OllamaServer
from tests.fakes.ollama_dialect import Model
from tests.integration.ollama_gateway import ASK, ollama_gateway, sdk, sent

OBJECT = {"type": "object"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "strict": True,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("weather", "time")
]


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    models = {
        "m:1b": Model(),
        "thinker:1b": Model(("completion", "tools", "thinking"), rendered=True),
        "eyes:1b": Model(("completion", "vision")),
        "code:1b": Model(("completion", "insert")),
        "vectors:1b": Model(("embedding",)),
    }
    async with OllamaServer(models) as running:
        yield running


@pytest.fixture
async def client(server: OllamaServer, tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with ollama_gateway(tmp_path, server, {"num_ctx": 2048, "keep_alive": "10m"}) as gateway:
        async with sdk(gateway) as made:
            yield made


async def chat(client: openai.AsyncOpenAI, model: str = "m:1b", **more: Any) -> Any:
    return await client.chat.completions.with_raw_response.create(
        model=model, messages=more.pop("messages", ASK), **more
    )


def dropped(answer: Any) -> set[str]:
    return set(filter(None, answer.headers.get("x-gateway-dropped-params", "").split(",")))


async def test_the_operators_options_go_with_every_request(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    await chat(client)
    await client.completions.create(model="m:1b", prompt="Count")
    await client.embeddings.create(model="vectors:1b", input="text")
    assert len(server.ledger) == 3
    for attempt in server.ledger:
        body = attempt.request.json
        assert (body["options"]["num_ctx"], body["keep_alive"]) == (2048, "10m")
        assert body["truncate"] is False


async def test_a_client_decides_neither_over_memory_nor_over_truncation(
    client: openai.AsyncOpenAI, server: OllamaServer
) -> None:
    theirs = {"num_ctx": 999_999, "keep_alive": -1, "truncate": True, "shift": True, "options": {"num_gpu": 0}}
    answer = await chat(client, extra_body=theirs)
    assert dropped(answer) == set(theirs)
    body = sent(server)
    assert body["options"] == {"num_ctx": 2048}
    assert (body["keep_alive"], body["truncate"], body["shift"]) == ("10m", False, False)


async def test_an_operator_can_let_clients_decide(server: OllamaServer, tmp_path: Path) -> None:
    allowed = {"allow": ["num_ctx", "keep_alive"]}
    async with (
        ollama_gateway(tmp_path, server, {"num_ctx": 2048}, parameters=allowed) as gateway,
        sdk(gateway) as client,
    ):
        await chat(client, extra_body={"num_ctx": 512, "keep_alive": "1m"})
    assert sent(server)["options"]["num_ctx"] == 512
    assert sent(server)["keep_alive"] == "1m"


async def test_sampling_parameters_are_ollamas_options(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    answer = await chat(
        client, temperature=0.5, top_p=0.9, seed=7, stop="END", max_tokens=20, presence_penalty=0.1,
        frequency_penalty=0.2, extra_body={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1, "repeat_last_n": 32},
    )  # fmt: skip
    assert sent(server)["options"] == {
        "num_ctx": 2048, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END"], "num_predict": 20,
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "top_k": 5, "min_p": 0.05, "repeat_penalty": 1.1,
        "repeat_last_n": 32,
    }  # fmt: skip
    assert not dropped(answer)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_limit_limit(client: openai.AsyncOpenAI, name: str) -> None:
    answer = (await chat(client, **{name: 2})).parse()
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("One two", "length")


async def test_images_arrive_as_they_were_sent(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    picture = base64.b64encode(os.urandom(3_000_000)).decode()  # resized or written anew it could not be the same
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}", "detail": "low"}},
    ]
    await chat(client, "eyes:1b", messages=[{"role": "user", "content": content}])
    (message,) = sent(server)["messages"]
    assert message == {"role": "user", "content": "What is it?", "images": [picture]}


@pytest.mark.parametrize(
    "url", ["https://example.com/cat.png", "http://127.0.0.1:1/x", "file:///etc/passwd", "cat.png"]
)
async def test_the_gateway_fetches_no_image(client: openai.AsyncOpenAI, server: OllamaServer, url: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError, match="data URLs") as caught:
        await chat(client, "eyes:1b", messages=[{"role": "user", "content": content}])
    assert caught.value.code == "invalid_image_url"
    assert not server.ledger


async def test_a_conversation_with_tools_keeps_its_links(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    answer = await chat(
        client,
        messages=[
            {"role": "developer", "content": "Be brief."},
            *ASK,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
        ],
        tools=TOOLS,
    )
    assert answer.parse().choices[0].message.content == "One two three four five"
    assert sent(server)["messages"] == [
        {"role": "system", "content": "Be brief."},
        *ASK,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "function": {"name": "weather", "arguments": {"city": "Rome"}}}],
        },
        {"role": "tool", "content": "sunny", "tool_name": "weather", "tool_call_id": "call_1"},
    ]


async def test_thoughts_of_earlier_turns_go_back_as_thoughts(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    said = {"role": "assistant", "content": "Four.", "reasoning_content": "2 + 2"}
    await chat(client, "thinker:1b", messages=[*ASK, said, *ASK])
    assert sent(server)["messages"][1] == {"role": "assistant", "content": "Four.", "thinking": "2 + 2"}


@pytest.mark.parametrize(
    ("choice", "names", "lost"),
    [
        (None, ["weather", "time"], set()),
        ("auto", ["weather", "time"], set()),
        ("none", None, set()),
        ("required", ["weather", "time"], {"tool_choice"}),
        ({"type": "function", "function": {"name": "time"}}, ["time"], {"tool_choice"}),
    ],
)
async def test_a_choice_of_tools_is_as_near_as_ollama_gets(
    client: openai.AsyncOpenAI, server: OllamaServer, choice: Any, names: list[str] | None, lost: set[str]
) -> None:
    answer = await chat(client, tools=TOOLS, **({} if choice is None else {"tool_choice": choice}))
    tools = sent(server).get("tools")
    assert (tools and [tool["function"]["name"] for tool in tools]) == names
    assert dropped(answer) == lost


async def test_models_that_cannot_use_tools_are_not_given_any(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    answer = await chat(client, "eyes:1b", tools=TOOLS, tool_choice="auto")
    assert "tools" not in sent(server)
    assert "tools" in dropped(answer)


@pytest.mark.parametrize(
    ("effort", "think"),
    [("none", False), ("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "max")],
)
async def test_reasoning_effort_is_ollamas_think(
    client: openai.AsyncOpenAI, server: OllamaServer, effort: Any, think: Any
) -> None:
    answer = (await chat(client, "thinker:1b", reasoning_effort=effort)).parse()
    assert sent(server)["think"] == think
    assert (answer.choices[0].message.model_extra or {}).get("reasoning_content") == ("Let me see." if think else None)


@pytest.mark.parametrize("asked", [{"think": True}, {"think": "high"}, {"reasoning_effort": "high"}])
async def test_models_that_do_not_think_are_not_asked_to(
    client: openai.AsyncOpenAI, server: OllamaServer, asked: dict[str, Any]
) -> None:
    answer = await chat(client, extra_body=asked)
    assert "think" not in sent(server)
    assert dropped(answer) == set(asked)


async def test_the_operator_says_whether_models_think_and_the_client_may_say_otherwise(
    server: OllamaServer, tmp_path: Path
) -> None:
    async with ollama_gateway(tmp_path, server, {"think": False}) as gateway, sdk(gateway) as client:
        answers = [
            await chat(client, "thinker:1b"),
            await chat(client, "thinker:1b", extra_body={"think": True}),
            await chat(client),
        ]
    thoughts = [a.parse().choices[0].message.model_extra.get("reasoning_content") for a in answers]
    assert thoughts == [None, "Let me see.", None]
    assert "think" not in sent(server)


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        ({"response_format": {"type": "json_object"}}, "json"),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": OBJECT}}}, OBJECT),
        ({"format": "json"}, "json"),
        ({"format": OBJECT}, OBJECT),
        ({"format": ""}, None),
    ],
)  # fmt: skip
async def test_response_format_is_ollamas_format(
    client: openai.AsyncOpenAI, server: OllamaServer, asked: dict[str, Any], form: Any
) -> None:
    await chat(client, extra_body=asked)
    assert sent(server).get("format") == form


async def test_completions_are_raw_and_think_nothing(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    await client.completions.create(model="thinker:1b", prompt=["Count"])
    body = sent(server)
    assert (body["prompt"], body["raw"], body["think"]) == ("Count", True, False)


async def test_a_suffix_is_filled_in_before(client: openai.AsyncOpenAI, server: OllamaServer) -> None:
    answer = await client.completions.create(model="code:1b", prompt="def f(", suffix="return x")
    assert answer.choices[0].text == "One two three four five"
    assert (sent(server)["suffix"], sent(server)["raw"]) == ("return x", False)


def called(arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": arguments}}]}


CHAT: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"top_k": "many"}, "top_k"),
    ({"stop": [1]}, "stop"),
    ({"format": "yaml"}, "format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages"),
    ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages"),
    ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, "messages"),
    ({"messages": [called("[1]")]}, "messages"),
    ({"messages": [called("{")]}, "messages"),
]
OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("completions", {"prompt": ""}, "prompt"),
    ("completions", {"prompt": ["one", "two"]}, "prompt"),
    ("completions", {"prompt": [1, 2]}, "prompt"),
    ("embeddings", {"input": [1, 2]}, "input"),
    ("embeddings", {"input": [[1], [2]]}, "input"),
]
MISTAKES = [("chat/completions", {"messages": ASK, **body}, param) for body, param in CHAT] + OTHERS


@pytest.mark.parametrize(("path", "body", "param"), MISTAKES)
async def test_mistakes_are_told_before_anything_is_sent(
    client: openai.AsyncOpenAI, server: OllamaServer, path: str, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.post(f"/{path}", cast_to=httpx2.Response, body={"model": "m:1b", **body})
    assert caught.value.param == param
    assert not server.ledger
