"""Whenever the gateway is killed, what it said is stored is there, and nothing half-made."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count, islice
from pathlib import Path
from random import Random

import pytest

from gateway.controlplane.records import Records
from gateway.controlplane.storage import Storage
from gateway.controlplane.tables import METADATA
from tests.integration.storage_moves import State, Writers, states, writers
from tests.tiers import repeated

_ENDLESS = 10**9


@pytest.fixture(scope="module")
def program() -> Iterator[Writers]:
    with writers() as running:
        yield running


async def found(path: Path) -> State:
    """What a gateway finds that starts again."""
    storage = await Storage.open(f"sqlite:///{path}")
    try:
        state = await Records(storage).load()
        assert await storage.call(_troubles, storage) == [("ok",)]
    finally:
        await storage.close()
    return state


def _troubles(storage: Storage) -> list[tuple[object, ...]]:
    with storage.begin() as connection:
        checks = ("PRAGMA foreign_key_check", "PRAGMA integrity_check")
        return [tuple(row) for check in checks for row in connection.exec_driver_sql(check)]


def after(state: State, seed: int, moves: int) -> list[State]:
    """What is there before the first move, and after each."""
    return [state, *(moved for _, moved in islice(states(state, Random(seed)), moves))]


@repeated(20, 200)
async def test_what_was_stored_survives_a_kill_at_any_moment(
    program: Writers, tmp_path: Path, repetitions: int
) -> None:
    path, state, rng = tmp_path / "gateway.db", {}, Random(repetitions)
    for seed in range(repetitions):
        program.begin(f"sqlite:///{path}", seed, moves=_ENDLESS)
        acknowledged, enough = 0, rng.randrange(1, 40)
        for acknowledged in program.stored():
            if acknowledged == enough:
                os.kill(program.pid, signal.SIGKILL)
        assert program.status == -signal.SIGKILL
        possible = after(state, seed, acknowledged + 1)[-2:]
        state = await found(path)
        assert state in possible, (seed, acknowledged)


async def test_what_was_stored_survives_a_kill_at_every_step_and_a_schema_is_whole_or_not_there(
    program: Writers, tmp_path: Path
) -> None:
    for step in count(1):
        path = tmp_path / f"{step}.db"
        program.begin(f"sqlite:///{path}", seed=7, moves=8, die_at=step)
        acknowledged = max(program.stored(), default=0)
        with closing(sqlite3.connect(path)) as raw:
            tables = {name for (name,) in raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        assert tables in (set(), {"schema_version", *METADATA.tables})
        assert await found(path) in after({}, 7, acknowledged + 1)[-2:], step
        if program.status == 0:
            break
    assert step > 50
    assert acknowledged == 8


async def test_a_torn_log_costs_the_last_moves_at_most(program: Writers, tmp_path: Path) -> None:
    path, rng = tmp_path / "gateway.db", Random(1)
    program.begin(f"sqlite:///{path}", seed=1, moves=_ENDLESS)
    for acknowledged in program.stored():
        if acknowledged == 40:
            os.kill(program.pid, signal.SIGKILL)
    possible = after({}, 1, acknowledged + 1)
    for number in range(40):
        assert await found(torn(path, tmp_path / f"{number}.db", rng)) in possible


def torn(path: Path, copy: Path, rng: Random) -> Path:
    """A copy of the database whose log ends somewhere, or has a wrong byte."""
    shutil.copy(path, copy)
    log = bytearray(Path(f"{path}-wal").read_bytes())
    at = rng.randrange(len(log))
    if rng.random() < 0.5:
        del log[at:]
    else:
        log[at] ^= 0x55
    Path(f"{copy}-wal").write_bytes(log)
    return copy
