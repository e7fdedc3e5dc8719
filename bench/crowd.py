"""A gateway's folder as a large installation has it: ten thousand keys, and a million requests of thirty days."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection

from gateway.controlplane.keyrecords import row_of
from gateway.controlplane.keys import KeyRecord
from gateway.controlplane.ledger import Ledger, ledger_url
from gateway.controlplane.storage import Storage
from gateway.controlplane.tables import KEYS
from gateway.domain.entry import Entry

MANY_KEYS, MANY_ROWS, DAYS = 10_000, 1_000_000, 30


def fill(url: str) -> None:
    """Fills a storage that is not there yet, and the ledger beside it.  Takes about half a minute."""
    asyncio.run(_fill(url))


async def _fill(url: str) -> None:
    ledger = Ledger(ledger_url(url))
    await ledger.start()
    await ledger.ask(_rows)
    await ledger.close()
    storage = await Storage.open(url)
    await storage.call(_keys, storage)
    await storage.close()


def _keys(storage: Storage) -> None:
    made = (
        KeyRecord(f"{number:016x}", f"key-{number}", secrets.token_bytes(32), "bench", int(time.time()))
        for number in range(MANY_KEYS)
    )
    with storage.begin() as connection:
        connection.execute(KEYS.insert(), [row_of(record) for record in made])


def _rows(connection: Connection) -> None:
    names = ("seq", *Entry.__slots__)
    marks = ", ".join("?" * len(names))
    raw: Any = connection.connection.driver_connection
    raw.executemany(f"INSERT INTO requests ({', '.join(names)}) VALUES ({marks})", _values())


def _values() -> Iterator[tuple[object, ...]]:
    """As the ledger numbers them: the day that a request ended on, then its place in that day."""
    today = int(time.time()) // 86_400
    for number in range(MANY_ROWS):
        key = number % MANY_KEYS
        day = today - DAYS + number * DAYS // MANY_ROWS
        entry = Entry(
            f"req_{number:032x}", day * 86_400_000_000, "/v1/chat/completions", "steady", "", "fake", f"{key:016x}",
            f"key-{key}", "", f"user-{number % 1000}", "", 1, 200, "completed", 250, 32, 0, 0, False, 127,
            "in=0.25 out=2", 20_000, 40_000,
        )  # fmt: skip
        yield (day << 32) + number + 1, *(getattr(entry, name) for name in Entry.__slots__)
