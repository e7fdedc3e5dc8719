"""A gateway whose keys are administered: what the tests of keys do again and again."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests import http, wire
from tests.fakes.openai_upstream import OpenAIUpstream, Script
from tests.gateway import Running, running_gateway
from tests.patience import LATE
from tests.unit.commands import gateway_here

ENDLESS = Script(pieces=("x ",) * 100_000, itl=0.005)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def chat(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}


class Keyed:
    """The gateway and an administrator's client."""

    def __init__(self, gateway: Running, client: httpx2.AsyncClient, upstream: OpenAIUpstream) -> None:
        self.gateway = gateway
        self.client = client
        self.upstream = upstream

    async def call(self, method: str, path: str, body: Any = None, status: int = 200) -> dict[str, Any]:
        """The page that this answers with, which must have this status."""
        answer = await self.client.request(method, f"/admin/v1/{path}", json=body)
        assert answer.status_code == status, answer.text
        page: dict[str, Any] = answer.json()
        return page

    async def create(self, name: str, **settings: Any) -> dict[str, Any]:
        return await self.call("POST", "keys", {"name": name, **settings}, 201)

    async def revoke(self, id: str) -> dict[str, Any]:
        return await self.call("DELETE", f"keys/{id}")

    async def rotate(self, id: str, grace: int = 0) -> dict[str, Any]:
        return await self.call("POST", f"keys/{id}/rotate", {"grace": grace})

    async def rows(self) -> dict[str, dict[str, Any]]:
        """All keys by id."""
        return {row["id"]: row for row in (await self.call("GET", "keys?limit=1000"))["data"]}

    async def audit(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (await self.call("GET", "audit?limit=1000"))["data"]
        return rows

    async def get(self, key: str, path: str = "/v1/models") -> httpx2.Response:
        return await self.client.get(path, headers=bearer(key))

    async def post(self, key: str, body: Any, path: str = "/v1/chat/completions") -> httpx2.Response:
        return await self.client.post(path, headers=bearer(key), json=body)

    async def lets_in(self, key: str) -> bool:
        answer = await self.get(key)
        assert answer.status_code in (200, 401), answer.text
        return answer.status_code == 200

    @asynccontextmanager
    async def streaming(self, key: str) -> AsyncIterator[wire.Wire]:
        """A stream that has begun."""
        async with wire.connected(self.gateway.url) as client:
            headers = [("authorization", f"Bearer {key}")]
            await client.post("/v1/chat/completions", chat(stream=True), headers)
            status, _ = await client.head()
            assert status == 200
            assert await client.chunk()
            yield client

    async def command(
        self, *arguments: object, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`gateway ARGUMENTS` against this gateway."""
        here = {"GATEWAY_URL": self.gateway.url, "GATEWAY_ADMIN_KEY": self.gateway.admin_key, **(environ or {})}
        return await asyncio.to_thread(gateway_here, *arguments, env=here)


async def rest_of(client: wire.Wire) -> wire.Reply:
    """What a stream that was begun ends with."""
    async with asyncio.timeout(LATE):
        return await client.rest(200, (("transfer-encoding", "chunked"),))


@asynccontextmanager
async def keyed(folder: Path, scripts: Mapping[str, Any] | None = None, **settings: Any) -> AsyncIterator[Keyed]:
    """A gateway in this loop over one scripted upstream; `settings` go into its configuration."""
    async with OpenAIUpstream(scripts or {"m": Script()}) as upstream:
        config = {
            "upstreams": [
                {"name": "up", "kind": "openai", "base_url": upstream.url, "models": list(upstream.models)}
            ],
            **settings,
        }  # fmt: skip
        async with running_gateway(config, folder) as gateway:
            async with http.client(base_url=gateway.url, headers=gateway.admin_headers, timeout=30) as client:
                yield Keyed(gateway, client, upstream)
