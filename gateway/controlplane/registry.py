"""Source folders → checked versions in the store, taken up while the gateway runs.

A folder's newest content is copied into the store, judged there against the base model of each engine, and offered
only if it fits one; what was judged is what is kept, whatever happens to the folder meanwhile.  One that is refused
says why, and the version before it goes on serving.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from adapters import (
    AdapterStore,
    BaseModel,
    BaseModelError,
    FolderState,
    RefusedError,
    Scan,
    StoreError,
    Verdict,
    changes,
    check,
    scan,
)
from gateway.controlplane.config import Adapters
from gateway.controlplane.observed import Phase
from gateway.controlplane.versions import Host, Known, Version

log = logging.getLogger("gateway.adapters")

_RETRY = 30.0  # seconds after which a content is tried again that failed for a reason outside of it (a full disk)
_STUCK = 5.0  # seconds after which a folder without all files is no longer taken for one that is being written


class Unfit(Exception):
    """No engine would serve it rightly.  The text says why, with what to do."""


@dataclass(frozen=True, slots=True)
class _Hosts:
    """The engines at the beginning of a round, and where their base models are on this machine."""

    placed: Mapping[str, Host]
    bases: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a content was found to be on each upstream's engine."""

    hosts: _Hosts
    verdicts: Mapping[str, Verdict]

    def require_fit(self) -> None:
        """Raises Unfit unless it fits somewhere."""
        if any(verdict.ok for verdict in self.verdicts.values()):
            return
        reasons = {upstream: "; ".join(map(str, verdict.errors)) for upstream, verdict in self.verdicts.items()}
        if len(set(reasons.values())) == 1:
            raise Unfit(next(iter(reasons.values())))
        raise Unfit(" | ".join(f"on {upstream}: {reason}" for upstream, reason in reasons.items()))

    def version(self, name: str, digest: str, path: Path) -> Version:
        """The version that it makes.  Raises Unfit."""
        self.require_fit()
        fits = {upstream: self.hosts.placed[upstream] for upstream, verdict in self.verdicts.items() if verdict.ok}
        found = next(verdict.inspection for verdict in self.verdicts.values() if verdict.ok)
        rank, base = (found.rank, found.manifest.base_model or "") if found is not None else (0, "")
        return Version(name, digest, str(path), base, rank, MappingProxyType(fits))


