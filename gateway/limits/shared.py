"""Meters that several gateways share, in Valkey (or Redis); and in this process while that cannot be reached.

While it answers, it decides, for all meters of a request in one call.  While it does not, each process grants its part
of every limit (limit / processes, rounded up), with what it holds itself already counted.  So a limit is exceeded by no
more than one request (or token) per process and meter, and by what was granted before the change.  What was held and
used meanwhile is told to Valkey before it decides again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Literal

from gateway.domain.limits import BUDGETS, IN_TOKENS, Meter
from gateway.domain.secret import Secret
from gateway.limits.grants import Bill, Books, Denied, Grant, tightest
from gateway.limits.link import Answer, Call, Link, Unreachable
from gateway.limits.memory import Counts, monotonic, spent_of
from gateway.limits.script import CODES, DENIED, LEASE, MEMBERS, TAG, UNKNOWN, key_of

_BEAT = 4.0  # seconds between two renewals of the leases
_CHUNK = 200  # leases in one call, so that none takes long
_log = logging.getLogger("gateway.limits")

Mode = Literal["shared", "local"]


class SharedMeters:
    """`replicas`: how many processes there are as long as Valkey has not said.  `tell` is given each change of mode.
    `now` stands in for the server's clock (milliseconds)."""

    def __init__(
        self,
        url: Secret,
        ledger: Books,
        *,
        replicas: int = 1,
        timeout: float = 0.05,
        tell: Callable[[Mode], None] = lambda mode: None,
        now: Callable[[], int] | None = None,
    ) -> None:
        random = Random()  # noqa: S311 - spreads probes, and tells processes apart
        self._link = Link(url, timeout, self, random)
        self._ledger = ledger
        self._tell = tell
        self._now = now
        self._name = f"{random.getrandbits(64):016x}"
        self._leases = 0
        self._share = replicas
        self._counts = Counts(replicas)  # of this process, while it counts alone
        self._held: dict[str, Grant] = {}
        self._over: dict[Meter, list[str]] = defaultdict(list)  # leases that ended while nobody could be told
        self._owed: dict[Meter, int] = defaultdict(int)  # what was spent meanwhile
        self._telling: dict[Meter, int] = {}  # of that, what a greeting tells that has not come to its end
        self._doubted: set[Meter] = set()  # budgets that were told what was spent, or not
        self._lost_at = 0
        self._given_up = False
        self._beat: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Waits for Valkey for a moment, and goes on without it."""
        await self._link.start()
        if not self._link.up:
            self._tell("local")
        self._beat = asyncio.create_task(self._beating(), name="leases")

    async def close(self) -> None:
        """What was released is told, as far as it can be."""
        if self._beat is not None:
            self._beat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._beat
        await self._link.close(((MEMBERS,), ("leave", "", self._name)))

    async def acquire(self, bill: Bill, tokens: int, micros: int) -> Grant | Denied:
        """As `Meters`."""
        lease = self._lease() if bill.places or bill.budgets else ""
        if self._link.up:
            with contextlib.suppress(Unreachable):
                return await self._ask(bill, tokens, micros, lease)
        return await self._alone(bill, tokens, micros, lease)

    async def top_up(self, grant: Grant, tokens: int, micros: int) -> Denied | None:
        """As `Meters`."""
        if self._link.up:
            with contextlib.suppress(Unreachable):
                return await self._ask_more(grant, tokens, micros)
        await self._seed(grant.bill.budgets)
        return self._counts.top_up(grant, tokens, micros, monotonic())

    def release(self, grant: Grant, tokens: int, micros: int) -> None:
        """As `Meters`."""
        if grant.over:
            return
        self._held.pop(grant.lease, None)
        if self._link.up:
            with contextlib.suppress(Unreachable):
                self._link.post(_release(grant, tokens, micros, self._time()), lambda: self._unsure(grant))
                grant.over = True
                return
        for meter in grant.bill.budgets:
            self._owed[meter] += _amount_of(meter, tokens, micros)
        self._ended(grant)
        self._counts.give_back(grant, tokens, micros, monotonic())

    # What the link says.

    def greeting(self) -> list[Call]:
        """As `Owner`: what Valkey must know before it decides again."""
        self._doubted.update(self._telling)
        self._telling, self._owed = self._owed, defaultdict(int)
        calls = [self._presence(), *self._doubts(), *self._told()]
        for meter, amount in self._telling.items():
            calls.append(((key_of(meter),), ("owe", self._time(), "", CODES[meter.unit], meter.limit, amount)))
        for key, limit, level in self._counts.full(monotonic()):
            calls.append(((TAG + key,), ("owe", self._time(), "", "t", limit * self._share, level)))
        return calls

    def connected(self, answers: list[Answer]) -> None:
        """As `Owner`."""
        self._share = max(1, answers[0][1])
        self._telling = {}
        self._doubted = set(self._owed)  # what has happened while it was greeted
        self._owed.clear()
        self._counts = Counts(self._share)
        self.renew()
        if self._given_up:
            _log.warning("limits are shared again")
            self._given_up = False
        self._tell("shared")

    def lost(self) -> None:
        """As `Owner`: from now on this process counts alone."""
        self._lost_at = monotonic()
        for grant in self._held.values():
            self._counts.adopt(grant, self._lost_at)

    def given_up(self, why: str) -> None:
        """As `Owner`."""
        _log.warning("limits are counted in this process alone", extra={"why": why, "processes": self._share})
        self._given_up = True
        self._tell("local")

    # With Valkey.

    async def _ask(self, bill: Bill, tokens: int, micros: int, lease: str) -> Grant | Denied:
        keys = [key_of(meter) for meter in bill.meters]
        seeds: dict[int, int] = {}

        def late(answer: Answer) -> None:
            if answer[0] not in (DENIED, UNKNOWN):
                self.release(granted(answer), 0, 0)

        def granted(answer: Answer) -> Grant:
            first, last = 2 + len(bill.requests), 2 + len(bill.requests) + len(bill.tokens)
            marks = answer[first:last]
            requests = tightest(bill.requests, answer[2:first])
            return Grant(
                bill, tokens, micros, requests, tightest(bill.tokens, marks), marks, answer[1], 1, lease, shared=True
            )

        while True:
            arguments: list[str | int] = ["acquire", self._time(), lease]
            for index, meter in enumerate(bill.meters):
                amount = _amount_of(meter, tokens, micros)
                arguments += (CODES[meter.unit], meter.limit, amount, seeds.get(index, ""))
            answer = await self._link.call((keys, arguments), late)
            if answer[0] == UNKNOWN:
                seeds = await self._seeds(bill.meters, answer)
            elif answer[0] == DENIED:
                return _denied(bill.meters, answer)
            else:
                return self._holding(granted(answer))

    async def _ask_more(self, grant: Grant, tokens: int, micros: int) -> Denied | None:
        meters = grant.bill.budgets
        seeds: dict[int, int] = {}
        while True:
            arguments: list[str | int] = ["top_up", self._time(), grant.lease]
            for index, meter in enumerate(meters):
                arguments += (meter.limit, _amount_of(meter, tokens, micros), seeds.get(index, ""))
            answer = await self._link.call(([key_of(meter) for meter in meters], arguments))
            if answer[0] == UNKNOWN:
                seeds = await self._seeds(meters, answer)
            elif answer[0] == DENIED:
                return _denied(meters, answer)
            else:
                grant.tokens += tokens
                grant.micros += micros
                return None

    async def _seeds(self, meters: tuple[Meter, ...], answer: Answer) -> dict[int, int]:
        return {place - 1: await spent_of(self._ledger, meters[place - 1]) for place in answer[1:]}

    def _time(self) -> str | int:
        return "" if self._now is None else self._now()

    async def _beating(self) -> None:
        while True:
            await asyncio.sleep(_BEAT)
            with contextlib.suppress(Unreachable):
                answer = await self._link.call(self._presence())
                self._share = max(1, answer[1])
                self._counts.split(self._share)
                self.renew()

    def _presence(self) -> Call:
        return (MEMBERS,), ("join", "", self._name)

    def _holds(self) -> Iterator[Call]:
        """All leases of this process."""
        held: dict[Meter, list[str | int]] = defaultdict(list)
        for lease, grant in self._held.items():
            for meter in _leased(grant.bill):
                held[meter] += (lease, _amount_of(meter, grant.tokens, grant.micros))
        for meter, leases in held.items():
            for start in range(0, len(leases), 2 * _CHUNK):
                part = leases[start : start + 2 * _CHUNK]
                yield (key_of(meter),), ("hold", self._time(), "", CODES[meter.unit], *part)

    def _told(self) -> Iterator[Call]:
        """Leases that ended while nobody could be told, and those that are held."""
        over, self._over = self._over, defaultdict(list)
        for meter, leases in over.items():
            for start in range(0, len(leases), _CHUNK):
                part = leases[start : start + _CHUNK]
                yield (key_of(meter),), ("drop", self._time(), "", CODES[meter.unit], *part)
        yield from self._holds()

    def _doubts(self) -> list[Call]:
        return [((key_of(meter),), ("doubt", self._time(), "")) for meter in self._doubted]

    def renew(self) -> None:
        """Says that this process still holds what it holds, and what else Valkey should know by now."""
        doubted, doubts = self._doubted, self._doubts()
        self._doubted = set()
        with contextlib.suppress(Unreachable):
            for call in doubts:
                self._link.post(call, lambda: self._doubted.update(doubted))
            for call in self._told():
                self._link.post(call, lambda: None)

    def _unsure(self, grant: Grant) -> None:
        """It is not known whether its release was counted."""
        self._doubted.update(grant.bill.budgets)
        self._ended(grant)

    def _ended(self, grant: Grant) -> None:
        if monotonic() - self._lost_at < LEASE or self._link.up:  # the others are over by themselves
            for meter in _leased(grant.bill):
                self._over[meter].append(grant.lease)

    # Alone.

    async def _alone(self, bill: Bill, tokens: int, micros: int, lease: str) -> Grant | Denied:
        while True:
            answer = self._counts.take(bill, tokens, micros, monotonic())
            if isinstance(answer, Grant):
                answer.lease = lease
                return self._holding(answer)
            if isinstance(answer, Denied):
                return answer
            await self._seed(answer)

    async def _seed(self, meters: Sequence[Meter]) -> None:
        for meter in meters:
            spent = await spent_of(self._ledger, meter)
            held = (
                _amount_of(meter, grant.tokens, grant.micros)
                for grant in self._held.values()
                for other in grant.bill.budgets
                if other.name == meter.name
            )
            self._counts.seed(meter, spent, monotonic(), sum(held))

    def _holding(self, grant: Grant) -> Grant:
        if grant.lease:
            self._held[grant.lease] = grant
            if grant.shared and not self._link.up:  # lost since, and not among those that were held then
                self._counts.adopt(grant, monotonic())
        return grant

    def _lease(self) -> str:
        self._leases += 1
        return f"{self._name}:{self._leases}"


def _amount_of(meter: Meter, tokens: int, micros: int) -> int:
    """What of a request is charged on a meter."""
    if meter.unit in IN_TOKENS:
        return tokens
    return micros if meter.unit in BUDGETS else 1


def _leased(bill: Bill) -> tuple[Meter, ...]:
    """The meters on which a charge is held by a lease, rather than drained."""
    return (*bill.places, *bill.budgets)


def _release(grant: Grant, tokens: int, micros: int, now: str | int) -> Call:
    arguments: list[str | int] = ["release", now, grant.lease]
    keys = []
    for meter, mark in zip(grant.bill.tokens, grant.marks, strict=True):
        keys.append(key_of(meter))
        # Of a grant that this process made alone Valkey knows nothing that it could give back.
        change = tokens - min(grant.charged, -(-meter.limit // grant.share))
        arguments += ("t", meter.limit, change if grant.shared else max(0, change), mark, grant.at)
    for meter in _leased(grant.bill):
        keys.append(key_of(meter))
        arguments += (CODES[meter.unit], meter.limit, _amount_of(meter, tokens, micros), 0, 0)
    return keys, arguments


def _denied(meters: tuple[Meter, ...], answer: Answer) -> Denied:
    _, place, remaining, retry, reset, spent = answer
    return Denied(meters[place - 1], remaining, None if retry < 0 else retry / 1000, reset / 1000, spent)
