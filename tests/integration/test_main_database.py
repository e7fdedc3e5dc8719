"""The database that several gateways share: how it is made, and what happens while it is away."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Iterator
from itertools import count

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from gateway.controlplane import postgres as driver
from gateway.controlplane.maindb import MainDatabase
from gateway.controlplane.maintables import METADATA
from gateway.controlplane.storageurl import StorageURL
from gateway.domain.errors import StorageAway, StorageError
from tests.integration.outbox import Shippers, main_database, shippers
from tests.patience import LATE
from tests.postgres import PASSWORD, Server
from tests.tiers import repeated

_BACK = 5.0  # seconds after which it is used again


@pytest.fixture(scope="module")
def program() -> Iterator[Shippers]:
    with shippers() as running:
        yield running


def one(connection: Connection) -> int:
    return int(connection.execute(text("SELECT 1")).scalar_one())


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'lora_gateway'"
        )
        return {name for (name,) in found}


async def away(main: MainDatabase) -> StorageAway:
    """Asks until it is away."""
    async with asyncio.timeout(LATE):
        while True:
            try:
                await main.call(one)
            except StorageAway as error:
                return error
            await asyncio.sleep(0.05)  # it is asked from time to time


async def back(main: MainDatabase) -> float:
    """Returns how long it took until it was used again."""
    began = time.monotonic()
    async with asyncio.timeout(_BACK + LATE):
        await main.reached()
    assert await main.call(one) == 1
    return time.monotonic() - began


async def test_the_schema_is_what_the_code_takes_it_for(postgres: Server) -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"version_table": "schema_version", "compare_type": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))

    async with main_database(postgres.database()) as main:
        await main.reached()
        assert await main.call(differences) == []


async def test_another_programs_tables_in_the_same_database_are_left_alone(postgres: Server) -> None:
    url = postgres.database()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE requests (theirs text); INSERT INTO requests VALUES ('kept')")
        connection.execute("CREATE TABLE schema_version (version_num text)")
    async with main_database(url) as main:
        await main.reached()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT theirs FROM public.requests").fetchall() == [("kept",)]


@repeated(4, 1)
async def test_a_schema_is_whole_or_not_there_whenever_the_gateway_is_killed(
    program: Shippers, postgres: Server, repetitions: int
) -> None:
    """At every step in the long run, at every fourth in each."""
    whole = {"schema_version", *METADATA.tables}
    url = postgres.database()
    for step in count(1, repetitions):
        status = await asyncio.to_thread(program.reach, url, step)
        found = tables(url)
        assert found in (set(), whole), step
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if found:
            url = postgres.database()
    assert step > 20


async def test_ten_gateways_that_come_at_once_make_one_schema(postgres: Server) -> None:
    url = postgres.database()

    async def come() -> int:
        async with main_database(url) as main:
            await main.reached()
            return await main.call(one)

    assert await asyncio.gather(*(come() for _ in range(10))) == [1] * 10
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM lora_gateway.schema_version").fetchall() == [(1,)]


async def test_a_newer_gateways_database_is_not_touched(postgres: Server) -> None:
    url = postgres.database()
    async with main_database(url) as main:
        await main.reached()
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE lora_gateway.schema_version SET version_num = '0099'")
    async with main_database(url) as main:
        async with asyncio.timeout(LATE):
            while "newer gateway" not in (await away(main)).message:
                await asyncio.sleep(0.01)
        with psycopg.connect(url) as connection:  # the older gateway is put back, and goes on by itself
            connection.execute("UPDATE lora_gateway.schema_version SET version_num = '0002'")
        assert await back(main) < _BACK


@pytest.mark.parametrize("harm", ["kill", pytest.param("freeze", marks=pytest.mark.soak)])
async def test_it_is_told_once_when_it_is_lost_and_once_when_it_is_back_and_nobody_waits(
    postgres: Server, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with main_database(postgres.database(), retry=1.0) as main:
        await main.reached()
        with caplog.at_level(logging.INFO, "gateway.storage"):
            caplog.clear()
            getattr(postgres, harm)()
            told = await away(main)
            assert PASSWORD not in told.message
            assert dict(told.headers()) == {b"retry-after": b"2", b"x-should-retry": b"true"}
            began = time.monotonic()
            for _ in range(100):
                with pytest.raises(StorageAway):
                    await main.call(one)
            assert time.monotonic() - began < 1
            await asyncio.sleep(1)
            if harm == "freeze":
                postgres.thaw()
            else:
                postgres.start()
            assert await back(main) < _BACK
        levels = [record.levelname for record in caplog.records if record.name == "gateway.storage"]
        assert levels == ["ERROR", "WARNING"]


async def test_a_gateway_that_starts_before_its_database_finds_it_later(postgres: Server) -> None:
    url = postgres.database()
    postgres.kill()
    async with main_database(url, retry=1.0) as main:
        assert "is away" in (await away(main)).message
        postgres.start()
        assert await back(main) < _BACK


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(lambda url: url.replace(PASSWORD, "wrong"), "password authentication failed", id="password"),
        pytest.param(lambda url: f"{url}_none", "does not exist", id="database"),
        pytest.param(lambda url: f"{url}?sslmode=require", "SSL", id="no TLS there"),
    ],
)
async def test_what_is_wrong_is_said_in_a_sentence(postgres: Server, change: object, sentence: str) -> None:
    assert callable(change)
    async with main_database(change(postgres.database())) as main:
        async with asyncio.timeout(LATE):
            while sentence not in (await away(main)).message:
                await asyncio.sleep(0.01)


async def test_a_statement_that_never_ends_holds_up_nobody_for_long(postgres: Server) -> None:
    async with main_database(postgres.database()) as main:
        await main.reached()
        with pytest.raises(StorageAway, match="took too long"):
            await main.call(lambda connection: connection.execute(text("SELECT pg_sleep(60)")))
        assert await back(main) < _BACK


async def test_a_caller_that_leaves_breaks_nothing(postgres: Server) -> None:
    async with main_database(postgres.database()) as main:
        await main.reached()
        for wait in range(20):
            leaving = asyncio.create_task(main.call(one))
            for _ in range(wait % 3):
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait({leaving})
        assert await main.call(one) == 1


def test_without_the_driver_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    place = StorageURL.parse("postgresql://db/gateway").postgresql
    assert place is not None
    with pytest.raises(StorageError, match=r"pip install 'lora-gateway\[postgres\]'"):
        driver.engine_of(place)
