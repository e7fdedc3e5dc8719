"""What was spent, out of the ledger: where budgets begin."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import date, timedelta

from sqlalchemy import Connection, func, select

from gateway.controlplane.ledger import Ledger
from gateway.controlplane.ledgertables import USAGE_DAYS
from gateway.domain.errors import StorageError
from gateway.limits.grants import Spent

_log = logging.getLogger("gateway.ledger")

_EPOCH = date(1970, 1, 1)
_SCOPES = {"key": USAGE_DAYS.c.key, "team": USAGE_DAYS.c.team, "user": USAGE_DAYS.c.user}
_AGAIN = 1.0  # seconds


class Spending:
    """Answers from the sums of days.  A scope's day is the one on which its requests ended."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def spent(self, scope: str, period: str) -> Spent:
        """What a scope (`key:<id>`, `team:<name>`, `user:<id>`) has used in a period (`2026-11-30`, `2026-11`,
        `total`): all that was settled before is in it, because the ledger answers after it has written.

        While the ledger cannot be read it is asked again: a budget that began with a guess would be wrong for good.
        """
        while True:
            try:
                return await self._ledger.ask(_sum(scope, _days(period)))
            except StorageError as error:
                _log.error("what %s has spent cannot be read: %s", scope, error.message)
                await asyncio.sleep(_AGAIN)


def _sum(scope: str, days: tuple[int, int]) -> Callable[[Connection], Spent]:
    of, (level, _, name) = USAGE_DAYS.c, scope.partition(":")
    tokens, cost = func.sum(of.prompt + of.completion), func.sum(of.cost)
    question = select(func.coalesce(tokens, 0), func.coalesce(cost, 0)).where(
        _SCOPES[level] == name, of.day.between(*days)
    )
    return lambda connection: Spent(*connection.execute(question).one())


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
