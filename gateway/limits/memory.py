"""Meters in this process: plain counting, without a lock and without waiting.

Rates are the generic cell rate algorithm (ITU-T I.371), in its form as a leaky bucket: a bucket holds `limit` units and
drains `limit` of them a minute, so a burst takes no more than a minute's worth and there is no window whose edge could
be used.  A bucket's level is kept in units times `MINUTE`, and time in whole milliseconds, so that everything is an
integer and nothing is ever rounded; script.py counts the same way and decides the same.

What nobody uses is forgotten: before a meter is new here, two are looked at that were not for longest.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.domain.limits import IN_TOKENS, Meter
from gateway.limits.grants import MINUTE, Bill, Books, Denied, Grant

DEBT = 3_600_000  # milliseconds: a bucket is never fuller than what drains in an hour
_UNUSED = 600_000  # milliseconds without a request after which a rate or places are forgotten
_IDLE = 3_600_000  # milliseconds without a request after which a budget is asked of the ledger again
_BUSY = 1.0  # seconds after which to ask again where all places are taken


class _Rate:
    """`limit`: the one that it was charged under last."""

    __slots__ = ("at", "level", "limit")

    def __init__(self, now: int, limit: int) -> None:
        self.level = 0
        self.at = now
        self.limit = limit

    def drained(self, limit: int, now: int) -> int:
        """The level now."""
        level = self.level - (now - self.at) * limit
        return level if level > 0 else 0

    def idle(self, now: int) -> bool:
        return now - self.at > _UNUSED and self.drained(self.limit, now) == 0


class _Places:
    """`at`: when one was given back last."""

    __slots__ = ("at", "held")

    def __init__(self, now: int) -> None:
        self.held = 0
        self.at = now

    def idle(self, now: int) -> bool:
        return self.held == 0 and now - self.at > _UNUSED


class _Purse:
    __slots__ = ("at", "base", "reserved", "spent")

    def __init__(self, spent: int, reserved: int, now: int) -> None:
        self.base = self.spent = spent
        self.reserved = reserved
        self.at = now

    def part(self, limit: int, share: int) -> int:
        """What may be spent of a limit where it is shared: of what was left when the counting began, a part."""
        return limit if share == 1 else self.base - (self.base - limit) // share

    def idle(self, now: int) -> bool:
        return self.reserved == 0 and now - self.at > _IDLE


@dataclass(frozen=True, slots=True)
class Cells:
    """Where the meters of a bill are counted, as long as `age` is the counts' own: each with this process's part of its
    limit, of which a rate also has the level at which it is full, and a budget whether it is one of tokens.
    `unknown`: budgets that nobody counts yet."""

    age: object
    requests: tuple[tuple[_Rate, int, int], ...]
    tokens: tuple[tuple[_Rate, int, int], ...]
    places: tuple[tuple[_Places, int], ...]
    purses: tuple[tuple[_Purse, int, bool], ...]
    unknown: tuple[Meter, ...]


class Counts:
    """The state of meters.  `share`: of how many processes this one is; each grants its part of a limit, rounded up.
    `now` is in milliseconds of any clock that never goes back."""

    def __init__(self, share: int = 1) -> None:
        self._share = share
        self._rates: OrderedDict[str, _Rate] = OrderedDict()
        self._places: OrderedDict[str, _Places] = OrderedDict()
        self._purses: OrderedDict[str, _Purse] = OrderedDict()
        self._age = object()  # another one as soon as any cell is not what it was

    def __len__(self) -> int:
        return len(self._rates) + len(self._places) + len(self._purses)

    def split(self, share: int) -> None:
        """From now on there are so many processes."""
        if share != self._share:
            self._share = share
            self._age = object()

    def take(self, bill: Bill, tokens: int, micros: int, now: int) -> Grant | Denied | tuple[Meter, ...]:
        """Takes all charges of a bill or none; or says which meters it must know more of (`seed`) before it can tell.
        It takes as it goes, and undoes that where one meter says no: nobody sees what is between.

        A charge on a rate that is more than a minute's worth counts as just that.
        """
        cells = bill.cells
        if cells is None or cells.age is not self._age:
            cells = self._find(bill, now)
            if cells.unknown:
                return cells.unknown
        fits = True
        rate_of_requests = rate_of_tokens = None
        least = sys.maxsize
        for rate, limit, full in cells.requests:
            level = rate.level - (now - rate.at) * limit
            level = level + MINUTE if level > 0 else MINUTE
            rate.level = level
            rate.at = now
            rate.limit = limit
            if full - level < least:
                least = full - level
                rate_of_requests = limit, level
        if least < 0:
            fits = False
        marks: list[int] = []
        least = sys.maxsize
        for rate, limit, full in cells.tokens:
            charge = (tokens if tokens < limit else limit) * MINUTE
            level = rate.level - (now - rate.at) * limit
            level = level + charge if level > 0 else charge
            rate.level = level
            rate.at = now
            rate.limit = limit
            marks.append(level)
            if full - level < least:
                least = full - level
                rate_of_tokens = limit, level
        if least < 0:
            fits = False
        for places, limit in cells.places:
            places.held = held = places.held + 1
            if held > limit:
                fits = False
        for purse, limit, in_tokens in cells.purses:
            purse.reserved = reserved = purse.reserved + (tokens if in_tokens else micros)
            purse.at = now
            if reserved > limit - purse.spent:
                fits = False
        if fits:
            return Grant(bill, tokens, micros, rate_of_requests, rate_of_tokens, marks, now, self._share)
        self._undo(cells, tokens, micros)
        return _denied(bill, cells, tokens, micros)

    @staticmethod
    def _undo(cells: Cells, tokens: int, micros: int) -> None:
        """All that was taken in this moment is there again."""
        for rate, _, _ in cells.requests:
            rate.level -= MINUTE
        for rate, limit, _ in cells.tokens:
            rate.level -= min(tokens, limit) * MINUTE
        for places, _ in cells.places:
            places.held -= 1
        for purse, _, in_tokens in cells.purses:
            purse.reserved -= tokens if in_tokens else micros

    def seed(self, meter: Meter, spent: int, now: int, reserved: int = 0) -> None:
        """What is spent of a budget that nobody counted so far; without effect on one that somebody counts."""
        if meter.name not in self._purses:
            self._forget(self._purses, (meter,), now)
            self._purses[meter.name] = _Purse(spent, reserved, now)

    def adopt(self, grant: Grant, now: int) -> None:
        """Counts the places that a grant holds which was made elsewhere."""
        for places, _ in self._find(grant.bill, now).places:
            places.held += 1

    def top_up(self, grant: Grant, tokens: int, micros: int, now: int) -> Denied | None:
        """Reserves more on the budgets of a grant; Denied: on none of them."""
        purses: list[tuple[_Purse, int]] = []
        for meter in grant.bill.budgets:
            purse = self._purses.get(meter.name)
            if purse is None:
                continue
            more = tokens if meter.unit in IN_TOKENS else micros
            room = purse.part(meter.limit, self._share) - purse.spent - purse.reserved
            if more > room:
                return Denied(meter, max(0, room), None, 0.0, purse.spent)
            purses.append((purse, more))
        for purse, more in purses:
            purse.reserved += more
            purse.at = now
        grant.tokens += tokens
        grant.micros += micros
        return None

    def give_back(self, grant: Grant, tokens: int, micros: int, now: int) -> None:
        """Settles a grant; a second time has no effect.  What a request used beyond its charge is taken, what it did
        not use is given back as far as it is still there: the level was a `mark` when it was charged, and what has
        drained since is gone."""
        if grant.over:
            return
        grant.over = True
        cells = grant.bill.cells
        if cells is None or cells.age is not self._age:
            cells = self._find(grant.bill, now)
        if not grant.shared:  # else its rates were counted elsewhere, by another clock
            for meter, (rate, limit, _), mark in zip(grant.bill.tokens, cells.tokens, grant.marks, strict=True):
                change = (tokens - min(grant.charged, -(-meter.limit // grant.share))) * MINUTE
                if change < 0:
                    change = max(change, -max(0, mark - (now - grant.at) * limit))
                rate.level = min(max(0, rate.drained(limit, now) + change), limit * DEBT)
                rate.at = now
        for places, _ in cells.places:
            if places.held:
                places.held -= 1
            places.at = now
        for purse, _, in_tokens in cells.purses:
            used, reserved = (tokens, grant.tokens) if in_tokens else (micros, grant.micros)
            left = purse.reserved - reserved
            purse.reserved = left if left > 0 else 0
            purse.spent += used
            purse.at = now

    def full(self, now: int) -> Iterator[tuple[str, int, int]]:
        """Each rate that is not empty: its name, its limit and how full it is."""
        for name, rate in self._rates.items():
            if level := rate.drained(rate.limit, now):
                yield name, rate.limit, level

    def _find(self, bill: Bill, now: int) -> Cells:
        """The cells of a bill's meters; those that there are none of are made, but for budgets."""
        self._forget(self._rates, (*bill.requests, *bill.tokens), now)
        self._forget(self._places, bill.places, now)
        purses = [(self._purses.get(meter.name), meter) for meter in bill.budgets]
        cells = bill.cells = Cells(
            self._age,
            tuple(self._rate(meter, now) for meter in bill.requests),
            tuple(self._rate(meter, now) for meter in bill.tokens),
            tuple((self._places.setdefault(m.name, _Places(now)), -(-m.limit // self._share)) for m in bill.places),
            tuple(
                (purse, purse.part(meter.limit, self._share), meter.unit in IN_TOKENS)
                for purse, meter in purses
                if purse is not None
            ),
            tuple(meter for purse, meter in purses if purse is None),
        )
        if cells.unknown:
            bill.cells = None
        return cells

    def _rate(self, meter: Meter, now: int) -> tuple[_Rate, int, int]:
        limit = -(-meter.limit // self._share)
        rate = self._rates.get(meter.name)
        if rate is None:
            rate = self._rates[meter.name] = _Rate(now, limit)
        return rate, limit, limit * MINUTE

    def _forget(self, states: OrderedDict[str, Any], needed: Sequence[Meter], now: int) -> None:
        """Before each that is to be made, looks at the two that were looked at least recently."""
        missing = sum(meter.name not in states for meter in needed)
        for _ in range(min(2 * missing, len(states))):
            name = next(iter(states))
            if states[name].idle(now):
                del states[name]
                self._age = object()
            else:
                states.move_to_end(name)


class MemoryMeters:
    """Meters of one process alone.  `clock`: milliseconds."""

    def __init__(self, ledger: Books, clock: Callable[[], int] | None = None) -> None:
        self._counts = Counts()
        self._ledger = ledger
        self._clock = clock or monotonic

    async def start(self) -> None:
        """Nothing to wait for."""

    async def close(self) -> None:
        """Nothing to end."""

    async def acquire(self, bill: Bill, tokens: int, micros: int) -> Grant | Denied:
        """As `Meters`; waits only where a budget is asked of the ledger."""
        while True:
            answer = self._counts.take(bill, tokens, micros, self._clock())
            if not isinstance(answer, tuple):
                return answer
            for meter in answer:
                self._counts.seed(meter, await spent_of(self._ledger, meter), self._clock())

    async def top_up(self, grant: Grant, tokens: int, micros: int) -> Denied | None:
        """As `Meters`; never waits."""
        return self._counts.top_up(grant, tokens, micros, self._clock())

    def release(self, grant: Grant, tokens: int, micros: int) -> None:
        """As `Meters`."""
        self._counts.give_back(grant, tokens, micros, self._clock())


async def spent_of(ledger: Books, meter: Meter) -> int:
    """What a budget begins with."""
    spent = await ledger.spent(meter.scope, meter.period)
    return spent.tokens if meter.unit in IN_TOKENS else spent.micros


def monotonic() -> int:
    """Milliseconds of the monotonic clock."""
    return time.monotonic_ns() // 1_000_000


def _denied(bill: Bill, cells: Cells, tokens: int, micros: int) -> Denied:
    """Which meter has no room, of several the one that takes longest to pass; what has drained is already gone."""
    denied: Denied | None = None
    rates = ((meter, 1, *cell) for meter, cell in zip(bill.requests, cells.requests, strict=True))
    more = ((meter, tokens, *cell) for meter, cell in zip(bill.tokens, cells.tokens, strict=True))
    for meter, amount, rate, limit, full in (*rates, *more):
        level = rate.level + min(amount, limit) * MINUTE
        if level > full:
            denied = _worst(denied, _rate_denied(meter, limit, rate.level, level))
    for meter, (places, limit) in zip(bill.places, cells.places, strict=True):
        if places.held >= limit:
            denied = _worst(denied, Denied(meter, 0, _BUSY, 0.0))
    for meter, (purse, limit, in_tokens) in zip(bill.budgets, cells.purses, strict=True):
        room = limit - purse.spent - purse.reserved
        if (tokens if in_tokens else micros) > room:
            denied = _worst(denied, Denied(meter, max(0, room), None, 0.0, purse.spent))
    if denied is None:
        raise AssertionError
    return denied


def _rate_denied(meter: Meter, limit: int, before: int, level: int) -> Denied:
    """`level`: what it would be with the charge."""
    limit = max(1, limit)
    wait = -(-(level - limit * MINUTE) // limit)
    return Denied(meter, max(0, limit * MINUTE - before) // MINUTE, wait / 1000, before / limit / 1000)


def _worst(one: Denied | None, other: Denied) -> Denied:
    """The one that takes longest to pass; a budget longer than any rate."""
    if one is None or (one.retry_after is not None and (other.retry_after or float("inf")) > one.retry_after):
        return other
    return one
