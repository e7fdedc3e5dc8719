"""A fault of our own is told in OpenAI's form too, and says nothing of what is inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2

from gateway.api import pages
from gateway.dataplane.upstreams import SnapshotHolder
from gateway.telemetry.metrics import Metrics
from tests.fakes.adapter_admin import MemoryAdapters
from tests.fakes.audit import MemoryAudit
from tests.fakes.ledger import MemoryLedger

SECRET = "what is inside"


class Broken:
    """An administration that fails."""

    def degraded(self) -> dict[str, str]:
        return {}

    def upstreams(self) -> list[dict[str, Any]]:
        raise RuntimeError(SECRET)

    def config(self) -> dict[str, Any]:
        raise RuntimeError(SECRET)


class BrokenAdapters(MemoryAdapters):
    async def rows(self) -> list[dict[str, Any]]:
        raise RuntimeError(SECRET)


async def test_a_page_that_fails_is_a_500_in_openais_form(tmp_path: Path) -> None:
    keys: Any = None
    adapters, audit, ledger = BrokenAdapters(tmp_path), MemoryAudit(), MemoryLedger()
    app = pages.build(SnapshotHolder(), Metrics(), Broken(), lambda: False, adapters, keys, audit, ledger)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        for path in ("/admin/v1/upstreams", "/admin/v1/adapters", "/admin/v1/config"):
            answer = await client.get(path)
            assert answer.status_code == 500
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert answer.headers["x-request-id"]
            assert SECRET not in answer.text
