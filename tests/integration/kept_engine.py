"""One engine and what keeps it in step: a fake vLLM over HTTP, the real probe, the real reconciler, a real store.

The test plays the rest of the gateway: it says what the engine is to hold, and who uses what.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path

from adapters.store import AdapterStore
from gateway.backends import BACKENDS
from gateway.controlplane import lora
from gateway.controlplane.drift import Copy, View
from gateway.controlplane.observed import UpstreamState
from gateway.controlplane.probes import Probe
from gateway.controlplane.reconciler import Limits, Reconciler
from gateway.domain.snapshot import Upstream
from tests.fakes.adapter_corpus import TINY, Craft, factor
from tests.fakes.fake_vllm_http import VLLM
from tests.patience import LATE

GRACE = 0.2  # seconds
QUICK = Limits(load=0.4, fetch=0.4, unload=0.4, probe=0.4, place=30.0, retry=0.05)
_FIRST = factor("model.layers.0.self_attn.q_proj", "A")


class Stock:
    """A store with versions of one adapter, each of another content; by their names in an engine."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.store = AdapterStore.open(folder / "store")
        self.copies: dict[str, Copy] = {}
        for number in range(count):
            craft = Craft(TINY)
            craft.poke(_FIRST, (number + 1) / 100, index=0)
            craft.write(folder / str(number))
            stored = self.store.add(folder / str(number))
            self.copies[f"bot@{stored.version}"] = Copy(str(stored.path), stored.digest)

    @property
    def names(self) -> list[str]:
        return list(self.copies)


class Kept:
    """The engine as its reconciler sees it.  `seen`: what was proven, after each change of anything."""

    def __init__(
        self,
        vllm: VLLM,
        stock: Stock,
        *,
        room: int = 0,
        limits: Limits = QUICK,
        place: Callable[[Upstream, str], AbstractAsyncContextManager[None]] = lambda _, __: nullcontext(),
        head: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self.vllm = vllm
        self.copies = dict(stock.copies)
        self.residents: tuple[str, ...] = ()
        self.room = room
        self.in_use: Counter[str] = Counter()
        self.seen: list[frozenset[str]] = []
        self.mapped = str(stock.store.root)  # the store as the engine sees it
        self._happened = asyncio.Event()
        host, port = vllm.url.removeprefix("http://").removesuffix("/v1").split(":")
        self.upstream = Upstream("gpu", "vllm", "http", host, int(port), "/v1")
        self.probe = Probe(
            "gpu", BACKENDS["vllm"].discover, 3600.0, changed=self._told, jitter=lambda: 1.0, identify=lora.version
        )

        async def ask_hub(repo: str) -> str | None:
            return head(repo)

        self.reconciler = Reconciler(
            "gpu",
            view=self._view,
            refresh=self.probe.refresh,
            in_use=self.in_use.__getitem__,
            verify=stock.store.verify,
            place=place,
            changed=self._told,
            clock=asyncio.get_running_loop().time,
            grace=GRACE,
            head=ask_hub,
            limits=limits,
        )

    @property
    def proven(self) -> frozenset[str]:
        """What requests may be sent to."""
        if self.probe.seen.state is not UpstreamState.UP:
            return frozenset()
        listed = {model.id for model in self.probe.seen.models}
        return self.reconciler.proven(self.upstream, self.probe.seen.life) & listed

    @property
    def troubled(self) -> frozenset[str]:
        """What the engine does not serve, though it should, or does not let go of."""
        return frozenset(self.reconciler.troubles)

    def trouble(self, adapter: str) -> str:
        found = self.reconciler.troubles.get(adapter)
        return found.message if found is not None else ""

    def hold(self, *residents: str) -> None:
        """What the engine is to hold from now on."""
        self.residents = residents
        self.reconciler.wake()

    def forget(self, *adapters: str) -> None:
        """No record names them any more."""
        self.copies = {name: copy for name, copy in self.copies.items() if name not in adapters}
        self.hold(*(name for name in self.residents if name not in adapters))

    async def until(self, condition: Callable[[], object], within: float = 3 * LATE) -> None:
        async with asyncio.timeout(within):
            while not condition():
                self._happened.clear()
                await self._happened.wait()

    def _told(self) -> None:
        self.seen.append(self.proven)
        self._happened.set()
        asyncio.get_running_loop().call_soon(self.reconciler.wake)

    def _view(self) -> View | None:
        seen = self.probe.seen
        if seen.state is not UpstreamState.UP:
            return None
        listed = {model.id: model.root or "" for model in seen.models if model.parent is not None}
        steady = lora.steady(seen.version)
        return View(self.upstream, seen.life, steady, listed, self.mapped, self.residents, self.copies, self.room)


@asynccontextmanager
async def kept(engine: Kept) -> AsyncIterator[Kept]:
    """Runs the probe and the reconciler, and sees that neither fails."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(engine.probe.run()), group.create_task(engine.reconciler.run())]
        engine.probe.retarget(engine.upstream)
        try:
            await engine.until(lambda: engine.probe.seen.state is UpstreamState.UP)
            yield engine
        finally:
            for task in tasks:
                task.cancel()
