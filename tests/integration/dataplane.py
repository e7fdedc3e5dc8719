"""The data plane behind the real edge and server, without a control plane: the test publishes the snapshots, and hears
what the control plane would be told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from gateway import server
from gateway.api import pages
from gateway.api.edge import Edge
from gateway.api.guard import EdgeLimits
from gateway.api.routes import RouteTable
from gateway.dataplane.metered import Turnstile
from gateway.dataplane.pipeline import Pipeline
from gateway.dataplane.upstreams import SnapshotHolder, Upstreams
from gateway.domain.keys import UNPEPPERED
from gateway.domain.principal import Principal
from gateway.domain.snapshot import (
    Concurrency,
    Readiness,
    Route,
    Snapshot,
    Split,
    Target,
    Timeouts,
    Upstream,
)
from gateway.limits.grants import NO_LEDGER
from gateway.limits.memory import MemoryMeters
from gateway.telemetry.metrics import Metrics
from tests import wire
from tests.fakes.adapter_admin import MemoryAdapters
from tests.fakes.audit import MemoryAudit
from tests.fakes.ledger import MemoryLedger
from tests.fakes.openai_upstream import OpenAIUpstream
from tests.gateway import sample
from tests.patience import LATE
from tests.wire import Reply

KEYS = {name: f"sk-{name}-0123456789abcdef" for name in ("alice", "bob")}
_NO_KEYS: Any = None  # nobody asks for them
OPEN_WEBUI = (("x-openwebui-chat-id", "c-1"),)


def engine(name: str, place: OpenAIUpstream | int, *, max_loras: int = 0, **concurrency: Any) -> Upstream:
    """A vLLM upstream; `place` is the server, or a port."""
    port = place if isinstance(place, int) else place.port
    return Upstream(
        name, "vllm", "http", "127.0.0.1", port, "/v1",
        timeouts=Timeouts(), concurrency=Concurrency(**concurrency), max_loras=max_loras,
    )  # fmt: skip


def target(upstream: str, model: str, readiness: Readiness = Readiness.READY) -> Target:
    """A place that answers for an adapter's version, when `model` is one, and for a base model otherwise."""
    adapter = model if "@" in model else None
    note = "" if readiness is Readiness.READY else f"'{model}' is {readiness.value} on '{upstream}'"
    return Target(upstream, model, adapter, readiness, note)


def route(name: str, *targets: Target, split: Split | None = None) -> Route:
    return Route(name, targets, split)


class DataPlane:
    """What runs.  `suspected`, `demanded`, `idled`: what the control plane was told, in order."""

    def __init__(self) -> None:
        self.suspected: list[str] = []
        self.demanded: list[str] = []
        self.idled: list[tuple[str, str]] = []
        self.metrics = Metrics()
        self.ledger = MemoryLedger()
        self.holder = SnapshotHolder()
        self.upstreams = Upstreams(idle=lambda *place: self.idled.append(place))
        self.pipeline = Pipeline(
            self.holder, self.upstreams, self.metrics, self.ledger, Turnstile(MemoryMeters(NO_LEDGER)),
            suspect=self._suspect, demand=self._demand, max_body=2**20,
        )  # fmt: skip
        self.metrics.watch(self.upstreams.occupancy)
        self.url = ""
        self._told = asyncio.Condition()
        self._telling: set[asyncio.Task[None]] = set()

    def publish(self, engines: Iterable[Upstream], *routes: Route, models: Mapping[str, Iterable[str]] = {}) -> None:
        """A snapshot of these; `models`: key's name → patterns of what it may use."""
        principals = {
            UNPEPPERED.digest(key.encode()): Principal(name, models=tuple(models.get(name, ("*",))))
            for name, key in KEYS.items()
        }
        self.holder.publish(
            Snapshot(
                self.holder.current.version + 1,
                {r.model: r for r in routes},
                {e.name: e for e in engines},
                {},
                principals,
            )
        )

    async def ask(
        self,
        model: str,
        *,
        key: str = "alice",
        stream: bool = False,
        headers: Iterable[tuple[str, str]] = (),
        **more: Any,
    ) -> Reply:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream, **more}
        who = ("authorization", f"Bearer {KEYS[key]}")
        return await wire.post(self.url, "/v1/chat/completions", body, (who, *headers), 3 * LATE)

    def asking(self, model: str, **more: Any) -> asyncio.Task[Reply]:
        """A client in the background; cancelled, it leaves."""
        return asyncio.create_task(self.ask(model, **more))

    async def told(self, heard: list[Any], count: int) -> None:
        """Returns when the control plane was told so often."""
        async with asyncio.timeout(LATE), self._told:
            await self._told.wait_for(lambda: len(heard) >= count)

    async def waiting(self, reason: str, count: int) -> None:
        """Returns when so many requests wait for this."""
        async with asyncio.timeout(LATE):
            while self.figure("gateway_requests_waiting", reason=reason) != count:
                await asyncio.sleep(0.005)  # a gauge has no event to wait for

    def figure(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return sample(self.metrics.exposition().decode(), name, **labels)

    def quiet(self) -> bool:
        """Whether nothing is held and nobody waits."""
        return not any(
            (
                self.figure("gateway_requests_waiting"),
                self.figure("gateway_requests_in_flight"),
                self.figure("gateway_adapters_active"),
                self.upstreams.in_use,
            )
        )

    def _suspect(self, upstream: str) -> None:
        self.suspected.append(upstream)
        self._tell()

    def _demand(self, adapter: str) -> None:
        self.demanded.append(adapter)
        self._tell()

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._told:
                self._told.notify_all()

        task = asyncio.create_task(tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


class _Nothing:
    """An administration without anything to show."""

    def degraded(self) -> dict[str, str]:
        return {}

    def upstreams(self) -> list[dict[str, Any]]:
        return []

    def config(self) -> dict[str, Any]:
        return {}


@asynccontextmanager
async def data_plane() -> AsyncIterator[DataPlane]:
    """Serves for the length of the block; fails if a request left anything behind."""
    plane = DataPlane()
    stop = server.Stop()
    app = Edge(
        plane.pipeline,
        pages.build(
            plane.holder,
            plane.metrics,
            _Nothing(),
            plane.pipeline.draining,
            MemoryAdapters(Path()),
            _NO_KEYS,
            MemoryAudit(),
            plane.ledger,
        ),
        plane.holder,
        plane.metrics,
        RouteTable(),
    )
    address: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

    async def shutdown() -> None:
        plane.upstreams.close()

    task = asyncio.create_task(
        server.serve(
            cast(Any, app), server.listen("127.0.0.1", 0), EdgeLimits(), stop=stop,
            on_refused=plane.metrics.refused, on_listening=lambda host, port: address.set_result((host, port)),
            begin_drain=plane.pipeline.begin_drain, end_streams=plane.pipeline.end_streams, shutdown=shutdown,
            drain_timeout=LATE,
        )
    )  # fmt: skip
    await asyncio.wait((task, address), return_when=asyncio.FIRST_COMPLETED)
    host, port = await address
    plane.url = f"http://{host}:{port}"
    try:
        yield plane
        async with asyncio.timeout(LATE):
            while not plane.quiet():
                await asyncio.sleep(0.005)  # a client that left is noticed when its connection is read
    finally:
        stop.ask()
        await task
