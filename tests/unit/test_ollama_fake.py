"""The fake Ollama is a fair one: Ollama's own client finds nothing to complain of, and its answers are of the right
types; and it does the two things that the gateway exists to prevent: cut in silence, and obey anybody."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest

from tests import wire
from tests.fakes.ollama import VERSION, OllamaServer, Pace, error_line
from tests.fakes.ollama_dialect import Model

ASK = [{"role": "user", "content": "Name five numbers."}]
LONG = [{"role": "user", "content": "word " * 40}, {"role": "assistant", "content": "ok"}, *ASK]
PIXEL = b"\x89PNG\r\n\x1a\n"


def weather(city: str) -> str:
    """The weather.

    Args:
        city: Where.
    """
    return city


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    models = {
        "llama3.2:latest": Model(),
        "qwen3:8b": Model(("completion", "tools", "thinking"), rendered=True),
        "llava:7b": Model(("completion", "vision"), trained=32_768),
        "nomic-embed-text:latest": Model(("embedding",), trained=2048),
        "failing:latest": Model(),
    }
    async with OllamaServer(models, paces={"failing:latest": Pace(after=2, fault=error_line("CUDA error"))}) as running:
        yield running


@pytest.fixture
async def client(server: OllamaServer) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(host=server.url)
    yield client
    await client.close()


async def test_models_are_listed_shown_and_seen_running(client: ollama.AsyncClient) -> None:
    listed = (await client.list()).models
    assert [model.model for model in listed][:2] == ["llama3.2:latest", "qwen3:8b"]
    shown = await client.show("qwen3:8b")
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 131_072
    assert not (await client.ps()).models
    await client.chat("llama3.2", ASK, options={"num_ctx": 8192}, keep_alive="10m")
    (running,) = (await client.ps()).models
    assert (running.model, running.context_length) == ("llama3.2:latest", 8192)
    unloaded = await client.chat("llama3.2", [], keep_alive=0)
    assert unloaded.done_reason == "unload"
    assert not (await client.ps()).models


async def test_an_answer_comes_whole_with_its_counters(client: ollama.AsyncClient) -> None:
    answer = await client.chat("llama3.2", ASK)
    assert answer.message.content == "One two three four five"
    assert (answer.done, answer.done_reason) == (True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (3, 5)
    assert answer.total_duration
    assert answer.eval_duration


async def test_a_stream_is_lines_of_json_and_only_the_last_has_counters(server: OllamaServer) -> None:
    body = {"model": "llama3.2", "messages": ASK}
    reply = await wire.post(server.url, "/api/chat", body)
    assert reply.header("content-type") == "application/x-ndjson"
    lines = [json.loads(line) for line in reply.body.splitlines()]
    assert [line["message"]["content"] for line in lines] == ["One", " two", " three", " four", " five", ""]
    assert [line["done"] for line in lines] == [False] * 5 + [True]
    assert [key for line in lines[:-1] for key in line if key.endswith(("count", "duration"))] == []
    assert len({line["created_at"] for line in lines}) == len(lines)


async def test_thinking_is_on_unless_it_is_declined_and_refused_by_models_without(client: ollama.AsyncClient) -> None:
    assert (await client.chat("qwen3:8b", ASK)).message.thinking == "Let me see."
    assert (await client.chat("qwen3:8b", ASK, think=False)).message.thinking is None
    with pytest.raises(ollama.ResponseError, match=r'"llama3\.2" does not support thinking') as caught:
        await client.chat("llama3.2", ASK, think=True)
    assert caught.value.status_code == 400


@pytest.mark.parametrize(("model", "last"), [("llama3.2", True), ("qwen3:8b", False)])
async def test_a_tool_call_comes_whole(client: ollama.AsyncClient, model: str, last: bool) -> None:
    parts = [part async for part in await client.chat(model, ASK, tools=[weather], stream=True)]
    calls = [
        (call.function.name, call.function.arguments, part.done)
        for part in parts
        for call in part.message.tool_calls or ()
    ]
    assert calls == [("weather", {"city": "Rome"}, last)]
    answer = await client.chat(model, ASK, tools=[weather])
    result = {"role": "tool", "content": "sunny", "tool_name": "weather"}
    after = await client.chat(model, [*ASK, answer.message, result], tools=[weather])
    assert after.message.content == "One two three four five"
    with pytest.raises(ollama.ResponseError, match="does not support tools"):
        await client.chat("llava:7b", ASK, tools=[weather])


async def test_formats_bind_the_answer(client: ollama.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    answer = await client.chat("llama3.2", ASK, format=schema)
    assert json.loads(answer.message.content or "") == {"age": 1}
    answer = await client.chat("llama3.2", ASK, format="json")
    assert json.loads(answer.message.content or "")


async def test_images_are_for_models_that_see(client: ollama.AsyncClient) -> None:
    seen = [{"role": "user", "content": "What is it?", "images": [PIXEL]}]
    assert (await client.chat("llava:7b", seen)).prompt_eval_count == 768 + 3
    with pytest.raises(ollama.ResponseError, match="image input is not supported"):
        await client.chat("llama3.2", seen)


async def test_log_probabilities_and_their_alternatives(client: ollama.AsyncClient) -> None:
    answer = await client.chat("llama3.2", ASK, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert [one.token for one in answer.logprobs] == ["One", " two", " three", " four", " five"]
    assert [other.token for other in answer.logprobs[0].top_logprobs or ()] == ["~0", "~1"]


async def test_completions_stop_where_they_are_told(client: ollama.AsyncClient) -> None:
    answer = await client.generate("llama3.2", "Count", options={"num_predict": 2})
    assert (answer.response, answer.done_reason, answer.context) == ("One two", "length", [1, 2, 3])
    answer = await client.generate("llama3.2", "Count", raw=True, options={"stop": [" three"]})
    assert (answer.response, answer.done_reason, answer.context) == ("One two", "stop", None)
    assert (await client.generate("llama3.2")).done_reason == "load"


async def test_embeddings_have_unit_length_and_a_count(client: ollama.AsyncClient) -> None:
    answer = await client.embed("nomic-embed-text", ["one", "two words"])
    assert [round(sum(x * x for x in vector), 6) for vector in answer.embeddings] == [1.0, 1.0]
    assert answer.prompt_eval_count == 3 + 4
    with pytest.raises(ollama.ResponseError, match="does not support embeddings"):
        await client.embed("llama3.2", "one")


async def test_a_long_prompt_is_cut_in_silence_unless_that_is_forbidden(
    server: OllamaServer, client: ollama.AsyncClient
) -> None:
    options = {"num_ctx": 10}
    assert (await client.chat("llama3.2", LONG, options=options)).done
    assert (await client.generate("llama3.2", "word " * 40, options=options)).done
    assert (await client.embed("nomic-embed-text", "word " * 40, options=options)).embeddings
    assert all(cut > 0 for cut in server.cuts)
    for path, body in (
        ("/api/chat", {"model": "llama3.2", "messages": LONG}),
        ("/api/generate", {"model": "llama3.2", "prompt": "word " * 40}),
        ("/api/embed", {"model": "nomic-embed-text", "input": "word " * 40}),
    ):
        reply = await wire.post(server.url, path, {**body, "options": options, "truncate": False})
        assert reply.status == 400
        assert "exceeds the" in reply.json["error"]


async def test_without_a_shift_an_answer_ends_where_the_context_does(server: OllamaServer) -> None:
    body = {"model": "llama3.2", "messages": ASK, "options": {"num_ctx": 6}, "stream": False}
    for shift, text, reason in ((True, "One two three four five", "stop"), (False, "One two three", "length")):
        answer = (await wire.post(server.url, "/api/chat", {**body, "shift": shift})).json
        assert (answer["message"]["content"], answer["done_reason"]) == (text, reason)


async def test_a_failure_in_the_middle_is_a_line_with_an_error(client: ollama.AsyncClient) -> None:
    stream = aiter(await client.chat("failing", ASK, stream=True))
    assert [(await anext(stream)).message.content for _ in range(2)] == ["One", " two"]
    with pytest.raises(ollama.ResponseError, match="CUDA error"):
        await anext(stream)


async def test_a_model_that_is_not_there_is_not_found(client: ollama.AsyncClient) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'absent' not found") as caught:
        await client.chat("absent", ASK)
    assert caught.value.status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"messages": [{"role": "user", "content": ["a"]}]}, 400, "cannot unmarshal array into Go struct field"),
        ({"messages": [{"role": "user", "content": "a", "images": ["%"]}]}, 400, "illegal base64"),
        ({"messages": ASK, "think": "a lot"}, 400, "invalid think value"),
        ({"messages": ASK, "keep_alive": "soon"}, 400, "invalid duration"),
        ({"messages": ASK, "top_logprobs": 21}, 400, "between 0 and 20"),
        ({"messages": ASK, "options": {"top_k": "many"}}, 500, "must be of type integer"),
        ({"messages": ASK, "options": {"stop": "one"}}, 500, "must be of an array of strings"),
        ({"messages": ASK, "format": "yaml"}, 500, "invalid format"),
    ],
)
async def test_mistakes_are_told_in_ollamas_words(
    server: OllamaServer, body: dict[str, Any], status: int, words: str
) -> None:
    reply = await wire.post(server.url, "/api/chat", {"model": "llama3.2", **body})
    assert reply.status == status
    assert words in reply.json["error"]


async def test_whoever_reaches_it_can_change_it(server: OllamaServer, client: ollama.AsyncClient) -> None:
    assert (await client.pull("evil")).status == "success"
    assert [part.status async for part in await client.create("evil", from_="llama3.2", stream=True)][-1] == "success"
    await client.copy("llama3.2", "mine")
    await client.delete("llama3.2")
    changed = [("POST", "/api/pull"), ("POST", "/api/create"), ("POST", "/api/copy"), ("DELETE", "/api/delete")]
    assert server.touched == changed
    assert (await wire.get(server.url, "/api/version")).json == {"version": VERSION}
