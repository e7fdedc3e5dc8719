"""I-1, I-10 on the real engine: whatever ends a request, it has one row, and all rows together have the tokens that the
engine itself has counted, but for those that were on their way when somebody left.

The engine is that of another gateway, which knows nothing of this one.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests import wire
from tests.engine.crowd import LONGEST
from tests.gateway import CLIENT_KEY, Running, running_gateway
from tests.integration.ledger_rows import ledger_of, rows
from tests.real import BASE, Served
from tests.tiers import repeated

pytestmark = [pytest.mark.engine, pytest.mark.timeout(LONGEST * 2)]

AUTH = (("authorization", f"Bearer {CLIENT_KEY}"),)
CALLERS = 16
LONG = 16  # tokens of an answer at most …
AGES = 960  # … but for those that are not to come to their end
LATE_WORDS = 8  # tokens that an engine makes of a stream after the last that the gateway had from it, at most
RUNNING, MADE = "vllm:num_requests_running", "vllm:generation_tokens_total"


class Scissors:
    """A way to the engine that is cut somewhere in each answer that is longer than a few hundred bytes."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    @asynccontextmanager
    async def before(self, url: str) -> AsyncIterator[str]:
        host, _, port = url.removeprefix("http://").partition(":")

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
            asking = asyncio.create_task(_copy(reader, there_writer, None))
            await _copy(there_reader, writer, self._rng.randrange(400, 3000))
            asking.cancel()
            for end in (writer, there_writer):
                end.transport.abort()

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _copy(source: asyncio.StreamReader, to: asyncio.StreamWriter, most: int | None) -> None:
    with suppress(ConnectionError):
        while (data := await source.read(1 << 16)) and (most is None or most > 0):
            to.write(data if most is None else data[:most])
            await to.drain()
            if most is not None:
                most -= len(data)


@dataclass
class Seen:
    """What one client saw.  `asked`: tokens, none of which the model may leave out; `pieces`: of the stream, each of a
    token or more."""

    asked: int
    request_id: str = ""
    pieces: int = 0
    complete: bool = False


