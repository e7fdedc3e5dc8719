"""Random moves of a few adapters, the same ones for the same seed; as a program, a gateway's storage that is killed.

The program reads jobs, one JSON object a line, and has a process of its own do each: make moves and store them, and say
the number of each once it is stored. It says "pid N" when a job begins and "ended N" when it has.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from sqlalchemy import Engine, event

from gateway.controlplane.desired import (
    AdapterRecord,
    VersionRecord,
    added,
    awaited,
    canaried,
    configured,
    promoted,
    removed,
    rolled_back,
)
from gateway.controlplane.records import Records
from gateway.controlplane.storage import Storage
from gateway.domain.errors import GatewayError

State = dict[str, AdapterRecord]

NAMES = ("bot", "json", "pirate")


def a_version(name: str, number: int) -> VersionRecord:
    digest = hashlib.sha256(f"{name} {number}".encode()).hexdigest()
    fits = tuple(f"base {n}" for n in range(number % 3))
    return VersionRecord(digest, f"hf://org/{name}@{number}", number % 2 == 0, "bäse", 8, 5 << 30, fits, 1_700_000_000)


def states(state: State, rng: Random) -> Iterator[tuple[str, State]]:
    """What is there after each of endless moves, and the name of the adapter that moved."""
    while True:
        name = rng.choice(NAMES)
        record = state.get(name)
        try:
            moved = (
                added(None, name, a_version(name, 0), promote=True, keep=4) if record is None else _move(record, rng)
            )
        except GatewayError:
            continue
        if moved == record:
            continue
        state = {key: value for key, value in state.items() if key != name} | ({name: moved} if moved else {})
        yield name, state


def _move(record: AdapterRecord, rng: Random) -> AdapterRecord | None:
    digest = rng.choice(record.versions).digest
    match rng.randrange(8):
        case 0 | 1:
            new = a_version(record.name, rng.randrange(1000))
            return added(record, record.name, new, promote=rng.random() < 0.5, keep=4)
        case 2:
            return promoted(record, digest)
        case 3:
            return rolled_back(record)
        case 4:
            return canaried(record, digest, rng.choice([0, 12.5, 33.3]))
        case 5:
            return removed(record, digest)
        case 6:
            return awaited(record, digest)
        case _:
            upstreams = rng.choice([None, ("a",), ("b", "a")])
            return configured(record, pinned=rng.random() < 0.5, load=rng.choice([None, "lazy"]), upstreams=upstreams)


async def store(records: Records, name: str, state: State) -> None:
    """Stores what a move made of an adapter."""
    if name in state:
        await records.save(state[name])
    else:
        await records.remove(name)


class Writers:
    """The program, and the jobs that it is given, one at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.integration.storage_moves"]
        self._program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, url: str, seed: int, *, moves: int, die_at: int | None = None) -> None:
        """Makes this number of moves, or dies at a step of its transactions."""
        print(json.dumps([url, seed, moves, die_at]), file=self._program.stdin, flush=True)
        self.pid = int(self._said().removeprefix("pid "))

    def stored(self) -> Iterator[int]:
        """The numbers of the moves that are stored, until the job has ended."""
        while not (said := self._said()).startswith("ended"):
            yield int(said)
        self.status = int(said.removeprefix("ended "))

    def close(self) -> None:
        self._program.kill()
        self._program.communicate()

    def _said(self) -> str:
        line = self._program.stdout.readline()
        assert line, "the program died"
        return line.strip()


@contextmanager
def writers() -> Iterator[Writers]:
    program = Writers()
    try:
        yield program
    finally:
        program.close()


async def _work(url: str, seed: int, moves: int, die_at: int | None) -> None:
    if die_at is not None:
        _die_at(die_at)
    storage = await Storage.open(url)
    records = Records(storage)
    sequence = states(await records.load(), Random(seed))
    for number in range(1, moves + 1):
        await store(records, *next(sequence))
        _say(str(number))
    await storage.close()


def _die_at(step: int) -> None:
    """Before a statement, or between the last one and the commit."""
    left = step

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)


def _say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def main() -> None:
    """See the module's text."""
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            _say(f"pid {os.getpid()}")
            asyncio.run(_work(*json.loads(line)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        _say(f"ended {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
