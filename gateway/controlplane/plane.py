"""The control plane: it owns everything that changes, and publishes what follows from it as snapshots.

    fleet ───┐
    registry ┴─ something changed ─▶ observe ─▶ point ─▶ compile ─▶ publish ─▶ reconcilers

One function goes through all of it (`advance`), as often as something changes and never twice at once; several changes
at one moment are one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, Protocol

from adapters.job import Limits
from gateway.controlplane import lora, sizing
from gateway.controlplane.audit import AuditLog
from gateway.controlplane.compiler import Compiler, model_names, next_change
from gateway.controlplane.config import Config, UpstreamSettings
from gateway.controlplane.copies import Copies, store_of
from gateway.controlplane.desired import AdapterRecord, promoted
from gateway.controlplane.drift import View
from gateway.controlplane.engines import EngineMetrics
from gateway.controlplane.fleet import Fleet
from gateway.controlplane.folders import Folders
from gateway.controlplane.hub import hub_cache
from gateway.controlplane.hubhead import HubHead
from gateway.controlplane.imports import Imports
from gateway.controlplane.intake import Intake
from gateway.controlplane.keyrecords import KeyRecords
from gateway.controlplane.keyring import Keyring
from gateway.controlplane.lives import Lives
from gateway.controlplane.observed import Observed, UpstreamState, UpstreamStatus
from gateway.controlplane.pepper import find_pepper
from gateway.controlplane.reconciler import Reconciler
from gateway.controlplane.records import Records
from gateway.controlplane.registry import Registry
from gateway.controlplane.residence import Residence, Traffic
from gateway.controlplane.shared import Shared
from gateway.controlplane.sharedkeys import SharedKeys
from gateway.controlplane.storage import Storage
from gateway.controlplane.versions import Holding, Host, Standing, due, kept
from gateway.domain.errors import StorageError
from gateway.domain.snapshot import EMPTY, Snapshot

log = logging.getLogger("gateway.plane")

_GRACE = 30.0  # seconds between the last wish for an adapter and its unloading
_FIRST_LOOK = 60.0  # seconds that taking up what folders hold may hold up the start
_JUDGING = 2.0  # seconds between two looks for base models that were not on this machine
_COLLECTING = 60.0  # seconds between two collections of what the store holds in vain
_STORAGE_RETRY = 5.0  # seconds until a name is moved again that the storage did not take
_AGAIN = 1.0  # seconds until a part starts again that a fault of ours ended


class PlaneMetrics(EngineMetrics, Protocol):
    """What is measured here."""

    def upstream_up(self, upstream: str, up: bool) -> None:
        """Whether an upstream answers."""
        ...

    def adapter_state(self, name: str, version: str, phase: str) -> None:
        """A version of an adapter is in this phase; "" when it is gone."""
        ...


class ControlPlane:
    """Runs the engines, watches upstreams and adapters, and calls `publish` with each new snapshot.

    `environ` is the gateway's environment, of which engines get little.  `traffic` is what the data plane knows of
    adapters; a version that no record names is unloaded `grace` seconds later at the soonest.
    """

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        *,
        publish: Callable[[Snapshot], None],
        traffic: Traffic,
        metrics: PlaneMetrics,
        grace: float = _GRACE,
    ) -> None:
        self._config = config
        self._publish = publish
        self._traffic = traffic
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._moved = asyncio.Event()  # an engine has another base model, or other limits
        self._task: asyncio.Task[None] | None = None
        self._storage: Storage | None = None
        url = config.storage.url
        place = url.postgresql
        self._own_audit = AuditLog()
        self.shared = None if place is None else Shared(url.shown, place, self._own_audit, changed=self._changed.set)
        self._shared_keys: SharedKeys | None = None
        self.audit = self._own_audit if self.shared is None else self.shared.audit
        self.keys = Keyring(config.auth, logs_content=config.log.content is not None)
        self.registry = Registry(
            config.adapters.store,
            hub=hub_cache(environ),
            default_load=config.adapters.load,
            changed=self._changed.set,
        )
        limits = config.adapters.import_limits
        imports = Imports(
            config.adapters.store,
            environ,
            limits=Limits(limits.max_mib << 20, limits.timeout, limits.memory_mib << 20),
        )
        self.fleet = Fleet(config, environ, self.registry, changed=self._changed.set, metrics=metrics)
        self.intake = Intake(self.registry, imports, config.adapters.keep_versions, self.fleet.hosts)
        self.folders = Folders(
            config.adapters,
            self.registry,
            self.intake,
            hosts=self.fleet.hosts,
            changed=self._changed.set,
            clock=time.monotonic,
        )
        self.residence = Residence(config.adapters, traffic, grace=grace, clock=time.monotonic)
        self._reconcilers = {
            upstream.name: Reconciler(
                upstream.name,
                view=partial(self._view, upstream),
                refresh=self.fleet.probes[upstream.name].refresh,
                verify=self.registry.verify,
                place=traffic.reserve,
                head=HubHead(environ),
                in_use=partial(traffic.users, upstream.name),
                changed=self._changed.set,
                clock=time.monotonic,
                grace=grace,
            )
            for upstream in config.upstreams
            if upstream.kind == "vllm"
        }
        self._compiler = Compiler(config)
        # What the published snapshot was compiled from, and what follows from it; replaced together.
        self._snapshot = EMPTY
        unseen = {upstream.name: UpstreamStatus(UpstreamState.STARTING, 0.0) for upstream in config.upstreams}
        self._observed = Observed(unseen, started=int(time.time()))
        self._standings: Mapping[str, Standing] = MappingProxyType({})
        self._hosted: Mapping[str, Host] = MappingProxyType({})
        self._lives = Lives()
        self._waited_for = False
        self._storage_again = 0.0  # when names are moved again after the storage has failed
        self._looked: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Starts everything.  Returns when a snapshot is published; engines boot on, and upstreams are asked.

        Raises StorageError, OSError.
        """
        self._storage = await Storage.open(self._config.storage.file)
        self._own_audit.open(self._storage)
        pepper = await asyncio.to_thread(find_pepper, self._config)
        await self.keys.open(self._key_records(self._storage), pepper)
        await self.registry.open(Records(self._storage))
        await self.registry.survey(self.fleet.hosts().values())
        if self._config.adapters.sources:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_LOOK):
                    await self.folders.look()  # an engine is made to hold what is there
        await self.fleet.start(self._wanted())
        self.advance()
        self._task = asyncio.create_task(self._run(), name="control plane")

    def _key_records(self, storage: Storage) -> KeyRecords | SharedKeys:
        if self.shared is None:
            return KeyRecords(storage, self._own_audit)
        self.shared.start()
        self.keys.know(all=False)
        self._shared_keys = SharedKeys(self.shared.main, storage, self.shared.audit)
        return self._shared_keys

    def _wanted(self) -> sizing.Adapters | None:
        """What engines are to hold; None: they run without adapters, somewhat faster."""
        if "adapters" not in self._config.model_fields_set and not self.registry.records:
            return None
        versions = [version for record in self.registry.records.values() for version in kept(record)[:1]]
        return sizing.Adapters([version.rank for version in versions], max((v.size for v in versions), default=0))

    async def stop(self) -> None:
        """Ends everything, the engines last and side by side.  Whoever serves requests has stopped before."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.fleet.stop()
        if self._storage is not None:
            await self.registry.settled()
            await self.keys.settled()
            if self.shared is not None:
                await self.shared.close()
            await self._storage.close()

    def demand(self, adapter: str) -> None:
        """A request waits for an adapter (`name@version`)."""
        self.residence.demand(adapter)
        self._changed.set()

    @contextlib.contextmanager
    def calling(self, adapter: str) -> Iterator[None]:
        """Somebody waits for an adapter who is no request."""
        try:
            with self.residence.calling(adapter):
                self._changed.set()
                yield
        finally:
            self._changed.set()

    def idle(self, upstream: str, adapter: str) -> None:
        """The last request that an adapter had on an upstream has ended."""
        standing = self._standings.get(upstream)
        if standing is not None and adapter not in standing.residents:
            self._reconcilers[upstream].wake()
        elif self._waited_for or self.residence.leaves(adapter) or adapter not in self.registry.index.kept:
            self._changed.set()  # there may be room now, or it is not needed any more

    def suspect(self, name: str) -> None:
        """An upstream could not be reached, or has lost a model: it is asked at once."""
        self.fleet.suspect(name)

    def upstreams(self) -> list[dict[str, Any]]:
        """The upstreams as `/admin/v1/upstreams` shows them."""
        rows = []
        for upstream in self._config.upstreams:
            status = self._observed.upstreams[upstream.name]
            rows.append(
                {
                    "name": upstream.name,
                    "kind": upstream.kind,
                    "state": status.state.value,
                    "message": status.progress or status.message,
                    "models": [name for name in self._snapshot.cards if self._answers(upstream.name, name)],
                    "engine": self.fleet.engine_row(upstream.name),
                }
            )
        return rows

    def degraded(self) -> dict[str, str]:
        """What does not work and stops nothing: its name, and why."""
        trouble = None if self.shared is None else self.shared.trouble
        return {} if trouble is None else {"storage": trouble.message}

    @property
    def observed(self) -> Observed:
        """What the published snapshot was compiled from."""
        return self._observed

    @property
    def standings(self) -> Mapping[str, Standing]:
        """How each engine stands, by upstream."""
        return self._standings

    async def changed(self) -> None:
        """Returns after the next look at everything."""
        if self._looked is None:
            self._looked = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._looked)

    def config(self) -> dict[str, Any]:
        """The configuration, without its secrets."""
        return self._config.model_dump(mode="json")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep("the publisher", self._follow))
            for name, probe in self.fleet.probes.items():
                group.create_task(self._keep(f"the probe of {name}", probe.run))
            for name, reconciler in self._reconcilers.items():
                group.create_task(self._keep(f"the reconciler of {name}", reconciler.run))
            if self._reconcilers:
                group.create_task(self._keep("the judge of adapters", self._judge))
                group.create_task(self._keep("the collector of adapters", self._collect))
            if self._config.adapters.sources:
                group.create_task(self._keep("the watcher of folders", self.folders.run))
            if self.shared is not None and self._shared_keys is not None:
                follow = partial(self.shared.run_keys, self._shared_keys, self.keys)
                group.create_task(self._keep("the follower of keys", follow))
                group.create_task(self._keep("the copier of the audit", self.shared.run_audit))
                group.create_task(self._keep("the shipper of the ledger", self.shared.run_shipper))

    async def _keep(self, part: str, run: Callable[[], Awaitable[None]]) -> None:
        """The one boundary: a fault of ours in one part is logged in full, and the part starts again."""
        while True:
            try:
                await run()
            except Exception:
                log.exception("%s failed and starts again", part)
            await asyncio.sleep(_AGAIN)

    async def _follow(self) -> None:
        while True:
            self._changed.clear()
            wait = self.advance()
            if await self._move_on():
                continue
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _move_on(self) -> bool:
        """Moves the names whose next version is ready.  False: there was nothing to move, or it cannot be stored: what
        the names point to serves on, and they are moved later."""
        if time.monotonic() < self._storage_again:
            return False
        moved = False
        for record in self.registry.index.moving:
            if (digest := due(record, self._standings)) is not None:
                try:
                    await self.registry.move(record.name, partial(_promoted_to, digest))
                except StorageError as error:
                    log.error("adapter %s cannot be moved to %s: %s", record.name, digest[:12], error.message)
                    self._storage_again = time.monotonic() + _STORAGE_RETRY
                    asyncio.get_running_loop().call_later(_STORAGE_RETRY, self._changed.set)
                    return False
                moved = True
        return moved

    async def _judge(self) -> None:
        """Holds versions against base models that appear, for as long as there are engines."""
        while True:
            self._moved.clear()
            wait = _JUDGING
            try:
                await self.registry.survey(self.fleet.hosts().values())
            except StorageError as error:
                log.error("what adapters fit cannot be stored: %s", error.message)
                wait = _STORAGE_RETRY
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._moved.wait()

    async def _collect(self) -> None:
        grace = self._config.adapters.gc_grace
        while True:
            await asyncio.sleep(min(_COLLECTING, grace))
            if (held := self.fleet.read_from_store()) is not None:
                await self.registry.collect(held, grace)

    def advance(self) -> float | None:
        """Brings everything that follows from what is observed up to now; seconds until that changes by itself.

        Nothing of it is kept unless the whole succeeds: what the reconcilers work towards is what is published.
        """
        if self.shared is not None and self._shared_keys is not None:
            self.keys.know(all=self._shared_keys.complete and self.shared.trouble is None)
        upstreams = self.fleet.statuses(self._observed.upstreams)
        hosts = self.fleet.hosts()
        observed = Observed(upstreams, now=time.monotonic(), started=self._observed.started)
        taken = model_names(self._config, observed)
        holdings = {name: self._holding(name, upstreams[name]) for name in self._reconcilers}
        standings = self.residence.standings(upstreams, hosts, holdings, self.registry.index, taken)
        waiting = self.residence.waiting()
        adapters = self._lives.look(self.registry, standings, self.folders.arrivals, taken, waiting)
        observed = replace(observed, adapters=adapters, salts=self.registry.index.salts, keys=self.keys.table)
        snapshot = self._compiler.compile(observed)
        if snapshot is not self._snapshot:
            self._publish(snapshot)
            self._snapshot = snapshot
        self._measure(self._observed, observed)
        moved = hosts != self._hosted
        self._observed, self._standings, self._hosted = observed, standings, hosts
        self._waited_for = bool(waiting)
        if moved:
            self._moved.set()
            self.folders.wake()
        for reconciler in self._reconcilers.values():
            reconciler.wake()
        if self._looked is not None:
            self._looked.set_result(None)
            self._looked = None
        changes = [at for at in (next_change(self._config, observed), self.residence.changes_at) if at is not None]
        return max(0.0, min(changes) - time.monotonic()) if changes else None

    def _holding(self, name: str, status: UpstreamStatus) -> Holding:
        """What the engine has of ours now: what it has lost since its reconciler looked is not there."""
        reconciler = self._reconcilers[name]
        if status.state is not UpstreamState.UP:
            return Holding(troubles=reconciler.troubles)
        listed = self.fleet.listed(name)
        proven = reconciler.proven(self.fleet.address(name, status), self.fleet.probes[name].seen.life)
        since = {adapter: at for adapter, at in reconciler.since.items() if adapter in listed}
        return Holding(since, frozenset(proven & since.keys()), reconciler.troubles)

    def _view(self, upstream: UpstreamSettings) -> View | None:
        """What the reconciler of this upstream is to do.  The list is the probe's newest; what is to be held is what
        was published, so that nothing is unloaded that a request may still be sent to.  None also while what was
        published was meant for another base model, or its base model was not looked at: what is not known to fit is not
        taken for what does not."""
        name = upstream.name
        status, standing = self._observed.upstreams[name], self._standings.get(name)
        seen = self.fleet.probes[name].seen
        if status.state is not UpstreamState.UP or seen.state is not UpstreamState.UP or standing is None:
            return None
        host = self.fleet.hosts().get(name)
        if standing.host is None or standing.host.fingerprint is None:
            return None
        if host is None or host.model != standing.host.model:
            return None
        return View(
            upstream=self.fleet.address(name, status),
            life=seen.life,
            steady=lora.steady(seen.version),
            listed=self.fleet.listed(name),
            store=store_of(upstream, self.registry.store.root),
            residents=tuple(standing.residents),
            copies=Copies(self.registry.index, upstream, store_of(upstream, self.registry.store.root)),
            room=host.room,
        )

    def _measure(self, before: Observed, now: Observed) -> None:
        for name, status in now.upstreams.items():
            self._metrics.upstream_up(name, status.state is UpstreamState.UP)
        others = [pair for pair in zip_longest(before.adapters, now.adapters) if pair[0] is not pair[1]]
        past = {(old.name, old.version): old.phase.value for old, _ in others if old is not None}
        phases = {(new.name, new.version): new.phase.value for _, new in others if new is not None}
        for name, version in phases.keys() | past.keys():
            if (phase := phases.get((name, version), "")) != past.get((name, version)):
                self._metrics.adapter_state(name, version, phase)

    def _answers(self, upstream: str, model: str) -> bool:
        return any(target.upstream == upstream for target in self._snapshot.routes[model].targets)


def _promoted_to(digest: str, record: AdapterRecord | None) -> AdapterRecord | None:
    if record is None or record.next != digest:
        return record  # somebody else was faster
    return promoted(record, digest)
