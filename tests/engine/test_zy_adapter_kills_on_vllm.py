"""D-5, F-29, F-30 on the real engine: kill -9 of the engine, of the gateway, of both, five times at random moments.

`make test` has one of the engine and one of the gateway: test_zz_engine_killed.py, test_zzz_gateway_killed.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.engine.crowd import LONGEST
from tests.engine.unrest import Unrest, convergence
from tests.gateway import gateway_process
from tests.processes import alive, bury
from tests.real import BASE, JSON, PIRATE, Served, served

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(3000)]

KILLS = ("engine", "gateway", "both", "engine", "both")


async def test_after_each_of_five_kills_what_was_acknowledged_is_so_and_served_without_anybodys_help(
    voices: dict[str, Path], tmp_path: Path
) -> None:
    unrest = Unrest.begin(voices, tmp_path)
    folder = tmp_path / "served"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        running = await asyncio.to_thread(stack.enter_context, served(folder))
        for whom in unrest.rng.sample(KILLS, len(KILLS)):
            async with unrest.around(running.gateway):
                engine = running.engine
                tree = [engine, *engine.children(recursive=True)]
                if whom != "gateway":
                    os.kill(engine.pid, signal.SIGKILL)
                if whom != "engine":
                    tree += psutil.Process(running.gateway.process.pid).children(recursive=True)
                    running.gateway.process.kill()
                await gone(tree)
                if whom == "engine":
                    print(f"converged after {await convergence(running):.2f} s")  # noqa: T201
            if whom != "engine":
                again = gateway_process((folder / "gateway.yaml").read_text(), folder)
                running = Served(await asyncio.to_thread(stack.enter_context, again))
                await asyncio.to_thread(running.wait_for_models, BASE, PIRATE, JSON)
            await unrest.settle(running)
            assert not unrest.wrong
    print(f"{unrest.answers} answers, {unrest.desk.moves} moves, errors: {Counter(unrest.errors)}")  # noqa: T201


async def gone(tree: list[psutil.Process]) -> None:
    """Returns when none of these runs any more."""
    try:
        async with asyncio.timeout(LONGEST):
            while alive(tree):
                await asyncio.sleep(0.01)
    finally:
        bury(tree)
