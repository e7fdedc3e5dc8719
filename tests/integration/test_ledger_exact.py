"""I-1, I-2, I-10: whatever ends a request, it has one row, and its tokens lie between what the client got and what the
upstream sent; the rows, the sums of days and Prometheus' counters say the same."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests import wire
from tests.fakes import faults
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.gateway import CLIENT_KEY, running_gateway, sample
from tests.integration.ledger_rows import ledger_of, rows
from tests.patience import LATE
from tests.tiers import repeated

WORDS = tuple(f" word{number}" for number in range(12))
AUTH = (("authorization", f"Bearer {CLIENT_KEY}"),)
PRICE = {"input": 0.7, "output": 2.3, "cached": 0.1}
CALLERS = 40


@dataclass
class Seen:
    """What one client saw."""

    request_id: str = ""
    status: int = 0
    tokens: int = 0
    complete: bool = False


def behaviours() -> dict[str, Script]:
    return {
        "fair": Script(WORDS, usage=_with_details),
        "slow": Script(WORDS, itl=0.004),
        "silent": Script(WORDS, usage=lambda usage: None),
        "cut-first": Script(WORDS, fault=faults.cut),
        "cut": Script(WORDS, after=5, fault=faults.cut),
        "rude": Script(WORDS, after=7, fault=faults.end_without_done),
        "stuck": Script(WORDS, after=3, fault=faults.hang),
        "dead": Script(WORDS, fault=faults.hang),
    }


def _with_details(usage: dict[str, Any]) -> dict[str, Any]:
    return usage | {
        "prompt_tokens_details": {"cached_tokens": usage["prompt_tokens"] // 2},
        "completion_tokens_details": {"reasoning_tokens": usage["completion_tokens"] // 3},
    }


def configuration(upstream: OpenAIUpstream) -> dict[str, Any]:
    one = {"kind": "openai", "base_url": upstream.url, "poll_interval": 3600}
    return {
        "server": {"drain_timeout": 0.2},
        "log": {"level": "error"},
        "upstreams": [
            {**one, "name": "up", "models": list(upstream.models),
             "overrides": {model: {"price": PRICE} for model in upstream.models}},
            {**one, "name": "hasty", "models": list(upstream.models), "prefix": "hasty/",
             "timeouts": {"first_byte": 0.1, "answer": 0.1, "token_idle": 0.1, "byte_idle": 0.1}},
        ],
    }  # fmt: skip


class Caller:
    """A client that asks in all ways there are, and leaves as it likes."""

    def __init__(self, url: str, rng: Random) -> None:
        self._url = url
        self._rng = rng
        self.seen: list[Seen] = []

    async def call(self) -> None:
        rng = self._rng
        ending = rng.randrange(12)
        stream = rng.random() < 0.7
        if ending == 0:
            await self._ask(rng.choice((b"{", {"model": "nobody"}, {"model": "fair", "messages": []})), stream=False)
        elif ending == 1:
            await self._ask(_body("hasty/" + rng.choice(("dead", "stuck")), stream), stream)
        elif ending == 2:
            await self._ask(_body(rng.choice(("cut", "cut-first", "rude")), stream), stream)
        elif ending == 3:
            await self._ask(_body(rng.choice(("dead", "slow", "fair")), stream), stream, leave_after=0)
        elif ending == 4:
            await self._ask(_body(rng.choice(("slow", "stuck")), True), True, leave_after=rng.randrange(1, 4))
        else:
            # Of a whole answer without usage nobody knows the tokens.
            await self._ask(_body(rng.choice(("fair", "slow", "silent" if stream else "fair")), stream), stream)

    async def _ask(self, body: Any, stream: bool, leave_after: int | None = None) -> None:
        self.seen.append(seen := Seen())
        async with wire.connected(self._url) as client, asyncio.timeout(6 * LATE):
            await client.post("/v1/chat/completions", body, AUTH)
            if leave_after == 0:
                await asyncio.sleep(self._rng.random() * 0.02)
                return
            try:
                seen.status, headers = await client.head()
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            fields = dict(headers)
            seen.request_id = fields["x-request-id"]
            if fields.get("transfer-encoding") != "chunked":
                reply = await client.rest(seen.status, headers)
                seen.complete = reply.complete and seen.status == 200
                seen.tokens = len(WORDS) if seen.complete else 0
                return
            text = b""
            while data := await client.chunk():
                text += data
                seen.tokens = text.count(b" word")
                if leave_after is not None and seen.tokens >= leave_after:
                    return
            seen.complete = text.endswith(b"data: [DONE]\n\n")


def _body(model: str, stream: bool) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two three four"}], "stream": stream}


@repeated(2_000, 20_000)
async def test_every_ending_leaves_one_row_that_is_right_to_the_token(tmp_path: Path, repetitions: int) -> None:
    rng = Random(repetitions)
    async with OpenAIUpstream(behaviours()) as upstream:
        async with running_gateway(configuration(upstream), tmp_path) as gateway:
            callers = [Caller(gateway.url, Random(rng.random())) for _ in range(CALLERS)]

            async def calls(caller: Caller) -> None:
                for _ in range(repetitions // CALLERS):
                    await caller.call()

            await asyncio.gather(*map(calls, callers))
            # Whoever is still served when the gateway stops.
            late = [Caller(gateway.url, Random(number)) for number in range(10)]
            drained = [
                asyncio.create_task(one._ask(_body("stuck" if number % 2 else "dead", number % 3 > 0), number % 3 > 0))
                for number, one in enumerate(late)
            ]
            async with asyncio.timeout(LATE):
                while sample(_page(gateway), "gateway_requests_in_flight") < len(late):
                    await asyncio.sleep(0.01)  # a gauge has no event to wait for
        await asyncio.gather(*drained)
        page = _page(gateway)
        check(rows(ledger_of(tmp_path)), [seen for one in (*callers, *late) for seen in one.seen], upstream, page)


def _page(gateway: Any) -> str:
    return gateway.inside.metrics.exposition().decode()


def check(found: list[dict[str, Any]], seen: list[Seen], upstream: OpenAIUpstream, page: str) -> None:
    by_id = {row["request_id"]: row for row in found}
    received = Counter({one.request_id: one.tokens for one in seen if one.request_id})
    emitted: Counter[str] = Counter()
    for attempt in upstream.ledger:
        name = attempt.request.header("x-request-id")
        assert name in by_id, "an upstream worked for a request without a row"
        emitted[name] += attempt.tokens + (attempt.outcome == "left")  # the one that was on its way
    for one in seen:
        if one.request_id:
            row = by_id[one.request_id]
            assert not one.complete or row["reason"] == "completed", (one, row)
            assert row["status"] == one.status, (one, row)
    for name, row in by_id.items():
        assert received[name] <= row["completion"] <= emitted[name], (row, received[name], emitted[name])
        assert row["cost"] == cost(row), row
    reasons = Counter(row["reason"] for row in found)
    assert reasons["gateway_drain"] == 10
    assert {"completed", "client_cancel", "upstream_cut", "upstream_protocol", "upstream_ttft", "upstream_idle",
            "refused", "gateway_drain"} >= set(reasons), reasons  # fmt: skip
    counted = Counter((row["model"], row["upstream"], str(row["status"]), row["reason"]) for row in found)
    for labels, count in counted.items():
        named = dict(zip(("model", "upstream", "status", "reason"), labels, strict=True))
        assert sample(page, "gateway_requests_total", **named) == count
    assert sample(page, "gateway_requests_total") == len(found)
    for direction, column in (("in", "prompt"), ("out", "completion")):
        assert sample(page, "gateway_tokens_total", direction=direction) == sum(row[column] for row in found)
    assert round(sample(page, "gateway_cost_total") * 10**6) == sum(row["cost"] for row in found)
    print(json.dumps(reasons))  # noqa: T201


def cost(row: Mapping[str, Any]) -> int:
    """As an accountant computes it, in whole tenths of a millionth of a millionth, and half is rounded up."""
    if not row["price"]:
        return 0
    assert row["price"] == "in=0.7 out=2.3 cached=0.1"
    tenths = (row["prompt"] - row["cached"]) * 7 + row["cached"] * 1 + row["completion"] * 23
    return (tenths + 5) // 10
