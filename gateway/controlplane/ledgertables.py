"""The ledger's tables as the code knows them; `migrations/ledger/` makes them.

Days are counted from 1 January 1970, in UTC.  A request is accounted for on the day on which it ended: so a day that is
over never changes.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Integer, MetaData, Table, Text

METADATA = MetaData()

_NUMBERS = 32  # bits of `seq` for the requests of one day


def first_of(day: int) -> int:
    """What is below the `seq` of every request of this day, and above those of the day before."""
    return day << _NUMBERS


def day_of(seq: int) -> int:
    """The day of a request."""
    return seq >> _NUMBERS


def _entry() -> list[Column[Any]]:
    """The fields of an Entry behind its id, in their order."""
    return [
        Column("started", BigInteger, nullable=False),
        Column("endpoint", Text, nullable=False),
        Column("model", Text, nullable=False),
        Column("adapter", Text, nullable=False),
        Column("upstream", Text, nullable=False),
        Column("key", Text, nullable=False),
        Column("key_name", Text, nullable=False),
        Column("team", Text, nullable=False),
        Column("user", Text, nullable=False),
        Column("task", Text, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("status", Integer, nullable=False),
        Column("reason", Text, nullable=False),
        Column("prompt", BigInteger, nullable=False),
        Column("completion", BigInteger, nullable=False),
        Column("cached", BigInteger, nullable=False),
        Column("reasoning", BigInteger, nullable=False),
        Column("estimated", Boolean, nullable=False),
        Column("cost", BigInteger, nullable=False),
        Column("price", Text, nullable=False),
        Column("first_byte", BigInteger),
        Column("duration", BigInteger, nullable=False),
    ]


#: Requests that run.  `boot` says in which life of the gateway.
OPEN = Table(
    "open_requests",
    METADATA,
    Column("request_id", Text, primary_key=True),
    *_entry(),
    Column("boot", Text, nullable=False),
)

#: Requests that have ended, by day and in the order in which they were written: `seq` is `first_of` the day and a
#: number, so that it needs no further index.
REQUESTS = Table(
    "requests",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("request_id", Text, nullable=False, unique=True),
    *_entry(),
)

#: The number up to which rows were shipped to the main database.
SHIPPED = Table("shipped", METADATA, Column("seq", BigInteger, primary_key=True, autoincrement=False))

#: The sums of REQUESTS.  A trigger adds each row that is written there, and takes it out of OPEN.
USAGE_DAYS = Table(
    "usage_days",
    METADATA,
    Column("day", Integer, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("team", Text, primary_key=True),
    Column("user", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("adapter", Text, primary_key=True),
    Column("upstream", Text, primary_key=True),
    Column("key_name", Text, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("prompt", BigInteger, nullable=False),
    Column("completion", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
)
