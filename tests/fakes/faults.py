"""The ways in which an upstream goes wrong: behaviours for tests/fakes/openai_upstream.py, and ports nobody serves."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

from tests.fakes.openai_upstream import Behaviour, Exchange, Headers


async def hang(exchange: Exchange) -> None:
    """Says nothing more, and stays connected."""
    await exchange.hang()


async def leave_open(exchange: Exchange) -> None:
    """The answer is over, and the connection waits for another request."""


async def cut(exchange: Exchange) -> None:
    """Closes the connection in the middle of the answer."""
    exchange.close()


async def reset(exchange: Exchange) -> None:
    """Resets the connection in the middle of the answer."""
    exchange.reset()


async def end_without_done(exchange: Exchange) -> None:
    """Ends the HTTP message in order, but the stream has said neither why it ends nor `[DONE]`."""
    await exchange.end_stream()


def comments(interval: float) -> Behaviour:
    """Keep-alive comments for ever, and never another event."""

    async def behave(exchange: Exchange) -> None:
        while True:
            await exchange.chunk(b": keep-alive\n\n")
            await asyncio.sleep(interval)

    return behave


def error_event(error: object, *, done: bool) -> Behaviour:
    """An error event in a stream with status 200, as vLLM sends it: followed by `[DONE]` and an orderly end."""

    async def behave(exchange: Exchange) -> None:
        await exchange.chunk(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
        if done:
            await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end_stream()

    return behave


def refuse(status: int, body: bytes = b"", headers: Headers = ()) -> Behaviour:
    """An error status before anything else."""
    error = {"error": {"message": "scripted", "type": "server_error", "param": None, "code": "scripted"}}
    answer = body or json.dumps(error).encode()

    async def behave(exchange: Exchange) -> None:
        await exchange.json(answer, status, headers)

    return behave


def raw(*writes: bytes, end: Behaviour = cut) -> Behaviour:
    """Exactly these bytes from the status line on (or from wherever the answer is), then `end`."""

    async def behave(exchange: Exchange) -> None:
        for data in writes:
            await exchange.write(data)
            await asyncio.sleep(0)
        await end(exchange)

    return behave


def stream(*chunks: bytes, headers: Headers = (), end: Behaviour = end_without_done) -> Behaviour:
    """An event stream with exactly these chunks, then `end`."""

    async def behave(exchange: Exchange) -> None:
        await exchange.open_stream(headers)
        for data in chunks:
            await exchange.chunk(data)
        await end(exchange)

    return behave


def silent_stream_of(end: Behaviour) -> Behaviour:
    """The head of an event stream, and then `end` instead of an event."""
    return stream(end=end)


silent_stream = silent_stream_of(hang)


def endless(block: bytes) -> Behaviour:
    """The same block for ever, in chunks, as fast as the client takes it."""

    async def behave(exchange: Exchange) -> None:
        for _ in count():
            await exchange.chunk(block)

    return behave


def one_after_another(*behaviours: Behaviour) -> Behaviour:
    """Another behaviour for each request; the last one stays."""
    turns = iter(behaviours)
    current = behaviours[0]

    async def behave(exchange: Exchange) -> None:
        nonlocal current
        current = next(turns, current)
        await current(exchange)

    return behave


@contextmanager
def closed_port() -> Iterator[str]:
    """A base URL that refuses every connection, and whose port nobody else can take meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


@contextmanager
def black_hole(port: int = 0) -> Iterator[str]:
    """A base URL whose connections never come about: the listener's backlog is full, so that packets are dropped."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                with suppress(BlockingIOError):
                    filler.connect(address)
            yield f"http://127.0.0.1:{address[1]}/v1"
        finally:
            for filler in fillers:
                filler.close()
