"""A gateway in miniature: a process that does nothing but run engines, so that it can be killed.

    python -m tests.fakes.engine_host COUNT BEHAVIOUR

Runs COUNT fake engines and prints a line once all are ready.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import uvloop

from gateway.controlplane.engines import Engine, EngineSpec
from gateway.domain.secret import Secret

FAKE_VLLM = (sys.executable, str(Path(__file__).with_name("fake_vllm.py")))


class Uncounted:
    """Metrics that nobody reads."""

    def engine_restart(self, name: str) -> None:
        pass

    def engine_state(self, name: str, state: str) -> None:
        pass


async def main(count: int, behaviour: str) -> None:
    engines = []
    for number in range(count):
        spec = EngineSpec(f"engine-{number}", "base", "base", FAKE_VLLM, env={"FAKE_VLLM": Secret(behaviour)})
        engines.append(Engine(spec, os.environ, on_change=lambda _: None, metrics=Uncounted()))
    await asyncio.gather(*(engine.start() for engine in engines))
    await asyncio.gather(*(engine.wait_ready() for engine in engines))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
