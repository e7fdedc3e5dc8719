"""Whoever asks too much is told so in words that a person understands, and until when; nobody else notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest

from tests import wire
from tests.fakes import faults
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.gateway import running_gateway
from tests.integration.limited import KEY, OTHER, answer, ask, body, configuration, running, statuses
from tests.patience import LATE


async def test_the_request_over_the_limit_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with OpenAIUpstream() as upstream:
        config = configuration(upstream, key={"limits": {"requests_per_minute": 2}})
        async with running_gateway(config, tmp_path) as gateway:
            first, second, third = [await ask(gateway.url) for _ in range(3)]
            assert (first.status, second.status, third.status) == (200, 200, 429)
            assert [reply.header("x-ratelimit-remaining-requests") for reply in (first, second, third)] == [
                "1",
                "0",
                "0",
            ]
            assert {reply.header("x-ratelimit-limit-requests") for reply in (first, second, third)} == {"2"}
            assert third.error["type"] == "rate_limit_error"
            assert third.error["code"] == "rate_limit_exceeded"
            assert third.error["message"].startswith(
                "You have used the 2 requests a minute of this key; try again in"
            ), third.error
            assert third.error["message"].endswith(" UTC).")
            assert 0 < int(third.header("retry-after") or "") <= 30
            assert third.header("x-should-retry") == "true"
            assert (third.header("x-ratelimit-reset-requests") or "").endswith("s")
            assert third.header("x-request-id")
            assert (await ask(gateway.url, key=OTHER)).status == 200
        assert len(upstream.ledger) == 3


async def test_tokens_are_counted_as_they_were_used_and_not_as_they_were_estimated(tmp_path: Path) -> None:
    async with OpenAIUpstream() as upstream:
        config = configuration(upstream, key={"limits": {"tokens_per_minute": 5000}})
        async with running_gateway(config, tmp_path) as gateway:
            for _ in range(8):  # each is let in for 4,118, and uses 6
                reply = await ask(gateway.url)
                assert reply.status == 200
            assert int(reply.header("x-ratelimit-remaining-tokens") or "") < 900  # as it was let in
            late = await asyncio.gather(*(ask(gateway.url, max_tokens=900) for _ in range(5)))
            assert all(reply.status == 200 for reply in late)


async def test_a_request_for_more_tokens_than_a_minute_has_is_let_in_when_nothing_else_is_used(tmp_path: Path) -> None:
    async with OpenAIUpstream() as upstream:
        config = configuration(upstream, key={"limits": {"tokens_per_minute": 100}})
        async with running_gateway(config, tmp_path) as gateway:
            assert (await ask(gateway.url, max_tokens=2**31 - 1, n=128)).status == 200
            assert (await ask(gateway.url, max_tokens=2**31 - 1)).status == 429  # 641 were used


@pytest.mark.parametrize("ending", ["completed", "client leaves", "client leaves a whole answer", "upstream is cut"])
async def test_a_place_is_given_back_however_a_request_ends(tmp_path: Path, ending: str) -> None:
    models = {"m": Script(on_demand=True), "slow": Script(ttft=6 * LATE), "cut": Script(after=2, fault=faults.cut)}
    async with OpenAIUpstream(models) as upstream:
        config = configuration(upstream, key={"limits": {"concurrent": 1}})
        async with running_gateway(config, tmp_path) as gateway:
            for round_ in range(3):
                model = {"client leaves a whole answer": "slow", "upstream is cut": "cut"}.get(ending, "m")
                asked = asyncio.create_task(ask(gateway.url, model=model, stream=model != "slow"))
                await running(upstream, round_ + 1)
                if model != "cut":
                    refused = await ask(gateway.url)
                    assert refused.status == 429
                    assert refused.error["message"] == (
                        "All of the 1 requests at once of this key are running; try again when one has ended."
                    )
                    assert refused.header("x-should-retry") == "true"
                if ending.startswith("client leaves"):
                    asked.cancel()
                    await asyncio.wait([asked])
                else:
                    await answer(upstream)
                    await asked
                async with asyncio.timeout(LATE):
                    await upstream.ledger[-1].over.wait()
                    while await gateway.metric("gateway_requests_in_flight"):
                        await asyncio.sleep(0.005)  # a client that left is noticed when its connection is read


async def test_a_model_is_limited_for_everybody_together(tmp_path: Path) -> None:
    async with OpenAIUpstream({"m": Script(), "n": Script()}) as upstream:
        config = configuration(upstream, overrides={"m": {"limits": {"requests_per_minute": 2}}})
        async with running_gateway(config, tmp_path) as gateway:
            assert [(await ask(gateway.url, key=key)).status for key in (KEY, OTHER, KEY)] == [200, 200, 429]
            refused = await ask(gateway.url)
            assert "2 requests a minute of the model 'up/m'" in refused.error["message"]
            assert (await ask(gateway.url, model="n")).status == 200


async def test_keys_without_limits_of_their_own_have_those_of_all(tmp_path: Path) -> None:
    async with OpenAIUpstream() as upstream:
        config = configuration(
            upstream,
            key={"limits": {"requests_per_minute": 3}},
            defaults={"key": {"limits": {"requests_per_minute": 1}}},
        )
        async with running_gateway(config, tmp_path) as gateway:
            assert [(await ask(gateway.url)).status for _ in range(4)] == [200, 200, 200, 429]
            assert [(await ask(gateway.url, key=OTHER)).status for _ in range(2)] == [200, 429]


async def test_the_sdk_raises_its_own_error_and_does_not_ask_again_for_a_budget(tmp_path: Path) -> None:
    async with OpenAIUpstream() as upstream:
        config = configuration(upstream, key={"budgets": [{"tokens": 100, "per": "day"}]})
        async with running_gateway(config, tmp_path) as gateway:
            async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
                with pytest.raises(openai.RateLimitError) as caught:
                    await client.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": "hello"}], max_tokens=200
                    )
            assert caught.value.code == "budget_exceeded"
            assert caught.value.type == "insufficient_quota"
            assert "the budget of this key, 100 tokens a day" in caught.value.message
            assert "It begins anew at 00:00 UTC on" in caught.value.message
            assert caught.value.response.headers["x-should-retry"] == "false"
            assert await gateway.metric("gateway_requests_total", reason="limit") == 1
        assert not upstream.ledger


async def test_a_budget_of_fifty_pays_for_fifty_of_two_hundred_and_what_they_used_is_what_is_spent(
    tmp_path: Path,
) -> None:
    reserved = len(wire.json.dumps(body(stream=True, max_tokens=30)).encode()) // 4 + 30
    async with OpenAIUpstream({"m": Script(pieces=("word ",) * 30, on_demand=True)}) as upstream:
        config = configuration(upstream, key={"budgets": [{"tokens": 50 * reserved, "per": "total"}]})
        async with running_gateway(config, tmp_path) as gateway:
            asked = [asyncio.create_task(ask(gateway.url, stream=True, max_tokens=30)) for _ in range(200)]
            await running(upstream, 50)
            async with asyncio.timeout(6 * LATE):
                while sum(map(asyncio.Task.done, asked)) < 150:
                    await asyncio.sleep(0.005)  # each is refused or runs
            await answer(upstream)
            assert await statuses(asked) == {200: 50, 429: 150}
            left = 50 * reserved - 50 * 31  # a word of prompt each
            assert (await ask(gateway.url, stream=True, max_tokens=left)).status == 429
            fits = asyncio.create_task(ask(gateway.url, stream=True, max_tokens=left - 40))
            await running(upstream, 51)
            await answer(upstream)
            assert (await fits).status == 200


async def test_money_is_counted_to_the_millionth(tmp_path: Path) -> None:
    async with OpenAIUpstream() as upstream:
        # A word of prompt and five of answer: 1 * 0.5 + 5 * 2 = 10.5, which is 11 millionths.
        config = configuration(
            upstream,
            key={"budgets": [{"money": 0.000_200, "per": "total"}]},
            overrides={"m": {"price": {"input": 0.5, "output": 2}}},
        )
        async with running_gateway(config, tmp_path) as gateway:
            served = 0
            while (reply := await ask(gateway.url, max_tokens=5)).status == 200:
                served += 1
            assert served == (200 - 23) // 11 + 1  # 23: what 26 tokens of prompt and five of answer would cost
            assert "the budget of this key, 0.00 in all" in reply.error["message"]


async def test_without_a_price_nothing_is_sold_for_money_unless_it_is_free(tmp_path: Path) -> None:
    async with OpenAIUpstream({"m": Script(), "free": Script()}) as upstream:
        config = configuration(
            upstream, key={"budgets": [{"money": 1, "per": "month"}]}, overrides={"free": {"price": "free"}}
        )
        async with running_gateway(config, tmp_path) as gateway:
            refused = await ask(gateway.url)
            assert refused.status == 403
            assert refused.error["code"] == "model_without_price"
            assert "The model 'm' has no price" in refused.error["message"]
            assert (await ask(gateway.url, model="free")).status == 200
            assert (await ask(gateway.url, key=OTHER)).status == 200


async def test_an_answer_that_uses_up_the_budget_ends_with_an_error_and_not_as_if_it_were_whole(
    tmp_path: Path,
) -> None:
    async with OpenAIUpstream({"m": Script(pieces=("word ",) * 6000, itl=1e-6)}) as upstream:
        config = configuration(upstream, key={"budgets": [{"tokens": 4700, "per": "day"}]})
        async with running_gateway(config, tmp_path) as gateway:
            reply = await ask(gateway.url, stream=True)
            assert reply.status == 200
            assert reply.failure["code"] == "budget_exceeded"
            assert "This answer has used up the budget of this key, 4,700 tokens a day" in reply.failure["message"]
            assert 4096 <= len(reply.chunks) <= 4700
            assert await gateway.metric("gateway_requests_total", reason="limit") == 1
            assert (await ask(gateway.url, max_tokens=600)).status == 429


async def test_an_answer_that_is_longer_than_was_reserved_goes_on_while_the_budget_lasts(tmp_path: Path) -> None:
    async with OpenAIUpstream({"m": Script(pieces=("word ",) * 9000)}) as upstream:
        config = configuration(upstream, key={"budgets": [{"tokens": 20_000, "per": "day"}]})
        async with running_gateway(config, tmp_path) as gateway:
            reply = await ask(gateway.url, stream=True)
            assert reply.done
            assert len(reply.chunks) >= 9000
            assert (await ask(gateway.url, max_tokens=10_000)).status == 200
