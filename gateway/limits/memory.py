"""Meters in this process: plain counting, without a lock and without waiting.

Rates are the generic cell rate algorithm (ITU-T I.371), in its form as a leaky bucket: a bucket holds `limit` units and
drains `limit` of them a minute, so a burst takes no more than a minute's worth and there is no window whose edge could
be used.  A bucket's level is kept in units times `MINUTE`, and time in whole milliseconds, so that everything is an
integer and nothing is ever rounded; script.py counts the same way and decides the same.

What nobody uses is forgotten: each call looks at the meter that was not used for longest.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from gateway.domain.limits import IN_TOKENS, Meter
from gateway.limits.grants import MINUTE, Bill, Books, Denied, Grant

DEBT = 3_600_000  # milliseconds: a bucket is never fuller than what drains in an hour
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
        return now > self.at and (now - self.at) * self.limit >= self.level


class _Purse:
    __slots__ = ("at", "base", "reserved", "spent")

    def __init__(self, spent: int, reserved: int, now: int) -> None:
        self.base = self.spent = spent
        self.reserved = reserved
        self.at = now

    def room(self, limit: int, share: int) -> int:
        """What is neither spent nor reserved, of the part of it that is this process's."""
        if share > 1:
            limit = self.base - (self.base - limit) // share
        return limit - self.spent - self.reserved

    def idle(self, now: int) -> bool:
        return self.reserved == 0 and now - self.at > _IDLE


