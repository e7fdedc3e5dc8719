"""What is stored, where, for whom, and what people are told when it cannot be."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event

from gateway.controlplane.desired import AdapterRecord, added, promoted, rolled_back
from gateway.controlplane.ledgerfile import LedgerFile
from gateway.controlplane.records import Records
from gateway.controlplane.storage import Storage
from gateway.controlplane.tables import METADATA, OF_ADAPTERS
from gateway.domain.errors import StorageError
from tests.integration.storage_moves import a_version, states, store

FIRST = added(None, "pirate", a_version("pirate", 1), promote=False, keep=9)
SECOND = added(FIRST, "pirate", a_version("pirate", 2), promote=True, keep=9)


@asynccontextmanager
async def opened(path: Path):
    storage = await Storage.open(f"sqlite:///{path}")
    try:
        yield storage
    finally:
        await storage.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.db"


def said(storage: Storage, statement: str) -> list[tuple[object, ...]]:
    with storage.begin() as connection:
        result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []


@contextmanager
def statements() -> Iterator[list[str]]:
    """What the database is told."""
    seen: list[str] = []

    def note(*arguments: object) -> None:
        seen.append(str(arguments[2]))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def test_every_record_comes_back_as_it_was_saved(path: Path) -> None:
    async with opened(path) as storage:
        records, reader = Records(storage), Records(storage)
        assert await records.load() == {}
        for name, state in islice(states({}, Random(3)), 300):
            await store(records, name, state)
            assert await reader.load() == state
    async with opened(path) as storage:
        assert await Records(storage).load() == state


async def test_saves_happen_in_the_order_in_which_they_were_asked_for(path: Path) -> None:
    moves = [FIRST, SECOND, promoted(SECOND, SECOND.next), rolled_back(promoted(SECOND, SECOND.next))]
    async with opened(path) as storage:
        records = Records(storage)
        await asyncio.gather(*(records.save(move) for move in moves), records.remove("nobody"))
        assert await records.load() == {"pirate": moves[-1]}


async def test_a_save_whose_caller_leaves_happens_wholly_or_not_and_the_next_one_works(path: Path) -> None:
    async with opened(path) as storage:
        records = Records(storage)
        for number in range(30):
            leaving = asyncio.create_task(records.save(SECOND if number % 2 else FIRST))
            for _ in range(number % 3):
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait({leaving})
            assert (await Records(storage).load()).get("pirate") in (None, FIRST, SECOND)
        await records.save(SECOND)
        assert await Records(storage).load() == {"pirate": SECOND}


async def test_a_move_costs_as_many_statements_with_fifty_versions_as_with_two(path: Path) -> None:
    record = FIRST
    for number in range(2, 51):
        record = added(record, "pirate", a_version("pirate", number), promote=False, keep=50)
    async with opened(path) as storage:
        records = Records(storage)
        await records.save(record)
        with statements() as seen:
            await records.save(promoted(record, record.versions[-1].digest))
        assert [statement.split()[0] for statement in seen] == ["BEGIN", "UPDATE", "INSERT"]
        with statements() as seen:
            await records.save(record)
        assert [statement.split()[0] for statement in seen] == ["BEGIN", "UPDATE", "DELETE"]


async def test_hundreds_of_adapters_are_loaded_with_as_many_statements_as_one(path: Path) -> None:
    many = {name: renamed(SECOND, name) for name in (f"adapter-{n:04}" for n in range(300))}
    async with opened(path) as storage:
        await Records(storage).load()
        await asyncio.gather(*map(Records(storage).save, many.values()))
        with statements() as seen:
            assert list((await Records(storage).load()).items()) == list(many.items())
        assert len(seen) == 1 + len(OF_ADAPTERS)


def renamed(record: AdapterRecord, name: str) -> AdapterRecord:
    return replace(record, name=name)


async def test_commits_go_to_the_disk_before_they_return(path: Path) -> None:
    async with opened(path) as storage:
        assert await storage.call(said, storage, "PRAGMA journal_mode") == [("wal",)]
        assert await storage.call(said, storage, "PRAGMA synchronous") == [(2,)], "not FULL"
        assert await storage.call(said, storage, "PRAGMA foreign_keys") == [(1,)]


async def test_the_files_are_the_gateways_users_alone_and_the_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "gateway.db"
    before = os.umask(0)
    try:
        async with opened(path) as storage:
            await Records(storage).save(FIRST)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    names = ("gateway.db", "gateway.db-wal", "gateway.db-shm", "gateway.db.lock")
    assert modes == dict.fromkeys(names, 0o600)


async def test_a_relative_path_begins_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = await Storage.open("sqlite:///var/gateway.db")
    await storage.close()
    assert (tmp_path / "var" / "gateway.db").exists()


_OPEN = """
import asyncio, sys
from gateway.controlplane.storage import Storage
asyncio.run(Storage.open(sys.argv[1]))
"""


async def test_a_second_gateway_is_told_who_has_the_file(path: Path) -> None:
    other = path.with_name("other.db")
    other.symlink_to(path)
    async with opened(path):
        for name in (path, other):
            with pytest.raises(StorageError) as told:
                await Storage.open(f"sqlite:///{name}")
            assert str(path) in told.value.message
            assert f"process {os.getpid()} on " in told.value.message
            assert "another storage.url" in told.value.message
        second = [sys.executable, "-c", _OPEN, f"sqlite:///{path}"]
        ended = await asyncio.to_thread(subprocess.run, second, capture_output=True, text=True)
        assert f"is in use by another gateway (process {os.getpid()} on " in ended.stderr
    async with opened(other):
        pass


async def test_the_schema_is_what_the_code_takes_it_for(path: Path) -> None:
    def differences(storage: Storage) -> list[object]:
        options = {"version_table": "schema_version", "compare_type": True}
        with storage.begin() as connection:
            return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))

    async with opened(path) as storage:
        assert await storage.call(differences, storage) == []


async def test_databases_that_are_made_at_once_have_each_its_own_tables(tmp_path: Path) -> None:
    def tables(path: Path) -> set[str]:
        with closing(sqlite3.connect(path)) as database:
            return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def make_ledger(path: Path) -> None:
        LedgerFile.open(f"sqlite:///{path}", "boot").close()

    async def make_storage(path: Path) -> None:
        async with opened(path):
            pass

    storages = [tmp_path / f"storage-{number}.db" for number in range(8)]
    ledgers = [tmp_path / f"ledger-{number}.db" for number in range(8)]
    await asyncio.gather(*map(make_storage, storages), *(asyncio.to_thread(make_ledger, path) for path in ledgers))
    for paths, own, other in ((storages, "adapters", "requests"), (ledgers, "requests", "adapters")):
        assert [(own in tables(path), other in tables(path)) for path in paths] == [(True, False)] * 8


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE schema_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO schema_version VALUES ('0099')")


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        pytest.param(_newer, "written by a newer gateway (its schema is 0099, this one knows 0003", id="newer"),
        pytest.param(_foreign, "is another program's: give the gateway another storage.url", id="another program's"),
        pytest.param(lambda path: path.write_text("x" * 5000), "it is no SQLite database", id="no database"),
        pytest.param(Path.mkdir, "cannot be opened: Is a directory", id="a folder"),
        pytest.param(lambda path: path.symlink_to("/proc/x/y"), "cannot be opened: No such file", id="nowhere"),
    ],
)
async def test_what_is_not_the_gateways_database_is_left_alone(
    path: Path, prepare: Callable[[Path], object], sentence: str
) -> None:
    prepare(path)
    content, target = _content(path), os.path.realpath(path)  # noqa: ASYNC240 - it may be a link to nowhere
    for _ in range(2):  # and nobody is left behind who has it
        with pytest.raises(StorageError) as told:
            await Storage.open(f"sqlite:///{path}")
        assert sentence in told.value.message
        assert target in told.value.message
    assert _content(path) == content


async def test_a_full_disk_is_told_and_changes_nothing_and_room_is_used_at_once(path: Path) -> None:
    large = replace(SECOND, versions=tuple(replace(v, source="s" * 50_000) for v in SECOND.versions))
    async with opened(path) as storage:
        records = Records(storage)
        await records.save(FIRST)
        await storage.call(said, storage, "PRAGMA max_page_count = 1")
        with pytest.raises(StorageError, match=f"{path}: the disk is full .*: make room") as told:
            await records.save(large)
        assert (told.value.status, told.value.should_retry) == (507, False)
        assert await Records(storage).load() == {"pirate": FIRST}
        await storage.call(said, storage, "PRAGMA max_page_count = 100000")
        await records.save(large)
        assert await Records(storage).load() == {"pirate": large}


async def test_a_file_that_cannot_be_written_is_told_and_changes_nothing(path: Path) -> None:
    async with opened(path) as storage:
        records = Records(storage)
        await records.save(FIRST)
        await storage.call(said, storage, "PRAGMA query_only = 1")
        with pytest.raises(StorageError, match=f"{path}: it cannot be written .*: give the gateway's user the right"):
            await records.save(SECOND)
    async with opened(path) as storage:
        assert await Records(storage).load() == {"pirate": FIRST}


async def test_another_program_that_writes_to_the_file_is_named_as_the_trouble(path: Path) -> None:
    async with opened(path) as storage:
        records = Records(storage)
        await records.save(FIRST)
        await storage.call(said, storage, "PRAGMA busy_timeout = 1")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="another program has locked it"):
                await records.save(SECOND)
        await records.save(SECOND)
        assert await Records(storage).load() == {"pirate": SECOND}


_FAILING_DISK = """
import asyncio, resource, sys
from dataclasses import replace
from gateway.controlplane.ledgerfile import LedgerFile
from gateway.controlplane.records import Records
from gateway.controlplane.storage import Storage
from gateway.domain.errors import StorageError

async def main():
    storage = await Storage.open(sys.argv[1])
    records = Records(storage)
    record = (await records.load())["pirate"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # every write is an error from now on
    for attempt in range(2):
        try:
            await records.save(replace(record, pinned=True))
        except StorageError as error:
            print(error.message)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

asyncio.run(main())
"""


async def test_after_the_disk_has_failed_nothing_is_written_before_a_new_start(path: Path) -> None:
    async with opened(path) as storage:
        await Records(storage).save(FIRST)
    command = [sys.executable, "-c", _FAILING_DISK, f"sqlite:///{path}"]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    first, second = ended.stdout.splitlines()
    assert first == second
    assert "the disk fails" in first
    async with opened(path) as storage:
        assert await Records(storage).load() == {"pirate": FIRST}


async def test_a_record_that_somebody_damaged_is_named_and_nothing_is_overwritten(path: Path) -> None:
    async with opened(path) as storage:
        records = Records(storage)
        await records.save(FIRST)
        await storage.call(said, storage, "UPDATE adapters SET salt = 'x'")
        with pytest.raises(StorageError, match="adapter pirate is damaged: there is a salt without a canary"):
            await Records(storage).load()
