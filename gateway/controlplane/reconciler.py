"""Makes each engine hold the adapters that it is to hold.

`diff` decides, one task an engine applies.  Whatever was lost on the way (the engine died, somebody unloaded by hand, a
load timed out) is seen in the engine's own list, and is a difference again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

from adapters.store import StoreError
from gateway.controlplane import lora
from gateway.controlplane.drift import Action, Copy, Load, Memory, Prove, Unload, View, diff
from gateway.controlplane.versions import LoadTrouble
from gateway.domain.errors import GatewayError
from gateway.domain.snapshot import Upstream

log = logging.getLogger("gateway.adapters")


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds.

    `load`, `fetch` (from the hub), `unload`, `probe`: what the engine may take.  A load takes tens of milliseconds, but
    gigabytes from a slow disk take longer.  `place`: waiting for one while an adapter that has it ends its answers.
    `look`: between two looks without a reason.  `retry`: after the first failure, twice as long after each further one;
    `longest_retry`: so that an engine which is well again has its adapters within ten seconds; `lasting_retry`: after
    what asking again soon does not change.
    """

    load: float = 120.0
    fetch: float = 600.0
    unload: float = 30.0
    probe: float = 20.0
    place: float = 300.0
    look: float = 5.0
    retry: float = 1.0
    longest_retry: float = 8.0
    lasting_retry: float = 60.0

    def delay(self, failures: int, *, lasting: bool) -> float:
        """What is waited after so many failures in a row."""
        return self.lasting_retry if lasting else min(self.longest_retry, self.retry * 2 ** min(failures - 1, 10))


_DONE = {Load: "loaded %s", Prove: "answers with %s", Unload: "unloaded %s"}
_NOT_DONE = {
    Load: "the engine took it but does not list it",
    Prove: "the engine answered with it and lists it no more",
    Unload: "the engine still lists it after unloading it",
}


class _Overtaken(Exception):
    """What was to be done is not, any more."""


@dataclass(frozen=True, slots=True)
class _Failure:
    action: Action
    message: str
    lasting: bool
    attempts: int
    retry_at: float


