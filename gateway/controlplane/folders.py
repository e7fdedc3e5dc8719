"""Watched folders → versions in the registry, taken up while the gateway runs.

A folder's newest content becomes a version, and the name's, as soon as an engine serves it.  One that is refused says
why, and the version before it goes on serving.  A folder that goes takes what it brought with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from adapters import FolderState, RefusedError, Scan, changes, digest_of, scan
from adapters.sources.source import FolderSource
from gateway.controlplane.config import Adapters
from gateway.controlplane.desired import AdapterRecord, awaited, removed
from gateway.controlplane.imports import ImportFailed, ImportRefused
from gateway.controlplane.intake import Intake, NoEngine
from gateway.controlplane.observed import Phase
from gateway.controlplane.registry import Registry
from gateway.controlplane.versions import Host
from gateway.domain.errors import Conflict, NotFound, StorageError

log = logging.getLogger("gateway.adapters")

_RETRY = 30.0  # seconds after which a content is tried again that failed for a reason outside of it (a full disk)
_STUCK = 5.0  # seconds after which a folder without all files is no longer taken for one that is being written
_AT_ONCE = 2  # folders that are taken up side by side


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where the newest content of a name's folder stands, while that is not a version yet."""

    phase: Phase
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Content:
    """A folder's content that was taken up.  It is looked at again when it was refused with other engines than those of
    now, or at `retry_at` when something else was in the way."""

    fingerprint: str
    refused_by: Mapping[str, Host] | None = None
    retry_at: float | None = None

    def settled(self, hosts: Mapping[str, Host], now: float) -> bool:
        if self.retry_at is not None:
            return now < self.retry_at
        return self.refused_by is None or self.refused_by == hosts


class Folders:
    """Watches the source folders of the configuration.

    `arrivals` is replaced, never changed; `changed` is called after that.  `clock` is monotonic.
    """

    def __init__(
        self,
        settings: Adapters,
        registry: Registry,
        intake: Intake,
        *,
        hosts: Callable[[], Mapping[str, Host]],
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.arrivals: Mapping[str, Arrival] = MappingProxyType({})
        self._settings = settings
        self._registry = registry
        self._intake = intake
        self._hosts = hosts
        self._changed = changed
        self._clock = clock
        self._before: Scan | None = None
        self._contents: dict[str, _Content] = {}
        self._incomplete: dict[str, tuple[FolderState, float]] = {}  # name → what is there, and since when
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """The engines are others: what was refused may fit now."""
        self._wake.set()

    async def run(self) -> None:
        """Looks at the folders until it is cancelled."""
        while True:
            await self.look()
            try:
                async with asyncio.timeout(self._settings.poll_interval):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def look(self) -> None:
        """One round: what changed since the last one is taken up.  The first round takes what is there."""
        after = await asyncio.to_thread(scan, self._settings.sources)
        before = self._before or after
        if self._before is None or after.findings != self._before.findings:
            for finding in after.findings:
                log.warning("adapter sources: %s", finding)
        self._before = after
        hosts = self._hosts()
        found = changes(self._taken(hosts), before, after)
        for name in found.gone:
            await self._forget(name)
        stuck = self._stuck([after.adapters[name] for name in found.settling if name in after.adapters])
        room = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for folder in (*found.appeared, *found.changed, *stuck):
                group.create_task(self._take_up(folder, hosts, room))

    def _taken(self, hosts: Mapping[str, Host]) -> Mapping[str, str]:
        """Name → fingerprint of the content that needs no second look; "" for one that does."""
        now = self._clock()
        names = {*self._contents, *self.arrivals, *(n for n, r in self._registry.records.items() if _watched(r))}
        return {
            name: content.fingerprint if (content := self._contents.get(name)) and content.settled(hosts, now) else ""
            for name in names
        }

    def _stuck(self, incomplete: Sequence[FolderState]) -> list[FolderState]:
        """Folders that lack a file and have not changed for a while: taken up all the same, to learn what is wrong."""
        now, before = self._clock(), self._incomplete
        self._incomplete = {
            folder.name: known if (known := before.get(folder.name)) and known[0] == folder else (folder, now)
            for folder in incomplete
        }
        for folder in incomplete:
            if folder.name not in self._registry.records and folder.name not in self.arrivals:
                self._tell(folder.name, Arrival(Phase.PENDING, "its folder is still being written"))
        return [folder for folder, since in self._incomplete.values() if now - since >= _STUCK]

    async def _take_up(self, folder: FolderState, hosts: Mapping[str, Host], room: asyncio.Semaphore) -> None:
        async with room:
            try:
                if not await self._known_already(folder):
                    self._tell(folder.name, Arrival(Phase.VALIDATING))
                    await self._intake.take(
                        folder.name, FolderSource(folder.path), watched=True, promote=True, progress=lambda _: None
                    )
            except NoEngine as error:
                self._tell(folder.name, Arrival(Phase.PENDING, str(error)))
            except ImportRefused as error:
                self._refuse(folder.name, _Content(folder.fingerprint, refused_by=hosts), str(error))
            except (ImportFailed, Conflict, StorageError, OSError) as error:
                content = _Content(folder.fingerprint, retry_at=self._clock() + _RETRY)
                self._refuse(folder.name, content, f"it could not be taken into {self._settings.store}: {error}")
            else:
                self._settle(folder.name, _Content(folder.fingerprint))

    async def _known_already(self, folder: FolderState) -> bool:
        """Whether this content is a version of the name.  When it is new in the folder (after another one), the name
        moves to it; what the folder had when the gateway started stays where the operator put it."""
        record = self._registry.records.get(folder.name)
        if record is None or not folder.complete:
            return False
        try:
            digest = await asyncio.to_thread(digest_of, folder.path)
        except (RefusedError, OSError):
            return False
        version = next((v for v in record.versions if v.digest == digest), None)
        if version is None or not version.fits:
            return False
        if folder.name in self._contents:
            try:
                await self._registry.move(folder.name, lambda now: _awaiting(now, digest))
            except NotFound:
                return False  # it was removed while the folder was read
        return True

    async def _forget(self, name: str) -> None:
        try:
            if name in self._registry.records:
                await self._registry.move(name, _without_watched)
        except StorageError as error:  # the next look finds it gone, too
            log.error("the folder of adapter %s is gone, and that cannot be stored: %s", name, error.message)
            return
        log.info("the folder of adapter %s is gone", name)
        self._contents.pop(name, None)
        self._tell(name, None)

    def _refuse(self, name: str, content: _Content, reason: str) -> None:
        self._contents[name] = content
        log.warning("adapter %s is refused: %s", name, reason)
        self._tell(name, Arrival(Phase.FAILED, reason))

    def _settle(self, name: str, content: _Content) -> None:
        self._contents[name] = content
        self._tell(name, None)

    def _tell(self, name: str, arrival: Arrival | None) -> None:
        if self.arrivals.get(name) != arrival:
            rest = {other: known for other, known in self.arrivals.items() if other != name}
            self.arrivals = MappingProxyType(rest if arrival is None else {**rest, name: arrival})
            self._changed()


def _watched(record: AdapterRecord) -> bool:
    return any(version.watched for version in record.versions)


def _awaiting(record: AdapterRecord | None, digest: str) -> AdapterRecord | None:
    return record and awaited(record, digest)


def _without_watched(record: AdapterRecord | None) -> AdapterRecord | None:
    """Without what a folder brought."""
    for version in record.versions if record is not None else ():
        if record is not None and version.watched:
            record = removed(record, version.digest)
    return record
