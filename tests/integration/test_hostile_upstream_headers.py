"""B-18: of an upstream's headers nothing reaches the client but what the gateway means to say."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from tests.fakes import faults
from tests.fakes.openai_upstream import Behaviour, Exchange, OpenAIUpstream, Script
from tests.integration.conftest import Serve
from tests.patience import LATE

#: All that an answer of an upstream may carry on its way to the client.
ALLOWED = {
    "content-type", "content-length", "transfer-encoding", "date", "server", "connection", "cache-control",
    "x-accel-buffering", "x-content-type-options", "x-request-id", "x-gateway-upstream", "x-gateway-adapter",
    "x-gateway-dropped-params", "x-should-retry", "retry-after",
}  # fmt: skip
HOSTILE = (
    ("set-cookie", "session=stolen; Domain=.example.invalid"),
    ("location", "http://127.0.0.1:1/elsewhere"),
    ("connection", "x-evil, close"),
    ("content-type", "text/html"),
    ("x-request-id", "theirs"),
    ("x-gateway-upstream", "theirs"),
    ("x-gateway-adapter", "theirs"),
    ("access-control-allow-origin", "*"),
    ("strict-transport-security", "max-age=1"),
    ("refresh", "0; url=http://127.0.0.1:1/"),
    ("x-should-retry", "true"),
    ("www-authenticate", "Basic"),
    ("openai-organization", "theirs"),
    ("server", "theirs"),
    ("x-evil", "1"),
)


@pytest.mark.parametrize("stream", [True, False])
async def test_only_the_gateways_own_headers_reach_the_client(serve: Serve, stream: bool) -> None:
    async with OpenAIUpstream({"m": Script(headers=HOSTILE)}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat(stream=stream)
        assert reply.status == 200
        assert {name for name, _ in reply.headers} <= ALLOWED
        assert len({name for name, _ in reply.headers}) == len(reply.headers)
        assert reply.header("content-type") == ("text/event-stream; charset=utf-8" if stream else "application/json")
        assert reply.header("x-gateway-upstream") == "one"
        assert not {"theirs", "*"} & {value for _, value in reply.headers}


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_nor_with_an_error(serve: Serve, status: int) -> None:
    behaviour = faults.refuse(status, headers=HOSTILE)
    async with OpenAIUpstream({"m": behaviour}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat()
        assert {name for name, _ in reply.headers} <= ALLOWED
        assert reply.header("content-type") == "application/json"
        assert "theirs" not in {value for _, value in reply.headers}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(serve: Serve, status: int) -> None:
    async with OpenAIUpstream() as elsewhere:
        away = faults.refuse(status, headers=[("location", f"{elsewhere.url}/chat/completions")])
        async with OpenAIUpstream({"m": away}) as upstream, serve({"one": upstream}) as gateway:
            reply = await gateway.chat()
            assert reply.status == 502
            assert reply.header("location") is None
            assert (await gateway.settled(reply)).reason == "upstream_protocol"
        assert not elsewhere.requests
        assert not elsewhere.connections


async def _many(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(10_000)) + b"\r\n")


async def _endless(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.write(b"x-more: 1\r\n" * 1000)


async def _one_long(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nset-cookie: ")
    while True:
        await exchange.write(b"c" * 65536)


async def _long_name(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.write(b"c" * 65536)


async def _interim(exchange: Exchange) -> None:
    while True:
        await exchange.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 100)


async def _long_status(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 ")
    while True:
        await exchange.write(b"O" * 65536)


async def _trailers(exchange: Exchange) -> None:
    await exchange.open_stream()
    await exchange.write(b"0\r\n")
    while True:
        await exchange.write(b"x-more: 1\r\n" * 1000)


@pytest.mark.parametrize("flood", [_many, _endless, _one_long, _long_name, _interim, _long_status, _trailers])
async def test_a_flood_of_headers_is_cut_off(serve: Serve, flood: Behaviour) -> None:
    async with OpenAIUpstream({"m": flood}) as upstream, serve({"one": upstream}) as gateway:
        await gateway.chat(within=LATE)
        tracemalloc.start()
        try:
            reply = await gateway.chat(within=LATE)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (reply.status, reply.error["code"]) == (502, "upstream_protocol")
        for attempt in upstream.ledger:
            await asyncio.wait_for(attempt.over.wait(), LATE)
            assert attempt.sent < 16 * 2**20
        assert peak < 8 * 2**20


@pytest.mark.parametrize("head", [
    b"HTTP/1.1 200 OK\r\nx-a: 1\r\n folded: 2\r\n",
    b"HTTP/1.1 200 OK\r\nx-a: 1\rset-cookie: a=b\r\n",
    b"HTTP/1.1 200 OK\r\nx-a: 1\nset-cookie: a=b\r\n",
    b"HTTP/1.1 200 OK\r\nx-gateway-upstream: theirs\r\nx-gateway-upstream: theirs\r\n",
    b"HTTP/1.1 200 OK\r\nx-\xff: \xff\r\n",
])  # fmt: skip
async def test_odd_headers_pass_no_further(serve: Serve, head: bytes) -> None:
    body = b'{"id":"c","object":"chat.completion","model":"m","choices":[]}'
    answer = head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    async with OpenAIUpstream({"m": faults.raw(answer)}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat(stream=False)
        assert reply.status in (200, 502)
        assert {name for name, _ in reply.headers} <= ALLOWED
        assert "theirs" not in {value for _, value in reply.headers}


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", _raw_deflate), ("br", bytes), ("zstd", bytes),
     ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data)))],
)  # fmt: skip
async def test_a_compressed_answer_is_refused_unopened(
    serve: Serve, encoding: str, pack: Callable[[bytes], bytes], stream: bool
) -> None:
    """It was not asked for (`accept-encoding: identity`), and may be a bomb: 64 MiB in 64 kB."""
    bomb = pack(b"\0" * 2**26)[: 2**17]
    kind = b"text/event-stream" if stream else b"application/json"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-encoding: %b\r\n" % (kind, encoding.encode())
    behaviour = faults.raw(head + b"content-length: %d\r\n\r\n" % len(bomb) + bomb, end=faults.hang)
    async with OpenAIUpstream({"m": behaviour}) as upstream, serve({"one": upstream}) as gateway:
        tracemalloc.start()
        try:
            reply = await gateway.chat(stream=stream)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (reply.status, reply.error["code"]) == (502, "upstream_protocol")
        assert upstream.ledger[0].request.header("accept-encoding") == "identity"
        assert peak < 16 * 2**20
