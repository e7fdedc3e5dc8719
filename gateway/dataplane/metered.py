"""What a request is charged with before it is sent anywhere, and the refusal of one that is too much.

A request counts for its key, its team, its user and its model.  Its tokens are estimated (the prompt by its size, the
answer by what it may be, up to 4,096 tokens) and corrected when it is over.  While an answer is longer than was
reserved for it, more is reserved for it as it streams.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from operator import is_

from gateway.domain.call import Call, Endpoint
from gateway.domain.errors import Forbidden, RateLimited, Reason
from gateway.domain.limits import (
    BUDGETS,
    MAX_BUDGET,
    RATES,
    Allowance,
    Allowances,
    Budget,
    Limits,
    Meter,
    Metered,
    Unit,
    meters_of,
)
from gateway.domain.money import Price
from gateway.domain.snapshot import Target
from gateway.domain.usage import Usage
from gateway.limits.grants import MINUTE, Bill, Denied, Grant, Meters, Standing

_BYTES_PER_TOKEN = 4  # English text
_ANSWER = 4096  # tokens that are reserved for an answer at most
_LAST = 256  # tokens: what is still asked for when more was refused
_SHORT = 60.0  # seconds that a client may well wait by itself
_MICROS = 1_000_000
_DAY = 86_400
_KNOWN = 10_000  # scopes whose meters are remembered
_NEVER = sys.maxsize
_NOTHING = Usage()
_GENERATING = (Endpoint.CHAT, Endpoint.COMPLETIONS)

Headers = list[tuple[bytes, bytes]]


class _Bill(Bill):
    """`in_money`: one of its budgets is."""

    __slots__ = ("in_money",)

    def __init__(self, meters: Iterable[Meter]) -> None:
        super().__init__(meters)
        self.in_money = any(meter.unit is Unit.MONEY_BUDGET for meter in self.budgets)


class Permit:
    """What a request was granted.  `check`: when an answer has so many tokens, `top_up` is due."""

    __slots__ = ("_grant", "_meters", "_price", "_reserved", "_step", "check")

    def __init__(
        self,
        meters: Meters | None = None,
        grant: Grant | None = None,
        answer: int = 0,
        price: Price | None = None,
    ) -> None:
        self._meters = meters
        self._grant = grant
        self._price = price
        self._reserved = self._step = answer
        self.check = _NEVER

    def watch(self) -> None:
        """The answer may be longer than what is reserved for it."""
        self.check = self._reserved * 3 // 4

    async def top_up(self, tokens: int) -> None:
        """Reserves more for an answer that has this many tokens now.  Raises RateLimited when there is no more, and
        what was reserved is used."""
        if self._meters is None or self._grant is None:
            return
        step = self._step if tokens < self._reserved else min(self._step, _LAST)
        cost = 0 if self._price is None else self._price.of(0, step)
        denied = await self._meters.top_up(self._grant, step, cost)
        if denied is None:
            self._reserved += step
            self.check = self._reserved - step // 4
        elif tokens < self._reserved:
            self.check = self._reserved
        else:
            raise _over_budget(denied, time.time(), "This answer has used up")

    def headers(self) -> Headers:
        """Where the limits stand that it was charged to, in OpenAI's words."""
        grant = self._grant
        if grant is None:
            return []
        headers: Headers = []
        if (standing := grant.rate_of_requests) is not None:
            headers += _shown(standing, _HEADERS[Unit.REQUESTS])
        if (standing := grant.rate_of_tokens) is not None:
            headers += _shown(standing, _HEADERS[Unit.TOKENS])
        return headers

    def release(self, usage: Usage | None, cost: int) -> None:
        """The request is over and has cost so many micros.  A second time has no effect."""
        if self._meters is not None and self._grant is not None:
            used = usage or _NOTHING
            self._meters.release(self._grant, used.prompt + used.completion, cost)
            self._meters = None
        self.check = _NEVER


