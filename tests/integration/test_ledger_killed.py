"""D-1, D-2: whenever the gateway is killed, what a client saw complete is in the ledger once and right, and nothing is
there twice."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gateway.controlplane.ledger import Ledger
from tests import wire
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.gateway import CLIENT_KEY, config_text
from tests.integration.crashing_gateway import POINTS, Gateways
from tests.integration.ledger_rows import ledger_of, rows
from tests.patience import LATE
from tests.tiers import repeated

WORDS = tuple(f" word{number}" for number in range(6))
AUTH = (("authorization", f"Bearer {CLIENT_KEY}"),)
CALLERS = 12
SLOW = {"before a checkpoint", "after a checkpoint"}  # come once a second


@dataclass
class Seen:
    """What one client saw of one request."""

    request_id: str
    words: int
    tokens: int = 0
    complete: bool = False


class Caller:
    """Asks until the gateway is gone."""

    def __init__(self, url: str, rng: Random) -> None:
        self._url = url
        self._rng = rng
        self.seen: list[Seen] = []

    async def work(self) -> None:
        try:
            async with asyncio.timeout(6 * LATE):
                while True:
                    await self._ask()
        except (OSError, asyncio.IncompleteReadError):
            pass

    async def _ask(self) -> None:
        stream, words = self._rng.random() < 0.7, self._rng.randrange(1, len(WORDS))
        body = {
            "model": self._rng.choice(("quick", "slow")), "messages": [{"role": "user", "content": "one two three"}],
            "stream": stream, "max_tokens": words,
        }  # fmt: skip
        async with wire.connected(self._url) as client:
            await client.post("/v1/chat/completions", body, AUTH)
            status, headers = await client.head()
            if status == 503:  # no model yet
                await asyncio.sleep(0.01)
                return
            assert status == 200, headers
            fields = dict(headers)
            seen = Seen(fields["x-request-id"], words)
            self.seen.append(seen)
            if fields.get("transfer-encoding") != "chunked":
                reply = await client.rest(status, headers)
                seen.complete = reply.complete
                seen.tokens = words if reply.complete else 0
                return
            text = b""
            while data := await client.chunk():
                text += data
                seen.tokens = text.count(b" word")
                seen.complete = text.endswith(b"data: [DONE]\n\n")


class Place:
    """A gateway's folder, and the upstream that it asks."""

    def __init__(self, folder: Path, upstream: OpenAIUpstream, program: Gateways) -> None:
        self._folder = folder
        self._upstream = upstream
        self._program = program
        self._checked = 0
        one = {"name": "up", "kind": "openai", "base_url": upstream.url, "models": list(upstream.models)}
        config = {"log": {"level": "error"}, "upstreams": [{**one, "poll_interval": 3600}]}
        self._config = folder / "gateway.yaml"
        self._config.write_text(config_text(config, folder))

    async def die(self, rng: Random, point: str | None) -> None:
        """One life of the gateway under load: to the point, or to a moment of ours."""
        times = rng.randrange(1, 3 if point in SLOW else 25)
        url = await asyncio.to_thread(self._program.begin, self._config, point, times)
        callers = [Caller(url, Random(rng.random())) for _ in range(CALLERS)] if url else []
        work = asyncio.gather(*(caller.work() for caller in callers))
        if point is None:
            await asyncio.sleep(rng.random() * 0.6)
            self._program.kill()
        assert await asyncio.to_thread(self._program.ended) == -9
        await work
        await self._check([seen for caller in callers for seen in caller.seen])

    async def _check(self, seen: list[Seen]) -> None:
        ledger = Ledger(f"sqlite:///{ledger_of(self._folder)}")
        await ledger.start()  # what the next gateway would do
        await ledger.close()
        by_id = {row["request_id"]: row for row in rows(ledger_of(self._folder))}
        for one in seen:
            row = by_id[one.request_id]
            if one.complete:
                assert (row["reason"], row["completion"], row["prompt"]) == ("completed", one.words, 3), (one, row)
            else:
                assert row["completion"] <= one.words, (one, row)
                assert row["reason"] in ("gateway_crash", "completed"), (one, row)
        asked = {attempt.request.header("x-request-id"): attempt for attempt in self._upstream.ledger[self._checked :]}
        self._checked = len(self._upstream.ledger)
        for name, attempt in asked.items():
            # Of one that ran for less than a transaction takes, and of which nothing was shown, there may be no row.
            row = by_id.get(name)
            assert row is not None or name not in {one.request_id for one in seen}
            emitted: int = attempt.tokens + (attempt.outcome == "left")
            assert row is None or row["completion"] <= emitted, (row, attempt)


def upstream() -> OpenAIUpstream:
    return OpenAIUpstream({"quick": Script(WORDS), "slow": Script(WORDS, itl=0.05)})


@repeated(20, 200)
async def test_what_a_client_saw_complete_survives_a_kill_at_any_moment(
    program: Gateways, tmp_path: Path, repetitions: int
) -> None:
    rng = Random(repetitions)
    async with upstream() as place:
        gateway = Place(tmp_path, place, program)
        for _ in range(repetitions):
            await gateway.die(rng, None)


@repeated(1, 8)
async def test_what_a_client_saw_complete_survives_a_kill_at_every_point(
    program: Gateways, tmp_path: Path, repetitions: int
) -> None:
    rng = Random(repetitions)
    async with upstream() as place:
        gateway = Place(tmp_path, place, program)
        for point in [*POINTS] * repetitions:
            await gateway.die(rng, point)


def test_there_are_points_enough() -> None:
    assert len(POINTS) >= 25
