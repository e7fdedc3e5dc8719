"""An ASGI application behind the real listener, protocol and drain of the gateway, on uvloop in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from gateway.api.guard import EdgeLimits
from gateway.server import Stop, listen, run, serve
from tests.patience import LATE

App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass
class Served:
    """A running server.  `steps` are the calls that `serve` made, in order."""

    port: int
    refused: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    leftover: set[str] = field(default_factory=set)  # tasks that outlived serve()
    listening: threading.Event = field(default_factory=threading.Event)
    draining: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _stop: Stop | None = None

    def ask_to_stop(self, times: int = 1) -> None:
        assert self._loop is not None
        assert self._stop is not None
        with suppress(RuntimeError):  # the loop is closed: it has stopped already
            for _ in range(times):
                self._loop.call_soon_threadsafe(self._stop.ask)


@contextmanager
def served(
    app: App,
    limits: EdgeLimits | None = None,
    *,
    drain_timeout: float = 9 * LATE,
    end_streams: Callable[[], None] = lambda: None,
    shutdown_seconds: float = 0.0,
) -> Iterator[Served]:
    """Runs the server for the length of the block; fails if a task of it outlives it."""
    listener = listen("127.0.0.1", 0)
    server = Served(port=listener.getsockname()[1])

    def begin_drain() -> None:
        server.steps.append("begin_drain")
        server.draining.set()

    def end() -> None:
        server.steps.append("end_streams")
        end_streams()

    async def shutdown() -> None:
        server.steps.append("shutdown")
        await asyncio.sleep(shutdown_seconds)
        server.steps.append("shut down")

    async def main() -> None:
        server._loop, server._stop = asyncio.get_running_loop(), Stop()
        await serve(
            app,
            listener,
            limits or EdgeLimits(),
            stop=server._stop,
            on_refused=server.refused.append,
            on_listening=lambda host, port: server.listening.set(),
            begin_drain=begin_drain,
            end_streams=end,
            shutdown=shutdown,
            drain_timeout=drain_timeout,
        )
        await asyncio.sleep(0)
        server.leftover = {repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}}

    with ThreadPoolExecutor(1, thread_name_prefix="served") as thread:
        running = thread.submit(run, main())
        running.add_done_callback(lambda _: server.listening.set())
        running.add_done_callback(lambda _: server.ended.set())
        try:
            assert server.listening.wait(10)
            yield server
        finally:
            server.ask_to_stop(times=2)
            running.result(3 * LATE)
    assert not server.leftover