class Caller:
    """Somebody who asks in all ways there are, and leaves when they like."""

    def __init__(self, url: str, rng: Random) -> None:
        self._url = url
        self._rng = rng
        self.seen: list[Seen] = []

    async def call(self) -> None:
        rng = self._rng
        ending = rng.randrange(10)
        stream = rng.random() < 0.7
        if ending == 0:
            await self.ask("hasty/" + BASE, stream, AGES)
        elif ending == 1:
            await self.ask("cut/" + BASE, stream, LONG)
        elif ending == 2:
            await self.ask(BASE, stream, LONG, leave_within=rng.random() * 0.5)
        elif ending == 3:
            await self.ask(BASE, True, LONG, leave_after=rng.randrange(1, LONG - 2))
        else:
            await self.ask(BASE, stream, rng.randrange(1, LONG // 2))

    async def ask(
        self, model: str, stream: bool, tokens: int, leave_after: int | None = None, leave_within: float | None = None
    ) -> None:
        question = f"Count from {self._rng.randrange(1000)} on, in words."
        body = {
            "model": model, "messages": [{"role": "user", "content": question}], "stream": stream,
            "max_tokens": tokens, "ignore_eos": True,
        }  # fmt: skip
        self.seen.append(seen := Seen(tokens))
        async with wire.connected(self._url) as client:
            await client.post("/v1/chat/completions", body, AUTH)
            with suppress(TimeoutError, asyncio.IncompleteReadError, ConnectionError):
                async with asyncio.timeout(leave_within or LONGEST):
                    await self._read(client, seen, leave_after)

    @staticmethod
    async def _read(client: wire.Wire, seen: Seen, leave_after: int | None) -> None:
        status, headers = await client.head()
        fields = dict(headers)
        seen.request_id = fields["x-request-id"]
        if fields.get("transfer-encoding") != "chunked":
            reply = await client.rest(status, headers)
            seen.complete = reply.complete and status == 200
            return
        text = b""
        while data := await client.chunk():
            text += data
            seen.pieces = text.count(b'"content":"') - text.count(b'"content":""')
            if leave_after is not None and seen.pieces >= leave_after:
                return
        seen.complete = text.endswith(b"data: [DONE]\n\n")


def configuration(url: str, key: str, cut: str) -> dict[str, Any]:
    one = {
        "kind": "openai", "api_key": key, "models": [BASE], "poll_interval": 3600,
        "parameters": {"allow": ["ignore_eos"]},
    }  # fmt: skip
    patient = {"queue_timeout": LONGEST}
    hasty = {"prefix": "hasty/", "timeouts": {"total": 1.5}}
    return {
        "server": {"drain_timeout": 0.2},
        "log": {"level": "error"},
        "upstreams": [  # the engine takes as many as eight, whoever asks
            {**one, "name": "up", "base_url": f"{url}/v1", "concurrency": {"limit": 4, **patient}},
            {**one, "name": "hasty", "base_url": f"{url}/v1", "concurrency": {"limit": 2, **patient}, **hasty},
            {**one, "name": "cut", "base_url": f"{cut}/v1", "concurrency": {"limit": 2, **patient}, "prefix": "cut/"},
        ],
    }


async def idle(real: Served) -> float:
    """Returns when the engine runs nothing: how many tokens it has made."""
    async with asyncio.timeout(LONGEST):
        while await asyncio.to_thread(real.engine_metric, RUNNING):
            await asyncio.sleep(0.05)  # the page is looked at, as every client does
    return await asyncio.to_thread(real.engine_metric, MADE)


@repeated(100, 1000)
async def test_the_rows_have_the_tokens_that_the_engine_has_counted(
    real: Served, tmp_path: Path, repetitions: int
) -> None:
    rng = Random(repetitions)
    url, key = real.engine_address
    before = await idle(real)
    async with Scissors(rng).before(url) as cut:
        async with running_gateway(configuration(url, key, cut), tmp_path) as gateway:
            callers, asking = await _crowd(gateway, rng, repetitions)
        await asyncio.gather(*asking)
    seen = [seen for caller in callers for seen in caller.seen]
    made = await idle(real) - before
    found = rows(ledger_of(tmp_path))

    by_id = {row["request_id"]: row for row in found}
    assert len(found) == len(seen), "one row each"
    for one in seen:
        if one.request_id:
            row = by_id[one.request_id]
            assert not one.complete or (row["reason"], row["completion"]) == ("completed", one.asked), (one, row)
            assert one.pieces <= row["completion"] <= one.asked, (one, row)
    reasons = Counter(row["reason"] for row in found)
    assert set(reasons) == {"completed", "client_cancel", "upstream_cut", "upstream_total", "gateway_drain"}, reasons
    assert not [row for row in found if row["reason"] == "completed" and row["estimated"]]
    counted = sum(row["completion"] for row in found)
    on_their_way = sum(_on_their_way(row) for row in found if row["reason"] != "completed")
    print(json.dumps(reasons), f"{counted} tokens in the ledger, {made:.0f} made")  # noqa: T201
    assert counted <= made <= counted + on_their_way


def _on_their_way(row: dict[str, Any]) -> int:
    """Tokens that may have been made for an answer and not reached the gateway: of one that was to come whole, or whose
    stream had not begun, that is all."""
    if row["completion"]:
        return LATE_WORDS
    return AGES if row["model"].startswith("hasty/") else LONG


async def _crowd(gateway: Running, rng: Random, calls: int) -> tuple[list[Caller], list[asyncio.Task[None]]]:
    """All that they ask, and who is still being answered."""
    await gateway.ready()
    callers = [Caller(gateway.url, Random(rng.random())) for _ in range(CALLERS)]
    left = iter(range(calls))

    async def work(caller: Caller) -> None:
        for _ in left:
            await caller.call()

    await asyncio.gather(*map(work, callers))
    late = [Caller(gateway.url, Random(number)) for number in range(4)]
    asking = [asyncio.create_task(one.ask(BASE, stream=True, tokens=AGES)) for one in late]
    async with asyncio.timeout(LONGEST):
        while not all(one.seen and one.seen[0].pieces for one in late):
            await asyncio.sleep(0.01)  # their first words have no event
    assert not any(call.done() for call in asking)
    return callers + late, asking
