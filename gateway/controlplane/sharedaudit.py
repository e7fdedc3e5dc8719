"""The log of administrative acts of several gateways, in the main database.

What happens to a gateway's own things is in its own log first, and copied from there: so it can be noted while the main
database is away.  The copy's chain is its own; in it, a row's `origin` is the hash of the row that it was copied from,
by which no row is copied twice.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields

from sqlalchemy import Connection, select

from gateway.controlplane.audit import AuditLog
from gateway.controlplane.maindb import MainDatabase
from gateway.controlplane.maintables import AUDIT
from gateway.controlplane.postgres import Lock, take
from gateway.domain.audit import GENESIS, Act, Actor, Row, sealed
from gateway.domain.errors import StorageAway

_BATCH = 200  # rows in one transaction
_INSERT = AUDIT.insert()
_HEAD = select(AUDIT.c.number, AUDIT.c.hash).order_by(AUDIT.c.number.desc()).limit(1)
_ROWS = select(*(AUDIT.c[field.name] for field in fields(Row)))


class SharedAudit:
    """The log of all gateways; `own` is this one's."""

    def __init__(self, main: MainDatabase, own: AuditLog) -> None:
        self._main = main
        self._own = own
        self._copied: int | None = None  # the last row of the own log that the main database has; None: not known
        self._copying = asyncio.Lock()

    async def note(self, act: Act) -> None:
        """The act is in the own log, durably when this returns, and in that of all as soon as can be.  Raises
        StorageError."""
        await self._own.note(act)
        with suppress(StorageAway):
            await self.copy()

    async def rows(self, after: int, limit: int) -> list[Row]:
        """The rows of all gateways whose number is above `after`, oldest first.  Raises StorageAway."""
        return await self._main.call(_rows, after, limit)

    def append(self, connection: Connection, act: Act) -> None:
        """Adds the row of an act within a transaction of the main database, in its thread."""
        take(connection, Lock.CHAIN)
        _append(connection, [(act, time.time_ns() // 1000, None)])

    async def copy(self) -> None:
        """Returns when the main database has all that was noted until now.  Raises StorageError."""
        async with self._copying:
            if self._copied is None:
                self._copied = await self._found()
            while rows := await self._own.rows(self._copied, _BATCH):
                await self._main.call(_copy, rows)
                self._copied = rows[-1].number

    async def _found(self) -> int:
        """The last row that was copied.  They are copied in their order: so it is looked for by halves."""
        low, high = 0, 1
        while await self._is_copied(high):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            if await self._is_copied(middle):
                low = middle
            else:
                high = middle
        return low

    async def _is_copied(self, number: int) -> bool:
        rows = await self._own.rows(number - 1, 1)
        return bool(rows) and await self._main.call(_has, rows[0].hash)


def _rows(connection: Connection, after: int, limit: int) -> list[Row]:
    chosen = _ROWS.where(AUDIT.c.number > after).order_by(AUDIT.c.number).limit(limit)
    return [Row(**row) for row in connection.execute(chosen).mappings()]


def _has(connection: Connection, origin: str) -> bool:
    return connection.execute(select(AUDIT.c.number).where(AUDIT.c.origin == origin)).one_or_none() is not None


def _copy(connection: Connection, rows: Sequence[Row]) -> None:
    take(connection, Lock.CHAIN)
    origins = select(AUDIT.c.origin).where(AUDIT.c.origin.in_([row.hash for row in rows]))
    there = set(connection.execute(origins).scalars())
    _append(connection, [(_act(row), row.at, row.hash) for row in rows if row.hash not in there])


def _append(connection: Connection, acts: Sequence[tuple[Act, int, str | None]]) -> None:
    """Whoever calls holds the lock of the chain."""
    head = connection.execute(_HEAD).one_or_none()
    number, before = (0, GENESIS) if head is None else (head.number, head.hash)
    for act, at, origin in acts:
        number += 1
        row = sealed(act, number, at, before)
        before = row.hash
        connection.execute(_INSERT, {**asdict(row), "origin": origin})


def _act(row: Row) -> Act:
    return Act(Actor(row.who, row.address), row.act, row.target, row.outcome, json.loads(row.detail))
