"""F-5: answers that end wrongly.  None passes for a whole one, and none spoils what comes after it.

The official SDK notices nothing when a stream ends in order but without `[DONE]`: only the gateway can tell.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes import faults
from tests.fakes.faults import cut, end_without_done, hang, leave_open, raw
from tests.fakes.openai_upstream import Behaviour, OpenAIUpstream, Script
from tests.integration.conftest import Serve

BROKEN = ("upstream_protocol", "upstream_cut")
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def said(text: str, finish: str | None = None, index: int = 0) -> bytes:
    return event({**CHUNK, "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STEP = 0.02  # seconds between tokens, so that the first ones are with the client before anything goes wrong

#: What comes on the wire after two tokens in good chunks, and how the connection goes on.
ENDINGS: dict[str, Behaviour] = {
    "orderly end without [DONE]": end_without_done,
    "orderly end after half an event": raw(chunk(b'data: {"id":'), b"0\r\n\r\n", end=hang),
    "orderly end after half a [DONE]": raw(chunk(b"data: [DON"), b"0\r\n\r\n", end=hang),
    "orderly end after an empty choice list": raw(chunk(event({**CHUNK, "choices": []})), b"0\r\n\r\n", end=hang),
    "orderly end with one of two choices finished": raw(
        chunk(said("b", index=1)), chunk(said("", "stop")), b"0\r\n\r\n", end=hang
    ),
    "close instead of a chunk": cut,
    "close within a chunk size": raw(b"4"),
    "close within a chunk": raw(b"ff\r\ndata: {"),
    "close after a chunk's data": raw(b"%x\r\n%b" % (len(said("x")), said("x"))),
    "close within the last chunk": raw(b"0\r\n"),
    "close within a trailer": raw(b"0\r\nx-trailer: 1\r\n"),
    "chunk size that is no number": raw(b"zz\r\n", end=hang),
    "negative chunk size": raw(b"-5\r\n", end=hang),
    "chunk size beyond 64 bits": raw(b"fffffffffffffffff\r\n", end=hang),
    "chunk size with a prefix": raw(b"0x10\r\n", end=hang),
    "chunk longer than its size": raw(b"3\r\ndata: {}\n\n\r\n", end=hang),
    "chunk without its line end": raw(b"5\r\nhello5\r\n", end=hang),
    "bare line feeds as chunk lines": raw(b"5\nhello\n", end=hang),
    "another HTTP answer": raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", end=hang),
    "an event that is not JSON": raw(chunk(event(b"{nope}")), end=hang),
    "an event that is a list": raw(chunk(event([])), end=hang),
    "an event that is a text": raw(chunk(event("[DONE]")), end=hang),
    "choices that are a number": raw(chunk(event({**CHUNK, "choices": 7})), end=hang),
    "a choice that is a text": raw(chunk(event({**CHUNK, "choices": ["x"]})), end=hang),
    "an index that is a list": raw(chunk(event({**CHUNK, "choices": [{"index": []}]})), end=hang),
    "an HTML page": raw(chunk(event(b"<html>502 Bad Gateway</html>")), end=hang),
    "NUL in an event": raw(chunk(event(b'{"choices":[{"delta":{"content":"\x00"}}]}')), end=hang),
    "invalid UTF-8": raw(chunk(event(b'{"choices":[{"delta":{"content":"\xff"}}]}')), end=hang),
    "a number that is none": raw(chunk(event(b'{"choices":[],"usage":{"prompt_tokens":NaN}}')), end=hang),
}

#: Whole answers, from the status line on.
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
WHOLE: dict[str, Behaviour] = {
    "nothing": cut,
    "shorter than its length": raw(HEAD + b"content-length: 500\r\n\r\n" + b'{"choices":[]}'),
    "close within a chunk ": raw(HEAD + b"transfer-encoding: chunked\r\n\r\nff\r\n{"),
    "close without the last chunk": raw(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk(b"{}")),
    "bad chunk size": raw(HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", end=hang),
    "half a JSON": raw(HEAD + b'content-length: 11\r\n\r\n{"choices":', end=hang),
    "no JSON": raw(HEAD + b"content-length: 15\r\n\r\n<html>hi</html>", end=hang),
    "a JSON list": raw(HEAD + b"content-length: 2\r\n\r\n[]", end=hang),
    "empty": raw(HEAD + b"content-length: 0\r\n\r\n", end=hang),
    "204": raw(b"HTTP/1.1 204 No Content\r\n\r\n", end=leave_open),
    "two lengths": raw(HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ", end=hang),
    "a length and chunks": raw(
        HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", end=hang
    ),
    "a negative length": raw(HEAD + b"content-length: -2\r\n\r\n{}", end=hang),
    "a length that is no number": raw(HEAD + b"content-length: two\r\n\r\n{}", end=hang),
    "HTTP/0.9": raw(b'{"choices":[]}', end=hang),
    "another protocol": raw(b"SSH-2.0-OpenSSH_9.2\r\n", end=hang),
    "a switch of protocols": raw(b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", end=hang),
    "a header without a colon": raw(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n{}", end=hang),
    "NUL in a header": raw(b"HTTP/1.1 200 OK\r\nx: a\x00b\r\ncontent-length: 2\r\n\r\n{}", end=hang),
    "close within the headers": raw(b"HTTP/1.1 200 OK\r\ncontent-le"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
async def test_a_stream_that_ends_wrongly_ends_with_an_error(serve: Serve, name: str) -> None:
    turns = faults.one_after_another(Script(itl=STEP, after=2, fault=ENDINGS[name]), Script())
    async with OpenAIUpstream({"m": turns}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat()
        assert reply.text.startswith("One two")
        assert reply.failure["code"] in BROKEN
        if name.startswith("orderly"):
            assert reply.failure["code"] == "upstream_protocol"
        line = await gateway.settled(reply)
        assert (line.reason, line.status, line.attempts) == (reply.failure["code"], 200, 1)
        assert 2 <= line.completion_tokens <= 4
        assert (await gateway.chat()).done


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_that_is_broken_before_it_is_shown_is_a_502(serve: Serve, name: str, stream: bool) -> None:
    turns = faults.one_after_another(WHOLE[name], Script())
    async with OpenAIUpstream({"m": turns}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat(stream=stream)
        assert (reply.status, reply.complete) == (502, True)
        assert reply.error["code"] in BROKEN
        line = await gateway.settled(reply)
        assert (line.reason, line.status, line.completion_tokens) == (reply.error["code"], 502, 0)
        assert (await gateway.chat(stream=stream)).status == 200


async def test_a_stream_delimited_by_a_length_is_held_to_it(serve: Serve) -> None:
    body = said("One") + said(" two")
    short = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body) + 9,
        body,
    )
    async with OpenAIUpstream({"m": raw(short)}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat()
        assert reply.text == "One two"
        assert reply.failure["code"] in BROKEN


async def test_a_stream_delimited_by_the_connection_is_whole_only_with_done(serve: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    models = {"whole": raw(head + said("One") + event(b"[DONE]")), "cut": raw(head + said("One"))}
    async with OpenAIUpstream(models) as upstream, serve({"one": upstream}) as gateway:
        whole, broken = await gateway.chat("whole"), await gateway.chat("cut")
        assert (whole.text, whole.done, whole.complete) == ("One", True, True)
        assert (broken.text, broken.failure["code"]) == ("One", "upstream_protocol")


async def test_what_comes_after_the_end_belongs_to_nobody(serve: Serve) -> None:
    """Bytes after a complete answer must not become the answer to somebody else's request on that connection."""
    foreign = b'HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n{"choices":[{"message":"somebody else\'s"}]}'
    body = said("One", "stop") + event(b"[DONE]")
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    chunked = head + b"transfer-encoding: chunked\r\n\r\n" + chunk(body) + b"0\r\n\r\n"
    sized = head + b"content-length: %d\r\n\r\n" % len(body) + body
    for answer in (chunked, sized):
        turns = faults.one_after_another(raw(answer + foreign, end=hang), raw(answer, foreign, end=hang), Script())
        async with OpenAIUpstream({"m": turns}) as upstream, serve({"one": upstream}, hops=False) as gateway:
            for _ in range(2):  # an answer with a stranger's bytes in one piece may be refused, but is never mixed up
                reply = await gateway.chat()
                assert reply.status == 502 or (reply.text, reply.done) == ("One", True)
            for _ in range(3):
                answer = (await gateway.chat(stream=False)).json
                assert answer["choices"][0]["message"]["content"] == "One two three four five"


@pytest.mark.parametrize("name", ENDINGS)
async def test_a_fault_that_comes_with_the_first_tokens_is_told_too(serve: Serve, name: str) -> None:
    """All in one piece: nothing has been sent yet, so the whole answer may become an error."""
    async with OpenAIUpstream({"m": Script(after=2, fault=ENDINGS[name])}) as upstream:
        async with serve({"one": upstream}) as gateway:
            reply = await gateway.chat()
            error = reply.error if reply.status == 502 else reply.failure
            assert error["code"] in BROKEN
