"""The ledger's file as the outbox of the main database."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sqlalchemy import Connection, func, select

from gateway.controlplane.ledger import Ledger
from gateway.controlplane.ledgertables import REQUESTS, SHIPPED, day_of, first_of
from gateway.controlplane.shipper import Row

_SEQ = REQUESTS.c.seq


class LedgerOutbox:
    """What `shipper.Outbox` says, asked in the ledger's thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def pending(self, after: int, limit: int) -> Sequence[tuple[int, Row]]:
        """So many rows behind `after` at most."""
        return await self._ledger.ask(partial(_pending, after, limit))

    async def waiting(self, after: int) -> int:
        """How many there are behind `after`."""
        return await self._ledger.ask(partial(_waiting, after))

    async def shipped(self) -> int:
        """As it was marked last."""
        return await self._ledger.ask(_shipped)

    async def mark_shipped(self, number: int) -> None:
        """Up to there all have been shipped."""
        await self._ledger.ask(partial(_mark, number))


def _pending(after: int, limit: int, connection: Connection) -> list[tuple[int, Row]]:
    chosen = select(REQUESTS).where(after < _SEQ).order_by(_SEQ).limit(limit)
    rows = [dict(row) for row in connection.execute(chosen).mappings()]
    return [(row["seq"], {**row, "day": day_of(row["seq"])}) for row in rows]


def _waiting(after: int, connection: Connection) -> int:
    """Without looking at each: in a day, numbers have no gaps."""
    rows = 0
    while (first := connection.scalar(select(func.min(_SEQ)).where(after < _SEQ))) is not None:
        after = connection.scalars(select(func.max(_SEQ)).where(first_of(day_of(first) + 1) > _SEQ)).one()
        rows += after - first + 1
    return rows


def _shipped(connection: Connection) -> int:
    return connection.scalar(select(func.max(SHIPPED.c.seq))) or 0


def _mark(number: int, connection: Connection) -> None:
    connection.execute(SHIPPED.delete())
    connection.execute(SHIPPED.insert(), {"seq": number})
