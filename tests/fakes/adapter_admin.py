"""The control plane's side of the administration of adapters, in memory: the real moves, and engines that do as the
test says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway.controlplane.desired import (
    AdapterRecord,
    VersionRecord,
    added,
    awaited,
    canaried,
    configured,
    find,
    promoted,
    removed,
    rolled_back,
)
from gateway.domain.errors import Conflict, NotFound

_NONE: Mapping[str, Any] = MappingProxyType({})


class MemoryAdapters:
    """An AdapterAdmin.  A version is what the SHA-256 of its archive, or of its source's text, is.

    Everything is Ready at once, but for what is in `slow` (until it is taken out, with `settle`) and what is in
    `broken` (digest or archive's text → why).
    """

    def __init__(self, uploads: Path) -> None:
        self._uploads = uploads
        self.records: dict[str, AdapterRecord] = {}
        self.begun: dict[str, dict[str, Any]] = {}
        self.unloaded: set[str] = set()
        self.slow: set[str] = set()
        self.broken: dict[str, str] = {}
        self.asked: list[str] = []
        self.waiting = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def uploads(self) -> Path:
        return self._uploads

    def settle(self) -> None:
        """What was slow is done."""
        self.slow.clear()
        for record in self.records.values():
            if record.next is not None:
                self.records[record.name] = promoted(record, record.next)
        for begun in self.begun.values():
            if begun["phase"] == "Loading":
                begun["phase"] = "Ready"
        self._changed.set()

    async def rows(self) -> list[dict[str, Any]]:
        return [row for name in sorted(self.records) for row in self._page(name)["versions"]]

    async def show(self, name: str) -> dict[str, Any]:
        return self._page(name)

    async def add(
        self, name: str, source: str, *, digest: str | None, promote: bool, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        return self.imported(name, source, source.encode(), promote, settings)

    async def receive(self, name: str, archive: Path, *, promote: bool, settings: Mapping[str, Any]) -> dict[str, Any]:
        content = await asyncio.to_thread(archive.read_bytes)
        await asyncio.to_thread(archive.unlink)
        return self.imported(name, "upload", content, promote, settings)

    async def imports(self, id: str) -> dict[str, Any]:
        if id not in self.begun:
            raise NotFound(f"There is no import {id[:64]}.")
        return self.begun[id]

    async def promote(self, name: str, version: str) -> dict[str, Any]:
        record = self._record(name)
        digest = find(record, version).digest
        self.records[name] = awaited(record, digest) if digest in self.slow else promoted(record, digest)
        return self._page(name)

    async def rollback(self, name: str) -> dict[str, Any]:
        record = self._record(name)
        before = record.history[-1] if record.history else ""
        self.records[name] = awaited(record, before) if before in self.slow else rolled_back(record)
        return self._page(name)

    async def canary(self, name: str, version: str, weight: float) -> dict[str, Any]:
        self.records[name] = canaried(self._record(name), version, weight)
        return self._page(name)

    async def configure(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        self.records[name] = configured(self._record(name), **settings)  # type: ignore[typeddict-item]
        return self._page(name)

    async def load(self, name: str, version: str | None) -> dict[str, Any]:
        record = self._record(name)
        digest = find(record, version or record.current).digest
        self.asked.append(f"{name}@{digest[:12]}")
        if digest in self.broken:
            raise Conflict(f"{name}@{digest[:12]} cannot be loaded: {self.broken[digest]}")
        while digest in self.slow:
            self._changed.clear()
            self.waiting.set()
            await self._changed.wait()
        self.unloaded.discard(digest)
        return self._page(name)

    async def unload(self, name: str, version: str | None) -> dict[str, Any]:
        record = self._record(name)
        if record.pinned:
            raise Conflict(f"{name} is pinned: gateway adapters set {name} --no-pin first")
        digests = [find(record, version).digest] if version else [v.digest for v in record.versions]
        self.unloaded.update(digests)
        return self._page(name)

    async def remove(self, name: str, version: str | None) -> dict[str, Any] | None:
        record = self._record(name)
        left = removed(record, version) if version else None
        if left is None:
            del self.records[name]
            return None
        self.records[name] = left
        return self._page(name)

    def _record(self, name: str) -> AdapterRecord:
        if name not in self.records:
            raise NotFound(f"There is no adapter {name}.")
        return self.records[name]

    def imported(
        self, name: str, source: str, content: bytes, promote: bool = False, settings: Mapping[str, Any] = _NONE
    ) -> dict[str, Any]:
        """What comes of this content."""
        digest = hashlib.sha256(content).hexdigest()
        begun = {
            "id": f"{len(self.begun) + 1:08x}", "name": name, "source": source, "phase": "Ready",
            "done": len(content), "total": None, "version": digest[:12], "reason": "",
            "note": f"what {name} is made of" if name == "ship" else "",
        }  # fmt: skip
        self.begun[begun["id"]] = begun
        if (reason := self.broken.get(content.decode("latin-1"))) is not None:
            begun |= {"phase": "Failed", "version": "", "reason": reason}
            return begun
        version = VersionRecord(digest, source, False, "tiny", 16, 4096, (), 1_700_000_000)
        slow = "*" in self.slow
        record = added(self.records.get(name), name, version, promote=promote, keep=10)
        record = configured(record, **settings)  # type: ignore[typeddict-item]
        if slow:
            self.slow.add(digest)
            begun["phase"] = "Loading"
        elif record.next is not None:
            record = promoted(record, record.next)
        self.records[name] = record
        return begun

    def _page(self, name: str) -> dict[str, Any]:
        record = self._record(name)
        weights = {canary.digest: canary.weight for canary in record.canaries}
        rest = 100.0 - sum(weights.values())
        upstreams = list(record.upstreams or ("local",))
        rows = []
        for version in record.versions:
            phase = "Unloaded" if version.digest in self.unloaded else "Ready"
            phase = "Loading" if version.digest in self.slow else phase
            current = version.digest == record.current
            rows.append({
                "name": name, "version": version.version, "digest": version.digest, "phase": phase, "reason": "",
                "base": version.base, "rank": version.rank, "size": version.size, "source": version.source,
                "added": version.added, "upstreams": upstreams, "current": current,
                "weight": rest if current else weights.get(version.digest, 0.0), "pinned": record.pinned,
                "load": record.load, "replicas": {u: {"state": phase, "reason": ""} for u in upstreams},
                "conditions": [],
            })  # fmt: skip
        return {
            "name": name,
            "current": record.current[:12],
            "next": record.next and record.next[:12],
            "history": [digest[:12] for digest in record.history],
            "canaries": [{"version": c.digest[:12], "weight": c.weight} for c in record.canaries],
            "pinned": record.pinned,
            "load": record.load,
            "upstreams": record.upstreams and list(record.upstreams),
            "versions": rows,
        }
