"""What is asked of meters, and what they answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gateway.domain.limits import BUDGETS, PLACES, Meter, Unit

if TYPE_CHECKING:
    from gateway.limits.memory import Cells

MINUTE = 60_000  # milliseconds


#: Where a rate stands: its limit, and how full it is in units times MINUTE.
Standing = tuple[int, int]


class Bill:
    """The meters that a request is charged on, parted by how they count; made once for all requests alike.  None is in
    it twice.

    A request counts as one where requests are counted, and as its tokens or its cost everywhere else.  `requests` and
    `tokens` are the rates of each; `meters` are all, in the order of the parts.  `cells`: where Counts has them.
    """

    __slots__ = ("budgets", "cells", "meters", "places", "requests", "tokens")

    def __init__(self, meters: Iterable[Meter]) -> None:
        given = tuple(meters)
        parts = tuple(
            tuple(meter for meter in given if meter.unit in units)
            for units in ((Unit.REQUESTS,), (Unit.TOKENS,), PLACES, BUDGETS)
        )
        self.requests, self.tokens, self.places, self.budgets = parts
        self.meters = tuple(chain(*parts))
        self.cells: Cells | None = None


class Grant:
    """All charges of a request were taken.

    `charged`: the tokens that it was let in for.  `tokens`, `micros`: what is reserved for it on budgets.
    `rate_of_requests`, `rate_of_tokens`: where the tightest of each stood with this charge, at the moment `at`
    (milliseconds of the clock that counts it); `marks`: how full each rate of tokens was.  Each of `share` processes
    granted its part of a limit.  `lease`: what the holder is known by where meters are shared; `shared`: they have
    counted it.  `over`: it was given back.
    """

    __slots__ = (
        "at", "bill", "charged", "lease", "marks", "micros", "over", "rate_of_requests", "rate_of_tokens", "share",
        "shared", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        bill: Bill,
        tokens: int,
        micros: int,
        rate_of_requests: Standing | None,
        rate_of_tokens: Standing | None,
        marks: list[int],
        at: int,
        share: int = 1,
        lease: str = "",
        shared: bool = False,
    ) -> None:
        self.bill = bill
        self.charged = self.tokens = tokens
        self.micros = micros
        self.rate_of_requests = rate_of_requests
        self.rate_of_tokens = rate_of_tokens
        self.marks = marks
        self.at = at
        self.share = share
        self.lease = lease
        self.shared = shared
        self.over = False


def tightest(rates: Iterable[Meter], levels: Iterable[int]) -> Standing | None:
    """Where that rate stands of which least is left, None where there is none."""
    standings = ((meter.limit, level) for meter, level in zip(rates, levels, strict=True))
    return min(standings, key=lambda standing: standing[0] * MINUTE - standing[1], default=None)


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