class Turnstile:
    """Lets requests through.  `clock`: Unix seconds."""

    def __init__(self, meters: Meters, clock: Callable[[], float] = time.time) -> None:
        self._meters = meters
        self._clock = clock
        self._known: dict[tuple[str, str, str, str, int], tuple[_Source, _Bill]] = {}

    async def admit(self, call: Call, targets: Sequence[Target], allowances: Allowances) -> Permit:
        """Charges a call that may go to these targets.  Raises RateLimited, and Forbidden for a model without a price
        where money is counted."""
        now = self._clock()
        bill = self._bill(call, targets[0], allowances, int(now) // _DAY)
        if not bill.meters:
            return Permit()
        answer, bound = _answer(call, targets[0])
        prompt = call.size // _BYTES_PER_TOKEN
        price = _price(call, targets) if bill.in_money else None
        cost = 0 if price is None else min(price.of(prompt, answer), MAX_BUDGET)
        granted = await self._meters.acquire(bill, prompt + answer, cost)
        if isinstance(granted, Denied):
            raise _refusal(granted, now)
        permit = Permit(self._meters, granted, answer, price)
        if bill.budgets and bound > answer > 0:
            permit.watch()
        return permit

    def _bill(self, call: Call, target: Target, allowances: Allowances, day: int) -> _Bill:
        principal, user, group, metered = call.principal, call.client.user, call.client.team, target.metered
        team = allowances.teams.get(group)
        person = allowances.users.get(user, allowances.user) if user else None
        who = (principal.key, group, user, "" if metered is None else metered.name, day)
        source: _Source = (principal.limits, principal.budgets, allowances.key, team, person, metered)
        known = self._known.get(who)
        if known is not None and all(map(is_, known[0], source)):
            return known[1]
        own = Allowance(principal.limits, principal.budgets)
        meters = meters_of(f"key:{principal.key}", allowances.key if own == Allowance() else own, day)
        if team is not None:
            meters += meters_of(f"team:{group}", team, day)
        if person is not None:
            meters += meters_of(f"user:{user}", person, day)
        if metered is not None:
            meters += meters_of(f"model:{metered.name}", Allowance(metered.limits), day)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        bill = _Bill(meters)
        self._known[who] = (source, bill)
        return bill


#: What a bill was made of; the same objects give the same bill.
_Source = tuple[Limits | None, tuple[Budget, ...], Allowance, Allowance | None, Allowance | None, Metered | None]
_HEADERS = {
    unit: (
        f"x-ratelimit-limit-{unit}".encode(),
        f"x-ratelimit-remaining-{unit}".encode(),
        f"x-ratelimit-reset-{unit}".encode(),
    )
    for unit in RATES
}
#: What a limit is called, with its number before it.
_LIMITS = {
    Unit.REQUESTS: "requests a minute",
    Unit.TOKENS: "tokens a minute",
    Unit.CONCURRENT: "requests at once",
}


def _shown(standing: Standing, names: tuple[bytes, bytes, bytes]) -> Headers:
    """What is left of a rate: what has begun to drain is not there yet."""
    limit, level = standing
    return [
        (names[0], b"%d" % limit),
        (names[1], b"%d" % (limit + -level // MINUTE)),
        (names[2], _span(-(-level // limit))),
    ]


def _answer(call: Call, target: Target) -> tuple[int, int]:
    """Tokens to reserve for the answer, and how many it may have."""
    if call.endpoint not in _GENERATING:
        return 0, 0
    body = call.body
    count = body.get("n") or 1
    most = body.get("max_completion_tokens") or body.get("max_tokens") or target.context_length or _NEVER
    return min(most, _ANSWER) * count, most * count


def _price(call: Call, targets: Sequence[Target]) -> Price:
    """A price that none of the targets is dearer than."""
    if len(targets) == 1 and (only := targets[0].price) is not None:
        return only
    prices = [target.price for target in targets]
    if None in prices:
        raise Forbidden(
            f"The model '{call.model}' has no price, and what you use is counted in money; use another model, or ask "
            "whoever runs this gateway to give it a price.",
            code="model_without_price", param="model", reason=Reason.LIMIT,
        )  # fmt: skip
    known = [price for price in prices if price is not None]
    return Price(max(price.input for price in known), max(price.output for price in known))


def _refusal(denied: Denied, now: float) -> RateLimited:
    meter = denied.meter
    if meter.unit in BUDGETS:
        return _over_budget(denied, now, "You have used up")
    wait = denied.retry_after or 1.0
    limit = _of(meter, f"{meter.limit} {_LIMITS[meter.unit]}")
    if meter.unit is Unit.CONCURRENT:
        message = f"All of {limit} are running; try again when one has ended."
        return RateLimited(message, retry_after=wait, should_retry=True)
    used = "You have used" if meter.unit is Unit.REQUESTS or not denied.remaining else "This needs more than is left of"
    message = f"{used} {limit}; try again in {_in_words(wait)} (at {_clock_time(now + wait)} UTC)."
    standing = zip(
        _HEADERS[meter.unit], (b"%d" % meter.limit, b"%d" % denied.remaining, _span(round(denied.reset * 1000))),
        strict=True,
    )  # fmt: skip
    return RateLimited(message, retry_after=math.ceil(wait), should_retry=wait <= _SHORT, standing=standing)


def _over_budget(denied: Denied, now: float, used: str) -> RateLimited:
    meter = denied.meter
    money = meter.unit is Unit.MONEY_BUDGET
    unit = "" if money else " tokens"
    limit, left = (
        (f"{amount / _MICROS:,.2f}" if money else f"{amount:,}") for amount in (meter.limit, denied.remaining)
    )
    span = {"total": "in all"}.get(meter.period, "a month" if len(meter.period) == 7 else "a day")
    message = f"{used} {_of(meter, 'budget')}, {limit}{unit} {span}"
    if denied.remaining:
        message += f": {left}{unit} {'is' if money else 'are'} left that nothing running needs, and this may need more"
    wait = None
    if meter.ends:
        wait = max(1.0, meter.ends - now)
        begins = datetime.fromtimestamp(meter.ends, UTC)
        message += f". It begins anew at 00:00 UTC on {begins.day} {begins:%B %Y}, in {_in_words(wait)}"
    else:
        message += ". Whoever runs this gateway can raise it"
    return RateLimited(
        f"{message}.", type="insufficient_quota", code="budget_exceeded", retry_after=wait, should_retry=False
    )


def _of(meter: Meter, what: str) -> str:
    """What is somebody's, in words."""
    kind, _, name = meter.scope.partition(":")
    if kind == "user":
        return f"your {what}"
    return f"the {what} of {'this key' if kind == 'key' else f'the {kind} {name!r}'}"


def _in_words(seconds: float) -> str:
    for size, word in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= 2 * size or size == 1:
            count = max(1, math.ceil(seconds / size))
            return f"{count} {word}{'' if count == 1 else 's'}"
    raise AssertionError


def _clock_time(at: float) -> str:
    return f"{datetime.fromtimestamp(math.ceil(at), UTC):%H:%M:%S}"


def _span(milliseconds: int) -> bytes:
    """A length of time as OpenAI writes it: 250ms, 12s, 1m30s."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, seconds = divmod(milliseconds / 1000, 60)
    return (f"{int(minutes)}m" if minutes else "").encode() + f"{seconds:.3f}".rstrip("0").rstrip(".").encode() + b"s"
