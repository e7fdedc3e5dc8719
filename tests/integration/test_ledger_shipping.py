"""Each row of the ledger reaches the main database once, whoever is killed, and the sums are those of the rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from sqlalchemy import Connection, select

from gateway.controlplane.maindb import MainDatabase
from gateway.controlplane.maintables import OF, REQUESTS, SUMS, USAGE_DAYS
from gateway.controlplane.shipper import Shipper, ship
from gateway.domain.errors import StorageAway
from tests.integration.outbox import (
    NAMES,
    Shippers,
    SQLiteOutbox,
    a_row,
    main_database,
    shippers,
    summed,
    until_shipped,
)
from tests.patience import LATE
from tests.postgres import Server
from tests.tiers import repeated

_DRAINED = 30.0  # seconds after which nothing may be behind


@pytest.fixture(scope="module")
def program() -> Iterator[Shippers]:
    with shippers() as running:
        yield running


def held(connection: Connection) -> tuple[dict[str, dict[str, Any]], dict[tuple[Any, ...], tuple[int, ...]]]:
    """The rows by request, and the sums."""
    rows = {row["request_id"]: dict(row) for row in connection.execute(select(REQUESTS)).mappings()}
    sums = {
        tuple(row[name] for name in OF): (row["requests"], *(row[name] for name in SUMS))
        for row in connection.execute(select(USAGE_DAYS)).mappings()
    }
    return rows, sums


async def assert_held(main: MainDatabase, *outboxes: SQLiteOutbox) -> None:
    """The main database has what the outboxes have, and nothing else."""
    there = [row for outbox in outboxes for row in outbox.rows()]
    rows, sums = await main.call(held)
    assert rows == {row["request_id"]: row for row in there}
    assert sums == summed(there)


@repeated(10, 100)
@pytest.mark.timeout(1800)
async def test_rows_arrive_once_whichever_side_is_killed_and_however_often_they_are_sent(
    program: Shippers, postgres: Server, tmp_path: Path, repetitions: int
) -> None:
    """Two gateways ship at once; a part of what one has the other has as well, and marks are forgotten."""
    url, rng, number = postgres.database(), Random(repetitions), 0
    paths = [tmp_path / "a.db", tmp_path / "b.db"]
    async with main_database(url) as main:
        with closing(SQLiteOutbox(paths[0])) as first, closing(SQLiteOutbox(paths[1])) as second:
            for repetition in range(repetitions):
                rows = [a_row(rng, f"req_{number + n}") for n in range(rng.randrange(100, 1200))]
                number += len(rows)
                first.add(rows[: len(rows) * 2 // 3])
                second.add(rng.sample(rows[len(rows) // 3 :], len(rows) - len(rows) // 3))
                with program.shipping(url, paths[0]) as victim, program.shipping(url, paths[1]):
                    await asyncio.sleep(rng.random() * 0.15)
                    if repetition % 2:
                        psutil.Process(victim).kill()
                    else:
                        postgres.kill()
                        postgres.start()
                    await until_shipped(paths[1], _DRAINED)
                first.forget(rng.randrange(number // 2, number))
            with program.shipping(url, paths[0]):
                await until_shipped(paths[0], _DRAINED)
            await main.reached()
            await eventually(assert_held, main, first, second)


async def eventually(check: Any, main: MainDatabase, *arguments: Any) -> None:
    """The connection of before the last kill may not be missed yet."""
    try:
        await check(main, *arguments)
    except StorageAway:
        async with asyncio.timeout(LATE):
            await main.reached()
        await check(main, *arguments)


async def test_what_waited_during_an_outage_is_shipped_within_half_a_minute(postgres: Server, tmp_path: Path) -> None:
    rng = Random(5)
    postgres.kill()
    async with main_database(postgres.url("postgres")) as main:
        with closing(SQLiteOutbox(tmp_path / "outbox.db")) as outbox:
            outbox.add([a_row(rng, f"late_{n}") for n in range(5_000)])
            shipper = Shipper(outbox, main, tick=0.05)
            task = asyncio.create_task(shipper.run())
            async with asyncio.timeout(LATE):
                while shipper.unshipped != 5_000:
                    await asyncio.sleep(0.01)  # a gauge has no event to wait for
            postgres.start()
            async with asyncio.timeout(_DRAINED):
                while shipper.unshipped:
                    await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait({task})
            await assert_held(main, outbox)


async def test_what_postgresql_cannot_hold_stops_no_row(postgres: Server) -> None:
    row = {**a_row(Random(1), "req_1"), "user": "a\0b\ud800c", "task": "'; DROP TABLE requests; --"}
    async with main_database(postgres.database()) as main:
        await main.reached()
        await main.call(ship, [row, a_row(Random(2), "req_2")])
        rows, _ = await main.call(held)
    assert rows["req_1"] == {**row, "user": "a\ufffdb?c"}
    assert len(rows) == 2


async def test_the_last_rows_are_shipped_before_the_gateway_ends(postgres: Server, tmp_path: Path) -> None:
    async with main_database(postgres.database()) as main:
        await main.reached()
        with closing(SQLiteOutbox(tmp_path / "outbox.db")) as outbox:
            outbox.add([a_row(Random(n), f"req_{n}") for n in range(1200)])
            await Shipper(outbox, main).flush()
            assert await outbox.shipped() == 1200
            await assert_held(main, outbox)


def test_a_row_of_the_ledger_is_a_row_of_the_main_database() -> None:
    assert set(NAMES) == set(REQUESTS.columns.keys())
