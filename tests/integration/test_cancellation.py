"""F-6, F-7, F-8: the client leaves, and the upstream hears of it, in every phase.

The upstreams of these tests would go on for minutes: what ends an attempt is that its client has left.  How soon they
hear of it is measured where there is time to repeat it hundreds of times, by `make soak`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests import wire
from tests.fakes import faults
from tests.fakes.openai_upstream import Attempt, Behaviour, OpenAIUpstream, Script
from tests.integration.conftest import Serve
from tests.integration.rig import AUTH
from tests.patience import LATE
from tests.tiers import repeated

AT_ONCE = 10
QUICK = 50  # repetitions in every run
LEAVING = ("close", "reset", "half_close")


def leave(client: wire.Wire, number: int) -> float:
    """Leaves, each time in another way; returns when."""
    getattr(client, LEAVING[number % len(LEAVING)])()
    return asyncio.get_running_loop().time()


async def heard(attempt: Attempt, left: float) -> float:
    """How long the upstream took to hear that the client has left; fails if something else ended its attempt."""
    await asyncio.wait_for(attempt.over.wait(), LATE)
    assert attempt.outcome == "left"
    return attempt.ended - left


async def in_time(check: Callable[[int], Awaitable[float]], repetitions: int) -> None:
    """`check` for each repetition, some at once: it returns how long the upstream took to hear of it.  In the long run
    that is within 250 ms for all but one in a hundred."""
    delays: list[float] = []
    for start in range(0, repetitions, AT_ONCE):
        delays += await asyncio.gather(*map(check, range(start, start + AT_ONCE)))
    if repetitions > QUICK:
        assert sorted(delays)[int(len(delays) * 0.99) - 1] < 0.25


@repeated(QUICK, 1000)
async def test_in_the_middle_of_a_stream(serve: Serve, repetitions: int) -> None:
    """F-6: at a random token.  What was received ≤ what is accounted for ≤ what the upstream sent."""
    script = Script(pieces=("t ",) * 100_000, itl=0.002)
    chance = random.Random(6)
    received: Counter[str] = Counter()
    async with OpenAIUpstream({"m": script}) as upstream, serve({"one": upstream}) as gateway:

        async def check(number: int) -> float:
            async with gateway.asking() as client:
                request = dict((await client.head())[1])["x-request-id"]
                for _ in range(chance.randrange(1, 40)):
                    received[request] += (await client.chunk() or b"").count(b'"t ')
                left = leave(client, number)
                attempt = next(one for one in upstream.ledger if one.request.header("x-request-id") == request)
                return await heard(attempt, left)

        await in_time(check, repetitions)
        await gateway.quiet()
        sent = {attempt.request.header("x-request-id"): attempt.tokens for attempt in upstream.ledger}
        for line in gateway.lines():
            assert line.reason == "client_cancel"
            assert received[line.request_id] <= line.completion_tokens <= sent[line.request_id]
        assert len(gateway.lines()) == repetitions
        assert await gateway.total("gateway_cancellations_total", phase="stream") == repetitions


HALF_AN_ANSWER = faults.raw(
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{", end=faults.hang
)
HALF_AN_ERROR = faults.raw(b"HTTP/1.1 500 No\r\ncontent-length: 99\r\n\r\n{", end=faults.hang)


@repeated(QUICK, 500)
@pytest.mark.parametrize(
    ("behaviour", "stream", "phase"),
    [
        (faults.hang, True, "headers"),
        (faults.hang, False, "headers"),
        (faults.silent_stream, True, "headers"),
        (HALF_AN_ANSWER, False, "body"),
        (Script(after=2, fault=faults.hang), True, "stream"),
        (HALF_AN_ERROR, True, "headers"),
    ],
    ids=["headers-stream", "headers-whole", "first-event", "half-an-answer", "stalled-stream", "error-body"],
)
async def test_while_the_upstream_is_silent(
    serve: Serve, behaviour: Behaviour, stream: bool, phase: str, repetitions: int
) -> None:
    """F-7: before the first byte, during an answer that comes whole, and in a stall."""
    async with OpenAIUpstream({"m": behaviour}) as upstream:
        async with serve({"one": upstream}) as gateway:

            async def check(number: int) -> float:
                async with gateway.asking(stream=stream, user=f"number {number}.") as client:
                    attempt = await upstream.attempt_with(f"number {number}.")
                    if phase == "stream":
                        await client.head()
                        while b" two" not in (await client.chunk() or b" two"):
                            pass
                    left = leave(client, number)
                    return await heard(attempt, left)

            await in_time(check, repetitions)
            await gateway.quiet()
            assert [line.reason for line in gateway.lines()] == ["client_cancel"] * repetitions
            tokens = 2 if phase == "stream" else 0
            assert {line.completion_tokens for line in gateway.lines()} == {tokens}
            cancelled = await gateway.total("gateway_cancellations_total")
            assert cancelled == repetitions
            if phase != "body":  # whether the half had come before the client left is a race
                assert await gateway.total("gateway_cancellations_total", phase=phase) == repetitions


@pytest.mark.parametrize("stream", [True, False])
async def test_while_it_waits_for_a_place(serve: Serve, stream: bool) -> None:
    """The upstream never hears of it, and the place goes to the next."""
    models: dict[str, Behaviour] = {"busy": faults.hang, "m": Script()}
    async with OpenAIUpstream(models) as upstream:
        async with serve({"one": upstream}, concurrency={"limit": 1, "queue": 100}) as gateway:
            async with gateway.asking("busy", stream=True) as holder:
                await upstream.attempt(0)
                for number in range(len(LEAVING) * 3):
                    async with gateway.asking("m", stream=stream) as client:
                        await gateway.reaches("gateway_requests_waiting", 1)
                        leave(client, number)
                        await gateway.reaches("gateway_requests_waiting", 0)
                waiting = asyncio.ensure_future(gateway.chat("m", stream=stream))
                await gateway.reaches("gateway_requests_waiting", 1)
                holder.close()
                assert (await waiting).status == 200
            await gateway.quiet()
            assert len(upstream.ledger) == 2
            assert await gateway.total("gateway_cancellations_total", phase="queue") == len(LEAVING) * 3


async def test_while_its_connection_is_made(serve: Serve) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}, timeouts={"connect": 30}) as gateway:
        await upstream.stop()
        with faults.black_hole(upstream.port):
            async with gateway.asking("m", stream=True) as client:
                await gateway.reaches("gateway_requests_in_flight", 1)
                client.close()
                assert (await gateway.settled()).reason == "client_cancel"
        assert await gateway.total("gateway_cancellations_total", phase="connect") == 1


async def test_while_its_body_is_on_the_way(serve: Serve) -> None:
    async with OpenAIUpstream() as upstream, serve({"one": upstream}) as gateway:
        async with wire.connected(gateway.url) as client:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            await client.send(f"{head}{AUTH[0][0]}: {AUTH[0][1]}\r\ncontent-length: 100\r\n\r\n{{".encode())
        assert (await gateway.settled()).reason == "client_cancel"
        assert not upstream.ledger


async def test_whoever_stays_is_not_disturbed(serve: Serve) -> None:
    """Requests of others on the same upstream go on, whole and in order."""
    models = {
        "leaves": Script(pieces=("t ",) * 1000, itl=0.005),
        "stays": Script(pieces=tuple(map(str, range(50))), itl=0.01),
    }
    async with OpenAIUpstream(models) as upstream, serve({"one": upstream}) as gateway:

        async def come_and_go(number: int) -> None:
            async with gateway.asking("leaves", stream=True) as client:
                await client.head()
                await client.chunk()
                leave(client, number)

        staying = [asyncio.ensure_future(gateway.chat("stays")) for _ in range(5)]
        await asyncio.gather(*map(come_and_go, range(20)))
        for reply in await asyncio.gather(*staying):
            assert (reply.text, reply.done) == ("".join(map(str, range(50))), True)
