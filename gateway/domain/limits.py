"""How much somebody may use, and what counts it.

A *limit* bounds a rate or what runs at once, a *budget* bounds a sum over a period.  Both are said of a *scope*: a key,
a team, a user or a model.  A *meter* counts one unit of one scope; a *charge* is what one request puts on a meter
before it is sent anywhere.  Money is in millionths of the currency (micros).
"""

from __future__ import annotations

import calendar
import time
from dataclasses import dataclass
from enum import StrEnum

#: The most that any limit or budget may be: with it every sum fits into 53 bits, which is what a script has for them.
MAX_RATE = 100_000_000
MAX_BUDGET = 10**15


class Period(StrEnum):
    """What a budget is for.  Periods begin and end by the calendar in UTC."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class Unit(StrEnum):
    """What a meter counts."""

    REQUESTS = "requests"  # a minute
    TOKENS = "tokens"  # a minute
    CONCURRENT = "concurrent"  # requests at once
    TOKEN_BUDGET = "token_budget"  # noqa: S105 - tokens of a period
    MONEY_BUDGET = "money_budget"  # micros of a period


#: Counted by the minute, and drained as time goes by.
RATES = (Unit.REQUESTS, Unit.TOKENS)
#: Counted over a period: reserved first, then spent.
BUDGETS = (Unit.TOKEN_BUDGET, Unit.MONEY_BUDGET)


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast and how much at once.  None: not limited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """How much in a period.  None: not bounded.  `money` is in micros."""

    money: int | None
    tokens: int | None
    period: Period


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one scope may use."""

    limits: Limits | None = None
    budgets: tuple[Budget, ...] = ()


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
    if period is Period.TOTAL:
        return "total", 0
    date = time.gmtime(day * 86_400)
    if period is Period.DAY:
        return time.strftime("%Y-%m-%d", date), (day + 1) * 86_400
    year, month = (date.tm_year, date.tm_mon + 1) if date.tm_mon < 12 else (date.tm_year + 1, 1)
    return time.strftime("%Y-%m", date), calendar.timegm((year, month, 1, 0, 0, 0))
