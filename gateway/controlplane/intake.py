"""From a source to a version in the registry: fetched, checked and stored by a process of its own, then added."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Unpack

from adapters import job
from adapters.sources.source import Source
from gateway.controlplane.desired import AdapterRecord, Settings, VersionRecord, added, configured
from gateway.controlplane.imports import Imports, Progress
from gateway.controlplane.registry import Registry
from gateway.controlplane.versions import Host

log = logging.getLogger("gateway.adapters")


class NoEngine(Exception):
    """There is no engine yet that it could be checked against."""


@dataclass(frozen=True, slots=True)
class Intake:
    """Takes adapters in.  `keep`: versions of one adapter at most; `hosts`: the engines of this moment, by upstream."""

    registry: Registry
    imports: Imports
    keep: int
    hosts: Callable[[], Mapping[str, Host]]

    async def take(
        self,
        name: str,
        source: Source,
        *,
        watched: bool = False,
        promote: bool,
        progress: Callable[[Progress], None],
        **settings: Unpack[Settings],
    ) -> VersionRecord:
        """Imports the source and adds it to the adapter.

        Raises NoEngine, ImportRefused, ImportFailed, Conflict, StorageError.
        """
        await self.registry.survey(self.hosts().values())
        hosts = [host for host in self.hosts().values() if host.fingerprint is not None]
        if not hosts:
            raise NoEngine("waits for an engine: none that takes adapters is configured or was reached yet")
        found = await self.imports.run(source, [self._judge(host) for host in hosts], progress)
        fits = {host.fingerprint or "" for host, verdict in zip(hosts, found.verdicts, strict=True) if verdict.ok}
        version = VersionRecord(
            found.digest,
            found.source,
            watched,
            found.base,
            found.rank,
            found.size,
            tuple(sorted(fits)),
            int(time.time()),
        )

        def move(record: AdapterRecord | None) -> AdapterRecord:
            after = added(record, name, version, promote=promote, keep=self.keep)
            return configured(after, **settings) if settings else after

        await self.registry.move(name, move)
        log.info("adapter %s: version %s is added, from %s", name, version.version, version.source)
        return version

    def _judge(self, host: Host) -> job.Host:
        folder = self.registry.place(host.model) if host.fingerprint else ""
        return job.Host(folder or None, host.max_lora_rank)