class Reconciler:
    """Keeps one engine in step.

    `view` gives what is to be done with it, None while it is not up; `refresh` asks the engine for its list and waits
    for it; `in_use` counts the requests to an adapter on it; `verify` reads a version in the store again, by its digest
    (AdapterStore.verify); `place` holds a place for an adapter among those that an engine computes with at once; `head`
    tells the commit of a repository's main branch on the hub, None when it cannot be asked; `changed` is called when
    `proven`, `since` or `troubles` has changed; `clock` is monotonic.
    """

    def __init__(
        self,
        name: str,
        *,
        view: Callable[[], View | None],
        refresh: Callable[[], Awaitable[bool]],
        in_use: Callable[[str], int],
        verify: Callable[[str], object],
        place: Callable[[Upstream, str], AbstractAsyncContextManager[None]],
        changed: Callable[[], None],
        clock: Callable[[], float],
        grace: float,
        head: Callable[[str], Awaitable[str | None]] | None = None,
        limits: Limits = Limits(),
    ) -> None:
        self.name = name
        self._view = view
        self._refresh = refresh
        self._in_use = in_use
        self._verify = verify
        self._place = place
        self._changed = changed
        self._clock = clock
        self._grace = grace
        self._head = head
        self._limits = limits
        self._wake = asyncio.Event()
        self._looked = 0.0
        # All of what follows is about one life of one engine, and is forgotten with it.
        self._engine: tuple[Upstream, int] | None = None
        self._since: Mapping[str, float] = {}
        self._proven: frozenset[str] = frozenset()
        self._impostors: Mapping[str, str] = {}
        self._unwanted_since: Mapping[str, float] = {}
        self._failures: Mapping[str, _Failure] = {}

    @property
    def since(self) -> Mapping[str, float]:
        """Adapter of ours → since when the engine lists it."""
        return self._since

    @property
    def troubles(self) -> Mapping[str, LoadTrouble]:
        """Adapter → why the engine does not serve it, though it should."""
        failed = {adapter: LoadTrouble(failure.message, failure.lasting) for adapter, failure in self._failures.items()}
        foreign = {
            adapter: LoadTrouble(
                f"somebody else loaded another adapter under this name, from {root or 'an unknown place'}: unload it "
                "there, and it is loaded from the store",
                lasting=True,
            )
            for adapter, root in self._impostors.items()
        }
        return failed | foreign

    def proven(self, upstream: Upstream, life: int) -> frozenset[str]:
        """The adapters that the engine has listed and answered with, in this life of it."""
        return self._proven if self._engine == (upstream, life) else frozenset()

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
        view = self._view()
        if view is not None and self._engine == view.engine and self._clock() - self._looked >= self._limits.look:
            await self._look()
        while (view := self._view()) is not None:
            memory = self._observe(view)
            now = self._clock()
            actions = diff(view, memory, self._in_use, now, self._grace)
            if not actions:
                return self._pause(memory, now)
            # One at a time: each is confirmed by the engine's own list before the next is decided on.
            if not await self._apply(actions[0], view):
                return self._limits.retry
        self._begin(None)
        return self._limits.look

    def _observe(self, view: View) -> Memory:
        """Brings what is remembered in line with what the engine lists."""
        if self._engine != view.engine:
            self._begin(view.engine)
        now, ours = self._clock(), view.ours
        before = (self._since, self._proven, self._impostors, self._failures)
        self._since = {adapter: self._since.get(adapter, now) for adapter in sorted(ours)}
        self._proven &= ours
        self._impostors = view.impostors
        self._failures = {a: failure for a, failure in self._failures.items() if self._counts(failure, view, now)}
        unwanted = ours - view.copies.keys()
        self._unwanted_since = {adapter: self._unwanted_since.get(adapter, now) for adapter in unwanted}
        if before != (self._since, self._proven, self._impostors, self._failures):
            self._changed()
        return Memory(self._proven, self._unwanted_since, {a: f.retry_at for a, f in self._failures.items()})

    def _counts(self, failure: _Failure, view: View, now: float) -> bool:
        """Whether a failure still says something: what was tried is neither there nor out of the question."""
        adapter = failure.action.adapter
        resident, ours = adapter in view.residents, adapter in view.ours
        match failure.action:
            case Load() if ours:
                return False
            case Prove() if adapter in self._proven:
                return False
            case Unload():
                return ours and not resident
        return resident or (adapter in view.copies and failure.retry_at > now)

    def _begin(self, engine: tuple[Upstream, int] | None) -> None:
        """Another life of the engine: what the one before listed, answered or refused says nothing."""
        told = bool(self._since or self._proven or self._impostors or self._failures)
        self._engine, self._looked = engine, self._clock()
        self._since, self._proven, self._impostors, self._unwanted_since, self._failures = {}, frozenset(), {}, {}, {}
        if told:
            self._changed()

    async def _apply(self, action: Action, view: View) -> bool:
        """Does it, and asks the engine whether it is so.  False: the engine does not answer."""
        failure: lora.LoadError | None = None
        answered = True
        try:
            await self._do(action, view)
        except _Overtaken:
            return True
        except lora.LoadError as error:
            failure = error
        if failure is not None or not isinstance(action, Prove):
            answered = await self._look()
        if (now := self._again(view)) is None:
            return answered
        if self._is_done(action, now):
            log.info("engine %s: %s", self.name, _DONE[type(action)] % action.adapter)
        elif failure is not None:
            self._fail(action, failure)
        elif answered:
            self._fail(action, lora.LoadError(_NOT_DONE[type(action)], lasting=False))
        return answered

    async def _do(self, action: Action, view: View) -> None:
        """Raises LoadError, _Overtaken."""
        adapter = action.adapter
        async with AsyncExitStack() as held:
            match action:
                case Load():
                    await self._check(view.copies[adapter])
                    if view.steady:
                        await self._send(adapter, view)
                    else:
                        # The place is kept for the probe, which has the engine look its slots up again (`lora.steady`).
                        await self._take_place(held, action, view)
                        await self._send(adapter, view)
                        await self._ask(adapter, view)
                case Prove():
                    await self._take_place(held, action, view)
                    await self._ask(adapter, view)
                case Unload():
                    self._proven -= {adapter}  # should it be wanted again meanwhile, nothing is sent to it
                    await lora.unload(view.upstream, adapter, within=self._limits.unload)

    async def _check(self, copy: Copy) -> None:
        """What is damaged is never loaded: an engine takes nearly all, and answers with it.  Raises LoadError."""
        try:
            await asyncio.to_thread(self._verify, copy.digest)
        except (StoreError, OSError) as error:
            raise lora.LoadError(f"{error}: restore its files, or remove the version", lasting=True) from error

    async def _take_place(self, held: AsyncExitStack, action: Action, view: View) -> None:
        """A probe computes with the adapter as a request does.  Raises LoadError when it gets no place, _Overtaken when
        the action is out of date once it has one."""
        try:
            async with asyncio.timeout(self._limits.place):
                await held.enter_async_context(self._place(view.upstream, action.adapter))
        except TimeoutError:
            waited = f"other adapters were in use for {self._limits.place:g} s, and left it no moment"
            raise lora.LoadError(waited, lasting=False) from None
        except GatewayError as error:
            raise lora.LoadError(error.message, lasting=False) from error
        now = self._again(view)
        if now is None or action not in diff(now, self._observe(now), self._in_use, self._clock(), self._grace):
            raise _Overtaken

    async def _send(self, adapter: str, view: View) -> None:
        """Has the engine load it, from the store or, where it does not see that, from the hub.  Raises LoadError."""
        copy = view.copies[adapter]
        try:
            await lora.load(view.upstream, adapter, copy.path, within=self._limits.load)
        except lora.Unseen as unseen:
            await lora.load(view.upstream, adapter, await self._repository(copy, unseen), within=self._limits.fetch)

    async def _repository(self, copy: Copy, unseen: lora.Unseen) -> str:
        """Where the engine can fetch by itself what it does not see in the store: it takes what the main branch has, so
        that must be this version.  Raises LoadError."""
        if copy.hub is None or self._head is None:
            remedy = "what comes from the Hugging Face hub it may fetch itself with `adapters.from_hub`"
            raise lora.LoadError(f"{unseen}; {remedy}", lasting=True)
        repo, revision = copy.hub.repo, copy.hub.revision
        head = await self._head(repo)
        if head is None:
            raise lora.LoadError(f"{unseen}; the hub does not say whether {repo} still has it", lasting=False)
        if head != revision:
            why = (
                f"the main branch of {repo} is at {head[:12]} by now, so the engine cannot fetch {revision[:12]} itself"
            )
            raise lora.LoadError(f"{unseen}; {why}", lasting=True)
        return repo

    async def _ask(self, adapter: str, view: View) -> None:
        """Raises LoadError."""
        await lora.probe(view.upstream, adapter, within=self._limits.probe)
        if self._again(view) is not None:
            self._proven |= {adapter}
            self._changed()

    async def _look(self) -> bool:
        answered = await self._refresh()
        self._looked = self._clock()
        return answered

    def _again(self, view: View) -> View | None:
        """The engine as it is now, None when it is not this one, in this life, any more."""
        now = self._view()
        return now if now is not None and now.engine == view.engine else None

    def _is_done(self, action: Action, view: View) -> bool:
        match action:
            case Load():
                return action.adapter in view.ours
            case Prove():
                return action.adapter in self._proven
            case Unload():
                return action.adapter not in view.listed

    def _fail(self, action: Action, error: lora.LoadError) -> None:
        before = self._failures.get(action.adapter)
        attempts = 1 if before is None else before.attempts + 1
        delay = self._limits.delay(attempts, lasting=error.lasting)
        if isinstance(error, lora.Unsound):
            delay = math.inf  # neither the content nor the engine will be another
        failure = _Failure(action, str(error), error.lasting, attempts, self._clock() + delay)
        self._failures = {**self._failures, action.adapter: failure}
        log.warning("engine %s, adapter %s: %s", self.name, action.adapter, error)
        self._changed()

    def _pause(self, memory: Memory, now: float) -> float:
        graces = (since + self._grace for since in memory.unwanted_since.values())
        later = (at - now for at in (*memory.retry_at.values(), *graces) if at > now)
        return min([max(0.0, self._looked + self._limits.look - now), *later])
