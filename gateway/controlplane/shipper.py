"""The way of the ledger's rows into the main database (docs/adr/0014).

The ledger's file is the outbox: a row is there first, and stays there until the main database has it for sure.  What is
sent twice, by whomever, counts once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import JSON, BigInteger, Connection, Text, bindparam, cast, column, func, select
from sqlalchemy.dialects.postgresql import Insert, insert

from gateway.controlplane.maindb import MainDatabase
from gateway.controlplane.maintables import OF, REQUESTS, SUMS, USAGE_DAYS
from gateway.domain.errors import StorageError

_BATCH = 500  # rows in one transaction
_TICK = 1.0  # seconds between two looks for new rows
_NAMES = tuple(REQUESTS.columns.keys())

Row = Mapping[str, Any]


class Outbox(Protocol):
    """Rows of ended requests in the order in which they were written, by a number that always rises: their `seq`."""

    async def pending(self, after: int, limit: int) -> Sequence[tuple[int, Row]]:
        """So many rows behind `after` at most, the oldest first, by the names of maintables.REQUESTS."""
        ...

    async def waiting(self, after: int) -> int:
        """How many rows are behind `after`."""
        ...

    async def shipped(self) -> int:
        """Up to which row all have been shipped, as it was marked last; 0: none."""
        ...

    async def mark_shipped(self, number: int) -> None:
        """All rows up to this one have been shipped.  What is forgotten of this costs only that they are sent again."""
        ...


class Shipper:
    """Ships; holds no more than one batch.  While the main database is away, rows wait where they are.

    `unshipped`: how many rows wait, as of the last look.
    """

    def __init__(self, outbox: Outbox, main: MainDatabase, *, tick: float = _TICK) -> None:
        self.unshipped = 0
        self._outbox = outbox
        self._main = main
        self._tick = tick
        self._after: int | None = None

    async def run(self) -> None:
        """Ships for good."""
        while True:
            began = time.monotonic()
            more = False
            try:
                more = await self._step()
            except StorageError:
                pass  # whose it is has told it; the rows are where they were
            # What is behind catches up in half of the time at most: requests need the other half.
            await asyncio.sleep(time.monotonic() - began if more else self._tick)

    async def flush(self) -> None:
        """Ships all that there is.  Raises StorageError when that cannot be."""
        while await self._step(try_hard=True):
            pass

    async def _step(self, *, try_hard: bool = False) -> bool:
        """Ships one batch; returns whether there is more."""
        if self._after is None:
            self._after = await self._outbox.shipped()
        self.unshipped = await self._outbox.waiting(self._after)
        if not self.unshipped or (self._main.trouble is not None and not try_hard):
            return False
        rows = await self._outbox.pending(self._after, _BATCH)
        if not rows:
            return False
        await self._main.call(ship, [row for _, row in rows])
        self.unshipped -= len(rows)
        self._after = rows[-1][0]
        await self._outbox.mark_shipped(self._after)
        return self.unshipped > 0


def ship(connection: Connection, rows: Iterable[Row]) -> None:
    """Writes rows and adds them to the sums, but for those that are there already."""
    connection.execute(_SHIP, {"rows": json.dumps([{name: _sound(row[name]) for name in _NAMES} for row in rows])})


def _sound(value: Any) -> Any:
    """PostgreSQL's texts hold no zero byte and no half of a surrogate pair; SQLite's might."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return value


def _ship() -> Insert:
    """One statement: what is summed up is what was really inserted.  Rows are taken in one order, so that two gateways
    do not wait for each other."""
    given = (
        func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
        .table_valued(*(column(name, REQUESTS.c[name].type) for name in _NAMES))
        .render_derived("given", with_types=True)
    )
    new = (
        insert(REQUESTS)
        .from_select(_NAMES, select(*(given.c[name] for name in _NAMES)).order_by(given.c.request_id))
        .on_conflict_do_nothing(index_elements=[REQUESTS.c.request_id])
        .returning(*REQUESTS.c)
        .cte("new")
    )
    of = [new.c[name] for name in OF]
    sums = [cast(func.sum(new.c[name]), BigInteger) for name in SUMS]
    added = insert(USAGE_DAYS).from_select(
        (*OF, "key_name", "requests", *SUMS),
        select(*of, func.max(new.c.key_name), func.count(), *sums).group_by(*of).order_by(*of),
    )
    return added.on_conflict_do_update(
        index_elements=list(USAGE_DAYS.primary_key),
        set_={
            "key_name": added.excluded.key_name,
            **{name: USAGE_DAYS.c[name] + added.excluded[name] for name in ("requests", *SUMS)},
        },
    )


_SHIP = _ship()
