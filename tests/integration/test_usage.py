"""What was used: for the operator, for the holder of a key, for billing; and what happens when it cannot be written."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests import wire
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.gateway import ADMIN_KEY, Running, running_gateway
from tests.integration.ledger_rows import asked, ledger_of, rows
from tests.patience import LATE
from tests.unit.commands import gateway_here
from tests.wire import Reply

KEYS = {name: f"sk-{name}-0123456789abcdef" for name in ("alice", "bob")}
AUTH = {
    "auth": {"admin_key": ADMIN_KEY, "keys": [{"name": name, "key": key} for name, key in KEYS.items()]},
    "log": {"level": "error"},
}
WORDS = tuple(f" word{number}" for number in range(8))
REPORTS = ("/admin/v1/usage", "/v1/usage/me", "/admin/v1/usage/requests")


@asynccontextmanager
async def metered(folder: Path) -> AsyncIterator[tuple[Running, OpenAIUpstream]]:
    models = {"m": Script(WORDS), "held": Script(WORDS, on_demand=True)}
    async with OpenAIUpstream(models) as upstream:
        prices = {name: {"price": {"input": 2, "output": 8}} for name in models}
        one = {"name": "up", "kind": "openai", "base_url": upstream.url, "models": list(models), "overrides": prices}
        async with running_gateway({**AUTH, "upstreams": [{**one, "poll_interval": 3600}]}, folder) as gateway:
            yield gateway, upstream


def bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


async def chat(gateway: Running, who: str, *, model: str = "m", stream: bool = False, **more: Any) -> Reply:
    body = {"model": model, "messages": [{"role": "user", "content": "one two three"}], "stream": stream, **more}
    return await wire.post(gateway.url, "/v1/chat/completions", body, bearer(KEYS[who]))


async def page(gateway: Running, path: str, key: str = ADMIN_KEY) -> Any:
    reply = await wire.get(gateway.url, path, bearer(key))
    assert reply.status == 200, reply
    return reply.json


async def test_the_operator_sees_everybodys_usage_and_a_key_its_own(tmp_path: Path) -> None:
    async with metered(tmp_path) as (gateway, _):
        for who, times in (("alice", 3), ("bob", 1)):
            for number in range(times):
                assert (await chat(gateway, who, stream=number % 2 == 0)).status == 200
        assert (await chat(gateway, "bob", model="nobody")).status == 404
        one = {"prompt_tokens": 3, "completion_tokens": 8, "cached_tokens": 0, "reasoning_tokens": 0, "cost_micros": 70}
        alice = {"key": "alice", "name": "alice", "requests": 3, **{name: 3 * count for name, count in one.items()}}
        bob = {"key": "bob", "name": "bob", "requests": 2, **one}
        report = await page(gateway, "/admin/v1/usage?by=key")
        assert report["data"] == [alice, bob]
        assert report["total"] == {"requests": 5, **{name: 4 * count for name, count in one.items()}}
        today = datetime.now(UTC).date().isoformat()
        assert [row["day"] for row in (await page(gateway, f"/admin/v1/usage?since={today}"))["data"]] == [today]
        assert (await page(gateway, "/admin/v1/usage?until=2020-01-01"))["data"] == []
        for who, own in (("alice", alice), ("bob", bob)):
            mine = await page(gateway, "/v1/usage/me?by=key", KEYS[who])
            assert mine["data"] == [own]
            assert mine["total"]["requests"] == own["requests"]


async def test_nobody_sees_anothers_usage_whatever_is_asked(tmp_path: Path) -> None:
    async with metered(tmp_path) as (gateway, _):
        await chat(gateway, "alice")
        for path in ("/admin/v1/usage", "/admin/v1/usage?by=key", "/admin/v1/usage/requests"):
            assert (await wire.get(gateway.url, path, bearer(KEYS["bob"]))).status == 401
        for by in ("day", "key", "team", "user", "model", "adapter", "upstream"):
            assert (await page(gateway, f"/v1/usage/me?by={by}", KEYS["bob"]))["data"] == []
        for trick in ("key=alice", "by=key&by=day", "by=key_name", "team=", "user=alice", "by=key'--", "limit=5"):
            reply = await wire.get(gateway.url, f"/v1/usage/me?{trick}", bearer(KEYS["bob"]))
            assert reply.status == 400, trick
            assert b"alice" not in reply.body


@pytest.mark.parametrize("path", REPORTS)
@pytest.mark.parametrize(
    "days", ["since=20261130", "since=1", "until=2026-13-01", "since=yesterday", "since=2026-W01-1"]
)
async def test_a_day_is_written_in_one_way(tmp_path: Path, path: str, days: str) -> None:
    async with metered(tmp_path) as (gateway, _):
        key = KEYS["bob"] if path.endswith("me") else ADMIN_KEY
        assert (await wire.get(gateway.url, f"{path}?{days}", bearer(key))).status == 400


async def test_rows_for_billing_are_all_there_once_in_json_and_in_csv(tmp_path: Path) -> None:
    async with metered(tmp_path) as (gateway, _):
        ids = [(await chat(gateway, "alice")).header("x-request-id") for _ in range(7)]
        got: list[dict[str, Any]] = []
        query, more = "", True
        while more:
            answer = await page(gateway, f"/admin/v1/usage/requests?limit=3{query}")
            got, more = got + answer["data"], answer["has_more"]
            query = f"&after={got[-1]['request_id']}"
        assert [row["request_id"] for row in got] == ids
        text = await wire.get(gateway.url, "/admin/v1/usage/requests?limit=6&format=csv", bearer(ADMIN_KEY))
        assert text.header("content-type") == "text/csv; charset=utf-8"
        assert text.header("x-has-more") == "true"
        read = list(csv.DictReader(io.StringIO(text.body.decode())))
        assert [{name: str(value) for name, value in row.items()} for row in got[:6]] == read
        lost = await wire.get(gateway.url, "/admin/v1/usage/requests?after=req_nobody", bearer(ADMIN_KEY))
        assert (lost.status, lost.error["param"]) == (400, "after")


async def test_the_command_shows_what_the_page_has(tmp_path: Path) -> None:
    async with metered(tmp_path) as (gateway, _):

        async def typed(*arguments: str) -> str:
            environ = {"GATEWAY_URL": gateway.url, "GATEWAY_ADMIN_KEY": ADMIN_KEY}
            done = await asyncio.to_thread(gateway_here, "usage", *arguments, env=environ)
            assert (done.returncode, done.stderr) == (0, ""), done
            return done.stdout

        assert await typed() == "Nothing was used.\n"
        await chat(gateway, "alice")
        table = [line.split() for line in (await typed("--by", "model")).splitlines()]
        assert table == [
            ["model", "requests", "prompt", "completion", "cached", "reasoning", "cost"],
            ["m", "1", "3", "8", "0", "0", "0.00007"],
            ["total", "1", "3", "8", "0", "0", "0.00007"],
        ]
        assert json.loads(await typed("--by", "key", "--json")) == await page(gateway, "/admin/v1/usage?by=key")
        (row,) = csv.DictReader(io.StringIO(await typed("--by", "upstream", "--csv")))
        assert (row["upstream"], row["cost_micros"]) == ("up", "70")
        assert await typed("--until", "2020-01-01") == "Nothing was used.\n"


async def test_open_webui_is_shown_the_cost_that_is_in_the_ledger(tmp_path: Path) -> None:
    async with metered(tmp_path) as (gateway, _):
        body = {"model": "m", "messages": [{"role": "user", "content": "one"}], "stream": True}
        who = [*bearer(KEYS["alice"]), ("x-openwebui-chat-id", "c")]
        reply = await wire.post(
            gateway.url, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}, who
        )
        (usage,) = [chunk["usage"] for chunk in reply.chunks if chunk.get("usage")]
    (row,) = rows(ledger_of(tmp_path))
    assert row["cost"] == 66
    assert usage["cost"] == 0.000066


async def test_a_running_stream_is_in_the_ledger_before_its_first_byte_and_its_tokens_are_noted(tmp_path: Path) -> None:
    path = ledger_of(tmp_path)
    async with metered(tmp_path) as (gateway, upstream):
        asking = asyncio.create_task(chat(gateway, "alice", model="held", stream=True))
        attempt = await upstream.attempt(0)
        for _ in range(3):
            attempt.wanted.release()
        async with asyncio.timeout(2 * LATE):
            while [row["completion"] for row in asked(path, "SELECT * FROM open_requests")] != [3]:
                await asyncio.sleep(0.02)  # another connection to a file: there is no event to wait for
        (row,) = asked(path, "SELECT * FROM open_requests")
        assert (row["key"], row["model"], row["upstream"], row["attempts"]) == ("alice", "held", "up", 1)
        for _ in range(5):
            attempt.wanted.release()
        assert (await asking).done
    assert [row["completion"] for row in rows(path)] == [8]


async def test_a_key_that_is_not_ours_leaves_no_row_and_a_refused_request_of_ours_one(tmp_path: Path) -> None:
    async with metered(tmp_path) as (gateway, _):
        stranger = await wire.post(gateway.url, "/v1/chat/completions", {"model": "m"}, bearer("sk-nobody-knows-this"))
        assert stranger.status == 401
        refused = [
            await wire.post(gateway.url, "/v1/chat/completions", body, bearer(KEYS["bob"]))
            for body in (b"{", {"model": "m", "messages": []}, {"model": "nobody", "messages": [{"role": "user"}]})
        ]
        forbidden = await chat(gateway, "bob", priority=1)
        assert await gateway.metric("gateway_refused_total", reason="invalid_api_key") == 1
    found = rows(ledger_of(tmp_path))
    assert [row["request_id"] for row in found] == [reply.header("x-request-id") for reply in (*refused, forbidden)]
    assert [(row["status"], row["reason"]) for row in found] == [
        (400, "refused"), (400, "refused"), (404, "refused"), (403, "auth"),
    ]  # fmt: skip
    assert {(row["key"], row["model"], row["prompt"], row["attempts"]) for row in found} == {("bob", "", 0, 0)}


async def test_a_full_disk_refuses_requests_in_words_and_loses_no_row(tmp_path: Path) -> None:
    async with metered(tmp_path) as (gateway, upstream):
        assert (await chat(gateway, "alice")).status == 200
        await limit(gateway, 1)
        answers = []
        while (reply := await chat(gateway, "alice", stream=len(answers) % 2 == 0)).status == 200:
            assert reply.complete, "what was let in can be noted in the journal"
            answers.append(reply)
        worked = len(upstream.ledger)
        for number in range(20):
            assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
            assert reply.header("retry-after") == "5"
            assert b"gateway.ledger.db" not in reply.body
            reply = await chat(gateway, "alice", stream=number % 2 == 0)
        assert len(upstream.ledger) == worked
        assert await gateway.metric("gateway_ledger_state", state="degraded") == 1
        assert await gateway.metric("gateway_ledger_unaccounted_total") == 21
        ready = await wire.get(gateway.url, "/readyz", bearer(ADMIN_KEY))
        assert (ready.status, ready.json["status"], ready.json["ledger"]["state"]) == (503, "degraded", "degraded")
        assert "the disk is full" in ready.json["ledger"]["message"]
        assert (await wire.get(gateway.url, "/v1/models", bearer(KEYS["alice"]))).status == 200
        await limit(gateway, 100_000)
        async with asyncio.timeout(LATE):
            while (await wire.get(gateway.url, "/readyz")).status != 200:
                await asyncio.sleep(0.02)  # as a load balancer does
        assert (await chat(gateway, "alice")).status == 200
        assert await gateway.metric("gateway_ledger_state", state="ok") == 1
    found = [row["request_id"] for row in rows(ledger_of(tmp_path))]
    for reply in answers:
        assert reply.header("x-request-id") in found
    assert len(found) == len(answers) + 2


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_an_answer_that_cannot_be_noted_is_not_given_and_its_row_is_written_all_the_same(
    tmp_path: Path, stream: bool
) -> None:
    async with metered(tmp_path) as (gateway, _):
        assert gateway.inside is not None
        reply = None
        while reply is None or reply.status == 200:
            # Until the next transaction, which begins another journal.
            os.dup2(full := os.open("/dev/full", os.O_WRONLY), gateway.inside.ledger._journal._descriptor)
            os.close(full)
            reply = await chat(gateway, "alice", stream=stream)
        assert (reply.error["code"], reply.header("x-should-retry")) == ("ledger_unavailable", "false")
        async with asyncio.timeout(LATE):
            while (await wire.get(gateway.url, "/readyz")).status != 200:
                await asyncio.sleep(0.02)  # as a load balancer does
        assert (await chat(gateway, "alice")).status == 200
    assert reply.header("x-request-id") in [row["request_id"] for row in rows(ledger_of(tmp_path))]


async def limit(gateway: Running, pages: int) -> None:
    """So many pages the ledger's disk has room for."""
    assert gateway.inside is not None
    room = f"PRAGMA max_page_count = {pages}"
    await gateway.inside.ledger.ask(lambda connection: connection.exec_driver_sql(room).all())
