"""An outbox of the ledger's rows in a real SQLite file, and a program that ships it and can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import Engine, event

from gateway.controlplane.maindb import MainDatabase
from gateway.controlplane.maintables import ENTRY, OF, SUMS
from gateway.controlplane.shipper import Row, Shipper
from gateway.controlplane.storageurl import StorageURL

NAMES = ("request_id", *(name for name, _, _ in ENTRY))
RETRY = 0.05  # seconds

_FEW = ("alice", "bob", "carol", "")


def a_row(rng: Random, request_id: str) -> dict[str, Any]:
    """What a request may have been."""
    row: dict[str, Any] = {name: rng.choice(_FEW) for name in NAMES}
    row |= {name: rng.randrange(10**6) for name in (*SUMS, "started", "attempts", "status", "duration")}
    first = rng.choice([None, rng.randrange(10**6)])
    key = row["key"]
    return {
        **row,
        "request_id": request_id,
        "day": 20_000 + rng.randrange(3),
        "key_name": f"key {key}",
        "estimated": rng.random() < 0.5,
        "first_byte": first,
    }


class SQLiteOutbox:
    """The file.  It may be opened by several, one after the other."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        columns = ", ".join(f'"{name}"' for name in NAMES)
        self._database.execute(f"CREATE TABLE IF NOT EXISTS requests (seq INTEGER PRIMARY KEY, {columns})")
        self._database.execute("CREATE TABLE IF NOT EXISTS shipped (seq INTEGER NOT NULL)")
        self._insert = f"INSERT INTO requests ({columns}) VALUES ({', '.join('?' * len(NAMES))})"
        self._columns = columns

    def add(self, rows: Sequence[Row]) -> None:
        """In one transaction."""
        self._database.execute("BEGIN")
        self._database.executemany(self._insert, [[row[name] for name in NAMES] for row in rows])
        self._database.execute("COMMIT")

    def rows(self) -> list[dict[str, Any]]:
        return [row for _, row in self._after(0, -1)]

    def forget(self, seq: int) -> None:
        """The mark is set back."""
        self._database.execute("DELETE FROM shipped WHERE seq > ?", [seq])

    async def pending(self, after: int, limit: int) -> Sequence[tuple[int, Row]]:
        return self._after(after, limit)

    async def waiting(self, after: int) -> int:
        return int(self._one(f"SELECT count(*) FROM requests WHERE seq > {after}"))

    async def shipped(self) -> int:
        return int(self._one("SELECT coalesce(max(seq), 0) FROM shipped"))

    async def mark_shipped(self, number: int) -> None:
        self._database.execute("INSERT INTO shipped VALUES (?)", [number])

    def close(self) -> None:
        self._database.close()

    def _one(self, question: str) -> Any:
        return self._database.execute(question).fetchone()[0]

    def _after(self, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        chosen = f"SELECT seq, {self._columns} FROM requests WHERE seq > ? ORDER BY seq LIMIT ?"
        return [
            (seq, {**dict(zip(NAMES, values, strict=True)), "estimated": bool(values[NAMES.index("estimated")])})
            for seq, *values in self._database.execute(chosen, [after, limit])
        ]


def summed(rows: Sequence[Row]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """What the sums of these are; a request counts once."""
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * (1 + len(SUMS)))
    for row in {row["request_id"]: row for row in rows}.values():
        for place, value in enumerate((1, *(row[name] for name in SUMS))):
            sums[tuple(row[name] for name in OF)][place] += value
    return {of: tuple(values) for of, values in sums.items()}


@asynccontextmanager
async def main_database(url: str, retry: float = RETRY) -> AsyncIterator[MainDatabase]:
    """One that is not waited for."""
    parsed = StorageURL.parse(url)
    assert parsed.postgresql is not None
    main = MainDatabase(parsed.shown, parsed.postgresql, changed=lambda: None, retry=retry)
    main.start()
    try:
        yield main
    finally:
        await main.close()


class Shippers:
    """A process that makes others, each of which ships until it is killed: to start one takes milliseconds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @contextmanager
    def shipping(self, url: str, path: Path) -> Iterator[int]:
        """One ships this file to that database.  It is killed at the end, if it is not before."""
        pid = int(self._say(f"{url} {path}"))
        try:
            yield pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._say("reap")

    def reach(self, url: str, die_at: int) -> int:
        """One reaches that database, and is killed at this step of it.  Returns its status; 0: it got through."""
        return int(self._say(f"{url} {die_at}"))

    def _say(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


@contextmanager
def shippers() -> Iterator[Shippers]:
    command = [sys.executable, "-m", "tests.integration.outbox"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Shippers(process)
        assert process.stdin is not None
        process.stdin.close()


async def until_shipped(path: Path, seconds: float) -> float:
    """Returns how long it took until all rows are marked.  Raises TimeoutError."""
    began = time.monotonic()
    with closing(SQLiteOutbox(path)) as outbox:
        async with asyncio.timeout(seconds):
            while await outbox.waiting(await outbox.shipped()):
                await asyncio.sleep(0.01)  # another process: there is no event to wait for
    return time.monotonic() - began


async def _ship(url: str, path: str) -> None:
    async with main_database(url) as main:
        await Shipper(SQLiteOutbox(Path(path)), main, tick=0.01).run()


async def _reach(url: str, die_at: int) -> None:
    steps = itertools.count(1)

    def step(*_: object) -> None:
        if next(steps) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(Engine, moment, step)
    async with main_database(url) as main:
        await main.reached()


def _main() -> None:
    for line in sys.stdin:
        if line.strip() == "reap":
            os.wait()
            _answer(0)
            continue
        url, what = line.split()
        if (pid := os.fork()) == 0:
            asyncio.run(_reach(url, int(what)) if what.isdecimal() else _ship(url, what))
            os._exit(0)
        _answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if what.isdecimal() else pid)


def _answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
