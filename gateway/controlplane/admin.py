"""What administrators do with adapters: moves in the desired state, imports, and what is told of both.

A move is durable and published when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from adapters.sources.source import ArchiveSource, Source, SourceError, parse_source
from gateway.controlplane.config import Config
from gateway.controlplane.desired import (
    AdapterRecord,
    Settings,
    VersionRecord,
    awaited,
    canaried,
    configured,
    find,
    promoted,
    removed,
    rolled_back,
)
from gateway.controlplane.imports import ImportFailed, ImportRefused, Progress
from gateway.controlplane.intake import NoEngine
from gateway.controlplane.observed import AdapterStatus, Phase, UpstreamState
from gateway.controlplane.plane import ControlPlane
from gateway.controlplane.versions import Standing, engine_name, misfit, replaces
from gateway.domain.errors import Conflict, InvalidRequest, NotFound, Overloaded, StorageError

log = logging.getLogger("gateway.adapters")

_IMPORTS = 64  # that are under way at once
_REMEMBERED = 256  # imports that have ended
_LOAD = 120.0  # seconds that a version may take to be loaded before it gets traffic
_PATIENCE = 600.0  # seconds that an import waits for an engine to serve what it brought

Page = dict[str, Any]


@dataclass(slots=True)
class _Import:
    """One source on its way to a version that serves."""

    id: str
    name: str
    source: str
    phase: Phase = Phase.PENDING
    done: int = 0
    total: int | None = None
    version: str = ""
    reason: str = ""
    note: str = ""

    @property
    def ended(self) -> bool:
        return self.phase in (Phase.READY, Phase.FAILED)

    def page(self) -> Page:
        return {**asdict(self), "phase": self.phase.value}


class AdapterAdmin:
    """The life of adapters, for the edge (`gateway.api.adapters.AdapterAdmin` says what each method promises).

    `patience`: seconds that an import waits for an engine; its version is there, and is loaded, also after that.
    """

    def __init__(self, plane: ControlPlane, config: Config, *, patience: float = _PATIENCE) -> None:
        self._plane = plane
        self._registry = plane.registry
        self._upstreams = tuple(upstream.name for upstream in config.upstreams if upstream.kind == "vllm")
        self._patience = patience
        self._imports: dict[str, _Import] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def uploads(self) -> Path:
        return self._registry.store.root / "uploads"

    async def start(self) -> None:
        """Clears what was left of uploads.  Raises OSError."""
        await asyncio.to_thread(_clear, self.uploads)

    async def close(self) -> None:
        """Ends the imports that are under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def rows(self) -> list[Page]:
        return [self._row(status) for status in self._plane.observed.adapters]

    async def show(self, name: str) -> Page:
        return self._page(self._record(name))

    async def add(
        self, name: str, source: str, *, digest: str | None, promote: bool, settings: Mapping[str, Any]
    ) -> Page:
        try:
            parsed = parse_source(source, digest)
        except SourceError as error:
            raise InvalidRequest(str(error), param="source") from None
        return self._begin(name, parsed, promote, self._settings(settings))

    async def receive(self, name: str, archive: Path, *, promote: bool, settings: Mapping[str, Any]) -> Page:
        try:
            return self._begin(name, ArchiveSource(archive), promote, self._settings(settings), done=archive.unlink)
        except BaseException:
            await asyncio.to_thread(archive.unlink, missing_ok=True)
            raise

    async def imports(self, id: str) -> Page:
        if (found := self._imports.get(id)) is None:
            raise NotFound(f"There is no import {id[:40]}; imports that ended are remembered for a while only.")
        return found.page()

    async def promote(self, name: str, version: str) -> Page:
        record = self._record(name)
        wanted = find(record, version)
        if wanted.digest == record.current:
            return self._page(await self._move(name, lambda now: awaited(now, wanted.digest)))
        current = next(v for v in record.versions if v.digest == record.current)
        if replaces(engine_name(record, wanted), engine_name(record, current), self._plane.standings):
            return self._page(await self._move(name, lambda now: promoted(now, wanted.digest)))
        self._refuse_failed(record, wanted)
        return self._page(await self._move(name, lambda now: awaited(now, wanted.digest)))

    async def rollback(self, name: str) -> Page:
        record = self._record(name)
        if record.history:
            before = find(record, record.history[-1])
            await self._ready_within(_LOAD, name, before.version, "so nothing moves")
        return self._page(await self._move(name, rolled_back))

    async def canary(self, name: str, version: str, weight: float) -> Page:
        record = self._record(name)
        wanted = find(record, version)
        canaried(record, wanted.digest, weight)  # what cannot be is said before anything is loaded
        if weight > 0:
            await self._ready_within(_LOAD, name, wanted.version, "so it gets no traffic")
        return self._page(await self._move(name, lambda now: canaried(now, wanted.digest, weight)))

    async def configure(self, name: str, settings: Mapping[str, Any]) -> Page:
        self._record(name)
        checked = self._settings(settings)
        return self._page(await self._move(name, lambda now: configured(now, **checked)))

    async def load(self, name: str, version: str | None) -> Page:
        record = self._record(name)
        await self._until_ready(name, find(record, version or record.current).version)
        return self._page(self._record(name))

    async def unload(self, name: str, version: str | None) -> Page:
        record = self._record(name)
        chosen = record.versions if version is None else (find(record, version),)
        if record.pinned and any(one.digest == record.current for one in chosen):
            raise Conflict(f"{name} is pinned, its current version stays loaded: unpin it first (pinned: false).")
        for one in chosen:
            self._plane.residence.eject(engine_name(record, one))
        self._plane.advance()
        return self._page(record)

    async def remove(self, name: str, version: str | None) -> Page | None:
        record = self._record(name)
        digest = None if version is None else find(record, version).digest

        def move(now: AdapterRecord | None) -> AdapterRecord | None:
            return None if now is None or digest is None else removed(now, digest)

        left = await self._registry.move(name, move)
        self._plane.advance()
        return None if left is None else self._page(left)

    async def _move(self, name: str, move: Callable[[AdapterRecord], AdapterRecord]) -> AdapterRecord:
        """Durable, then published: by one transaction and one assignment."""

        def existing(now: AdapterRecord | None) -> AdapterRecord:
            if now is None:
                raise _unknown(name)
            return move(now)

        after = await self._registry.move(name, existing)
        self._plane.advance()
        return cast(AdapterRecord, after)

    def _begin(
        self, name: str, source: Source, promote: bool, settings: Settings, done: Callable[[], None] = lambda: None
    ) -> Page:
        if not self._upstreams:
            raise Conflict("No upstream takes adapters: the configuration has none of kind vllm.")
        if len(self._tasks) >= _IMPORTS:
            raise Overloaded(f"{_IMPORTS} imports are under way; wait for one to end.", retry_after=10)
        for id in [id for id, old in self._imports.items() if old.ended][: max(0, len(self._imports) - _REMEMBERED)]:
            del self._imports[id]
        one = _Import(f"imp_{secrets.token_hex(12)}", name, str(source))
        self._imports[one.id] = one
        task = asyncio.create_task(self._import(one, source, promote, settings, done), name=f"import of {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return one.page()

    async def _import(
        self, one: _Import, source: Source, promote: bool, settings: Settings, done: Callable[[], None]
    ) -> None:
        """From the source to a version that serves; every ending is told in the import."""

        def progress(step: Progress) -> None:
            one.phase, one.done, one.total, one.note = Phase(step.phase), step.done, step.total, step.note

        reason = "it was ended: the gateway stopped"
        try:
            version = await self._plane.intake.take(one.name, source, promote=promote, progress=progress, **settings)
            one.version, one.source, one.phase = version.version, version.source, Phase.LOADING
            await self._ready_within(self._patience, one.name, version.version, "and stays in the store")
            reason = ""
        except (ImportRefused, ImportFailed, NoEngine, OSError) as error:
            reason = str(error) or type(error).__name__
        except (Conflict, NotFound, InvalidRequest, StorageError) as error:
            reason = error.message
        except Exception:
            log.exception("the import of %s failed", one.name)
            reason = "the gateway failed to import it; its log says why"
        finally:
            one.reason, one.phase = reason, Phase.FAILED if reason else Phase.READY
            with contextlib.suppress(FileNotFoundError):
                done()

    async def _ready_within(self, seconds: float, name: str, version: str, otherwise: str) -> None:
        """As `_until_ready`; `otherwise` says what follows when it takes longer, which is a Conflict, too."""
        try:
            async with asyncio.timeout(seconds):
                await self._until_ready(name, version)
        except TimeoutError:
            why = self._status(name, version).reason or "it is being loaded"
            raise Conflict(f"{name}@{version} is not Ready after {seconds:g} s, {otherwise}: {why}") from None

    async def _until_ready(self, name: str, version: str) -> None:
        """Asks for the version as a request would, until an engine serves it.  Raises Conflict when none will, NotFound
        when it was removed."""
        with self._plane.calling(f"{name}@{version}"):
            while (status := self._status(name, version)).phase is not Phase.READY:
                if status.phase is Phase.FAILED:
                    raise Conflict(f"{name}@{version} cannot be served: {status.reason}")
                await self._plane.changed()

    def _refuse_failed(self, record: AdapterRecord, version: VersionRecord) -> None:
        status = self._status(record.name, version.version)
        if status.phase is Phase.FAILED:
            raise Conflict(f"{engine_name(record, version)} cannot be served, so nothing moves: {status.reason}")

    def _settings(self, settings: Mapping[str, Any]) -> Settings:
        checked = dict(settings)
        if (names := checked.get("upstreams")) is not None:
            for name in names:
                if name not in self._upstreams:
                    known = ", ".join(self._upstreams) or "none"
                    raise InvalidRequest(
                        f"There is no upstream '{str(name)[:64]}' that takes adapters; there is {known}.",
                        param="upstreams",
                    )
            checked["upstreams"] = tuple(names)
        return cast(Settings, checked)

    def _record(self, name: str) -> AdapterRecord:
        if (record := self._registry.records.get(name)) is None:
            raise _unknown(name)
        return record

    def _status(self, name: str, version: str) -> AdapterStatus:
        found = next((s for s in self._plane.observed.adapters if (s.name, s.version) == (name, version)), None)
        if found is None:
            if any(v.version == version for v in self._record(name).versions):
                return AdapterStatus(name, Phase.PENDING, version)  # it was added a moment ago
            raise NotFound(f"{name} has no version {version}: it was removed meanwhile")
        return found

    def _page(self, record: AdapterRecord) -> Page:
        rows = [self._row(status) for status in self._plane.observed.adapters if status.name == record.name]
        short = {version.digest: version.version for version in record.versions}
        return {
            "name": record.name,
            "current": short[record.current],
            "next": None if record.next is None else short[record.next],
            "history": [short[digest] for digest in record.history],
            "canaries": [{"version": short[c.digest], "weight": c.weight} for c in record.canaries],
            "pinned": record.pinned,
            "load": record.load,
            "upstreams": None if record.upstreams is None else list(record.upstreams),
            "versions": rows,
        }

    def _row(self, status: AdapterStatus) -> Page:
        row = {
            "name": status.name,
            "version": status.version,
            "digest": status.digest,
            "phase": status.phase.value,
            "reason": status.reason,
            "base": status.base,
            "upstreams": list(status.upstreams),
            "current": status.current,
            "weight": status.canary,
        }
        record = self._registry.records.get(status.name)
        version = next((v for v in record.versions if v.digest == status.digest), None) if record is not None else None
        if record is None or version is None:
            return {**row, **_UNKNOWN}
        if status.current:
            row["weight"] = 100.0 - sum(canary.weight for canary in record.canaries)
        return {
            **row,
            "rank": version.rank,
            "size": version.size,
            "source": version.source,
            "added": version.added,
            "pinned": record.pinned and version.digest == record.current,
            "load": record.load,
            "replicas": {
                name: self._replica(record, version, name, standing) for name, standing in self._plane.standings.items()
            },
            "conditions": _conditions(status),
        }

    def _replica(self, record: AdapterRecord, version: VersionRecord, name: str, standing: Standing) -> Page:
        adapter = engine_name(record, version)
        trouble = standing.troubles.get(adapter)
        reason = misfit(record, version, name, standing.host, self._registry.unfit)
        if reason is not None:
            return {"state": "unfit" if reason else "unknown", "reason": reason or "its base model is not known yet"}
        if standing.serves(adapter):
            return {"state": "ready", "reason": ""}
        if trouble is not None:
            return {"state": "failed" if trouble.lasting else "retrying", "reason": trouble.message}
        if standing.state is not UpstreamState.UP:
            return {"state": "away", "reason": f"{name} is {standing.state.value}"}
        if adapter in standing.residents:
            return {"state": "loading", "reason": ""}
        if adapter in standing.listed:
            return {"state": "draining", "reason": "unloaded when its last request has ended"}
        return {"state": "unloaded", "reason": ""}


#: Of a content that is no version: it is on its way in, was refused, or nobody wants it any more.
_UNKNOWN: Page = {
    "rank": 0, "size": 0, "source": "", "added": 0, "pinned": False, "load": None, "replicas": {}, "conditions": [],
}  # fmt: skip


def _conditions(status: AdapterStatus) -> list[Page]:
    """Several things that are true or not of one version, each with the reason; Kubernetes' way to say them."""
    loaded = status.phase is Phase.READY
    found = {
        "Stored": (True, ""),
        "Fits": (bool(status.upstreams), status.reason),
        "Loaded": (loaded, status.reason),
        "Serving": (loaded and (status.current or status.canary > 0), status.reason or "no name points to it"),
    }
    return [
        {"type": name, "status": str(holds), "reason": "" if holds else reason}
        for name, (holds, reason) in found.items()
    ]


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        left.unlink()


def _unknown(name: str) -> NotFound:
    return NotFound(f"There is no adapter '{name}'; `gateway adapters list` shows those there are.")
