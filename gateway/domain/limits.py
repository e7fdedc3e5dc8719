"""How much somebody may use, and what counts it.

A *limit* bounds a rate or what runs at once, a *budget* bounds a sum over a period.  Both are said of a *scope*: a key,
a team, a user or a model.  A *meter* counts one unit of one scope; a *charge* is what one request puts on a meter
before it is sent anywhere.  Money is in millionths of the currency (micros).
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

#: The most that any limit or budget may be: with it every sum fits into 53 bits, which is what a script has for them.
MAX_RATE = 100_000_000
MAX_BUDGET = 10**15

_EMPTY: Mapping[str, Allowance] = MappingProxyType({})


#: What a budget is for.  Periods begin and end by the calendar in UTC.
Period = Literal["day", "month", "total"]


class Unit(StrEnum):
    """What a meter counts."""

    REQUESTS = "requests"  # a minute
    TOKENS = "tokens"  # a minute
    CONCURRENT = "concurrent"  # requests at once
    TOKEN_BUDGET = "token_budget"  # noqa: S105 - tokens of a period
    MONEY_BUDGET = "money_budget"  # micros of a period


#: Counted by the minute, and drained as time goes by.
RATES = (Unit.REQUESTS, Unit.TOKENS)
#: Held by each request as long as it runs.
PLACES = (Unit.CONCURRENT,)
#: Counted over a period: reserved first, then spent.
BUDGETS = (Unit.TOKEN_BUDGET, Unit.MONEY_BUDGET)
#: Counted by what a request uses of tokens.
IN_TOKENS = (Unit.TOKENS, Unit.TOKEN_BUDGET)


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast, and how much at once.  None: not limited.  Raises ValueError for what is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None

    def __post_init__(self) -> None:
        for value in (self.requests_per_minute, self.tokens_per_minute, self.concurrent):
            if value is not None and not 1 <= value <= MAX_RATE:
                raise ValueError(f"a limit is a whole number from 1 to {MAX_RATE}")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much in a period: money in micros, or tokens, or both.  Raises ValueError for what is no budget."""

    money: int | None
    tokens: int | None
    period: Period

    def __post_init__(self) -> None:
        for value in (self.money, self.tokens):
            if value is not None and not 0 <= value <= MAX_BUDGET:
                raise ValueError(f"a budget is a whole number from 0 to {MAX_BUDGET}")
        if self.money is None and self.tokens is None:
            raise ValueError("a budget is of money, of tokens or of both")
        if self.period not in ("day", "month", "total"):
            raise ValueError("a budget is for a day, a month or in total")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one scope may use."""

    limits: Limits | None = None
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True, slots=True)
class Metered:
    """A model that is limited: what its meter is called, and its limits."""

    name: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Allowances:
    """What scopes may use: teams and users by their names, and all keys and users that have nothing of their own."""

    key: Allowance = Allowance()
    user: Allowance = Allowance()
    teams: Mapping[str, Allowance] = field(default_factory=lambda: _EMPTY)
    users: Mapping[str, Allowance] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True)
class Meter:
    """Counts one unit of one scope.  `name` is its own in every process; `scope` is `key:<id>`, `team:<name>`,
    `user:<id>` or `model:<name>`.  `period` is the id of a budget's period (`2026-11-30`, `2026-11`, `total`) and
    `ends` the Unix second at which it is over, 0 for never."""

    name: str
    scope: str
    unit: Unit
    limit: int
    period: str = ""
    ends: int = 0


def meters_of(scope: str, allowance: Allowance, day: int) -> tuple[Meter, ...]:
    """The meters of a scope on a day (counted from 1970-01-01, UTC)."""
    meters = []
    if (limits := allowance.limits) is not None:
        for unit, limit in (
            (Unit.REQUESTS, limits.requests_per_minute),
            (Unit.TOKENS, limits.tokens_per_minute),
            (Unit.CONCURRENT, limits.concurrent),
        ):
            if limit is not None:
                meters.append(Meter(f"{scope}/{unit}", scope, unit, limit))
    for budget in allowance.budgets:
        period, ends = period_of(budget.period, day)
        for unit, limit in ((Unit.MONEY_BUDGET, budget.money), (Unit.TOKEN_BUDGET, budget.tokens)):
            if limit is not None:
                meters.append(Meter(f"{scope}/{unit}/{period}", scope, unit, limit, period, ends))
    return tuple(meters)


def period_of(period: Period, day: int) -> tuple[str, int]:
    """The id of the period that a day lies in, and the Unix second at which that is over (0: never)."""
    if period == "total":
        return "total", 0
    date = time.gmtime(day * 86_400)
    if period == "day":
        return time.strftime("%Y-%m-%d", date), (day + 1) * 86_400
    year, month = (date.tm_year, date.tm_mon + 1) if date.tm_mon < 12 else (date.tm_year + 1, 1)
    return time.strftime("%Y-%m", date), calendar.timegm((year, month, 1, 0, 0, 0))
