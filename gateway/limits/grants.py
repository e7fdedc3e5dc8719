"""What is asked of meters, and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gateway.domain.limits import Meter

MINUTE = 60_000  # milliseconds


class Standing(NamedTuple):
    """Where a rate stands: what is left of `limit` now, and milliseconds until all of it is there again."""

    limit: int
    remaining: int
    reset: int


class Grant:
    """All charges of a request were taken.

    `amounts`: what is reserved on each of `meters`.  `levels`: of a rate, how full it was with this charge, in units
    times MINUTE, at the moment `at` (milliseconds of the clock that counts it), when each of `share` processes granted
    its part of a limit.  `lease`: what the holder is known by where meters are shared; `shared`: they have counted it.
    """

    __slots__ = ("amounts", "at", "lease", "levels", "meters", "share", "shared")

    def __init__(
        self,
        meters: tuple[Meter, ...],
        amounts: list[int],
        levels: list[int],
        at: int,
        share: int = 1,
        lease: str = "",
        *,
        shared: bool = False,
    ) -> None:
        self.meters = meters
        self.amounts = amounts
        self.levels = levels
        self.at = at
        self.share = share
        self.lease = lease
        self.shared = shared

    def standing(self, places: tuple[int, ...]) -> Standing:
        """The tightest of the rates at these places in `meters`, as the grant has left it."""
        levels, meters, share = self.levels, self.meters, self.share
        limit, left, reset = 0, None, 0
        for place in places:
            level, its = levels[place], meters[place].limit
            if share != 1:
                its = -(-its // share)
            its_left = its - -(-level // MINUTE)
            if left is None or its_left < left:
                limit, left, reset = its, its_left, -(-level // its)
        if left is None:
            raise ValueError("no place was given")
        return Standing(limit, left, reset)


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

    async def acquire(self, meters: tuple[Meter, ...], amounts: list[int]) -> Grant | Denied:
        """Takes all charges (`amounts` in the order of `meters`, becoming the grant's own), or none."""
        ...

    async def top_up(self, grant: Grant, tokens: int, micros: int) -> Denied | None:
        """Reserves so much more on the budgets of a grant, on all of them or on none (Denied)."""
        ...

    def release(self, grant: Grant, tokens: int, micros: int) -> None:
        """The request is over and has used so much.  What it did not use is given back, what it used beyond its charge
        is taken; requests a minute are not given back.  Never waits."""
        ...
