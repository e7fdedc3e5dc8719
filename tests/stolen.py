"""Time that the machine took from this process: what is measured against a clock on a busy machine is given it back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_PERIOD = 0.01  # seconds


class Stolen:
    """`most`: the longest stretch, in seconds, in which this thread neither ran nor had nothing to do.

    A loop that is blocked by its own code consumes CPU time, and is not excused.
    """

    def __init__(self) -> None:
        self.most = 0.0

    async def watch(self) -> None:
        wall, cpu = time.monotonic(), time.thread_time()
        while True:
            await asyncio.sleep(_PERIOD)
            now, used = time.monotonic(), time.thread_time()
            self.most = max(self.most, now - wall - _PERIOD - (used - cpu))
            wall, cpu = now, used


@asynccontextmanager
async def stolen() -> AsyncIterator[Stolen]:
    """Watches while it is open."""
    found = Stolen()
    task = asyncio.create_task(found.watch())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait((task,))
