"""Engines that the gateway runs itself, kept running.

    Engine ── one life after the other ──▶ EngineProcess ──▶ warden ──▶ warden ──▶ vllm serve

`launch` says how an engine is started and `supervision` when it is started again; both are pure.  An engine knows
nothing of adapters and upstreams: it says how it is through `status` and `on_change`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from gateway.controlplane.engineprocess import EngineProcess
from gateway.controlplane.launch import EngineSpec
from gateway.controlplane.observed import EngineEndpoint
from gateway.controlplane.supervision import Death, Supervision, restart_delay

__all__ = ["Engine", "EngineFailed", "EngineMetrics", "EngineSpec", "EngineState", "EngineStatus", "Supervision"]

logger = logging.getLogger("gateway.engine")

_DEFAULT_RULES = Supervision()


class EngineState(StrEnum):
    """How an engine is."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"  # it waits to be started again, or boots once more
    FAILED = "failed"  # it is not started again until somebody asks
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What is known of an engine.

    `message` and `progress` (what it does while it boots) are for people.  `endpoint`: only while it is ready.
    `restarts`: how often it was started again after a death.
    """

    state: EngineState
    message: str = ""
    endpoint: EngineEndpoint | None = None
    restarts: int = 0
    progress: str = ""


class EngineMetrics(Protocol):
    """What is counted of engines."""

    def engine_restart(self, name: str) -> None:
        """One was started again after a death."""
        ...

    def engine_state(self, name: str, state: str) -> None:
        """One came into this state."""
        ...


class EngineFailed(Exception):
    """The engine is given up or stopped, so that it will not become ready.  Its text is the reason."""


class Engine:
    """One vLLM of the gateway's own.

    `environ` is the gateway's environment, of which the engine gets little.  `on_change` is called in the event loop
    with each new status and must not block.
    """

    def __init__(
        self,
        spec: EngineSpec,
        environ: Mapping[str, str],
        *,
        on_change: Callable[[EngineStatus], None],
        metrics: EngineMetrics,
        rules: Supervision = _DEFAULT_RULES,
    ) -> None:
        self._spec = spec
        self._environ = environ
        self._on_change = on_change
        self._metrics = metrics
        self._rules = rules
        self._status = EngineStatus(EngineState.STOPPED, "not started")
        self._changed = asyncio.Event()  # another one after each change
        self._turn = asyncio.Lock()  # one start, stop or restart at a time
        self._task: asyncio.Task[None] | None = None
        self._process: EngineProcess | None = None

    @property
    def spec(self) -> EngineSpec:
        """What the engine is to be."""
        return self._spec

    @property
    def status(self) -> EngineStatus:
        """How it is."""
        return self._status

    async def start(self) -> None:
        """Starts the engine; returns once its process runs, which is long before it is ready.

        An engine that cannot be started says so in its status.
        """
        async with self._turn:
            if self._task is None or self._task.done():
                self._set(EngineState.STARTING, "starting")
                await self._launch()

    async def stop(self, *, now: bool = False) -> None:
        """Ends the engine within `stop_timeout`; `now` kills it at once, also while it is being stopped.

        Open streams are cut: whoever routes requests to it stops doing so before.
        """
        if now and self._process is not None:
            self._process.kill()
        async with self._turn:
            self._set(EngineState.STOPPED, "stopping")
            await self._halt(now=now)
            self._set(EngineState.STOPPED, "stopped")

    async def restart(self, spec: EngineSpec | None = None) -> None:
        """Ends the engine as `stop` does and starts it again, by another `spec` if one is given."""
        async with self._turn:
            self._set(EngineState.RESTARTING, "restarting on request")
            await self._halt()
            self._spec = spec or self._spec
            await self._launch()

    async def wait_ready(self) -> EngineEndpoint:
        """Where it listens, as soon as it does.  Raises EngineFailed when it does not come to that."""
        while True:
            changed, status = self._changed, self._status
            if status.endpoint is not None:
                return status.endpoint
            if status.state in (EngineState.FAILED, EngineState.STOPPED):
                raise EngineFailed(status.message)
            await changed.wait()

    async def _launch(self) -> None:
        started = asyncio.Event()
        task = asyncio.create_task(self._keep_running(started), name=f"engine {self._spec.name}")
        task.add_done_callback(self._task_ended)
        task.add_done_callback(lambda _: started.set())
        self._task = task
        await started.wait()

    async def _halt(self, *, now: bool = False) -> None:
        if self._task is None or self._task.done():
            return
        self._task.cancel()
        if now and self._process is not None:
            self._process.kill()
        await asyncio.wait({self._task})

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """The boundary for defects of ours: they are seen, and the rest of the gateway goes on."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("the supervision failed", exc_info=error, extra={"engine": self._spec.name})
            self._set(EngineState.FAILED, f"the gateway's own supervision failed: {error!r}")

    async def _keep_running(self, started: asyncio.Event) -> None:
        """Life after life, until the engine is given up or this task is cancelled."""
        rules = self._rules
        deaths: deque[Death] = deque(maxlen=2 * rules.deaths)
        while True:
            self._process = EngineProcess(
                self._spec,
                self._environ,
                rules,
                started=started.set,
                ready=lambda endpoint: self._set(EngineState.READY, "ready", endpoint),
                progress=lambda words: self._change(replace(self._status, progress=words)),
            )
            death = await self._process.run()
            deaths.append(death)
            delay = restart_delay(deaths, rules, jitter=secrets.randbelow(1000) / 1000)
            if delay is None:
                reason = death.reason
                if not death.final:
                    reason = f"died {rules.deaths} times in {rules.window / 60:g} minutes; last: it {reason}"
                logger.error("given up: %s", reason, extra={"engine": self._spec.name})
                self._set(EngineState.FAILED, reason)
                return
            logger.warning("%s; starting again in %.1f s", death.reason, delay, extra={"engine": self._spec.name})
            self._set(EngineState.RESTARTING, death.reason)
            await asyncio.sleep(delay)
            self._metrics.engine_restart(self._spec.name)
            self._change(replace(self._status, restarts=self._status.restarts + 1))

    def _set(self, state: EngineState, message: str, endpoint: EngineEndpoint | None = None) -> None:
        self._change(replace(self._status, state=state, message=message, endpoint=endpoint, progress=""))
        self._metrics.engine_state(self._spec.name, state)

    def _change(self, status: EngineStatus) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_change(status)
