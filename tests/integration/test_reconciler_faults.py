"""Whatever fails at whichever step, the version that serves goes on serving, and the other one comes when it can.

Row F-30: faults × steps.  The engine has one version, and is to get another; or it has two, and is to lose one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fake_vllm_http import VLLM, Fault, error
from tests.integration.kept_engine import Kept, Stock, kept

LOAD, UNLOAD, PROBE, LIST = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions", "/v1/models"
STEPS = {LOAD: "load", UNLOAD: "unload", PROBE: "probe", LIST: "list"}
ANSWERS: dict[str, Any] = {
    "busy": (503, error("The engine is currently busy.", "Service Unavailable", 503)),
    "broken": (500, error("EngineCore encountered an issue.", "InternalServerError", 500)),
    "a page": (200, "<html>welcome</html>"),
    "no answer": Fault.HANG,
    "cut off": Fault.CUT,
    "done and cut off": Fault.LOSE,
}


def _cells(paths: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(path, said, id=f"{STEPS[path]}: {name}")
        for path in paths
        for name, said in ANSWERS.items()
        if (path, name) not in {(LIST, "no answer"), (LIST, "done and cut off")}  # as "cut off", but slower
    ]


@pytest.fixture
def stock(tmp_path: Path) -> Stock:
    return Stock(tmp_path)


@pytest.mark.parametrize(("path", "said"), _cells((LOAD, PROBE, LIST)))
async def test_the_version_before_serves_while_the_next_one_fails_to_come(stock: Stock, path: str, said: Any) -> None:
    old, new, _ = stock.names

    async def fail(engine: Kept) -> None:
        # A list that fails twice in a row is another matter: then the engine counts as down.
        before = engine.vllm.reached[path]
        engine.vllm.says[path] = [said] if path == LIST else said
        engine.hold(old, new)
        await engine.vllm.until(lambda: engine.vllm.reached[path] > before)
        if path == PROBE or (path == LOAD and said in (ANSWERS["busy"], ANSWERS["broken"])):
            await engine.until(lambda: new in engine.troubled)

    await _goes_on(stock, fail, {old, new})


async def test_one_that_the_engine_refuses_for_now_is_tried_again(stock: Stock) -> None:
    old, new, _ = stock.names

    async def fail(engine: Kept) -> None:
        engine.vllm.forgets = 2
        engine.hold(old, new)
        await engine.until(lambda: "does not list it" in engine.trouble(new))

    await _goes_on(stock, fail, {old, new})


@pytest.mark.parametrize(("path", "said"), _cells((UNLOAD,)))
async def test_what_cannot_be_unloaded_hinders_nothing_and_goes_in_the_end(stock: Stock, path: str, said: Any) -> None:
    old, gone, new = stock.names

    async def fail(engine: Kept) -> None:
        engine.hold(old, gone)
        await engine.until(lambda: gone in engine.proven)
        engine.vllm.says[path] = said
        engine.hold(old, new)
        await engine.until(lambda: new in engine.proven)
        assert gone not in engine.proven, "nothing may be sent to what is about to go"

    await _goes_on(stock, fail, {old, new})


async def test_an_unload_that_the_engine_only_claims_is_tried_again(stock: Stock) -> None:
    old, gone, _ = stock.names

    async def fail(engine: Kept) -> None:
        engine.hold(old, gone)
        await engine.until(lambda: gone in engine.proven)
        engine.vllm.keeps = 2
        engine.hold(old)
        await engine.until(lambda: "still lists it" in engine.trouble(gone))

    await _goes_on(stock, fail, {old})


async def _goes_on(stock: Stock, fail: Callable[[Kept], Awaitable[None]], expected: set[str]) -> None:
    """What was held before the fault is proven all through it, and what is expected holds soon after it has passed."""
    old = stock.names[0]
    async with VLLM() as vllm, kept(Kept(vllm, stock)) as engine:
        engine.hold(old)
        await engine.until(lambda: old in engine.proven)
        before = len(engine.seen)
        await fail(engine)
        vllm.says.clear()
        vllm.forgets = vllm.keeps = 0
        await engine.until(lambda: engine.proven == set(vllm.adapters) == expected and not engine.troubled, within=10)
        assert all(old in proven for proven in engine.seen[before:]), "the version that serves was given up"
        assert vllm.probed.count(old) == 1, "what was proven is not asked again and again"


# ---- the engine dies


@pytest.mark.parametrize("path", [LOAD, PROBE, UNLOAD])
async def test_an_engine_that_dies_on_the_way_holds_everything_again_when_it_is_back(stock: Stock, path: str) -> None:
    old, gone, new = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock)) as engine:
        engine.hold(old, gone)
        await engine.until(lambda: engine.proven == {old, gone})
        before = vllm.reached[path]
        vllm.says[path] = Fault.HANG
        engine.hold(old, new)
        await vllm.until(lambda: vllm.reached[path] > before)
        await vllm.stop()
        engine.probe.suspect()
        await engine.until(lambda: engine.proven == frozenset())
        vllm.says.clear()
        await vllm.start()
        engine.probe.suspect()
        await engine.until(lambda: engine.proven == set(vllm.adapters) == {old, new} and not engine.troubled, within=10)


async def test_what_an_engine_proved_before_it_died_proves_nothing_afterwards(stock: Stock) -> None:
    (old, *_) = stock.names
    async with VLLM() as vllm, kept(Kept(vllm, stock)) as engine:
        engine.hold(old)
        await engine.until(lambda: old in engine.proven)
        await vllm.stop()
        engine.probe.suspect()
        await engine.until(lambda: not engine.proven)
        await vllm.start()
        vllm.adapters[old] = engine.copies[old].path  # by its own arguments, or another gateway
        vllm.poisoned = True
        engine.probe.suspect()
        await engine.until(lambda: "NaN" in engine.trouble(old))
        assert old not in engine.proven
