"""The log of administrative acts in the database; it grows, and nothing in it is ever written anew.

What makes a row hold is in `domain/audit.py`.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from sqlalchemy import Connection, select

from gateway.controlplane.storage import Storage
from gateway.controlplane.tables import AUDIT
from gateway.domain.audit import GENESIS, Act, Row, sealed

_INSERT = AUDIT.insert()
_HEAD = select(AUDIT.c.number, AUDIT.c.hash).order_by(AUDIT.c.number.desc()).limit(1)


class AuditLog:
    """The stored log."""

    def __init__(self) -> None:
        self._storage: Storage  # from `open` on

    def open(self, storage: Storage) -> None:
        """It is kept there."""
        self._storage = storage

    async def note(self, act: Act) -> None:
        """The act is in the log, durably when this returns.  Raises StorageError."""
        await self._storage.call(self._note, act)

    async def rows(self, after: int, limit: int) -> list[Row]:
        """The rows whose number is above `after`, oldest first.  Raises StorageError."""
        return await self._storage.call(self._rows, after, limit)

    def append(self, connection: Connection, act: Act) -> None:
        """Adds the row of an act within a transaction that somebody else has begun, in the storage's thread."""
        head = connection.execute(_HEAD).one_or_none()
        number, before = (0, GENESIS) if head is None else (head.number, head.hash)
        row = sealed(act, number + 1, time.time_ns() // 1000, before)
        connection.execute(_INSERT, asdict(row))

    def _note(self, act: Act) -> None:
        with self._storage.begin() as connection:
            self.append(connection, act)

    def _rows(self, after: int, limit: int) -> list[Row]:
        with self._storage.begin() as connection:
            chosen = select(AUDIT).order_by(AUDIT.c.number).limit(limit)
            if after:  # from the first on, and not from 1 on: what was put before it is to be seen
                chosen = chosen.where(AUDIT.c.number > after)
            return [Row(**row) for row in connection.execute(chosen).mappings()]
