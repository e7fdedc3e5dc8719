"""The gateway dies by `kill -9`.  The very last of the real-engine tests, because it leaves the others without one."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from tests.patience import LATE
from tests.processes import alive, bury
from tests.real import Served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]


async def test_no_process_of_the_engine_survives_a_gateway_that_is_killed(real: Served) -> None:
    gateway = real.gateway.process
    assert gateway is not None
    tree = psutil.Process(gateway.pid).children(recursive=True)
    assert {"VLLM::EngineCore", "VLLM::Worker"} <= {process.name() for process in tree}
    gateway.kill()
    try:
        async with asyncio.timeout(3 * LATE):
            while alive(tree):
                await asyncio.sleep(0.01)
    finally:
        bury(tree)
