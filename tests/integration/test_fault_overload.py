"""More requests than an upstream has places for: they wait in order, for a while, and no more than may wait."""

from __future__ import annotations

import asyncio
import itertools
import json

from tests import wire
from tests.fakes import faults
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.integration.conftest import Serve
from tests.integration.rig import AUTH, chat, route
from tests.patience import LATE, near

OPENWEBUI = [("x-openwebui-chat-id", "c-1")]


async def test_an_upstream_never_gets_more_than_its_places(serve: Serve) -> None:
    async with OpenAIUpstream({"m": Script(ttft=0.03)}) as upstream:
        async with serve({"one": upstream}, concurrency={"limit": 3, "queue": 100}) as gateway:
            replies = await asyncio.gather(*(gateway.chat(stream=number % 2 == 0) for number in range(30)))
            assert {reply.status for reply in replies} == {200}
            times = [(attempt.arrived, 1) for attempt in upstream.ledger]
            times += [(attempt.ended, -1) for attempt in upstream.ledger]
            running = most = 0
            for _, step in sorted(times):
                running += step
                most = max(most, running)
            assert most == 3


async def test_a_full_queue_is_a_503_at_once(serve: Serve) -> None:
    async with OpenAIUpstream({"m": faults.hang}) as upstream:
        async with serve({"one": upstream}, concurrency={"limit": 1, "queue": 1, "queue_timeout": 9 * LATE}) as gateway:
            async with gateway.asking("m"), gateway.asking("m"):
                await gateway.reaches("gateway_requests_waiting", 1)
                reply = await gateway.chat(within=LATE)
                assert (reply.status, reply.error["code"]) == (503, "overloaded")
                assert reply.header("retry-after")
                assert reply.header("x-should-retry") == "true"
                assert (await gateway.settled(reply)).reason == "limit"
                assert len(upstream.ledger) == 1


async def test_who_waits_too_long_is_told_so(serve: Serve) -> None:
    async with OpenAIUpstream({"m": faults.hang}) as upstream:
        async with serve({"one": upstream}, concurrency={"limit": 1, "queue": 9, "queue_timeout": 0.3}) as gateway:
            async with gateway.asking("m"):
                await upstream.attempt(0)
                started = asyncio.get_running_loop().time()
                reply = await gateway.chat()
                assert near(asyncio.get_running_loop().time() - started, 0.3)
                assert (reply.status, reply.error["code"]) == (503, "overloaded")
                assert (await gateway.settled(reply)).reason == "limit"


async def test_a_full_upstream_is_passed_over(serve: Serve) -> None:
    async with OpenAIUpstream({"m": faults.hang}) as first, OpenAIUpstream() as second:
        models = [route("both", ("first", "m"), ("second", "m"))]
        places = {"limit": 1, "queue": 0}
        async with serve({"first": first, "second": second}, models=models, concurrency=places) as gateway:
            async with gateway.asking("first/m"):
                await first.attempt(0)
                reply = await gateway.chat("both")
                assert (reply.status, reply.header("x-gateway-upstream")) == (200, "second")
            assert len(first.ledger) == 1


async def test_the_list_of_models_and_the_probes_do_not_wait(serve: Serve) -> None:
    async with OpenAIUpstream({"m": faults.hang}) as upstream:
        async with serve(
            {"one": upstream}, concurrency={"limit": 1, "queue": 50, "queue_timeout": 9 * LATE}
        ) as gateway:
            async with gateway.asking("m"), gateway.asking("m"):
                await gateway.reaches("gateway_requests_waiting", 1)
                for path in ("/v1/models", "/livez", "/readyz"):
                    async with asyncio.timeout(LATE):
                        assert (await gateway.get(path)).status == 200


async def test_open_webui_sees_that_it_waits_and_nobody_else_does(serve: Serve) -> None:
    """Before any content, so that another target may still be tried; told in a form that other clients cannot read."""
    async with OpenAIUpstream({"holds": faults.hang, "m": Script()}) as upstream:
        async with serve({"one": upstream}, concurrency={"limit": 1, "queue": 9}) as gateway:
            async with gateway.asking("holds") as holder, wire.connected(gateway.url) as client:
                await upstream.attempt(0)
                waiting = [asyncio.ensure_future(gateway.chat()) for _ in range(2)]
                await client.post("/v1/chat/completions", chat(), (*AUTH, *OPENWEBUI))
                async with asyncio.timeout(LATE):
                    head = await client.head()  # comes with the first line of the status
                await gateway.reaches("gateway_requests_waiting", 3)
                assert not any(plain.done() for plain in waiting)
                holder.close()
                shown, plain = await client.rest(*head), await asyncio.gather(*waiting)
                gateway.replies.append(shown)
            events = [json.loads(event) for event in shown.events if event != b"[DONE]"]
            lines = [event["event"]["data"] for event in events if "event" in event]
            assert lines
            assert "Queued" in lines[0]["description"]
            assert lines[-1]["hidden"], "the line stays above the answer"
            assert all(line != after for line, after in itertools.pairwise(lines))
            assert shown.done
            assert all(b'"event"' not in reply.body and reply.done for reply in plain)


async def test_a_wait_that_ends_badly_ends_as_an_error(serve: Serve) -> None:
    async with OpenAIUpstream({"m": faults.hang}) as upstream:
        async with serve({"one": upstream}, concurrency={"limit": 1, "queue": 9, "queue_timeout": 2.5}) as gateway:
            async with gateway.asking("m"):
                await upstream.attempt(0)
                reply = await gateway.post(chat(), headers=OPENWEBUI)
                assert reply.status == 200
                assert reply.failure["code"] == "overloaded"
                assert (await gateway.settled(reply)).reason == "limit"
