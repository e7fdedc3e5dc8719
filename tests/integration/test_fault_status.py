"""What an upstream refuses: which statuses move on to the next target, and what the client hears of it (B-20)."""

from __future__ import annotations

import asyncio
import json
import tracemalloc

import openai
import pytest

from tests.fakes import faults
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.integration.conftest import Serve
from tests.integration.rig import CLIENT_KEY, PROMPT, provider_key, route
from tests.patience import LATE
from tests.sdk import openai_client

MOVES_ON = (408, 429, 500, 502, 503, 504, 529)
STAYS = (400, 404, 409, 413, 422)
SDK = {
    400: openai.BadRequestError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    503: openai.InternalServerError,
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", MOVES_ON)
async def test_a_busy_or_broken_upstream_is_passed_over(serve: Serve, status: int, stream: bool) -> None:
    async with OpenAIUpstream({"m": faults.refuse(status)}) as first, OpenAIUpstream() as second:
        models = [route("both", ("first", "m"), ("second", "m"))]
        async with serve({"first": first, "second": second}, models=models) as gateway:
            reply = await gateway.chat("both", stream=stream)
            assert (reply.status, reply.header("x-gateway-upstream")) == (200, "second")
            assert (await gateway.settled(reply)).attempts == 2
            assert await gateway.total("gateway_attempts_total", upstream="first", reason="upstream_status") == 1


@pytest.mark.parametrize("status", STAYS)
async def test_a_refused_request_is_not_tried_elsewhere(serve: Serve, status: int) -> None:
    body = json.dumps(
        {"error": {"message": "'foo' is odd", "type": "invalid_request_error", "param": "foo", "code": "odd"}}
    )
    async with OpenAIUpstream({"m": faults.refuse(status, body.encode())}) as first, OpenAIUpstream() as second:
        models = [route("both", ("first", "m"), ("second", "m"))]
        async with serve({"first": first, "second": second}, models=models) as gateway:
            reply = await gateway.chat("both")
            assert reply.status == status
            assert (reply.error["message"], reply.error["param"], reply.error["code"]) == ("'foo' is odd", "foo", "odd")
            assert (await gateway.settled(reply)).reason == "upstream_status"
            assert (len(first.ledger), len(second.ledger)) == (1, 0)


@pytest.mark.parametrize("status", SDK)
async def test_the_sdk_raises_the_class_that_it_has_for_it(serve: Serve, status: int) -> None:
    async with OpenAIUpstream({"m": faults.refuse(status)}) as upstream, serve({"one": upstream}) as gateway:
        async with openai_client(f"{gateway.url}/v1", CLIENT_KEY) as client:
            with pytest.raises(SDK[status]):
                await client.chat.completions.create(model="m", messages=[{"role": "user", "content": PROMPT}])


@pytest.mark.parametrize("status", [429, 503])
async def test_the_upstreams_wish_to_wait_is_passed_on_within_reason(serve: Serve, status: int) -> None:
    behaviours = {wish: faults.refuse(status, headers=[("retry-after", wish)]) for wish in ("7", "99999", "soon")}
    async with OpenAIUpstream(behaviours) as upstream, serve({"one": upstream}) as gateway:
        assert (await gateway.chat("7")).header("retry-after") == "7"
        # Beyond 120 s the SDK gives up at once.
        assert int((await gateway.chat("99999")).header("retry-after") or 0) <= 120
        assert (await gateway.chat("soon")).header("retry-after") != "soon"


async def test_all_targets_are_tried_once_each(serve: Serve) -> None:
    async with OpenAIUpstream({"m": faults.refuse(500)}) as first, OpenAIUpstream({"m": faults.refuse(429)}) as second:
        models = [route("both", ("first", "m"), ("second", "m"))]
        async with serve({"first": first, "second": second}, models=models) as gateway:
            reply = await gateway.chat("both")
            assert reply.status == 429
            assert (len(first.ledger), len(second.ledger)) == (1, 1)


@pytest.mark.parametrize("status", [400, 500])
async def test_an_error_body_without_end_is_not_read_to_the_end(serve: Serve, status: int) -> None:
    head = b"HTTP/1.1 %d Error\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n" % status
    behaviour = faults.raw(head, end=faults.endless(b"x" * 65536))
    async with OpenAIUpstream({"m": behaviour}) as upstream, serve({"one": upstream}) as gateway:
        await gateway.chat()  # whatever the first request allocates for good
        tracemalloc.start()
        try:
            reply = await gateway.chat(within=LATE)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert reply.status == (400 if status == 400 else 502)
        assert len(reply.body) < 2000
        await asyncio.wait_for(upstream.ledger[1].over.wait(), LATE)
        assert upstream.ledger[1].outcome == "left"
        assert peak < 4 * 2**20


SECRETS = (
    "Incorrect API key provided: {key}. See https://example.invalid/account.",
    "Authorization: Bearer {key}",
    "Traceback: File \"/srv/engine/vllm/worker.py\", line 3, at 0x7f6a1c002b40",
)  # fmt: skip


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("message", SECRETS)
async def test_what_an_error_gives_away_stops_at_the_gateway(serve: Serve, status: int, message: str) -> None:
    told = message.format(key=provider_key("one"))
    body = json.dumps({"error": {"message": told, "type": told, "param": told, "code": told}}).encode()
    async with OpenAIUpstream({"m": faults.refuse(status, body)}) as upstream, serve({"one": upstream}) as gateway:
        for stream in (True, False):
            reply = await gateway.chat(stream=stream)
            assert reply.status >= 400
            for secret in (provider_key("one"), "/srv/engine", "0x7f6a1c002b40"):
                assert secret not in reply.body.decode()


async def test_an_error_speaks_of_the_model_by_its_public_name(serve: Serve) -> None:
    message = "The model `m` is too small for some prompts; m-large may do."
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})
    async with OpenAIUpstream({"m": faults.refuse(400, body.encode())}) as upstream:
        async with serve({"one": upstream}, models=[route("public", ("one", "m"))]) as gateway:
            reply = await gateway.chat("public")
            assert reply.error["message"] == "The model `public` is too small for some prompts; m-large may do."


@pytest.mark.parametrize(
    "body",
    [b"", b"<html><h1>502</h1></html>", b"null", b"[]", b'"no"', b'{"error":null}', b'{"error":{}}', b'{"error":[1]}',
     b'{"error":{"message":["a"],"type":7,"param":{},"code":[]}}', b'{"detail":"Not Found"}', b"\xff\xfe", b"[" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("status", [400, 500])
async def test_every_error_body_becomes_one_of_openais_form(serve: Serve, status: int, body: bytes) -> None:
    answer = faults.refuse(status, body or b" ")
    async with OpenAIUpstream({"m": answer}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat()
        assert reply.status == (400 if status == 400 else 502)
        assert "<" not in reply.error["message"]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_the_upstream_refuses_is_the_operators_business(serve: Serve, status: int) -> None:
    """The client's own key is fine: a 401 would send it looking in the wrong place."""
    async with OpenAIUpstream({"m": faults.refuse(status)}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat()
        assert (reply.status, reply.header("x-should-retry")) == (502, "false")
        assert "one" in reply.error["message"]


async def test_one_broken_model_does_not_touch_its_neighbours(serve: Serve) -> None:
    async with OpenAIUpstream({"bad": faults.refuse(500), "good": Script()}) as upstream:
        async with serve({"one": upstream}) as gateway:
            replies = await asyncio.gather(*(gateway.chat(model) for model in ("bad", "good") * 10))
            assert [reply.status for reply in replies] == [502, 200] * 10
