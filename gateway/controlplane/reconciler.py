"""Makes each engine hold the adapters that it is to hold.

`diff` decides, one task an engine applies.  Whatever was lost on the way (the engine died, somebody unloaded by hand, a
load timed out) is seen in the engine's own list, and is a difference again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.controlplane import lora
from gateway.controlplane.versions import LoadTrouble
from gateway.domain.snapshot import Upstream

log = logging.getLogger("gateway.adapters")

_DRIFT = 5.0  # seconds between two looks without a reason
_DRAINING = 0.5  # seconds between two looks while an adapter waits for its last request
_FIRST_RETRY = 1.0  # seconds after a failed action; doubled with each further failure
_LONGEST_RETRY = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """Load the adapter in this folder under this name."""

    adapter: str
    path: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Make the engine forget this name."""

    adapter: str


Action = Load | Unload


@dataclass(frozen=True, slots=True)
class Holding:
    """What one engine holds.

    `listed`: every adapter that it lists.  `ours`: those of them that the gateway loaded; nobody else's is touched.
    `unwanted_since`: of ours, those that nobody wants.  `retry_at`: what failed, and is not tried before.
    """

    listed: frozenset[str] = frozenset()
    ours: frozenset[str] = frozenset()
    unwanted_since: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    retry_at: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def diff(
    desired: Mapping[str, str], holding: Holding, in_use: Callable[[str], int], now: float, grace: float
) -> tuple[Action, ...]:
    """What is to be done now, in order: loads as `desired` (adapter → folder) has them, then unloads.

    An adapter is unloaded when nobody has wanted it for `grace` seconds and no request uses it.  Requests are counted
    from their admission, and none is admitted to an unwanted one, so the count only falls.
    """
    loads = (
        Load(adapter, path)
        for adapter, path in desired.items()
        if adapter not in holding.listed and holding.retry_at.get(adapter, now) <= now
    )
    unloads = (
        Unload(adapter)
        for adapter in sorted(holding.ours)
        if adapter not in desired
        and holding.unwanted_since.get(adapter, now) + grace <= now
        and holding.retry_at.get(adapter, now) <= now
        and in_use(adapter) == 0
    )
    return (*loads, *unloads)


@dataclass(frozen=True, slots=True)
class View:
    """An engine that is up, as its reconciler finds it."""

    upstream: Upstream
    listed: frozenset[str]
    ours: frozenset[str]
    desired: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Failure:
    message: str
    lasting: bool
    attempts: int
    retry_at: float


class Reconciler:
    """Keeps one engine in step.

    `view` gives what is to be done with it, None while it is not up; `refresh` asks the engine for its list and waits
    for it; `changed` is called when `troubles` has changed; `clock` is monotonic.
    """

    def __init__(
        self,
        name: str,
        *,
        view: Callable[[], View | None],
        refresh: Callable[[], Awaitable[bool]],
        in_use: Callable[[str], int],
        changed: Callable[[], None],
        clock: Callable[[], float],
        grace: float,
    ) -> None:
        self.name = name
        self._view = view
        self._refresh = refresh
        self._in_use = in_use
        self._changed = changed
        self._clock = clock
        self._grace = grace
        self._upstream: Upstream | None = None
        self._failures: dict[str, _Failure] = {}
        self._unwanted_since: dict[str, float] = {}
        self._wake = asyncio.Event()

    @property
    def troubles(self) -> Mapping[str, LoadTrouble]:
        """Adapter → why the engine does not hold it, though it should."""
        return {adapter: LoadTrouble(f.message, f.lasting) for adapter, f in self._failures.items()}

    def wake(self) -> None:
        """Something may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Keeps in step until it is cancelled."""
        while True:
            pause = await self._settle()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _settle(self) -> float:
        """Does what is to be done now; seconds until it is worth looking again."""
        while (view := self._view()) is not None:
            holding = self._observe(view)
            now = self._clock()
            actions = diff(view.desired, holding, self._in_use, now, self._grace)
            if not actions:
                return self._pause(holding, now)
            # One at a time: each is confirmed by the engine's own list before the next is decided on.
            if not await self._apply(actions[0], view.upstream):
                return _DRIFT
        self._upstream = None
        return _DRIFT

    def _observe(self, view: View) -> Holding:
        if view.upstream != self._upstream:
            self._upstream = view.upstream  # perhaps a new life of the engine: what it refused before says nothing
            self._forgive(list(self._failures))
        self._forgive([a for a in self._failures if a not in view.desired and a not in view.ours])
        self._forgive([a for a in self._failures if a in view.desired and a in view.listed])
        now = self._clock()
        unwanted = sorted(view.ours - view.desired.keys())
        self._unwanted_since = {adapter: self._unwanted_since.get(adapter, now) for adapter in unwanted}
        retry_at = {adapter: failure.retry_at for adapter, failure in self._failures.items()}
        return Holding(view.listed, view.ours, self._unwanted_since, retry_at)

    async def _apply(self, action: Action, upstream: Upstream) -> bool:
        """Does it, and asks the engine whether it is so.  False: the engine does not answer."""
        failure: lora.LoadError | None = None
        try:
            if isinstance(action, Load):
                await lora.load(upstream, action.adapter, action.path)
            else:
                await lora.unload(upstream, action.adapter)
        except lora.LoadError as error:
            failure = error
        answered = await self._refresh()
        view = self._view()
        if view is None or view.upstream != upstream:
            return answered
        loaded = action.adapter in view.listed
        if loaded == isinstance(action, Load):
            log.info("engine %s: %s %s", self.name, "loaded" if loaded else "unloaded", action.adapter)
            self._forgive([action.adapter])
        elif failure is not None:
            self._fail(action.adapter, str(failure), failure.lasting)
        elif answered:
            done = "took it but does not list it" if isinstance(action, Load) else "still lists it after unloading it"
            self._fail(action.adapter, f"the engine {done}", lasting=False)
        return answered

    def _fail(self, adapter: str, message: str, lasting: bool) -> None:
        attempts = self._failures[adapter].attempts + 1 if adapter in self._failures else 1
        delay = _LONGEST_RETRY if lasting else min(_LONGEST_RETRY, _FIRST_RETRY * 2 ** min(attempts - 1, 10))
        self._failures[adapter] = _Failure(message, lasting, attempts, self._clock() + delay)
        log.warning("engine %s, adapter %s: %s", self.name, adapter, message)
        self._changed()

    def _forgive(self, adapters: list[str]) -> None:
        for adapter in adapters:
            if self._failures.pop(adapter, None) is not None:
                self._changed()

    def _pause(self, holding: Holding, now: float) -> float:
        retries = [at - now for at in holding.retry_at.values()]
        graces = [since + self._grace - now for since in holding.unwanted_since.values()]
        return max(_DRAINING, min([_DRIFT, *retries, *graces]))
