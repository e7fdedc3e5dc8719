"""B-14 to B-17 through the whole gateway: slices, line ends, sizes, strange text, and events that mean harm."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.fakes import faults
from tests.fakes.openai_upstream import Exchange, OpenAIUpstream, Script
from tests.integration.conftest import Serve
from tests.patience import LATE

CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
MIB = 2**20


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def said(text: str, finish: str | None = None) -> bytes:
    return event({**CHUNK, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


DONE = said("", "stop") + event(b"[DONE]")


@pytest.mark.parametrize(
    "pieces", [("北京", "是", "首都"), ("👩‍👩‍👧‍👦", "🏳️‍🌈", "e\u0301"), ("a\u2028b", "\x00\r\n\r\n", '\\"')]
)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("slices", [1, 3, 1000])
async def test_slices_and_line_ends_change_nothing(
    serve: Serve, pieces: tuple[str, ...], newline: bytes, slices: int
) -> None:
    script = Script(pieces=pieces, newline=newline, slices=slices, prelude=b": note" + newline)
    async with OpenAIUpstream({"m": script, "plain": Script(pieces=pieces)}) as upstream:
        async with serve({"one": upstream}) as gateway:
            sliced, plain = await gateway.chat("m"), await gateway.chat("plain")
            assert sliced.text == "".join(pieces)
            assert (sliced.done, sliced.complete) == (True, True)
            assert [strip(chunk) for chunk in sliced.chunks] == [strip(chunk) for chunk in plain.chunks]
            assert (await gateway.settled(sliced)).completion_tokens == len(pieces)


def strip(chunk: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chunk.items() if name not in ("id", "model")}


async def test_no_event_waits_for_the_next(serve: Serve) -> None:
    """Each event is with the client before the upstream sends another."""
    taken = asyncio.Semaphore(0)

    async def one_by_one(exchange: Exchange) -> None:
        await exchange.open_stream()
        for number in range(20):
            await exchange.chunk(said(f"{number} "))
            await asyncio.wait_for(taken.acquire(), LATE)
        await exchange.chunk(DONE)
        await exchange.end_stream()

    async with OpenAIUpstream({"m": one_by_one}) as upstream, serve({"one": upstream}) as gateway:
        async with gateway.streaming() as client:
            for number in range(20):
                assert f'"{number} "'.encode() in (await client.chunk() or b"")
                taken.release()
            assert await client.ending()


@pytest.mark.parametrize("size", [8 * MIB, 8 * MIB + 2048, 16 * MIB])
async def test_an_event_of_8_mib_passes_and_a_longer_one_does_not(serve: Serve, size: int) -> None:
    big = said("i" * (size - len(said("")) + len("data: \n\n")))
    behaviour = faults.stream(said("One"), big, DONE)
    async with OpenAIUpstream({"m": behaviour}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat()
        if size <= 8 * MIB:
            assert reply.done
            assert [len(item) for item in reply.events][1] == size
        else:
            assert (reply.text, reply.failure["code"]) == ("One", "upstream_protocol")


@pytest.mark.parametrize("block", [b"x" * 65536, b"data: x\n" * 8192, b":" * 65536])
async def test_a_line_or_event_without_end_is_cut_off_early(serve: Serve, block: bytes) -> None:
    behaviour = faults.stream(said("One"), end=faults.endless(block))
    async with OpenAIUpstream({"m": behaviour}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat()
        assert reply.failure["code"] == "upstream_protocol"
        await asyncio.wait_for(upstream.ledger[0].over.wait(), LATE)
        assert upstream.ledger[0].outcome == "left"
        assert upstream.ledger[0].sent < 32 * MIB  # the limit, and what the sockets' buffers held


async def test_empty_lines_without_end_are_no_sign_of_life(serve: Serve) -> None:
    behaviour = faults.stream(said("One"), end=faults.endless(b"\n" * 1000))
    async with OpenAIUpstream({"m": behaviour}) as upstream:
        async with serve({"one": upstream}, timeouts={"token_idle": 0.5}) as gateway:
            reply = await gateway.chat()
            assert (reply.text, reply.failure["code"]) == ("One", "upstream_idle")


@pytest.mark.parametrize("text", ["a\x00b", "\ufffe", "</script>", "\x1b[31m", "\u202e"])
async def test_strange_text_reaches_the_client_as_it_is(serve: Serve, text: str) -> None:
    async with OpenAIUpstream({"m": Script(pieces=(text,))}) as upstream, serve({"one": upstream}) as gateway:
        assert (await gateway.chat()).text == text
        assert (await gateway.chat(stream=False)).json["choices"][0]["message"]["content"] == text


async def test_only_data_of_a_known_shape_passes(serve: Serve) -> None:
    """Open WebUI acts on events that a model server sends (CVE-2025-64496)."""
    execute = {"event": {"type": "execute", "data": {"code": "fetch('/api/v1/auths')"}}}
    behaviour = faults.stream(
        b"event: execute\nid: 9\nretry: 0\n" + said("One"),
        b"event: execute\n" + event(execute),
        event({**CHUNK, **execute, "choices": [{"index": 0, "delta": {"content": " two"}, "finish_reason": None}]}),
        b"<script>alert(1)</script>\n\n",
        event({"foreign": True}),
        DONE,
    )
    async with OpenAIUpstream({"m": behaviour}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat()
        assert (reply.text, reply.done) == ("One two", True)
        for word in (b"execute", b"script", b"retry", b"foreign"):
            assert word not in reply.body


async def test_an_early_done_ends_the_answer_and_frees_the_upstream(serve: Serve) -> None:
    behaviour = faults.stream(said("One"), event(b"[DONE]"), said("two"), end=faults.endless(said("three")))
    async with OpenAIUpstream({"m": behaviour}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat()
        assert (reply.text, reply.done, reply.complete) == ("One", True, True)
        await asyncio.wait_for(upstream.ledger[0].over.wait(), LATE)
        assert (await gateway.settled(reply)).reason == "completed"


@pytest.mark.parametrize("lie", [-5, 1.5, 10**18, "12", None, [], {"a": 1}])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_usage_that_cannot_be_is_counted_anew(serve: Serve, lie: Any, stream: bool) -> None:
    script = Script(usage=lambda usage: usage | {"prompt_tokens": lie, "completion_tokens": lie})
    async with OpenAIUpstream({"m": script}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat(stream=stream)
        assert reply.status == 200
        line = await gateway.settled(reply)
        assert 0 <= line.completion_tokens <= 100
        assert 0 < line.prompt_tokens <= 100
        assert await gateway.total("gateway_tokens_total", estimated="true") > 0


@pytest.mark.parametrize("asked", [True, False])
async def test_a_missing_usage_is_estimated_and_marked(serve: Serve, asked: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    async with OpenAIUpstream({"m": Script(usage=lambda usage: None)}) as upstream:
        async with serve({"one": upstream}) as gateway:
            reply = await gateway.chat(**options)
            assert upstream.ledger[0].request.json["stream_options"] == {"include_usage": True}
            line = await gateway.settled(reply)
            assert line.completion_tokens == 5
            last = reply.chunks[-1]
            assert ("usage" in last and not last["choices"]) == asked
            if asked:
                assert last["usage"]["estimated"] is True
                assert last["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("asked", [True, False])
async def test_usage_is_always_asked_for_and_shown_only_to_those_who_did(serve: Serve, asked: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    async with OpenAIUpstream() as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat(**options)
        assert upstream.ledger[0].request.json["stream_options"]["include_usage"] is True
        assert [bool(chunk.get("usage")) for chunk in reply.chunks].count(True) == (1 if asked else 0)
        assert all(chunk["choices"] for chunk in reply.chunks[:-1])
        assert (await gateway.settled(reply)).completion_tokens == 5
