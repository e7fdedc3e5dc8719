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

from gateway.domain.limits import BUDGETS, Meter, Unit
from gateway.limits.grants import MINUTE, Books, Denied, Grant

# To look one up in its class takes as long as half of what is done with it here.
_REQUESTS, _TOKENS, _CONCURRENT, _TOKEN_BUDGET = Unit.REQUESTS, Unit.TOKENS, Unit.CONCURRENT, Unit.TOKEN_BUDGET

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


class _Places:
    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


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
        self._places: dict[str, _Places] = {}
        self._purses: OrderedDict[str, _Purse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rates) + len(self._places) + len(self._purses)

    def take(
        self, meters: tuple[Meter, ...], amounts: list[int], now: int, share: int = 1
    ) -> Grant | Denied | tuple[Meter, ...]:
        """Takes all charges (`amounts` in the order of `meters`) or none; or says which meters it must know more of
        (`seed`) before it can tell.

        `share`: of how many processes this one is; each grants its part of a limit, rounded up.  A charge on a rate
        that is more than a minute's worth counts as just that.
        """
        rates: list[tuple[_Rate, int, int]] = []
        taken: list[_Places] = []
        purses: list[tuple[_Purse, int]] = []
        levels: list[int] = []
        denied: Denied | None = None
        unknown: tuple[Meter, ...] = ()
        fresh = False
        for index, meter in enumerate(meters):
            unit, name, amount = meter.unit, meter.name, amounts[index]
            limit = meter.limit if share == 1 else -(-meter.limit // share)
            level = 0
            if unit is _REQUESTS or unit is _TOKENS:
                rate = self._rates.get(name)
                if rate is None:
                    rate = self._rates[name] = _Rate(now, limit)
                    fresh = True
                if amount > limit:
                    amounts[index] = amount = limit
                if rate.level and (level := rate.level - (now - rate.at) * limit) < 0:
                    level = 0
                level += amount * MINUTE
                if level > limit * MINUTE or limit < 1:
                    denied = _worst(denied, _rate_denied(meter, limit, amount, level))
                rates.append((rate, level, limit))
            elif unit is _CONCURRENT:
                places = self._places.get(name)
                if places is None:
                    places = self._places[name] = _Places()
                if places.held >= limit:
                    denied = _worst(denied, Denied(meter, 0, _BUSY, 0.0))
                taken.append(places)
            else:
                purse = self._purses.get(name)
                if purse is None:
                    unknown = (*unknown, meter)
                    continue
                if amount > (room := purse.room(meter.limit, share)):
                    denied = _worst(denied, Denied(meter, max(0, room), None, 0.0, purse.spent))
                purses.append((purse, amount))
            levels.append(level)
        if denied is not None or unknown:
            self._untouched(meters, now)
            return unknown or denied or ()
        for rate, level, limit in rates:
            rate.level, rate.at, rate.limit = level, now, limit
        for places in taken:
            places.held += 1
        for purse, amount in purses:
            purse.reserved += amount
            purse.at = now
        if fresh:
            self._forget(self._rates, now)
        return Grant(meters, amounts, levels, now, share)

    def _untouched(self, meters: tuple[Meter, ...], now: int) -> None:
        """Nothing was taken: nothing stays that nobody holds."""
        self._forget(self._rates, now)
        for meter in meters:
            if meter.unit is _CONCURRENT and (places := self._places.get(meter.name)) and not places.held:
                del self._places[meter.name]

    def seed(self, meter: Meter, spent: int, now: int, reserved: int = 0) -> None:
        """What is spent of a budget that nobody counted so far; without effect on one that somebody counts."""
        if meter.name not in self._purses:
            self._purses[meter.name] = _Purse(spent, reserved, now)
            self._forget(self._purses, now)

    def adopt(self, grant: Grant) -> None:
        """Counts the places that a grant holds which was made elsewhere."""
        for meter in grant.meters:
            if meter.unit is _CONCURRENT:
                self._places.setdefault(meter.name, _Places()).held += 1

    def top_up(self, grant: Grant, tokens: int, micros: int, now: int, share: int = 1) -> Denied | None:
        """Reserves more on the budgets of a grant; Denied: on none of them."""
        purses: list[tuple[int, _Purse, int]] = []
        for index, meter in enumerate(grant.meters):
            purse = self._purses.get(meter.name) if meter.unit in BUDGETS else None
            if purse is None:
                continue
            more = tokens if meter.unit is _TOKEN_BUDGET else micros
            if more > (room := purse.room(meter.limit, share)):
                return Denied(meter, max(0, room), None, 0.0, purse.spent)
            purses.append((index, purse, more))
        for index, purse, more in purses:
            purse.reserved += more
            purse.at = now
            grant.amounts[index] += more
        return None

    def give_back(self, grant: Grant, tokens: int, micros: int, now: int) -> None:
        """Settles a grant; a second time has no effect."""
        for index, amount in enumerate(grant.amounts):
            meter = grant.meters[index]
            unit, name = meter.unit, meter.name
            if unit is _TOKENS:
                if tokens != amount and not grant.shared:  # else it was counted elsewhere, by another clock
                    limit = meter.limit if grant.share == 1 else -(-meter.limit // grant.share)
                    self._correct(name, limit, grant.levels[index], grant.at, (tokens - amount) * MINUTE, now)
            elif unit is _CONCURRENT:
                places = self._places.get(name)
                if places is not None:
                    places.held -= 1
                    if places.held <= 0:
                        del self._places[name]
            elif unit is not _REQUESTS:
                purse = self._purses.get(name)
                if purse is not None:
                    purse.reserved = max(0, purse.reserved - amount)
                    purse.spent += tokens if unit is _TOKEN_BUDGET else micros
                    purse.at = now
        grant.amounts = []

    def _correct(self, name: str, limit: int, mark: int, at: int, difference: int, now: int) -> None:
        """Takes what a request used beyond its charge, or gives back what it did not use and what is still there:
        the level was `mark` when it was charged, at `at`, and what has drained since is gone."""
        rate = self._rates.get(name)
        if rate is None:
            if difference <= 0:
                return
            rate = self._rates[name] = _Rate(now, limit)
        level = rate.drained(limit, now)
        if difference < 0:
            difference = max(difference, -max(0, mark - (now - at) * limit))
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

    async def acquire(self, meters: tuple[Meter, ...], amounts: list[int]) -> Grant | Denied:
        """As `Meters`; waits only where a budget is asked of the ledger."""
        while True:
            answer = self._counts.take(meters, amounts, self._clock())
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
    return spent.tokens if meter.unit is _TOKEN_BUDGET else spent.micros


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
