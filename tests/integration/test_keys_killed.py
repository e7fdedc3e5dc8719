"""D-4: what was said of a key stays true when the gateway is killed: none is lost, none comes back."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest

from gateway.domain.audit import Row, verified
from tests.gateway import GatewayProcess, gateway_process
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


async def life(gateway: GatewayProcess, known: Known, rng: Random) -> None:
    """From a start to the next kill."""
    await gateway.ready()
    async with httpx2.AsyncClient(base_url=gateway.url, headers=gateway.admin_headers, timeout=30) as client:
        await check(client, known)
        before = known.acts
        acting = asyncio.create_task(administer(client, known, rng))
        enough = before + rng.randrange(1, 25)
        while known.acts < enough and not acting.done():
            await asyncio.sleep(rng.random() * 0.003)
        assert gateway.process is not None
        gateway.process.kill()
        await asyncio.to_thread(gateway.process.wait)
        await acting


@repeated(10, 200)
@pytest.mark.timeout(1800)
async def test_what_was_acknowledged_of_keys_survives_a_kill(tmp_path: Path, repetitions: int) -> None:
    known, rng = Known(), Random(repetitions)
    for _ in range(repetitions):
        with gateway_process(CONFIG, tmp_path) as gateway:
            await life(gateway, known, rng)
    with gateway_process(CONFIG, tmp_path) as gateway:
        await gateway.ready()
        async with httpx2.AsyncClient(base_url=gateway.url, headers=gateway.admin_headers, timeout=30) as client:
            await check(client, known)
    assert known.acts > repetitions
    assert known.kept_out
