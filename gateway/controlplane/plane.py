"""The control plane: it owns everything that changes, and publishes what follows from it as snapshots.

    engines ─┐
    probes ──┼─ something changed ─▶ observe ─▶ point ─▶ compile ─▶ publish ─▶ reconcilers
    registry ┘

One function goes through all of it (`_advance`), as often as something changes and never twice at once; several changes
at one moment are one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from gateway.backends import BACKENDS
from gateway.controlplane.compiler import compile, model_names, next_change, upstream_record
from gateway.controlplane.config import Config, UpstreamSettings
from gateway.controlplane.engines import Engine, EngineMetrics, EngineState, EngineStatus
from gateway.controlplane.observed import AdapterStatus, Observed, UpstreamState, UpstreamStatus
from gateway.controlplane.probes import Probe, Seen
from gateway.controlplane.reconciler import Reconciler, View
from gateway.controlplane.registry import Registry, hub_cache
from gateway.controlplane.sizing import engine_spec
from gateway.controlplane.versions import Host, Version, all_held_against, held_against, point, statuses, wanted
from gateway.domain.snapshot import EMPTY, Snapshot

log = logging.getLogger("gateway.plane")

_GRACE = 30.0  # seconds between the last wish for an adapter and its unloading
_AGAIN = 1.0  # seconds until a part starts again that a fault of ours ended
_STOP_MARGIN = 5.0  # seconds beyond its own limit that an engine gets to end
_STATIC = Seen(UpstreamState.UP)


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

    `environ` is the gateway's environment, of which engines get little.  `in_use` tells how many requests, from
    admission to settlement, an adapter (`name@version`) has on an upstream; one that nobody wants is unloaded `grace`
    seconds later at the soonest.
    """

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        *,
        publish: Callable[[Snapshot], None],
        in_use: Callable[[str, str], int],
        metrics: PlaneMetrics,
        grace: float = _GRACE,
    ) -> None:
        self._config = config
        self._environ = environ
        self._publish = publish
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._engines: dict[str, Engine] = {}
        self._store = os.path.join(config.adapters.store.resolve(), "")
        self._registry = Registry(
            config.adapters, changed=self._changed.set, clock=time.monotonic, hub=hub_cache(environ)
        )
        self._probes = {
            upstream.name: Probe(
                upstream.name,
                BACKENDS[upstream.kind].discover,
                upstream.poll_interval,
                changed=self._changed.set,
                jitter=lambda: 0.9 + secrets.randbelow(200) / 1000,
            )
            for upstream in config.upstreams
            if not _is_static(upstream)
        }
        self._reconcilers = {
            upstream.name: Reconciler(
                upstream.name,
                view=partial(self._view, upstream),
                refresh=self._probes[upstream.name].refresh,
                in_use=partial(in_use, upstream.name),
                changed=self._changed.set,
                clock=time.monotonic,
                grace=grace,
            )
            for upstream in config.upstreams
            if upstream.kind == "vllm" and config.adapters.sources
        }
        # What the published snapshot was compiled from, and what follows from it; replaced together.
        self._snapshot = EMPTY
        unseen = {upstream.name: UpstreamStatus(UpstreamState.STARTING, 0.0) for upstream in config.upstreams}
        self._observed = Observed(unseen, started=int(time.time()))
        self._current: Mapping[str, Version] = MappingProxyType({})
        self._desired: Mapping[str, Mapping[str, str]] = MappingProxyType({})
        self._hosted: Mapping[str, Host] = MappingProxyType({})

    async def start(self) -> None:
        """Starts everything.  Returns when a snapshot is published; engines boot on, and upstreams are asked."""
        ranks = None
        if self._config.adapters.sources:
            self._registry.place(self._hosts())
            await self._registry.look()  # an engine is made to hold what is there
            ranks = self._registry.ranks
        for upstream in self._config.upstreams:
            if upstream.engine is not None:
                spec = engine_spec(upstream, upstream.engine, ranks)
                self._engines[upstream.name] = Engine(
                    spec, self._environ, on_change=lambda _: self._changed.set(), metrics=self._metrics
                )
            elif upstream.name in self._probes:
                self._probes[upstream.name].retarget(upstream_record(self._config, upstream))
        await asyncio.gather(*(engine.start() for engine in self._engines.values()))
        self._advance()
        self._task = asyncio.create_task(self._run(), name="control plane")

    async def stop(self) -> None:
        """Ends everything, the engines last and side by side.  Whoever serves requests has stopped before."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await asyncio.gather(*(_stop(engine) for engine in self._engines.values()))

    def suspect(self, name: str) -> None:
        """An upstream could not be reached, or has lost a model: it is asked at once."""
        if (probe := self._probes.get(name)) is not None:
            probe.suspect()

    def demand(self, adapter: str) -> None:
        """A request waits for this adapter (`name@version`)."""
        if not any(adapter in desired for desired in self._desired.values()):
            self._changed.set()

    def idle(self, upstream: str, adapter: str) -> None:
        """The last request to this adapter on this upstream has ended."""
        if adapter not in self._desired.get(upstream, {}) and (reconciler := self._reconcilers.get(upstream)):
            reconciler.wake()

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
                    "engine": self._engine_row(upstream.name),
                }
            )
        return rows

    def adapters(self) -> list[dict[str, Any]]:
        """The versions of the adapters as `/admin/v1/adapters` shows them."""
        return [
            {
                "name": adapter.name,
                "version": adapter.version,
                "digest": adapter.digest,
                "phase": adapter.phase.value,
                "reason": adapter.reason,
                "base": adapter.base,
                "upstreams": list(adapter.upstreams),
                "current": adapter.current,
            }
            for adapter in self._observed.adapters
        ]

    def config(self) -> dict[str, Any]:
        """The configuration, without its secrets."""
        return self._config.model_dump(mode="json")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep("the publisher", self._follow))
            for name, probe in self._probes.items():
                group.create_task(self._keep(f"the probe of {name}", probe.run))
            for name, reconciler in self._reconcilers.items():
                group.create_task(self._keep(f"the reconciler of {name}", reconciler.run))
            if self._config.adapters.sources:
                group.create_task(self._keep("the registry", self._registry.run))

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
            due = self._advance()
            try:
                async with asyncio.timeout(due):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _advance(self) -> float | None:
        """Brings everything that follows from what is observed up to now; seconds until that changes by itself.

        Nothing of it is kept unless the whole succeeds: what the reconcilers work towards is what is published.
        """
        upstreams = {upstream.name: self._observe(upstream) for upstream in self._config.upstreams}
        hosts = self._hosts()
        self._registry.place(hosts)
        known = all_held_against(self._registry.known, hosts)
        before = {name: held_against(version, hosts) for name, version in self._current.items()}
        troubles = {name: reconciler.troubles for name, reconciler in self._reconcilers.items()}
        observed = Observed(MappingProxyType(upstreams), now=time.monotonic(), started=self._observed.started)
        taken = model_names(self._config, observed)
        servable = {name: entry for name, entry in known.items() if name not in taken}
        current = point(before, servable, upstreams, troubles)
        desired = {name: wanted(name, servable, current) for name in self._reconcilers}
        everywhere = {adapter for adapters in desired.values() for adapter in adapters}
        leaving = {adapter for name in desired for adapter in self._ours(name) - everywhere}
        adapters = statuses(known, current, upstreams, troubles, leaving=leaving, taken=taken)
        observed = replace(observed, adapters=adapters)
        snapshot = compile(self._config, observed, self._snapshot.version + 1)
        if not _same(snapshot, self._snapshot):
            self._publish(snapshot)
            self._snapshot = snapshot
        self._measure(self._observed, observed)
        self._observed, self._current, self._desired, self._hosted = observed, current, desired, hosts
        for reconciler in self._reconcilers.values():
            reconciler.wake()
        change = next_change(self._config, observed)
        return None if change is None else change - observed.now

    def _observe(self, upstream: UpstreamSettings) -> UpstreamStatus:
        name = upstream.name
        probe = self._probes.get(name)
        engine = self._engines[name].status if name in self._engines else None
        if engine is not None and probe is not None:
            endpoint = engine.endpoint
            probe.retarget(upstream_record(self._config, upstream, endpoint) if endpoint is not None else None)
        seen = _STATIC if probe is None else probe.seen
        status = _status(seen, engine, time.monotonic())
        before = self._observed.upstreams.get(name)
        return replace(status, since=before.since) if before is not None and before.state is status.state else status

    def _hosts(self) -> Mapping[str, Host]:
        """The engines that may hold adapters, as far as their base model is known."""
        hosts = {}
        for upstream in self._config.upstreams:
            if upstream.kind != "vllm":
                continue
            if (settings := upstream.engine) is not None:
                running = self._engines.get(upstream.name)
                limit = settings.max_lora_rank if running is None else running.spec.max_lora_rank
                hosts[upstream.name] = Host(settings.model, limit)
            elif base := next((m for m in self._probes[upstream.name].seen.models if m.parent is None), None):
                hosts[upstream.name] = Host(base.root or base.id)
        return hosts

    def _view(self, upstream: UpstreamSettings) -> View | None:
        """What the reconciler of this upstream is to do.  The list is the probe's newest; what is wanted is what was
        published, so that nothing is unloaded that a request may still be sent to.  None also while what was published
        was meant for another base model."""
        status = self._observed.upstreams[upstream.name]
        seen = self._probes[upstream.name].seen
        if status.state is not UpstreamState.UP or seen.state is not UpstreamState.UP:
            return None
        if self._hosts().get(upstream.name) != self._hosted.get(upstream.name):
            return None
        record = upstream_record(self._config, upstream, status.endpoint)
        listed = frozenset(model.id for model in seen.models if model.parent is not None)
        return View(record, listed, self._ours(upstream.name), self._desired.get(upstream.name, {}))

    def _ours(self, upstream: str) -> frozenset[str]:
        """The adapters that the engine read from the gateway's store."""
        return frozenset(
            model.id
            for model in self._probes[upstream].seen.models
            if model.parent is not None and model.root is not None and model.root.startswith(self._store)
        )

    def _measure(self, before: Observed, now: Observed) -> None:
        for name, status in now.upstreams.items():
            self._metrics.upstream_up(name, status.state is UpstreamState.UP)
        phases, past = _phases(now.adapters), _phases(before.adapters)
        for name, version in {*phases, *past}:
            if (phase := phases.get((name, version), "")) != past.get((name, version)):
                self._metrics.adapter_state(name, version, phase)

    def _answers(self, upstream: str, model: str) -> bool:
        return any(target.upstream == upstream for target in self._snapshot.routes[model].targets)

    def _engine_row(self, name: str) -> dict[str, Any] | None:
        engine = self._engines.get(name)
        if engine is not None:
            spec = engine.spec
            return {"model": spec.model, "max_lora_rank": spec.max_lora_rank, "restarts": engine.status.restarts}
        host = self._hosts().get(name)
        return None if host is None else {"model": host.model, "max_lora_rank": host.max_lora_rank, "restarts": None}


