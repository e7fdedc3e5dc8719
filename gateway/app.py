"""The composition root: configuration → object graph → a running gateway.  The one module that knows everyone."""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

from gateway import server
from gateway.api import pages
from gateway.api.edge import Edge
from gateway.api.head import EdgeLimits
from gateway.api.routes import RouteTable
from gateway.controlplane.admin import AdapterAdmin
from gateway.controlplane.config import Config
from gateway.controlplane.keyadmin import KeyAdmin
from gateway.controlplane.ledger import Ledger, ledger_url
from gateway.controlplane.outbox import LedgerOutbox
from gateway.controlplane.plane import ControlPlane
from gateway.controlplane.spending import Spending
from gateway.controlplane.toolparsers import with_tool_parsers
from gateway.controlplane.usage import Usage
from gateway.dataplane.metered import Turnstile
from gateway.dataplane.pipeline import Pipeline
from gateway.dataplane.upstreams import SnapshotHolder, Upstreams
from gateway.domain.errors import StorageError
from gateway.limits.grants import Books, Meters
from gateway.limits.memory import MemoryMeters
from gateway.limits.shared import SharedMeters
from gateway.telemetry import logs
from gateway.telemetry.contentlog import ContentLog
from gateway.telemetry.metrics import Metrics

_log = logging.getLogger("gateway")


class Gateway:
    """Everything of one running gateway.  `environ` is what engines are given from, scrubbed."""

    def __init__(self, config: Config, environ: Mapping[str, str]) -> None:
        config = with_tool_parsers(config)
        self._config = config
        self.metrics = Metrics()
        self.snapshots = SnapshotHolder()
        self._upstreams = Upstreams(idle=self._idle)
        self._plane = ControlPlane(
            config, environ, publish=self.snapshots.publish, traffic=self._upstreams, metrics=self.metrics
        )
        self._main = None if self._plane.shared is None else self._plane.shared.main
        self.ledger = Ledger(ledger_url(config.storage.file))
        self._admin = AdapterAdmin(self._plane, config)
        path = config.log.content
        self._contents = None if path is None else ContentLog(path, self.metrics.content_dropped)
        self._meters = meters(config, Spending(self.ledger, self._main), self.metrics)
        self.pipeline = Pipeline(
            self.snapshots,
            self._upstreams,
            self.metrics,
            self.ledger,
            Turnstile(self._meters),
            suspect=self._plane.suspect,
            demand=self._plane.demand,
            max_body=config.server.max_body_mib << 20,
            contents=self._contents,
        )
        self._edge = Edge(
            self.pipeline,
            pages.build(
                self.snapshots,
                self.metrics,
                self._plane,
                self.pipeline.draining,
                self._admin,
                KeyAdmin(self._plane, self.pipeline),
                self._plane.audit,
                Usage(self.ledger, self._main),
            ),
            self.snapshots,
            self.metrics,
            RouteTable(),
            config.server.trusted_proxies,
        )
        self.metrics.watch(self._upstreams.occupancy)
        self.metrics.watch_ledger(lambda: self.ledger.trouble is None, lambda: self.ledger.depth)
        if (shared := self._plane.shared) is not None:
            shared.ship(LedgerOutbox(self.ledger))
            self.metrics.watch_database(lambda: shared.trouble is None, lambda: shared.unshipped)

    async def serve(self, listener: socket.socket, stop: server.Stop, on_listening: Callable[[str, int], None]) -> None:
        """Serves until `stop` is asked.  Routing stops before engines do, and the ledger last.  Raises StorageError."""
        await self.ledger.start()
        if self._contents is not None:
            self._contents.start()
        try:
            await self._meters.start()
            self.metrics.recovered(self.ledger.recovered)
            await self._admin.start()
            await self._plane.start()
            await self._serve(listener, stop, on_listening)
        finally:
            await self.ledger.close()
            if self._contents is not None:
                await self._contents.close()

    async def _serve(
        self, listener: socket.socket, stop: server.Stop, on_listening: Callable[[str, int], None]
    ) -> None:
        await server.serve(
            cast(Any, self._edge),
            listener,
            edge_limits(self._config),
            stop=stop,
            on_refused=self.metrics.refused,
            on_listening=on_listening,
            begin_drain=self.pipeline.begin_drain,
            end_streams=self.pipeline.end_streams,
            shutdown=self._shutdown,
            drain_timeout=self._config.server.drain_timeout,
        )

    def _idle(self, upstream: str, adapter: str) -> None:
        self._plane.idle(upstream, adapter)

    async def _shutdown(self) -> None:
        self._upstreams.close()
        await self._admin.close()
        await self._plane.stop()
        await self._meters.close()


def meters(config: Config, books: Books, metrics: Metrics) -> Meters:
    """Where the file says that limits are counted; `books` say what budgets begin with."""
    settings = config.limits
    if settings.url.reveal() == "memory://":
        metrics.limits_mode("memory")
        return MemoryMeters(books)
    return SharedMeters(
        settings.url, books, replicas=settings.replicas, timeout=settings.timeout, tell=metrics.limits_mode
    )


def edge_limits(config: Config) -> EdgeLimits:
    """The file's settings as the guard's limits."""
    settings = config.server
    return EdgeLimits(
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
        max_body_bytes=settings.max_body_mib << 20,
        max_upload_bytes=config.adapters.import_limits.max_mib << 20,
        keep_alive=round(settings.keep_alive),
        write_stall=settings.write_stall,
        max_connections=settings.max_connections,
    )


def run(config: Config) -> int:
    """Runs a gateway until it is told to stop.  Returns the exit status."""
    logs.configure(config.log.level, config.log.format)
    try:
        listener = server.listen(config.server.host, config.server.port)
    except server.ListenError as error:
        _log.error("%s", error)
        return 1
    return server.run(_serve(config, listener))


async def _serve(config: Config, listener: socket.socket) -> int:
    stop = server.Stop()
    gateway = Gateway(config, os.environ)

    def listening(host: str, port: int) -> None:
        # What is here now stays: to look through it for garbage again and again is a fifth of a request's CPU.
        gc.collect()
        gc.freeze()
        shown = f"[{host}]" if ":" in host else host
        _log.info("listening on http://%s:%d", shown, port)

    with stop.on_signals():
        try:
            await gateway.serve(listener, stop, listening)
        except StorageError as error:
            _log.error("%s", error.message)
            return 1
    _log.info("stopped")
    return 0
