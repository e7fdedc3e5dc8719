"""Ollama's answers become OpenAI's, wherever the network cuts them and whatever they hold."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.backends import BACKENDS
from gateway.backends.base import DecodeFault
from gateway.domain.call import Call, Client, Endpoint
from gateway.domain.listing import ListedModel
from gateway.domain.principal import ANONYMOUS
from gateway.domain.snapshot import Target, Upstream
from gateway.domain.usage import Usage
from tests.fakes import ollama_dialect as dialect
from tests.fakes.ollama_dialect import Model

OLLAMA = BACKENDS["ollama"]
TARGET = Target("ollama", "m:1b")
ASK = {"messages": [{"role": "user", "content": "Name five numbers."}]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}}
CREATED = "2026-08-04T17:37:44.706015396-07:00"


def call(endpoint: Endpoint = Endpoint.CHAT, **body: Any) -> Call:
    return Call("req_7", endpoint, "public", {"model": "public", **body}, True, True, ANONYMOUS, Client())


def stream_of(model: Model, request: dict[str, Any], chat: bool = True) -> bytes:
    """What Ollama streams for this request of its own."""
    body = {"model": "m:1b", **request}
    answer = (dialect.answer_chat if chat else dialect.answer_generate)(body, model, "m:1b")
    form = dialect.chat_object if chat else dialect.generate_object
    lines = []
    for said, last in dialect.in_objects(answer, model):
        probabilities = {"logprobs": list(said.logprobs)} if said.logprobs else {}
        end = dialect.ending(answer, model, 0.05) if last else {}
        lines.append(form("m:1b", CREATED, said) | {"done": last} | end | probabilities)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def decoded(data: bytes, cuts: list[int], endpoint: Endpoint = Endpoint.CHAT) -> tuple[bytes, Any]:
    decoder = OLLAMA.decoder(call(endpoint), TARGET)
    bounds = [0, *sorted({min(cut, len(data)) for cut in cuts}), len(data)]
    out = b"".join(decoder.feed(data[a:b]) for a, b in itertools.pairwise(bounds))
    decoder.end()
    return out + decoder.tail(decoder.usage or Usage(), {}), decoder


def chunks(out: bytes) -> list[dict[str, Any]]:
    *events, done, rest = out.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


THINKER = Model(("completion", "tools", "thinking"), rendered=True)
STREAMS = [
    (stream_of(Model(), ASK), Endpoint.CHAT),
    (stream_of(THINKER, {**ASK, "tools": [TOOL]}), Endpoint.CHAT),
    (stream_of(Model(pieces=("Süß", " 🦙", "\u2028")), {**ASK, "logprobs": True, "top_logprobs": 1}), Endpoint.CHAT),
    (stream_of(Model(), {"prompt": "Count", "logprobs": True}, chat=False), Endpoint.COMPLETIONS),
]


@pytest.mark.parametrize(("data", "endpoint"), STREAMS)
def test_it_does_not_matter_where_the_network_cuts(data: bytes, endpoint: Endpoint) -> None:
    whole, _ = decoded(data, [], endpoint)
    for cut in range(len(data)):
        assert decoded(data, [cut], endpoint)[0] == whole


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 3000), max_size=40))
def test_nor_how_often(stream: tuple[bytes, Endpoint], cuts: list[int]) -> None:
    data, endpoint = stream
    assert decoded(data, cuts, endpoint)[0] == decoded(data, [], endpoint)[0]


def test_each_object_goes_out_as_soon_as_it_is_there() -> None:
    decoder = OLLAMA.decoder(call(), TARGET)
    lines = STREAMS[0][0].splitlines(keepends=True)
    said = [chunks(decoder.feed(line) + b"data: [DONE]\n\n")[0] for line in lines[:-1]]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in said] == ["One", " two", " three", " four", " five"]


def test_identity_time_and_model_are_the_same_in_every_chunk() -> None:
    found = chunks(decoded(STREAMS[0][0], [])[0])
    assert {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in found} == {
        ("chatcmpl-7", 1_785_890_264, "public", "chat.completion.chunk")
    }
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert found[-1]["choices"] == []
    assert found[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


@pytest.mark.parametrize("rendered", [False, True])
def test_a_streamed_tool_call_is_whole_and_ends_the_turn(rendered: bool) -> None:
    data = stream_of(Model(rendered=rendered), {**ASK, "tools": [TOOL]})
    choices = [chunk["choices"][0] for chunk in chunks(decoded(data, [])[0]) if chunk["choices"]]
    (calls,) = [choice["delta"]["tool_calls"] for choice in choices if "tool_calls" in choice["delta"]]
    (one,) = calls
    assert (one["index"], one["type"], one["function"]["name"]) == (0, "function", "weather")
    assert json.loads(one["function"]["arguments"]) == {"city": "Rome"}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_tool_calls_without_identity_get_one_that_no_other_answer_has() -> None:
    def part(name: str) -> bytes:
        message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": {}}}]}
        return json.dumps({"message": message, "done": False}).encode() + b"\n"

    data = part("one") + part("two") + b'{"message":{},"done":true,"done_reason":"stop"}\n'
    calls = [
        made for chunk in chunks(decoded(data, [])[0]) for choice in chunk["choices"]
        for made in choice["delta"].get("tool_calls", ())
    ]  # fmt: skip
    assert [(made["index"], made["id"]) for made in calls] == [(0, "call_7_0"), (1, "call_7_1")]


def test_thoughts_come_as_reasoning() -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(decoded(stream_of(THINKER, ASK), [])[0])[:-1]]
    assert [delta["reasoning_content"] for delta in deltas[:3]] == ["Let", " me", " see."]
    assert "".join(delta.get("content", "") for delta in deltas) == "One two three four five"


def test_probabilities_of_a_completion_tell_where_each_token_stands() -> None:
    found = chunks(decoded(STREAMS[3][0], [], Endpoint.COMPLETIONS)[0])
    said = [chunk["choices"][0] for chunk in found if chunk["choices"] and chunk["choices"][0]["logprobs"]]
    text = "".join(choice["text"] for choice in said)
    for choice in said:
        (token,), (offset,) = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
        assert text[offset:].startswith(token)
        assert choice["logprobs"]["token_logprobs"] == [-0.5]


LINE = {"message": {"role": "assistant", "content": "One"}, "done": False}


@pytest.mark.parametrize(
    "bad",
    [
        b"nonsense",
        b"[]",
        b'{"message":{"content":5},"done":false}',
        b'{"message":{"content":["a"]},"done":false}',
        b'{"message":{"tool_calls":{}},"done":false}',
        b'{"message":{"tool_calls":[5]},"done":false}',
        b'{"message":{"tool_calls":[{"function":{}}]},"done":false}',
        b'{"message":{"content":"a"},"logprobs":[5],"done":false}',
        b'{"message":{"content":"a"},"logprobs":[{"token":5}],"done":false}',
    ],
)
def test_what_is_no_answer_breaks_off_and_what_came_before_goes_out(bad: bytes) -> None:
    decoder = OLLAMA.decoder(call(), TARGET)
    with pytest.raises(DecodeFault) as caught:
        decoder.feed(json.dumps(LINE).encode() + b"\n" + bad + b"\n")
    assert b'"content":"One"' in caught.value.flushed
    assert caught.value.reason == "upstream_protocol"


def test_an_object_without_end_is_not_collected_for_ever() -> None:
    decoder = OLLAMA.decoder(call(), TARGET)
    for _ in range(8):
        decoder.feed(b"x" * 1_048_576)
    with pytest.raises(DecodeFault, match="8 MiB"):
        decoder.feed(b"x")


def test_a_stream_that_ends_without_saying_so_is_broken() -> None:
    decoder = OLLAMA.decoder(call(), TARGET)
    decoder.feed(json.dumps(LINE).encode() + b"\n")
    with pytest.raises(DecodeFault, match="before the answer was complete"):
        decoder.end()


@pytest.mark.parametrize(
    ("counters", "usage"),
    [
        ({"prompt_eval_count": 3, "eval_count": 5}, Usage(3, 5)),
        ({"prompt_eval_count": 3}, Usage(3, 0)),
        ({"eval_count": 5}, None),
        ({"prompt_eval_count": -3, "eval_count": 5}, None),
        ({"prompt_eval_count": "3", "eval_count": 5}, None),
        ({"prompt_eval_count": 3, "eval_count": 10**12}, None),
        ({}, None),
    ],
)
def test_counters_are_believed_where_they_can_be_true(counters: dict[str, Any], usage: Usage | None) -> None:
    """What is None is estimated by the gateway."""
    body = json.dumps({**LINE, "done": True, **counters}).encode()
    assert OLLAMA.answer(call(), TARGET, body).usage == usage
    decoder = OLLAMA.decoder(call(), TARGET)
    decoder.feed(body + b"\n")
    assert decoder.usage == usage


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"message":{"content":"cut off"},"done":false}'])
def test_a_whole_answer_that_is_none_is_a_fault(body: bytes) -> None:
    with pytest.raises(DecodeFault):
        OLLAMA.answer(call(), TARGET, body)


@pytest.mark.parametrize("vectors", [None, [], [[1.0]], [5, 5]])
@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_that_do_not_fit_the_texts_are_a_fault(vectors: Any, form: str) -> None:
    asked = call(Endpoint.EMBEDDINGS, input=["one", "two"], encoding_format=form)
    with pytest.raises(DecodeFault):
        OLLAMA.answer(asked, TARGET, json.dumps({"embeddings": vectors}).encode())


def discovered(tags: Any, shows: dict[str, Any] | None = None, **options: Any) -> tuple[tuple[ListedModel, ...], int]:
    """What is found, and how many models had to be asked for."""
    discovery = OLLAMA.discover(Upstream("o", "ollama", "http", "127.0.0.1", 1, options=options))
    assert next(discovery).path == "/api/tags"
    answer: bytes | None = json.dumps(tags).encode()
    asked = 0
    while True:
        try:
            ask = discovery.send(answer)
        except StopIteration as end:
            return end.value, asked
        asked += 1
        shown = (shows or {}).get(json.loads(ask.body or b"")["model"])
        answer = None if shown is None else json.dumps(shown).encode()


def test_a_list_that_says_what_models_can_do_is_enough() -> None:
    entry = {
        "model": "qwen3:8b", "modified_at": CREATED, "details": {"context_length": 40_960},
        "capabilities": ["completion", "tools", "thinking"],
    }  # fmt: skip
    found = ListedModel("qwen3:8b", tools=True, vision=False, thinking=True, created=1_785_890_264)
    assert discovered({"models": [entry]}) == ((found,), 0)
    ((limited,), _) = discovered({"models": [entry]}, num_ctx=8192)
    assert limited.context_length == 8192
    ((capped,), _) = discovered({"models": [entry]}, num_ctx=100_000)
    assert capped.context_length == 40_960


def test_older_servers_are_asked_for_each_model() -> None:
    shows = {
        "nomic:latest": {"capabilities": ["embedding"], "model_info": {"nomic-bert.context_length": 2048}},
        "llava:7b": {"capabilities": ["completion", "vision"], "model_info": {"llama.context_length": 4096}},
    }
    tags = {"models": [{"name": "nomic:latest"}, {"name": "llava:7b"}, {"name": "gone:1b"}]}
    found, asked = discovered(tags, shows, num_ctx=8192)
    assert asked == 3
    assert [(model.id, model.context_length, model.embedding, model.vision) for model in found] == [
        ("nomic:latest", 2048, True, False), ("llava:7b", 4096, False, True), ("gone:1b", 8192, False, None),
    ]  # fmt: skip


@pytest.mark.parametrize("tags", [[], {}, {"models": {}}, "x"])
def test_what_is_no_list_of_models_is_said(tags: Any) -> None:
    with pytest.raises((ValueError, DecodeFault)):
        discovered(tags)