def _is_static(upstream: UpstreamSettings) -> bool:
    """Vendors that are told what to offer are not asked; engines and Ollama say more than names."""
    return upstream.kind == "openai" and upstream.models is not None


def _status(seen: Seen, engine: EngineStatus | None, now: float) -> UpstreamStatus:
    """The upstream, from what it answers and, for an engine of the gateway's own, from what its process does."""
    state, message, progress, endpoint = seen.state, seen.message, "", None
    if engine is not None:
        progress, endpoint = engine.progress, engine.endpoint
        if engine.state is not EngineState.READY:
            message = engine.message
            state = {EngineState.FAILED: UpstreamState.FAILED, EngineState.STOPPED: UpstreamState.DOWN}.get(
                engine.state, UpstreamState.STARTING
            )
    return UpstreamStatus(state, now, message, progress, seen.models, endpoint)


def _phases(adapters: tuple[AdapterStatus, ...]) -> dict[tuple[str, str], str]:
    return {(adapter.name, adapter.version): adapter.phase.value for adapter in adapters}


def _same(one: Snapshot, other: Snapshot) -> bool:
    """Whether both would serve and list the same."""
    return replace(one, version=other.version) == other and list(one.cards) == list(other.cards)


async def _stop(engine: Engine) -> None:
    try:
        async with asyncio.timeout(engine.spec.stop_timeout + _STOP_MARGIN):
            await engine.stop()
    except TimeoutError:
        log.error("the engine %s did not end in time and is killed", engine.spec.name)
        await engine.stop(now=True)
