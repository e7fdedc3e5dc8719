"""F-1: no connection to an upstream.  The next target answers; without one the client hears so at once."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import faults
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.integration.conftest import Serve
from tests.integration.rig import route
from tests.patience import LATE, near
from tests.tiers import repeated


@repeated(20, 200)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refused_connection_is_answered_by_the_next_target(
    serve: Serve, stream: bool, repetitions: int
) -> None:
    async with OpenAIUpstream() as first, OpenAIUpstream() as second:
        route_m = route("both", ("first", "m"), ("second", "m"))
        settings = {"models": [route_m], "timeouts": {"connect": 3 * LATE}}
        async with serve({"first": first, "second": second}, **settings) as gateway:
            await first.stop()
            for _ in range(repetitions):
                reply = await gateway.chat("both", stream=stream, within=LATE)
                assert reply.status == 200
                assert reply.header("x-gateway-upstream") == "second"
            assert {line.reason for line in gateway.lines()} == {"completed"}
            assert gateway.lines()[0].attempts == 2


@repeated(20, 200)
@pytest.mark.parametrize("stream", [True, False])
async def test_without_another_target_a_refused_connection_is_a_503_at_once(
    serve: Serve, stream: bool, repetitions: int
) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}, timeouts={"connect": 3 * LATE}) as gateway:
        await upstream.stop()
        for _ in range(repetitions):
            reply = await gateway.chat(stream=stream, within=LATE)
            assert reply.status == 503
            assert int(reply.header("retry-after") or 0) >= 1
            assert reply.error["code"] in ("upstream_connect", "model_unavailable")
            line = await gateway.settled(reply)
            assert (line.reason, line.status) == ("upstream_connect", 503)
            assert (line.prompt_tokens, line.completion_tokens) == (0, 0)
        assert gateway.replies[0].error["code"] == "upstream_connect"


async def test_it_serves_again_as_soon_as_the_upstream_is_back(serve: Serve) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}, poll_interval=1) as gateway:
        await upstream.stop()
        assert (await gateway.chat()).status == 503
        await upstream.start()
        async with asyncio.timeout(3 * LATE):
            while (reply := await gateway.chat()).status == 503:
                await asyncio.sleep(0.1)
        assert reply.text == "One two three four five"


async def test_a_black_hole_costs_the_connect_time_out_and_no_more(serve: Serve) -> None:
    async with OpenAIUpstream() as first, OpenAIUpstream() as second:
        route_m = route("both", ("first", "m"), ("second", "m"))
        settings = {"models": [route_m], "timeouts": {"connect": 0.4}}
        async with serve({"first": first, "second": second}, **settings) as gateway:
            await first.stop()
            with faults.black_hole(first.port):
                started = asyncio.get_running_loop().time()
                alone, both = await asyncio.gather(gateway.chat("first/m"), gateway.chat("both"))
                assert near(asyncio.get_running_loop().time() - started, 0.4)
            assert (alone.status, alone.error["code"]) == (503, "upstream_connect")
            assert "no connection within 0.4 s" in alone.error["message"]
            assert alone.header("retry-after")
            assert both.text == "One two three four five"
            assert (await gateway.settled(both)).attempts == 2


async def test_an_upstream_that_was_never_there_stops_nothing(serve: Serve) -> None:
    with faults.closed_port() as nowhere:
        async with OpenAIUpstream({"other": faults.refuse(500)}) as upstream:
            async with serve({"dead": nowhere, "one": upstream}) as gateway:
                reply = await gateway.chat("dead/m")
                assert reply.status == 503
                assert reply.header("retry-after")
                assert (await gateway.settled(reply)).reason == "upstream_connect"


@repeated(20, 200)
async def test_a_connection_that_died_while_idle_is_replaced_unseen(serve: Serve, repetitions: int) -> None:
    """Servers close idle connections after seconds; a request that meets such a one is sent again, and only then."""
    async with OpenAIUpstream() as upstream, serve({"one": upstream}, hops=False) as gateway:
        for _ in range(repetitions):
            assert (await gateway.chat()).status == 200
            await upstream.stop()
            await upstream.start()
        assert {line.attempts for line in gateway.lines()} == {1}
        assert len(upstream.ledger) == repetitions
