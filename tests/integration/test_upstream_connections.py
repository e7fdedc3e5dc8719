"""Kept connections: what makes requests cheap must never mix them up, lose them or multiply them."""

from __future__ import annotations

import asyncio

import pytest

from gateway.dataplane import client
from tests.fakes import faults
from tests.fakes.openai_upstream import Exchange, OpenAIUpstream, Script
from tests.integration.conftest import Serve

FOREIGN = b'HTTP/1.1 200 OK\r\ncontent-length: 57\r\n\r\n{"choices":[{"message":{"content":"somebody else\'s"}}]}  '
WHOLE = b'{"choices":[{"index":0,"message":{"content":"mine"},"finish_reason":"stop"}]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(WHOLE) + WHOLE


@pytest.mark.parametrize("split", [1, 10, len(FOREIGN) - 10])
async def test_the_beginning_of_another_answer_is_not_completed_for_the_next_request(serve: Serve, split: int) -> None:
    """An upstream that begins a second answer behind the first, and ends it when somebody asks again."""

    connections = 0

    async def behave(exchange: Exchange) -> None:
        nonlocal connections
        if exchange.attempt.number == 0:
            connections = exchange.upstream.connections
            await exchange.write(ANSWER + FOREIGN[:split])
        elif exchange.upstream.connections == connections:
            await exchange.write(FOREIGN[split:])
        else:
            await Script()(exchange)

    async with OpenAIUpstream({"m": behave}) as upstream, serve({"one": upstream}, hops=False) as gateway:
        first = await gateway.chat(stream=False)
        assert first.status == 502 or first.json["choices"][0]["message"]["content"] == "mine"
        second = await gateway.chat(stream=False)
        assert second.json["choices"][0]["message"]["content"] == "One two three four five"


async def test_a_request_that_its_server_does_not_survive_is_sent_twice_at_most(serve: Serve) -> None:
    """However many connections are kept: that the first was closed while it rested is a guess, not an excuse."""

    async def together(exchange: Exchange) -> None:
        await exchange.upstream.attempt(4)  # five at once, so that none is sent on the connection of another
        await Script()(exchange)

    models = {"m": together, "deadly": faults.reset}
    async with OpenAIUpstream(models) as upstream, serve({"one": upstream}, hops=False) as gateway:
        await asyncio.gather(*(gateway.chat() for _ in range(5)))
        assert upstream.connections >= 5
        deadly = await gateway.chat("deadly")
        assert (deadly.status, deadly.error["code"]) == (502, "upstream_cut")
        assert [attempt.model for attempt in upstream.ledger].count("deadly") <= 2


async def test_a_connection_that_rested_too_long_is_not_trusted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands between may have forgotten it without a word, and the request would wait for its first byte."""
    async with OpenAIUpstream() as upstream, serve({"one": upstream}) as gateway:
        await gateway.chat()
        await gateway.chat()
        before = upstream.connections
        monkeypatch.setattr(client, "_MAX_REST", 0.0)
        assert (await gateway.chat()).done
        assert upstream.connections == before + 1