class Registry:
    """Knows every adapter of the source folders.

    `known` is replaced, never changed; `changed` is called after that.  Disk work runs in a thread, one piece at a
    time.  `clock` is monotonic; `hub` is the Hugging Face hub's cache of models.
    """

    def __init__(
        self, settings: Adapters, *, changed: Callable[[], None], clock: Callable[[], float], hub: Path
    ) -> None:
        self.known: Mapping[str, Known] = MappingProxyType({})
        self._settings = settings
        self._changed = changed
        self._clock = clock
        self._hub = hub
        self._hosts: Mapping[str, Host] = {}
        self._store: AdapterStore | None = None
        self._bases: dict[str, BaseModel] = {}
        self._before: Scan | None = None
        self._contents: dict[str, _Content] = {}
        self._fitted: dict[str, _Hosts] = {}  # name → the hosts that its offered version was held against
        self._incomplete: dict[str, tuple[FolderState, float]] = {}  # name → what is there, and since when
        self._wake = asyncio.Event()

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of the adapters that are offered."""
        return tuple(entry.offered.rank for entry in self.known.values() if entry.offered is not None)

    def place(self, hosts: Mapping[str, Host]) -> None:
        """The engines that adapters may be loaded into, by upstream; what was judged is judged again for new ones."""
        if hosts != self._hosts:
            self._hosts = dict(hosts)
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
        after, hosts = await asyncio.to_thread(self._survey, self._hosts)
        before = self._before or after
        if self._before is None or after.findings != self._before.findings:
            for finding in after.findings:
                log.warning("adapter sources: %s", finding)
        self._before = after
        found = changes(self._taken(hosts), before, after)
        for name in found.gone:
            self._forget(name)
        stuck = self._stuck([after.adapters[name] for name in found.settling if name in after.adapters])
        for folder in (*found.appeared, *found.changed, *stuck):
            await self._take_up(folder, hosts)
        for name, entry in tuple(self.known.items()):
            if entry.offered is not None and self._fitted[name] != hosts:
                await self._judge_again(entry, entry.offered, hosts)

    def _survey(self, placed: Mapping[str, Host]) -> tuple[Scan, _Hosts]:
        """The folders, and the hosts with their base models where these are on this machine by now."""
        bases = {upstream: locate(host.model, self._hub) for upstream, host in placed.items()}
        return scan(self._settings.sources), _Hosts(placed, bases)

    def _taken(self, hosts: _Hosts) -> Mapping[str, str]:
        """Name → fingerprint of the content that needs no second look; "" for one that does."""
        now = self._clock()
        return {
            name: content.fingerprint if (content := self._contents.get(name)) and content.settled(hosts, now) else ""
            for name in self.known
        }

    def _stuck(self, incomplete: Sequence[FolderState]) -> list[FolderState]:
        """Folders that lack a file and have not changed for a while: taken up all the same, to learn what is wrong."""
        now, before = self._clock(), self._incomplete
        self._incomplete = {
            folder.name: known if (known := before.get(folder.name)) and known[0] == folder else (folder, now)
            for folder in incomplete
        }
        for folder in incomplete:
            if folder.name not in self.known:
                self._set(Known(folder.name, phase=Phase.PENDING, reason="its folder is still being written"))
        return [folder for folder, since in self._incomplete.values() if now - since >= _STUCK]

    async def _take_up(self, folder: FolderState, hosts: _Hosts) -> None:
        name = folder.name
        entry = self.known.get(name, Known(name))
        if not hosts.placed:
            waits = "waits for an engine: none that takes adapters is configured or was reached yet"
            self._set(replace(entry, phase=Phase.PENDING, reason=waits))
            return
        self._set(replace(entry, phase=Phase.VALIDATING, reason=""))
        try:
            version = await asyncio.to_thread(self._add, folder, hosts)
        except (RefusedError, Unfit) as error:
            self._contents[name] = _Content(folder.fingerprint, refused_by=hosts)
            self._refuse(replace(entry, reason=str(error)))
        except (StoreError, OSError) as error:
            self._contents[name] = _Content(folder.fingerprint, retry_at=self._clock() + _RETRY)
            self._refuse(replace(entry, reason=f"the store {self._settings.store} does not take it: {error}"))
        else:
            self._contents[name] = _Content(folder.fingerprint)
            self._fitted[name] = hosts
            log.info("adapter %s: version %s fits %s", name, version.version, ", ".join(version.upstreams))
            self._set(Known(name, version))

    async def _judge_again(self, entry: Known, version: Version, hosts: _Hosts) -> None:
        """Other engines than before, or other limits: the same content may fit others, or none."""
        path = Path(version.path)
        try:
            judged = await asyncio.to_thread(self._judge, path, hosts)
            version = judged.version(version.name, version.digest, path)
        except Unfit as error:
            self._contents[version.name] = replace(self._contents[version.name], refused_by=hosts)
            self._refuse(Known(version.name, reason=str(error)))
        else:
            self._fitted[version.name] = hosts
            self._set(replace(entry, offered=version))

    def _add(self, folder: FolderState, hosts: _Hosts) -> Version:
        if self._store is None:
            self._store = AdapterStore.open(self._settings.store)
        judged: list[_Judged] = []

        def accept(copy: Path) -> None:
            judged.append(self._judge(copy, hosts))
            judged[0].require_fit()

        stored = self._store.add(folder.path, accept)
        return judged[0].version(folder.name, stored.digest, stored.path)

    def _judge(self, path: Path, hosts: _Hosts) -> _Judged:
        """On each engine; equal ones are asked once."""
        asked = {upstream: (hosts.bases[upstream], host.max_lora_rank) for upstream, host in hosts.placed.items()}
        verdicts = {(base, limit): check(path, self._base(base), limit) for base, limit in set(asked.values())}
        return _Judged(hosts, {upstream: verdicts[question] for upstream, question in asked.items()})

    def _base(self, model: str) -> BaseModel | None:
        if model not in self._bases:
            if not os.path.isabs(model):
                log.warning("the base model %s is not on this machine: adapters' shapes are not compared", model)
                return None
            try:
                self._bases[model] = BaseModel.read(Path(model))
            except BaseModelError as error:
                log.warning("adapters' shapes are not compared with their base model: %s", error)
                return None
        return self._bases[model]

    def _refuse(self, entry: Known) -> None:
        log.warning("adapter %s is refused: %s", entry.name, entry.reason)
        self._set(replace(entry, phase=Phase.FAILED))

    def _forget(self, name: str) -> None:
        log.info("adapter %s is gone", name)
        self._contents.pop(name, None)
        self._fitted.pop(name, None)
        self.known = MappingProxyType({n: entry for n, entry in self.known.items() if n != name})
        self._changed()

    def _set(self, entry: Known) -> None:
        if self.known.get(entry.name) != entry:
            self.known = MappingProxyType({**self.known, entry.name: entry})
            self._changed()


@dataclass(frozen=True, slots=True)
class _Content:
    """A folder's content that was taken up.  It is looked at again when it was refused by other hosts than those of
    now, or at `retry_at` when something else was in the way."""

    fingerprint: str
    refused_by: _Hosts | None = None
    retry_at: float | None = None

    def settled(self, hosts: _Hosts, now: float) -> bool:
        if self.retry_at is not None:
            return now < self.retry_at
        return self.refused_by is None or self.refused_by == hosts


def locate(model: str, hub: Path) -> str:
    """The model's folder, absolute: itself, or where the hub's client keeps that name; else the name as it is.

    https://huggingface.co/docs/huggingface_hub/guides/manage-cache has the layout of the cache.
    """
    if os.path.isdir(model):
        return os.path.abspath(model)
    repository = hub / f"models--{model.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return model
    folder = repository / "snapshots" / revision
    return str(folder.absolute()) if folder.is_dir() else model


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where the Hugging Face hub's client keeps models.

    https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    """
    if cache := environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"
