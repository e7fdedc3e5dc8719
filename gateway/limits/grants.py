"""What is asked of meters, and what they answer."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gateway.domain.limits import BUDGETS, IN_TOKENS, PLACES, RATES, Meter, Unit

MINUTE = 60_000  # milliseconds


class Standing(NamedTuple):
    """Where a rate stands: what is left of `limit` now, and milliseconds until all of it is there again."""

    limit: int
    remaining: int
    reset: int


class Bill:
    """The meters that a request is charged on, parted by how they count; made once for all requests alike.

    A request counts as one where requests are counted, and as its tokens or its cost everywhere else.  `meters`: rates
    first, then places, then budgets.  The parts have of each meter what is looked at for every request: its name, its
    limit, whether it counts tokens (of a rate: instead of requests; of a budget: instead of money), and itself.
    """

    __slots__ = ("budgets", "meters", "places", "rates")

    def __init__(self, meters: Iterable[Meter]) -> None:
        parts: dict[tuple[Unit, ...], list[Meter]] = {RATES: [], PLACES: [], BUDGETS: []}
        for meter in meters:
            next(part for units, part in parts.items() if meter.unit in units).append(meter)
        self.rates, self.places, self.budgets = (
            tuple((meter.name, meter.limit, meter.unit in IN_TOKENS, meter) for meter in part)
            for part in parts.values()
        )
        self.meters = tuple(meter for part in parts.values() for meter in part)


class Grant:
    """All charges of a request were taken.

    `charged`: the tokens that it was let in for.  `tokens`, `micros`: what is reserved for it on budgets.  `levels`:
    how full each rate was with this charge, in units times MINUTE, at the moment `at` (milliseconds of the clock that
    counts it), when each of `share` processes granted its part of a limit.  `lease`: what the holder is known by where
    meters are shared; `shared`: they have counted it.  `over`: it was given back.
    """

    __slots__ = ("at", "bill", "charged", "lease", "levels", "micros", "over", "share", "shared", "tokens")

    def __init__(
        self,
        bill: Bill,
        tokens: int,
        micros: int,
        levels: list[int],
        at: int,
        share: int = 1,
        lease: str = "",
        *,
        shared: bool = False,
    ) -> None:
        self.bill = bill
        self.charged = self.tokens = tokens
        self.micros = micros
        self.levels = levels
        self.at = at
        self.share = share
        self.lease = lease
        self.shared = shared
        self.over = False

    def standing(self, rates: tuple[tuple[int, int], ...]) -> Standing:
        """The tightest of these rates, each a place in the bill's and its limit, as the grant has left it."""
        levels, share = self.levels, self.share
        limit, left, fullest = 0, sys.maxsize, 0
        for place, its in rates:
            if share != 1:
                its = -(-its // share)
            level = levels[place]
            if (its_left := its + -level // MINUTE) < left:  # what has begun to drain is not there yet
                limit, left, fullest = its, its_left, level
        return Standing(limit, left, -(-fullest // limit))


@dataclass(frozen=True, slots=True)
class Denied:
    """Nothing was taken, because of this meter.

    `retry_after`: seconds after which there would be room, None where only the end of the period makes any, or nothing.
    `reset`: seconds until the whole of a rate is there again.  `spent`: of a budget, without what is reserved.
    """

    meter: Meter
    remaining: int
    retry_after: float | None
    reset: float
    spent: int = 0


class Spent(NamedTuple):
    """What a scope has used in a period, by the ledger."""

    tokens: int
    micros: int


class Books(Protocol):
    """Where budgets begin when nothing counts them yet."""

    async def spent(self, scope: str, period: str) -> Spent:
        """What the ledger says of the scope (`key:<id>` …) in the period (`2026-11-30`, `2026-11`, `total`): all that
        was settled before its grant was released is in it.  Must not raise: a ledger that cannot be read says what it
        last knew."""
        ...


class _NoLedger:
    """Has written nothing down: every budget begins whole when the gateway does."""

    async def spent(self, scope: str, period: str) -> Spent:
        return Spent(0, 0)


NO_LEDGER: Books = _NoLedger()


class Meters(Protocol):
    """Decides for all meters of a request at once.  No method raises for what is wrong with a store behind it."""

    async def start(self) -> None:
        """Ready to count; waits for a store no longer than its time limit."""
        ...

    async def close(self) -> None:
        """Ends what was started."""
        ...

    async def acquire(self, bill: Bill, tokens: int, micros: int) -> Grant | Denied:
        """Takes all charges of a request that may come to so much, or none."""
        ...

    async def top_up(self, grant: Grant, tokens: int, micros: int) -> Denied | None:
        """Reserves so much more on the budgets of a grant, on all of them or on none (Denied)."""
        ...

    def release(self, grant: Grant, tokens: int, micros: int) -> None:
        """The request is over and has used so much.  What it did not use is given back, what it used beyond its charge
        is taken; requests a minute are not given back.  Never waits."""
        ...
