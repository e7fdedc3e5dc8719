"""D-4: what was said of a key stays true when the gateway is killed: none is lost, none comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest

from gateway.domain.audit import Row, verified
from tests import http
from tests.gateway import Running, config_text
from tests.integration.crashing_gateway import Gateways
from tests.integration.keyed import bearer
from tests.tiers import repeated

CONFIG = {"upstreams": [{"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}]}


@dataclass
class Known:
    """What an administrator knows.  `let_in` and `kept_out`: acknowledged; `unsure`: asked for, and no answer came, so
    that either may be."""

    let_in: dict[str, str] = field(default_factory=dict)  # id → key
    kept_out: list[str] = field(default_factory=list)
    unsure: dict[str, str] = field(default_factory=dict)
    acts: int = 0
    number: int = 0


async def administer(client: httpx2.AsyncClient, known: Known, rng: Random) -> None:
    """Makes, rotates and revokes keys until the gateway is gone."""
    with contextlib.suppress(httpx2.TransportError):
        while True:
            await one_act(client, known, rng)


async def one_act(client: httpx2.AsyncClient, known: Known, rng: Random) -> None:
    known.number += 1
    which = rng.choice(list(known.let_in)) if len(known.let_in) > 3 else ""
    if not which:
        made = await acknowledged(client, "POST", "/admin/v1/keys", {"name": f"k{known.number}"})
        known.let_in[made["id"]] = made["key"]
    else:
        key = known.unsure[which] = known.let_in.pop(which)
        if rng.random() < 0.5:
            made = await acknowledged(client, "POST", f"/admin/v1/keys/{which}/rotate", {})
            known.let_in[which] = made["key"]
        else:
            await acknowledged(client, "DELETE", f"/admin/v1/keys/{which}")
        del known.unsure[which]
        known.kept_out.append(key)
    known.acts += 1


async def acknowledged(client: httpx2.AsyncClient, method: str, path: str, body: Any = None) -> dict[str, Any]:
    answer = await client.request(method, path, json=body)
    assert answer.status_code in (200, 201), answer.text
    page: dict[str, Any] = answer.json()
    return page


async def check(client: httpx2.AsyncClient, known: Known) -> None:
    async def status(key: str) -> int:
        return (await client.get("/v1/models", headers=bearer(key))).status_code

    for id, key in known.let_in.items():
        assert await status(key) == 200, f"{id} is lost"
    for key in known.kept_out[-30:]:
        assert await status(key) in (401, 429), f"{key[7:15]} is back"
    for id, key in list(known.unsure.items()):
        if await status(key) == 200:  # it did not happen
            known.let_in[id] = key
        else:
            known.kept_out.append(key)
        del known.unsure[id]
    rows: list[dict[str, Any]] = []
    more = True
    while more:
        page = (await client.get(f"/admin/v1/audit?limit=1000&after={len(rows)}")).json()
        rows, more = rows + page["data"], page["has_more"]
    assert len(list(verified(Row(**row) for row in rows))) >= known.acts, "an act is missing in the log"


async def life(program: Gateways, config: Path, known: Known, rng: Random) -> None:
    """From a start to the next kill."""
    async with begun(program, config) as client:
        await check(client, known)
        before = known.acts
        acting = asyncio.create_task(administer(client, known, rng))
        enough = before + rng.randrange(1, 25)
        while known.acts < enough and not acting.done():
            await asyncio.sleep(rng.random() * 0.003)
        await end(program)
        await acting


@contextlib.asynccontextmanager
async def begun(program: Gateways, config: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """An administrator of a gateway that has started."""
    url = await asyncio.to_thread(program.begin, config, None, 0)
    assert url is not None
    gateway = Running(url)
    await gateway.ready()
    async with http.client(base_url=url, headers=gateway.admin_headers, timeout=30) as client:
        yield client


async def end(program: Gateways) -> None:
    program.kill()
    assert await asyncio.to_thread(program.ended) == -9


@repeated(10, 200)
@pytest.mark.timeout(1800)
async def test_what_was_acknowledged_of_keys_survives_a_kill(
    program: Gateways, tmp_path: Path, repetitions: int
) -> None:
    known, rng = Known(), Random(repetitions)
    config = tmp_path / "gateway.yaml"
    config.write_text(config_text(CONFIG, tmp_path))
    for _ in range(repetitions):
        await life(program, config, known, rng)
    async with begun(program, config) as client:
        await check(client, known)
        await end(program)
    assert known.acts > repetitions
    assert known.kept_out
