"""F-4: the upstream's connection breaks after k tokens.  The client gets exactly these, one error event, and no end."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.fakes import faults
from tests.fakes.openai_upstream import Behaviour, OpenAIUpstream, Script
from tests.integration.conftest import Serve
from tests.integration.rig import CLIENT_KEY, route
from tests.sdk import openai_client

LONGEST = 200
WORDS = tuple(f"w{number} " for number in range(LONGEST + 1))
AT_ONCE = 20


@pytest.mark.parametrize("fault", [faults.cut, faults.reset])
async def test_a_cut_after_k_tokens_shows_k_tokens_and_an_error(serve: Serve, fault: Behaviour) -> None:
    """For all k; and never a second attempt, although another target is there."""
    models = {f"cut{k}": Script(pieces=WORDS, after=k, fault=fault) for k in range(LONGEST + 1)}
    async with OpenAIUpstream(models) as first, OpenAIUpstream() as second:
        routes = [route(f"both{k}", ("first", f"cut{k}"), ("second", "m")) for k in range(LONGEST + 1)]
        async with serve({"first": first, "second": second}, models=routes) as gateway:
            places = asyncio.Semaphore(AT_ONCE)

            async def check(k: int) -> None:
                async with places:
                    reply = await gateway.chat(f"both{k}")
                    assert reply.failure["code"] == "upstream_cut"
                    assert reply.text == "".join(WORDS[:k])
                    line = await gateway.settled(reply)
                    assert (line.reason, line.status, line.attempts) == ("upstream_cut", 200, 1)
                    assert line.completion_tokens == k

            await asyncio.gather(*map(check, range(LONGEST + 1)))
            assert len(first.ledger) == LONGEST + 1
            assert not second.ledger


@pytest.mark.parametrize("fault", [faults.cut, faults.reset])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_cut_before_the_first_byte_goes_to_the_next_target(
    serve: Serve, fault: Behaviour, stream: bool
) -> None:
    for behaviour in (fault, faults.silent_stream_of(fault), faults.raw(b"HTTP/1.1 200 OK\r\ncontent-ty", end=fault)):
        async with OpenAIUpstream({"m": behaviour}) as first, OpenAIUpstream() as second:
            models = [route("both", ("first", "m"), ("second", "m"))]
            async with serve({"first": first, "second": second}, models=models) as gateway:
                both, alone = await asyncio.gather(
                    gateway.chat("both", stream=stream), gateway.chat("first/m", stream=stream)
                )
                assert (both.status, both.header("x-gateway-upstream")) == (200, "second")
                assert (alone.status, alone.error["code"]) == (502, "upstream_cut")
                assert alone.header("x-should-retry") == "false"


@pytest.mark.parametrize("done", [True, False])
async def test_an_error_event_ends_the_stream_also_when_done_follows(serve: Serve, done: bool) -> None:
    """vLLM sends `[DONE]` after an error event, as if the answer were whole."""
    error = {"message": "EngineCore died at 0x7f31a2", "type": "InternalServerError", "param": None, "code": 500}
    script = Script(itl=0.02, after=2, fault=faults.error_event(error, done=done))
    async with OpenAIUpstream({"m": script}) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.chat()
        assert reply.text == "One two"
        assert reply.failure["code"] == "upstream_status"
        assert b"0x7f31a2" not in reply.body
        line = await gateway.settled(reply)
        assert (line.reason, line.completion_tokens) == ("upstream_status", 2)


async def test_an_error_event_before_the_first_token_goes_to_the_next_target(serve: Serve) -> None:
    error = faults.stream(b'data: {"error":{"message":"no","type":"InternalServerError","code":500}}\n\n')
    async with OpenAIUpstream({"m": error}) as first, OpenAIUpstream() as second:
        models = [route("both", ("first", "m"), ("second", "m"))]
        async with serve({"first": first, "second": second}, models=models) as gateway:
            reply = await gateway.chat("both")
            assert (reply.text, reply.done) == ("One two three four five", True)
            assert (await gateway.settled(reply)).attempts == 2


@pytest.mark.parametrize("fault", [faults.cut, faults.end_without_done, faults.hang])
async def test_the_sdk_raises_where_it_would_have_noticed_nothing(serve: Serve, fault: Behaviour) -> None:
    script = Script(itl=0.02, after=2, fault=fault)
    async with (
        OpenAIUpstream({"m": script}) as upstream,
        serve({"one": upstream}, timeouts={"byte_idle": 1.0}) as gateway,
    ):
        async with openai_client(f"{gateway.url}/v1", CLIENT_KEY, max_retries=2) as client:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "a"}], stream=True
            )
            for word in ("", "One", " two"):
                assert (await anext(stream)).choices[0].delta.content == word
            with pytest.raises(openai.APIError, match="upstream"):
                await anext(stream)
            assert len(upstream.ledger) == 1


async def test_completions_and_embeddings_are_held_to_the_same(serve: Serve) -> None:
    models: dict[str, Behaviour] = {"m": Script(itl=0.02, after=2, fault=faults.cut), "e": faults.cut}
    async with OpenAIUpstream(models) as upstream, serve({"one": upstream}) as gateway:
        reply = await gateway.post({"model": "m", "prompt": "a", "stream": True}, "/v1/completions")
        assert (reply.text, reply.failure["code"]) == ("One two", "upstream_cut")
        reply = await gateway.post({"model": "e", "input": "a"}, "/v1/embeddings")
        assert (reply.status, reply.error["code"]) == (502, "upstream_cut")
