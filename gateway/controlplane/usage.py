"""What was used, out of the ledger.

Reports are made of the sums of days, and pages of rows are short: the ledger's one thread answers both between two
transactions, and a day at a time, so that no request waits for a report for longer than a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, Table, func, select

from gateway.controlplane import ledgertables, maintables
from gateway.controlplane.ledger import Ledger
from gateway.controlplane.ledgertables import REQUESTS, day_of, first_of
from gateway.controlplane.maindb import MainDatabase
from gateway.domain.entry import SUMS
from gateway.domain.errors import InvalidRequest, StorageError

Row = dict[str, Any]

_EPOCH = date(1970, 1, 1)
_SUMS = {"requests": "requests", **SUMS}
#: What an entry's field is called outside.
_OUTSIDE = {inside: outside for outside, inside in SUMS.items()} | {
    "started": "started_us",
    "first_byte": "first_byte_us",
    "duration": "duration_us",
}


class Usage:
    """Answers from the ledger; sums, where gateways share a database, from that one.  All raise StorageError."""

    def __init__(self, ledger: Ledger, main: MainDatabase | None) -> None:
        self._ledger = ledger
        self._ask = ledger.ask if main is None else main.call
        self._sums = ledgertables.USAGE_DAYS if main is None else maintables.USAGE_DAYS

    @property
    def trouble(self) -> StorageError | None:
        """Why the ledger cannot be written at this moment, None when it can."""
        return self._ledger.trouble

    async def summary(self, by: str, since: date | None, until: date | None, key: str | None = None) -> list[Row]:
        """The sums from `since` to `until`, both included, for each value of `by` (domain.entry.BY); of one key, if it
        is given.  Days in their order; anything else with what costs most first."""
        found: dict[str, Row] = {}
        day = await self._ask(_next_day(self._sums, _number(since, 0) - 1))
        while day is not None and day <= _number(until, day):
            for row in await self._ask(_of_day(self._sums, day, by, key)):
                value = _text(day) if by == "day" else row["of"]
                total = found.setdefault(value, {by: value, **dict.fromkeys(_SUMS, 0)})
                if by == "key":
                    total["name"] = row["name"]
                for name in _SUMS:
                    total[name] += int(row[name])  # PostgreSQL's sums are decimals
            day = await self._ask(_next_day(self._sums, day))
        if by == "day":
            return list(found.values())
        return sorted(found.values(), key=lambda row: (-row["cost_micros"], -row["requests"], row[by]))

    async def requests(
        self, since: date | None, until: date | None, after: str | None, limit: int
    ) -> tuple[list[Row], bool]:
        """A page of the rows of requests that ended from `since` to `until`, both included, in the order in which they
        were written: those behind the one with the id `after`, and whether there are more.  Who goes on from the last
        one gets every row once, also those that are written meanwhile.  Raises InvalidRequest: there is no `after`."""
        rows = await self._ledger.ask(lambda connection: _page(connection, since, until, after, limit + 1))
        return rows[:limit], len(rows) > limit


def _next_day(usage: Table, day: int) -> Callable[[Connection], int | None]:
    column = usage.c.day
    return lambda connection: connection.execute(select(func.min(column)).where(column > day)).scalar()


def _of_day(usage: Table, day: int, by: str, key: str | None) -> Callable[[Connection], list[Row]]:
    columns = usage.c
    sums = [func.sum(columns[inside]).label(outside) for outside, inside in _SUMS.items()]
    asked = select(columns[by].label("of"), func.max(columns.key_name).label("name"), *sums)
    asked = asked.where(columns.day == day).group_by(columns[by])
    if key is not None:
        asked = asked.where(columns.key == key)
    return lambda connection: [dict(row) for row in connection.execute(asked).mappings()]


def _page(connection: Connection, since: date | None, until: date | None, after: str | None, limit: int) -> list[Row]:
    columns = REQUESTS.c
    behind = first_of(_number(since, 0))
    if after is not None:
        last = connection.execute(select(columns.seq).where(columns.request_id == after)).scalar()
        if last is None:
            raise InvalidRequest("There is no request of that id to go on from.", param="after")
        behind = max(behind, last)
    asked = select(REQUESTS).where(columns.seq > behind).order_by(columns.seq).limit(limit)
    if until is not None:
        asked = asked.where(columns.seq < first_of(_number(until, 0) + 1))
    return [_shown(row) for row in connection.execute(asked).mappings()]


def _shown(row: Any) -> Row:
    shown = {str(_OUTSIDE.get(name, name)): value for name, value in row.items() if name != "seq"}
    return {"day": _text(day_of(row["seq"])), **shown}


def _number(day: date | None, default: int) -> int:
    return default if day is None else (day - _EPOCH).days


def _text(day: int) -> str:
    return (_EPOCH + timedelta(day)).isoformat()