class Counts:
    """The state of meters.  `now` is in milliseconds of any clock that never goes back."""

    def __init__(self) -> None:
        self._rates: OrderedDict[str, _Rate] = OrderedDict()
        self._held: dict[str, int] = {}  # places, of meters of which any is
        self._purses: OrderedDict[str, _Purse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rates) + len(self._held) + len(self._purses)

    def take(
        self, bill: Bill, tokens: int, micros: int, now: int, share: int = 1
    ) -> Grant | Denied | tuple[Meter, ...]:
        """Takes all charges of a bill or none; or says which meters it must know more of (`seed`) before it can tell.
        It takes as it goes, and undoes that where one meter says no: nobody sees what is between.

        `share`: of how many processes this one is; each grants its part of a limit, rounded up.  A charge on a rate
        that is more than a minute's worth counts as just that.
        """
        levels: list[int] = []
        denied: Denied | None = None
        unknown: tuple[Meter, ...] = ()
        fresh = False
        for name, limit, in_tokens, meter in bill.rates:
            if share != 1:
                limit = -(-limit // share)
            rate = self._rates.get(name)
            if rate is None:
                rate = self._rates[name] = _Rate(now, limit)
                fresh = True
            level = (limit if tokens > limit else tokens) * MINUTE if in_tokens else MINUTE
            if rate.level and (left := rate.level - (now - rate.at) * limit) > 0:
                level += left
            if level > limit * MINUTE:
                denied = _worst(denied, _rate_denied(meter, limit, tokens if in_tokens else 1, level))
            rate.level = level
            rate.at = now
            rate.limit = limit
            levels.append(level)
        for name, limit, _, meter in bill.places:
            self._held[name] = held = self._held.get(name, 0) + 1
            if held > (limit if share == 1 else -(-limit // share)):
                denied = _worst(denied, Denied(meter, 0, _BUSY, 0.0))
        for name, limit, in_tokens, meter in bill.budgets:
            purse = self._purses.get(name)
            if purse is None:
                unknown = (*unknown, meter)
                continue
            amount = tokens if in_tokens else micros
            if amount > (room := purse.room(limit, share)):
                denied = _worst(denied, Denied(meter, max(0, room), None, 0.0, purse.spent))
            purse.reserved += amount
            purse.at = now
        if denied is not None or unknown:
            self._undo(bill, tokens, micros, share)
            self._forget(self._rates, now)
            return unknown or denied or ()
        if fresh:
            self._forget(self._rates, now)
        return Grant(bill, tokens, micros, levels, now, share)

    def _undo(self, bill: Bill, tokens: int, micros: int, share: int) -> None:
        """All that was taken in this moment is there again."""
        for name, limit, in_tokens, _ in bill.rates:
            amount = min(tokens, -(-limit // share)) if in_tokens else 1
            self._rates[name].level -= amount * MINUTE
        self._leave(bill)
        for name, _, in_tokens, _ in bill.budgets:
            if (purse := self._purses.get(name)) is not None:
                purse.reserved -= tokens if in_tokens else micros

    def _leave(self, bill: Bill) -> None:
        """Gives places back."""
        for name, _, _, _ in bill.places:
            held = self._held.get(name, 0)
            if held > 1:
                self._held[name] = held - 1
            elif held:
                del self._held[name]

    def seed(self, meter: Meter, spent: int, now: int, reserved: int = 0) -> None:
        """What is spent of a budget that nobody counted so far; without effect on one that somebody counts."""
        if meter.name not in self._purses:
            self._purses[meter.name] = _Purse(spent, reserved, now)
            self._forget(self._purses, now)

    def adopt(self, grant: Grant) -> None:
        """Counts the places that a grant holds which was made elsewhere."""
        for name, _, _, _ in grant.bill.places:
            self._held[name] = self._held.get(name, 0) + 1

    def top_up(self, grant: Grant, tokens: int, micros: int, now: int, share: int = 1) -> Denied | None:
        """Reserves more on the budgets of a grant; Denied: on none of them."""
        purses: list[tuple[_Purse, int]] = []
        for name, limit, in_tokens, meter in grant.bill.budgets:
            purse = self._purses.get(name)
            if purse is None:
                continue
            more = tokens if in_tokens else micros
            if more > (room := purse.room(limit, share)):
                return Denied(meter, max(0, room), None, 0.0, purse.spent)
            purses.append((purse, more))
        for purse, more in purses:
            purse.reserved += more
            purse.at = now
        grant.tokens += tokens
        grant.micros += micros
        return None

    def give_back(self, grant: Grant, tokens: int, micros: int, now: int) -> None:
        """Settles a grant; a second time has no effect."""
        if grant.over:
            return
        grant.over = True
        bill = grant.bill
        if not grant.shared:  # else its rates were counted elsewhere, by another clock
            for (name, limit, in_tokens, _), mark in zip(bill.rates, grant.levels, strict=True):
                if in_tokens:
                    self._correct(grant, name, limit, mark, tokens, now)
        self._leave(bill)
        for name, _, in_tokens, _ in bill.budgets:
            purse = self._purses.get(name)
            if purse is not None:
                used, reserved = (tokens, grant.tokens) if in_tokens else (micros, grant.micros)
                purse.reserved = max(0, purse.reserved - reserved)
                purse.spent += used
                purse.at = now

    def _correct(self, grant: Grant, name: str, limit: int, mark: int, used: int, now: int) -> None:
        """Takes what a request used beyond its charge, or gives back what it did not use and what is still there: the
        level was `mark` when it was charged, and what has drained since is gone."""
        if grant.share != 1:
            limit = -(-limit // grant.share)
        difference = (used - min(grant.charged, limit)) * MINUTE
        rate = self._rates.get(name)
        if rate is None:
            if difference <= 0:
                return
            rate = self._rates[name] = _Rate(now, limit)
        level = rate.drained(limit, now)
        if difference < 0:
            difference = max(difference, -max(0, mark - (now - grant.at) * limit))
        rate.level, rate.at, rate.limit = min(max(0, level + difference), limit * DEBT), now, limit

    def full(self, now: int) -> Iterator[tuple[str, int, int]]:
        """Each rate that is not empty: its name, its limit and how full it is."""
        for name, rate in self._rates.items():
            if level := rate.drained(rate.limit, now):
                yield name, rate.limit, level

    @staticmethod
    def _forget(states: OrderedDict[str, _Rate] | OrderedDict[str, _Purse], now: int) -> None:
        """Called for each that is new: looks at the two that were looked at least recently."""
        for _ in range(min(2, len(states))):
            name = next(iter(states))
            if states[name].idle(now):
                del states[name]
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


def _rate_denied(meter: Meter, limit: int, amount: int, level: int) -> Denied:
    """`level`: what it would be with the charge."""
    cost = min(amount, limit) * MINUTE
    before = level - cost
    limit = max(1, limit)
    wait = -(-(level - limit * MINUTE) // limit)
    return Denied(meter, max(0, limit * MINUTE - before) // MINUTE, wait / 1000, before / limit / 1000)


def _worst(one: Denied | None, other: Denied) -> Denied:
    """The one that takes longest to pass; a budget longer than any rate."""
    if one is None or (one.retry_after is not None and (other.retry_after or float("inf")) > one.retry_after):
        return other
    return one
