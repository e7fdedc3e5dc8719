"""The HTTP edge over adapters in memory: the real listener, guard and routes, without engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
import orjson

from gateway import server
from gateway.api import pages
from gateway.api.edge import Edge
from gateway.api.head import EdgeLimits
from gateway.api.routes import RouteTable
from gateway.dataplane.upstreams import SnapshotHolder
from gateway.domain.keys import UNPEPPERED
from gateway.domain.principal import ADAPTERS_RIGHT, Principal
from gateway.domain.snapshot import Route, Snapshot
from gateway.telemetry.metrics import Metrics
from tests import http
from tests.fakes.adapter_admin import MemoryAdapters
from tests.fakes.audit import MemoryAudit
from tests.fakes.ledger import MemoryLedger

ADMIN_KEY = "sk-admin-90b7e6a3f1c24d58"
KEYS = {
    "sk-chat-5d1f0c8be2a94477": Principal("chat"),
    "sk-buttons-77ab0e1944c2d0e5": Principal("buttons", frozenset({ADAPTERS_RIGHT})),
    "sk-pirates-0c6f4e2d91b8a377": Principal("pirates", frozenset({ADAPTERS_RIGHT}), ("pirate*",)),
}
CHAT, BUTTONS, PIRATES = KEYS
LIMITS = EdgeLimits(max_body_bytes=256 * 1024, max_upload_bytes=8 << 20)


class _Nothing:
    """A control plane without upstreams."""

    def degraded(self) -> dict[str, str]:
        return {}

    def upstreams(self) -> list[dict[str, Any]]:
        return []

    def adapters(self) -> list[dict[str, Any]]:
        return []

    def config(self) -> dict[str, Any]:
        return {}


@dataclass
class Administered:
    """The edge that listens at `url`, and what is behind it."""

    url: str
    adapters: MemoryAdapters
    uploads: Path
    snapshots: SnapshotHolder
    audit: MemoryAudit

    def client(self, key: str | None = ADMIN_KEY) -> httpx2.AsyncClient:
        """A client with this key."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return http.client(base_url=self.url, headers=headers, timeout=30)

    def offer(self, *models: str) -> None:
        """These are the public names."""
        cards = {
            name: orjson.dumps(
                {"id": name, "object": "model", "created": 0, "owned_by": "x", "status": {"value": "loaded"}}
            )
            for name in models
        }
        routes = {name: Route(name, ()) for name in models}
        keys = {UNPEPPERED.digest(key.encode()): principal for key, principal in KEYS.items()}
        self.snapshots.publish(
            Snapshot(1, routes, MappingProxyType({}), cards, keys, admin_key=UNPEPPERED.digest(ADMIN_KEY.encode()))
        )

    def parts(self) -> list[str]:
        """What lies in the folder of uploads."""
        return sorted(part.name for part in self.uploads.iterdir())


@asynccontextmanager
async def administered(folder: Path, limits: EdgeLimits = LIMITS) -> AsyncIterator[Administered]:
    """The edge in this loop; `folder` is the test's own."""
    uploads = folder / "uploads"
    uploads.mkdir()
    snapshots, metrics, adapters = SnapshotHolder(), Metrics(), MemoryAdapters(uploads)
    audit = MemoryAudit()
    keys: Any = None  # nobody asks for keys
    built = pages.build(snapshots, metrics, _Nothing(), lambda: False, adapters, keys, audit, MemoryLedger())
    edge: Any = Edge(None, built, snapshots, metrics, RouteTable())  # type: ignore[arg-type]  # nobody asks a model
    stop = server.Stop()
    listener = server.listen("127.0.0.1", 0)

    async def nothing() -> None: ...

    task = asyncio.create_task(
        server.serve(
            edge, listener, limits, stop=stop, on_refused=metrics.refused, on_listening=lambda host, port: None,
            begin_drain=lambda: None, end_streams=lambda: None, shutdown=nothing, drain_timeout=1.0,
        )
    )  # fmt: skip
    running = Administered(f"http://127.0.0.1:{listener.getsockname()[1]}", adapters, uploads, snapshots, audit)
    running.offer("smollm2")
    try:
        yield running
    finally:
        stop.ask()
        stop.ask()
        await task


def with_adapter(running: Administered, name: str, *contents: bytes) -> list[str]:
    """Adds versions with these contents and returns what they are called, oldest first."""
    for content in contents:
        running.adapters.imported(name, "upload", content)
    running.offer("smollm2", *running.adapters.records)
    return [version.version for version in running.adapters.records[name].versions]
