"""What was spent, out of the ledger: where budgets begin."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import date, timedelta

from sqlalchemy import Connection, Table, func, select

from gateway.controlplane import ledgertables, maintables
from gateway.controlplane.ledger import Ledger
from gateway.controlplane.maindb import MainDatabase
from gateway.domain.errors import StorageError
from gateway.limits.grants import Spent

_log = logging.getLogger("gateway.ledger")

_EPOCH = date(1970, 1, 1)
_AGAIN = 1.0  # seconds


class Spending:
    """Answers from the sums of days.  A scope's day is the one on which its requests ended.

    Where gateways share a database, what all of them have shipped counts, or what this one has written, whichever is
    more: what others have not shipped yet, a few seconds' worth, is not known.
    """

    def __init__(self, ledger: Ledger, main: MainDatabase | None) -> None:
        self._ledger = ledger
        self._main = main

    async def spent(self, scope: str, period: str) -> Spent:
        """What a scope (`key:<id>`, `team:<name>`, `user:<id>`) has used in a period (`2026-11-30`, `2026-11`,
        `total`): all that was settled before is in it, because the ledger answers after it has written.

        While the ledger cannot be read it is asked again: a budget that began with a guess would be wrong for good.
        """
        own = await self._own(_sum(ledgertables.USAGE_DAYS, scope, _days(period)))
        if self._main is None:
            return own
        try:
            shared = await self._main.call(_sum(maintables.USAGE_DAYS, scope, _days(period)))
        except StorageError:
            return own
        return Spent(max(own.tokens, shared.tokens), max(own.micros, shared.micros))

    async def _own(self, question: Callable[[Connection], Spent]) -> Spent:
        while True:
            try:
                return await self._ledger.ask(question)
            except StorageError as error:
                _log.error("what was spent cannot be read: %s", error.message)
                await asyncio.sleep(_AGAIN)


def _sum(usage: Table, scope: str, days: tuple[int, int]) -> Callable[[Connection], Spent]:
    of, (level, _, name) = usage.c, scope.partition(":")
    tokens, cost = func.sum(of.prompt + of.completion), func.sum(of.cost)
    question = select(tokens, cost).where(of[level] == name, of.day.between(*days))

    def spent(connection: Connection) -> Spent:
        row = connection.execute(question).one()
        return Spent(int(row[0] or 0), int(row[1] or 0))  # PostgreSQL's sums are decimals

    return spent


def _days(period: str) -> tuple[int, int]:
    """The first and the last day of a period, from 1970 on."""
    if period == "total":
        return 0, date.max.toordinal()
    year, month, *day = map(int, period.split("-"))
    if day:
        first = last = date(year, month, *day)
    else:
        first = date(year, month, 1)
        last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return (first - _EPOCH).days, (last - _EPOCH).days
