"""F-2: silence.  Headers that never come, a stall between tokens, comments for ever, an answer without end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from tests.fakes import faults
from tests.fakes.openai_upstream import Attempt, Behaviour, OpenAIUpstream, Script
from tests.integration.conftest import Serve
from tests.integration.rig import route
from tests.patience import LATE, near
from tests.tiers import repeated
from tests.wire import Reply

SHORT = 0.4
LONG = 10 * LATE


async def timed(reply: Awaitable[Reply]) -> tuple[Reply, float]:
    loop = asyncio.get_running_loop()
    started = loop.time()
    return await reply, loop.time() - started


async def closed(attempt: Attempt) -> None:
    """Returns when the upstream has seen the gateway leave."""
    await asyncio.wait_for(attempt.over.wait(), LATE)
    assert attempt.outcome == "left"


@repeated(10, 100)
@pytest.mark.parametrize("behaviour", [faults.hang, faults.silent_stream])
async def test_headers_or_events_that_never_come_are_a_504(
    serve: Serve, behaviour: Behaviour, repetitions: int
) -> None:
    async with OpenAIUpstream({"m": behaviour}) as upstream:
        async with serve({"one": upstream}, timeouts={"first_byte": SHORT}) as gateway:
            for reply, took in await asyncio.gather(*(timed(gateway.chat()) for _ in range(repetitions))):
                assert (reply.status, reply.error["code"]) == (504, "upstream_ttft")
                assert reply.header("x-should-retry") == "false"
                assert near(took, SHORT)
                line = await gateway.settled(reply)
                assert (line.reason, line.status, line.completion_tokens) == ("upstream_ttft", 504, 0)
            for attempt in upstream.ledger:
                await closed(attempt)


async def test_a_whole_answer_that_never_comes_is_a_504(serve: Serve) -> None:
    async with OpenAIUpstream({"m": faults.hang}) as upstream:
        async with serve({"one": upstream}, timeouts={"answer": SHORT, "first_byte": LONG}) as gateway:
            reply, took = await timed(gateway.chat(stream=False))
            assert (reply.status, reply.error["code"]) == (504, "upstream_ttft")
            assert near(took, SHORT)
            await closed(upstream.ledger[0])


@pytest.mark.parametrize("stream", [True, False])
async def test_the_next_target_answers_when_headers_never_come(serve: Serve, stream: bool) -> None:
    async with OpenAIUpstream({"m": faults.hang}) as first, OpenAIUpstream() as second:
        settings = {
            "models": [route("both", ("first", "m"), ("second", "m"))],
            "timeouts": {"answer": SHORT, "first_byte": SHORT},
        }
        async with serve({"first": first, "second": second}, **settings) as gateway:
            reply, took = await timed(gateway.chat("both", stream=stream))
            assert (reply.status, reply.header("x-gateway-upstream")) == (200, "second")
            assert near(took, SHORT)
            await closed(first.ledger[0])
            assert (await gateway.settled(reply)).attempts == 2


@repeated(10, 100)
@pytest.mark.parametrize("k", [0, 1, 3])
async def test_a_stall_between_tokens_ends_the_stream_with_an_error(serve: Serve, k: int, repetitions: int) -> None:
    async with OpenAIUpstream({"m": Script(after=k, fault=faults.hang)}) as upstream:
        async with serve({"one": upstream}, timeouts={"byte_idle": SHORT}) as gateway:
            for reply, took in await asyncio.gather(*(timed(gateway.chat()) for _ in range(repetitions))):
                assert reply.failure["code"] == "upstream_idle"
                assert reply.text == "".join(["One", " two", " three"][:k])
                assert near(took, SHORT)
                line = await gateway.settled(reply)
                assert (line.reason, line.status, line.completion_tokens) == ("upstream_idle", 200, k)
            for attempt in upstream.ledger:
                await closed(attempt)


@pytest.mark.parametrize("pause", [0.05, 0.001])
async def test_comments_do_not_count_as_tokens(serve: Serve, pause: float) -> None:
    async with OpenAIUpstream({"m": Script(after=2, fault=faults.comments(pause))}) as upstream:
        async with serve({"one": upstream}, timeouts={"byte_idle": 0.5, "token_idle": 1.0}) as gateway:
            reply, took = await timed(gateway.chat())
            assert (reply.failure["code"], reply.text) == ("upstream_idle", "One two")
            assert near(took, 1.0)
            assert (await gateway.settled(reply)).completion_tokens == 2
            await closed(upstream.ledger[0])


async def test_comments_before_the_first_event_are_no_first_byte(serve: Serve) -> None:
    async with OpenAIUpstream({"m": faults.silent_stream_of(faults.comments(0.05))}) as upstream:
        async with serve({"one": upstream}, timeouts={"first_byte": SHORT}) as gateway:
            reply, took = await timed(gateway.chat())
            assert (reply.status, reply.error["code"]) == (504, "upstream_ttft")
            assert near(took, SHORT)


@pytest.mark.parametrize("itl", [0.02, 0.001])
async def test_an_answer_without_end_is_ended(serve: Serve, itl: float) -> None:
    async with OpenAIUpstream({"m": Script(pieces=(" on",) * 10_000, itl=itl)}) as upstream:
        async with serve({"one": upstream}, timeouts={"total": 0.6}) as gateway:
            reply, took = await timed(gateway.chat())
            assert reply.failure["code"] == "upstream_total"
            assert near(took, 0.6)
            line = await gateway.settled(reply)
            assert (line.reason, line.completion_tokens) == ("upstream_total", reply.text.count("on"))
            assert 0 < line.completion_tokens <= upstream.ledger[0].tokens
            await closed(upstream.ledger[0])


async def test_the_total_covers_all_attempts(serve: Serve) -> None:
    async with OpenAIUpstream({"m": faults.hang}) as first, OpenAIUpstream({"m": faults.hang}) as second:
        settings = {
            "models": [route("both", ("first", "m"), ("second", "m"))],
            "timeouts": {"first_byte": SHORT, "total": SHORT * 1.5},
        }
        async with serve({"first": first, "second": second}, **settings) as gateway:
            reply, took = await timed(gateway.chat("both"))
            assert (reply.status, reply.error["code"]) == (504, "upstream_total")
            assert near(took, SHORT * 1.5)


async def test_a_slow_stream_that_lives_is_left_alone(serve: Serve) -> None:
    async with OpenAIUpstream({"m": Script(ttft=0.3, itl=0.3)}) as upstream:
        limits = {"first_byte": 1.0, "byte_idle": 1.0, "token_idle": 1.0}
        async with serve({"one": upstream}, timeouts=limits) as gateway:
            reply = await gateway.chat()
            assert (reply.text, reply.done, reply.complete) == ("One two three four five", True, True)


async def test_an_error_body_that_never_ends_does_not_hold_the_client(serve: Serve) -> None:
    head = b"HTTP/1.1 500 Broken\r\ncontent-length: 100\r\n\r\n{"
    async with OpenAIUpstream({"m": faults.raw(head, end=faults.hang)}) as upstream:
        async with serve({"one": upstream}, timeouts={"first_byte": SHORT, "answer": SHORT}) as gateway:
            reply, took = await timed(gateway.chat())
            assert reply.status in (502, 504)
            assert near(took, SHORT)
