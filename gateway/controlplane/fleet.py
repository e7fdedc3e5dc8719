"""The upstreams as they are: the engines that the gateway runs, and what every upstream says when it is asked.

Nothing is decided here.  What is seen is a pure function of what the processes do (`Engine`) and of the newest answers
(`Probe`); who wants to know of a change is told by `changed`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway.backends import BACKENDS
from gateway.controlplane import lora, sizing
from gateway.controlplane.compiler import upstream_record
from gateway.controlplane.config import Config, UpstreamSettings
from gateway.controlplane.copies import Copies, store_of
from gateway.controlplane.drift import ours
from gateway.controlplane.engines import Engine, EngineMetrics, EngineState, EngineStatus
from gateway.controlplane.machine import memory
from gateway.controlplane.observed import EngineEndpoint, UpstreamState, UpstreamStatus
from gateway.controlplane.probes import Probe, Seen
from gateway.controlplane.registry import Registry
from gateway.controlplane.residency import room
from gateway.controlplane.versions import Host
from gateway.domain.snapshot import Upstream

log = logging.getLogger("gateway.plane")

_BACK = 1.0  # seconds until an engine that is back is seen: two seconds after it is, it has its adapters
_STOP_MARGIN = 5.0  # seconds beyond its own limit that an engine gets to end
_STATIC = Seen(UpstreamState.UP)


class Fleet:
    """Every upstream of the file.  `environ` is the gateway's environment, of which engines get little.

    `probes`: those that are asked what they have, by name; `changed` is called when one has something else to say.
    """

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        registry: Registry,
        *,
        changed: Callable[[], None],
        metrics: EngineMetrics,
    ) -> None:
        self._config = config
        self._environ = environ
        self._registry = registry
        self._changed = changed
        self._metrics = metrics
        self._settings = {upstream.name: upstream for upstream in config.upstreams}
        self._engines: dict[str, Engine] = {}
        self._addressed: dict[str, tuple[tuple[EngineEndpoint | None, int], Upstream]] = {}  # what a record is made of
        self.probes: Mapping[str, Probe] = MappingProxyType(
            {
                upstream.name: Probe(
                    upstream.name,
                    BACKENDS[upstream.kind].discover,
                    upstream.poll_interval,
                    changed=changed,
                    jitter=lambda: 0.9 + secrets.randbelow(200) / 1000,
                    identify=lora.version if upstream.kind == "vllm" else None,
                    retry=_BACK if upstream.kind == "vllm" else math.inf,
                )
                for upstream in config.upstreams
                if not _is_static(upstream)
            }
        )

    async def start(self, wanted: sizing.Adapters | None) -> None:
        """Starts the gateway's own engines, made to hold these adapters, and gives all others' addresses to their
        probes.  Returns while they boot."""
        for upstream in self._config.upstreams:
            if upstream.engine is not None:
                spec = sizing.engine_spec(upstream, upstream.engine, wanted, memory())
                self._engines[upstream.name] = Engine(
                    spec, self._environ, on_change=lambda _: self._changed(), metrics=self._metrics
                )
            elif upstream.name in self.probes:
                self.probes[upstream.name].retarget(upstream_record(self._config, upstream))
        await asyncio.gather(*(engine.start() for engine in self._engines.values()))

    async def stop(self) -> None:
        """Ends the gateway's own engines, side by side."""
        await asyncio.gather(*(_stop(engine) for engine in self._engines.values()))

    def suspect(self, name: str) -> None:
        """An upstream could not be reached, or has lost a model: it is asked at once."""
        if (probe := self.probes.get(name)) is not None:
            probe.suspect()

    def statuses(self, before: Mapping[str, UpstreamStatus]) -> Mapping[str, UpstreamStatus]:
        """All of them now, by name.  `before`: what they were, for how long they have been so."""
        return MappingProxyType({name: self._status(each, before.get(name)) for name, each in self._settings.items()})

    def hosts(self) -> Mapping[str, Host]:
        """The engines that may hold adapters, as far as their base model is known."""
        hosts = {}
        for upstream in self._config.upstreams:
            if upstream.kind != "vllm":
                continue
            seen = self.probes[upstream.name].seen
            if (engine := upstream.engine) is not None:
                if (running := self._engines.get(upstream.name)) is None:  # it is made for what is found now
                    hosts[upstream.name] = self._host(engine.model, engine.max_lora_rank, 0, upstream)
                elif (spec := running.spec).max_loras:
                    hosts[upstream.name] = self._host(engine.model, spec.max_lora_rank, spec.max_cpu_loras, upstream)
            elif base := next((m for m in seen.models if m.parent is None), None):
                limits = upstream.adapters
                hosts[upstream.name] = self._host(
                    base.root or base.id, limits.max_lora_rank, limits.max_cpu_loras or 0, upstream
                )
        return hosts

    def listed(self, name: str) -> Mapping[str, str]:
        """Adapter → where the engine says that it has read it."""
        return {m.id: m.root or "" for m in self.probes[name].seen.models if m.parent is not None}

    def address(self, name: str, status: UpstreamStatus) -> Upstream:
        """What is needed to speak to it: the very same object for as long as nothing of it changes."""
        of_process = (status.endpoint, status.max_loras)
        if (known := self._addressed.get(name)) is None or known[0] != of_process:
            known = self._addressed[name] = of_process, upstream_record(self._config, self._settings[name], *of_process)
        return known[1]

    def read_from_store(self) -> frozenset[str] | None:
        """The digests that an engine may still read; None while an engine was never asked what it has."""
        digests = set()
        for upstream in self._config.upstreams:
            if upstream.kind != "vllm":
                continue
            seen = self.probes[upstream.name].seen
            if upstream.engine is None and seen.state is UpstreamState.STARTING and not seen.models:
                return None
            digests |= {Path(model.root).name for model in seen.models if model.parent is not None and model.root}
        return frozenset(digests)

    def engine_row(self, name: str) -> dict[str, Any] | None:
        """An engine as `/admin/v1/upstreams` shows it; None for what is none, or is not known yet."""
        engine = self._engines.get(name)
        if engine is not None:
            spec = engine.spec
            return {"model": spec.model, "max_lora_rank": spec.max_lora_rank, "restarts": engine.status.restarts}
        host = self.hosts().get(name)
        return None if host is None else {"model": host.model, "max_lora_rank": host.max_lora_rank, "restarts": None}

    def _status(self, upstream: UpstreamSettings, before: UpstreamStatus | None) -> UpstreamStatus:
        name = upstream.name
        probe = self.probes.get(name)
        engine = self._engines[name].status if name in self._engines else None
        if engine is not None and probe is not None:
            endpoint = engine.endpoint
            probe.retarget(upstream_record(self._config, upstream, endpoint) if endpoint is not None else None)
        seen = _STATIC if probe is None else probe.seen
        since = time.monotonic()
        state, message, progress, endpoint = seen.state, seen.message, "", None
        if engine is not None:
            progress, endpoint = engine.progress, engine.endpoint
            if engine.state is not EngineState.READY:
                state, message = _unready(engine), engine.message
        if before is not None and before.state is state:
            since = before.since
        return UpstreamStatus(state, since, message, progress, seen.models, endpoint, self._max_loras(upstream, seen))

    def _max_loras(self, upstream: UpstreamSettings, seen: Seen) -> int:
        """vLLM's own default is 1, and one that is not steady must not be thought to have more places than it has: its
        loads wait for a free one."""
        if (engine := self._engines.get(upstream.name)) is not None:
            return engine.spec.max_loras
        return 0 if upstream.kind != "vllm" or lora.steady(seen.version) else 1

    def _host(self, model: str, max_lora_rank: int | None, capacity: int, upstream: UpstreamSettings) -> Host:
        listed, store = self.listed(upstream.name), store_of(upstream, self._registry.store.root)
        others = len(listed) - len(ours(listed, Copies(self._registry.index, upstream, store), store))
        return Host(model, max_lora_rank, self._registry.fingerprint(model), room(capacity, others))


def _is_static(upstream: UpstreamSettings) -> bool:
    """Vendors that are told what to offer are not asked; engines and Ollama say more than names."""
    return upstream.kind == "openai" and upstream.models is not None


def _unready(engine: EngineStatus) -> UpstreamState:
    """The state of an upstream whose process is not ready."""
    match engine.state:
        case EngineState.FAILED:
            return UpstreamState.FAILED
        case EngineState.STOPPED:
            return UpstreamState.DOWN
        case _:
            return UpstreamState.STARTING


async def _stop(engine: Engine) -> None:
    try:
        async with asyncio.timeout(engine.spec.stop_timeout + _STOP_MARGIN):
            await engine.stop()
    except TimeoutError:
        log.error("the engine %s did not end in time and is killed", engine.spec.name)
        await engine.stop(now=True)
