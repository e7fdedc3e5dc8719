"""The desired state of adapters: its one owner.

    move (pure) → saved durably → assigned → told

What a record names is in the store, whole, before the record is saved; nothing is deleted there while a record, an
engine or a request has it.  Which base models a version fits is judged once for each, and kept with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from adapters import AdapterStore, BaseModel, BaseModelError, check
from gateway.controlplane.desired import AdapterRecord, VersionRecord, judged
from gateway.controlplane.hub import locate
from gateway.controlplane.records import Records
from gateway.controlplane.versions import Host, Index

log = logging.getLogger("gateway.adapters")

Move = Callable[[AdapterRecord | None], AdapterRecord | None]


class Registry:
    """Holds every adapter that is to be offered.

    `records` and `index` are replaced, never changed; `changed` is called after that.  `default_load`: whether an
    adapter without a setting of its own is loaded without being asked for.  Disk work runs in threads.
    """

    def __init__(self, store: Path, *, hub: Path, default_load: str, changed: Callable[[], None]) -> None:
        self.records: Mapping[str, AdapterRecord] = MappingProxyType({})
        self.index = Index({}, self._path, default_load)
        self.unfit: Mapping[tuple[str, str], str] = MappingProxyType({})
        self.store = AdapterStore(store.resolve())
        self._saved: Records  # from `open` on
        self._hub = hub
        self._default_load = default_load
        self._changed = changed
        self._moving = asyncio.Lock()
        self._bases: dict[str, tuple[str, BaseModel | None]] = {}  # model → fingerprint and shapes
        self._loose_since: dict[str, float] = {}

    async def open(self, records: Records) -> None:
        """Reads what was saved, and saves there from now on.  Raises StorageError, OSError."""
        self.store = await asyncio.to_thread(AdapterStore.open, self.store.root)
        self._saved = records
        self._take(await records.load())

    async def move(self, name: str, move: Move) -> AdapterRecord | None:
        """Changes one adapter: durable, and in `records`, when it returns.  Raises what the move raises, and
        StorageError; nothing has changed then.

        Whoever is cancelled while waiting does not undo it: what is saved is always what is in `records`.
        """
        return await asyncio.shield(asyncio.create_task(self._move(name, move)))

    async def _move(self, name: str, move: Move) -> AdapterRecord | None:
        async with self._moving:
            before = self.records.get(name)
            after = move(before)
            if after == before:
                return after
            rest = {other: record for other, record in self.records.items() if other != name}
            if after is None:
                await self._saved.remove(name)
            else:
                await self._saved.save(after)
                rest[name] = after
            self._take(rest)
        self._changed()
        return after

    async def settled(self) -> None:
        """Returns when the moves that were asked for until now are made."""
        async with self._moving:
            pass

    def verify(self, digest: str) -> object:
        """Reads a version again, in the thread that calls.  Raises StoreError, OSError."""
        return self.store.verify(digest)

    def fingerprint(self, model: str) -> str | None:
        """Of a base model's shapes: "" when it is not on this machine, None while it was not looked at."""
        known = self._bases.get(model)
        return None if known is None else known[0]

    def place(self, model: str) -> str:
        """The folder of a base model on this machine; "" when it is not there."""
        found = locate(model, self._hub)
        return found if os.path.isabs(found) else ""

    async def survey(self, hosts: Iterable[Host]) -> None:
        """Looks for base models that are not known yet, and judges every version against those that it was not judged
        against."""
        for model in {host.model for host in hosts}:
            if not self.fingerprint(model):
                found = await asyncio.to_thread(self._read_base, model)
                if self._bases.get(model) != found:
                    self._bases[model] = found
                    self._changed()
        fingerprints = dict(self._bases.values())
        for record in tuple(self.records.values()):
            for version in record.versions:
                for fingerprint, base in fingerprints.items():
                    if fingerprint not in version.fits and (version.digest, fingerprint) not in self.unfit:
                        await self._judge(record.name, version, fingerprint, base)

    async def _judge(self, name: str, version: VersionRecord, fingerprint: str, base: BaseModel | None) -> None:
        verdict = await asyncio.to_thread(check, Path(self._path(version.digest)), base)
        if verdict.ok:
            await self.move(name, lambda record: _also_fits(record, version.digest, fingerprint))
            return
        reason = "; ".join(map(str, verdict.errors))
        log.warning("adapter %s@%s does not fit a base model: %s", name, version.version, reason)
        self.unfit = MappingProxyType({**self.unfit, (version.digest, fingerprint): reason})
        self._changed()

    async def collect(self, held: Collection[str], grace: float) -> None:
        """Deletes from the store what no record has named and no engine has held (`held`: digests) for `grace` seconds.

        What is being added is protected by its age: it is in the store a moment before a record names it.
        """
        named = {version.digest for record in self.records.values() for version in record.versions}
        if any(digest not in named for digest, _ in self.unfit):
            self.unfit = MappingProxyType({about: why for about, why in self.unfit.items() if about[0] in named})
        stored = await asyncio.to_thread(self.store.versions)
        now = time.monotonic()
        loose = {one.digest for one in stored} - named - set(held)
        self._loose_since = {digest: self._loose_since.get(digest, now) for digest in loose}
        keep = {one.digest for one in stored if now - self._loose_since.get(one.digest, now) < grace}
        for digest in await asyncio.to_thread(self.store.collect, keep, grace):
            log.info("the store has let go of %s", digest[:12])

    def _take(self, records: Mapping[str, AdapterRecord]) -> None:
        self.records = MappingProxyType(dict(sorted(records.items())))
        self.index = Index(self.records, self._path, self._default_load, before=self.index)

    def _path(self, digest: str) -> str:
        return str(self.store.root / "sha256" / digest)

    def _read_base(self, model: str) -> tuple[str, BaseModel | None]:
        folder = self.place(model)
        if not folder:
            if model not in self._bases:
                log.warning("the base model %s is not on this machine: adapters' shapes are not compared", model)
            return "", None
        try:
            base = BaseModel.read(Path(folder))
        except BaseModelError as error:
            if model not in self._bases:
                log.warning("adapters' shapes are not compared with their base model: %s", error)
            return "", None
        return fingerprint(base), base


def fingerprint(base: BaseModel) -> str:
    """Names a base model by what an adapter must fit: its architecture and the shapes of its modules."""
    text = "\n".join([base.architecture, *(f"{name} {shape}" for name, shape in sorted(base.shapes.items()))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _also_fits(record: AdapterRecord | None, digest: str, fingerprint: str) -> AdapterRecord | None:
    version = next((v for v in record.versions if v.digest == digest), None) if record is not None else None
    if record is None or version is None or fingerprint in version.fits:
        return record  # removed meanwhile, or judged
    return judged(record, digest, (*version.fits, fingerprint))
