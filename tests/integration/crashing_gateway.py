"""A gateway that is killed where a test wants it, as a program of its own; nothing of this is in the product.

The program reads jobs, one JSON list a line (a configuration file, a crash point or null, which time that it is come
to), and has a process of its own serve each.  It says "pid N", "url U" when that listens, and "ended N" when it has
ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway import server
from gateway.app import Gateway
from gateway.controlplane.journal import Journal
from gateway.controlplane.ledger import Ledger, _Writer
from gateway.controlplane.ledgerfile import LedgerFile
from gateway.controlplane.loader import load
from gateway.dataplane.dispatch import Attempt
from gateway.dataplane.metering import Record
from gateway.dataplane.reply import Reply

#: Where a gateway can be killed: whose method, and whether before it or after it.
POINTS: dict[str, tuple[type, str, bool]] = {
    "before the request is handed to the ledger": (Record, "open", True),
    "after the request is handed to the ledger": (Record, "open", False),
    "before it is noted that the request runs": (Record, "show", True),
    "after it is noted that the request runs": (Record, "show", False),
    "before the upstream is asked": (Attempt, "run", True),
    "before the first byte": (Reply, "stream", True),
    "after the first byte": (Reply, "stream", False),
    "before an event": (Reply, "event", True),
    "after an event": (Reply, "event", False),
    "before the tokens are noted": (Ledger, "checkpoint", True),
    "after the tokens are noted": (Ledger, "checkpoint", False),
    "before the settlement is handed over": (Ledger, "settled", True),
    "after the settlement is handed over": (Ledger, "settled", False),
    "before the last bytes": (Record, "show_end", False),
    "before the whole answer": (Reply, "whole", True),
    "after the whole answer": (Reply, "whole", False),
    "before a transaction": (LedgerFile, "write", True),
    "before a statement": (LedgerFile, "_run", True),
    "after a statement": (LedgerFile, "_run", False),
    "after a transaction, before its journals are removed": (LedgerFile, "write", False),
    "before a checkpoint": (LedgerFile, "sync", True),
    "after a checkpoint": (LedgerFile, "sync", False),
    "before a line": (Journal, "_append", True),
    "after a line": (Journal, "_append", False),
    "before another journal is begun": (Journal, "cut", True),
    "after another journal is begun": (Journal, "cut", False),
    "after a batch is handed to the thread": (Ledger, "_write", False),
    "after the thread has written a batch": (_Writer, "write", False),
}


class Gateways:
    """The program, and the gateways that it runs, one at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.integration.crashing_gateway"]
        self._program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, config: Path, point: str | None, times: int) -> str | None:
        """Its URL; None for one that died before it listened."""
        print(json.dumps([str(config), point, times]), file=self._program.stdin, flush=True)
        self.pid = int(self._said("pid "))
        said = self._line()
        self._status = int(said.removeprefix("ended ")) if said.startswith("ended ") else None
        return said.removeprefix("url ") if self._status is None else None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def ended(self) -> int:
        return int(self._said("ended ")) if self._status is None else self._status

    def close(self) -> None:
        self._program.kill()
        self._program.communicate()

    def _said(self, what: str) -> str:
        line = self._line()
        assert line.startswith(what), line
        return line.removeprefix(what)

    def _line(self) -> str:
        assert self._program.stdout is not None
        line = self._program.stdout.readline()
        assert line, "the program died"
        return line.strip()


@contextmanager
def gateways() -> Iterator[Gateways]:
    program = Gateways()
    try:
        yield program
    finally:
        program.close()


def _die_at(point: str, times: int) -> None:
    owner, name, before = POINTS[point]
    method = getattr(owner, name)
    left = times

    def come() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, (_asynchronous if asyncio.iscoroutinefunction(method) else _plain)(method, before, come))


def _plain(method: Callable[..., Any], before: bool, come: Callable[[], None]) -> Callable[..., Any]:
    def crashing(*args: Any, **kwargs: Any) -> Any:
        if before:
            come()
        result = method(*args, **kwargs)
        if not before:
            come()
        return result

    return crashing


def _asynchronous(method: Callable[..., Any], before: bool, come: Callable[[], None]) -> Callable[..., Any]:
    async def crashing(*args: Any, **kwargs: Any) -> Any:
        if before:
            come()
        result = await method(*args, **kwargs)
        if not before:
            come()
        return result

    return crashing


async def _serve(config: str, point: str | None, times: int) -> None:
    loaded = load(Path(config), os.environ)
    gateway = Gateway(loaded, os.environ)
    if point is not None:
        _die_at(point, times)
    stop = server.Stop()
    with stop.on_signals():
        await gateway.serve(server.listen("127.0.0.1", 0), stop, lambda host, port: _say(f"url http://{host}:{port}"))


def _say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def main() -> None:
    """See the module's text."""
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            _say(f"pid {os.getpid()}")
            server.run(_serve(*json.loads(line)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        _say(f"ended {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
