"""What every dialect keeps, seen on the wire: a backend that is added to BACKENDS runs through these promises."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.backends import BACKENDS
from tests import wire
from tests.contract.places import FAKES, Place
from tests.fakes.openai_dialect import PIECES
from tests.patience import LATE
from tests.wire import Reply

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK: list[Any] = [{"role": "user", "content": "What is the capital of Italy?"}]
BRIEF: dict[str, Any] = {"messages": ASK, "max_tokens": 8, "temperature": 0}
#: One setting for all models, as chat clients have it: parameters of every engine, and of none.
FOREIGN: dict[str, Any] = {
    "num_ctx": 100_000, "num_gpu": 1, "keep_alive": "1h", "mirostat": 2, "repeat_penalty": 1.1, "think": True,
    "reasoning_effort": "high", "top_k": 5, "min_p": 0.1, "cache_salt": "x", "logit_bias": {"1": 1},
    "no_such_parameter": {"a": [1]}, "chat_id": "c", "session_id": "s", "metadata": {"a": "b"}, "store": False,
    "parallel_tool_calls": False, "service_tier": "auto", "user": "u", "options": {"num_ctx": 1},
}  # fmt: skip


async def post(place: Place, body: dict[str, Any], path: str = CHAT, **more: Any) -> Reply:
    return await wire.post(place.gateway.url, path, {"model": place.chat, **body}, place.auth, within=60, **more)


def sent(place: Place) -> dict[str, Any]:
    """What the fake got last."""
    assert place.server is not None
    body: dict[str, Any] = place.server.ledger[-1].request.json
    return body


async def test_every_dialect_has_a_server_to_be_tested_on() -> None:
    assert FAKES.keys() == BACKENDS.keys(), "add a server of the new kind to FAKES in tests/contract/places.py"


@pytest.mark.parametrize(("path", "body"), [(CHAT, BRIEF), (TEXT, {"prompt": "One", "max_tokens": 4})])
async def test_a_stream_keeps_its_form(place: Place, path: str, body: dict[str, Any]) -> None:
    reply = await post(place, {**body, "stream": True}, path)
    assert reply.status == 200
    assert (reply.header("content-type") or "").startswith("text/event-stream")
    assert reply.header("content-encoding") is None
    assert reply.header("x-accel-buffering") == "no"
    assert reply.header("x-gateway-upstream")
    assert reply.complete
    assert reply.done
    assert len({(chunk["id"], chunk["created"], chunk["object"], chunk["model"]) for chunk in reply.chunks}) == 1
    assert reply.chunks[0]["model"] == place.chat
    assert reply.chunks[0]["object"] == ("chat.completion.chunk" if path == CHAT else "text_completion")
    reasons = [choice["finish_reason"] for chunk in reply.chunks for choice in chunk["choices"]]
    assert [reason for reason in reasons if reason] == [reasons[-1]]


async def test_nothing_in_a_chunk_is_null_where_a_client_would_drop_it(place: Place) -> None:
    """Open WebUI loses the text of a chunk with one of these."""
    reply = await post(place, {**BRIEF, "stream": True, "stream_options": {"include_usage": True}})
    for chunk in reply.chunks:
        assert chunk.get("choices") is not None
        assert not [name for name in ("timings", "type", "error", "event") if chunk.get(name, 0) is None]
        assert all(choice["delta"] is not None for choice in chunk["choices"])


async def test_the_answers_model_is_the_one_that_was_asked_for(place: Place) -> None:
    whole = await post(place, BRIEF)
    assert whole.json["model"] == place.chat
    streamed = await post(place, {**BRIEF, "stream": True})
    assert {chunk["model"] for chunk in streamed.chunks} == {place.chat}
    assert streamed.text == whole.json["choices"][0]["message"]["content"]


async def test_usage_is_counted_whether_it_is_asked_for_or_not(place: Place) -> None:
    counted = []
    for body in (
        BRIEF,
        {**BRIEF, "stream": True},
        {**BRIEF, "stream": True, "stream_options": {"include_usage": True}},
    ):
        before = await tokens(place)
        reply = await post(place, body)
        counted.append(tuple(now - then for now, then in zip(await tokens(place), before, strict=True)))
        usage = [chunk["usage"] for chunk in reply.chunks if chunk.get("usage")] if body.get("stream") else []
        assert bool(usage) == ("stream_options" in body)
    assert counted[0][0] > 0
    assert counted[0][1] > 0
    assert len(set(counted)) == 1


async def tokens(place: Place) -> tuple[float, float]:
    metric = place.gateway.metric
    return (
        await metric("gateway_tokens_total", model=place.chat, direction="in"),
        await metric("gateway_tokens_total", model=place.chat, direction="out"),
    )


async def test_what_is_not_counted_upstream_is_estimated_and_says_so(fake: Place) -> None:
    body = {"model": "uncounted", "messages": ASK, "stream": True, "stream_options": {"include_usage": True}}
    reply = await post(fake, body)
    usage = reply.chunks[-1]["usage"]
    assert usage["estimated"] is True
    assert usage["completion_tokens"] == len(PIECES)
    assert usage["prompt_tokens"] > 0


async def test_parameters_of_others_never_cause_an_error(place: Place) -> None:
    for stream in (False, True):
        reply = await post(place, {**BRIEF, **FOREIGN, "stream": stream})
        assert reply.status == 200, reply.body
        dropped = (reply.header("x-gateway-dropped-params") or "").split(",")
        assert {"no_such_parameter", "chat_id", "options", "num_gpu", "mirostat"} <= set(dropped)


async def test_what_is_dropped_is_named_and_what_is_named_was_not_sent(fake: Place) -> None:
    reply = await post(fake, {**BRIEF, **FOREIGN})
    dropped = set((reply.header("x-gateway-dropped-params") or "").split(","))
    body = sent(fake)
    assert dropped <= FOREIGN.keys()
    assert not (dropped - {"options"}) & body.keys()  # Ollama's has options of its own
    known = {"openai": {"logit_bias", "user"}, "vllm": {"top_k", "cache_salt"}, "ollama": {"top_k", "repeat_penalty"}}
    arrived = {**body, **body.get("options", {})}
    for name in known[fake.kind]:
        assert arrived[name] == FOREIGN[name]


async def test_the_developer_becomes_the_system_where_engines_do_not_know_it(place: Place) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, *ASK]
    reply = await post(place, {**BRIEF, "messages": messages})
    assert reply.status == 200
    if place.server is not None:
        assert sent(place)["messages"][0]["role"] == ("developer" if place.kind == "openai" else "system")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_either_name_limits_the_answer(place: Place, name: str) -> None:
    reply = await post(place, {"messages": ASK, name: 2})
    assert reply.json["usage"]["completion_tokens"] == 2
    assert reply.json["choices"][0]["finish_reason"] == "length"


async def test_it_does_not_matter_how_the_upstream_cuts_its_stream(fake: Place) -> None:
    whole = await post(fake, {**BRIEF, "stream": True})
    sliced = await post(fake, {**BRIEF, "stream": True, "model": "sliced"})
    assert sliced.text == whole.text == "".join(PIECES)
    assert len(sliced.chunks) == len(whole.chunks)


async def test_no_word_waits_for_the_next(fake: Place) -> None:
    """While the upstream thinks of the next word, the client has all the words before it."""
    assert fake.server is not None
    number = len(fake.server.ledger)
    async with asyncio.timeout(LATE), wire.connected(fake.gateway.url) as client:
        await client.post(CHAT, {"model": "asked", "messages": ASK, "stream": True}, fake.auth)
        attempt = await fake.server.attempt(number)
        attempt.wanted.release()
        await client.head()
        said = b""
        for piece in PIECES:
            while f'"content":"{piece}"'.encode() not in said.replace(b'": "', b'":"'):
                said += await client.chunk() or b""
            attempt.wanted.release()


async def test_a_client_that_leaves_frees_the_upstream_at_once(fake: Place) -> None:
    assert fake.server is not None
    for model, stream in (("stalls", True), ("stalls", False), ("hangs", True), ("hangs", False)):
        number = len(fake.server.ledger)
        async with wire.connected(fake.gateway.url) as client:
            await client.post(CHAT, {"model": model, "messages": ASK, "stream": stream}, fake.auth)
            attempt = await fake.server.attempt(number)
            if model == "stalls" and stream:
                await client.head()
                await client.chunk()
            client.close()
            await asyncio.wait_for(attempt.over.wait(), LATE)
        assert attempt.outcome == "left", (model, stream)


@pytest.mark.parametrize("model", ["cut", "errs"])
async def test_a_broken_stream_ends_with_one_error_and_is_not_done(fake: Place, model: str) -> None:
    reply = await post(fake, {"model": model, "messages": ASK, "stream": True})
    assert reply.status == 200
    assert reply.text == "One two"
    assert reply.failure["code"] in ("upstream_cut", "upstream_status")
    assert "scripted" not in reply.body.decode()


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 500, 501, 503])
async def test_an_upstreams_error_has_openais_form(fake: Place, status: int) -> None:
    replies = [
        await post(fake, {"model": f"status-{status}", "messages": ASK, "stream": stream}) for stream in (False, True)
    ]
    told = {401: 502, 500: 502, 501: 502}.get(status, status)
    for reply in replies:
        assert reply.status == told
        assert reply.error == replies[0].error
        assert reply.header("x-request-id")
        assert b"scripted" not in reply.body or status in (400, 409, 422, 404)


async def test_embeddings_are_the_same_packed_or_not(fake: Place) -> None:
    body = {"model": fake.embeds, "input": ["one", "two"]}
    replies = [await post(fake, {**body, "encoding_format": form}, "/v1/embeddings") for form in ("float", "base64")]
    for reply in replies:
        assert reply.json["object"] == "list"
        assert [(one["object"], one["index"]) for one in reply.json["data"]] == [("embedding", 0), ("embedding", 1)]
        assert reply.json["usage"]["total_tokens"] > 0
    assert isinstance(replies[0].json["data"][0]["embedding"][0], float)
    assert isinstance(replies[1].json["data"][0]["embedding"], str)


async def test_an_endpoint_that_a_kind_has_not_is_a_clear_error(fake: Place) -> None:
    reply = await post(fake, {"prompt": "One"}, "/tokenize")
    assert reply.status in ((400,) if fake.kind != "vllm" else (404,)), reply.body
    assert "tokenize" in reply.error["message"]


async def test_the_key_that_is_sent_upstream_is_never_the_clients(fake: Place) -> None:
    assert fake.server is not None
    await post(fake, BRIEF)
    request = fake.server.ledger[-1].request
    assert fake.gateway.key not in str(request.headers)
    assert fake.gateway.key.encode() not in json.dumps(request.json).encode()
