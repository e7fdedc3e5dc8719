"""What a request is charged with, for whom, and in which words it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dataplane.metered import Permit, Turnstile
from gateway.domain.call import Call, Client, Endpoint
from gateway.domain.errors import Forbidden, RateLimited
from gateway.domain.limits import MAX_BUDGET, Allowance, Allowances, Budget, Limits, Metered
from gateway.domain.money import MILLION, Price
from gateway.domain.principal import Principal
from gateway.domain.snapshot import Target
from gateway.domain.usage import Usage
from gateway.limits.grants import NO_LEDGER
from gateway.limits.memory import MemoryMeters

NOW = 1_796_047_388.0  # Monday, 30 November 2026, 14:03:08 UTC
TARGET = Target("up", "m")


class Gate:
    """A turnstile whose clock stands still."""

    def __init__(self, **allowances: Any) -> None:
        self.now = NOW
        self._turnstile = Turnstile(MemoryMeters(NO_LEDGER, lambda: round(self.now * 1000)), lambda: self.now)
        self._allowances = Allowances(**allowances)

    async def admit(
        self,
        principal: Principal,
        *,
        user: str = "",
        targets: Sequence[Target] = (TARGET,),
        endpoint: Endpoint = Endpoint.CHAT,
        size: int = 400,
        **body: Any,
    ) -> Permit:
        client = Client(user=user, team=principal.team)
        call = Call("req", endpoint, "m", body, False, False, principal, client, size=size)
        return await self._turnstile.admit(call, targets, self._allowances)

    async def refusal(self, principal: Principal, **more: Any) -> RateLimited:
        with pytest.raises(RateLimited) as caught:
            await self.admit(principal, **more)
        return caught.value


def key(name: str = "k", **more: Any) -> Principal:
    return Principal(name, key=name, **more)


async def test_a_request_counts_for_its_key_its_team_its_user_and_its_model() -> None:
    two, three = Allowance(Limits(requests_per_minute=2)), Allowance(Limits(requests_per_minute=3))
    gate = Gate(teams={"red": three}, users={"ann": two})
    model = Target("up", "m", metered=Metered("m", Limits(requests_per_minute=5)))
    for _ in range(2):
        await gate.admit(key(team="red"), user="ann", targets=[model])
    assert (
        "You have used your 2 requests a minute"
        in (await gate.refusal(key(team="red"), user="ann", targets=[model])).message
    )
    await gate.admit(key("other", team="red"), targets=[model])
    assert "of the team 'red'" in (await gate.refusal(key("other", team="red"), targets=[model])).message
    for _ in range(2):
        await gate.admit(key("third"), user="bob", targets=[model])
    assert "of the model 'm'" in (await gate.refusal(key("third"), targets=[model])).message
    await gate.admit(key("third"), user="bob")


async def test_two_people_behind_one_key_have_limits_of_their_own() -> None:
    gate = Gate(user=Allowance(None, (Budget(None, 5000, "day"),)))
    for user in ("ann", "bob"):
        (await gate.admit(key(), user=user)).release(Usage(100, 4000), 0)
        refused = await gate.refusal(key(), user=user)
        assert refused.message == (
            "You have used up your budget, 5,000 tokens a day: 900 tokens are left that nothing running needs, and "
            "this may need more. It begins anew at 00:00 UTC on 1 December 2026, in 10 hours."
        )


async def test_a_refusal_says_how_long_to_wait_and_until_when() -> None:
    gate = Gate()
    principal = key(limits=Limits(requests_per_minute=20))
    for _ in range(20):
        await gate.admit(principal)
    gate.now += 0.5
    refused = await gate.refusal(principal)
    assert refused.message == (
        "You have used the 20 requests a minute of this key; try again in 3 seconds (at 14:03:11 UTC)."
    )
    assert dict(refused.headers()) == {
        b"retry-after": b"3",
        b"x-should-retry": b"true",
        b"x-ratelimit-limit-requests": b"20",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"59.5s",
    }
    gate.now += 2.5
    await gate.admit(principal)


async def test_a_client_is_told_not_to_try_by_itself_when_the_wait_is_long() -> None:
    gate = Gate()
    principal = key(limits=Limits(tokens_per_minute=10))
    (await gate.admit(principal)).release(Usage(500, 500), 0)
    refused = await gate.refusal(principal)
    assert refused.message == (
        "You have used the 10 tokens a minute of this key; try again in 60 minutes (at 15:03:08 UTC)."
    )  # never more than an hour, whatever was used
    assert dict(refused.headers())[b"x-should-retry"] == b"false"


async def test_whoever_has_no_limits_is_not_counted() -> None:
    permit = await Gate().admit(key())
    assert permit.headers() == []
    permit.release(Usage(10**6, 10**6), 10**9)


async def test_a_day_begins_anew_at_midnight_utc_and_only_then() -> None:
    gate = Gate()
    principal = key(budgets=(Budget(None, 5000, "day"),))
    (await gate.admit(principal)).release(Usage(1000, 4000), 0)
    gate.now = NOW + 35_811
    await gate.refusal(principal)
    gate.now = NOW + 35_812
    await gate.admit(principal)


async def test_an_embedding_reserves_no_answer() -> None:
    gate = Gate()
    principal = key(budgets=(Budget(None, 100, "total"),))
    await gate.admit(principal, endpoint=Endpoint.EMBEDDINGS, size=400)
    refused = await gate.refusal(principal, endpoint=Endpoint.EMBEDDINGS, size=4)
    assert refused.message == (
        "You have used up the budget of this key, 100 tokens in all. Whoever runs this gateway can raise it."
    )


async def test_where_it_may_go_to_several_places_the_dearest_is_reserved_for() -> None:
    gate = Gate()
    dear = Target("a", "m", price=Price(1 * MILLION, 10 * MILLION))
    cheap = Target("b", "m", price=Price(2 * MILLION, 3 * MILLION))
    principal = key(budgets=(Budget(100 * 2 + 50 * 10, None, "total"),))
    await gate.admit(principal, targets=[cheap, dear], max_tokens=50)
    with pytest.raises(Forbidden, match="has no price"):
        await gate.admit(principal, targets=[dear, TARGET])


@given(
    most=st.one_of(st.none(), st.integers(1, 2**31 - 1)),
    count=st.integers(1, 128),
    context=st.one_of(st.none(), st.integers(1, 10**8)),
    size=st.integers(0, 10**9),
    price=st.integers(0, 10**12),
)
async def test_no_parameter_makes_a_reservation_negative_or_too_large(
    most: int | None, count: int, context: int | None, size: int, price: int
) -> None:
    gate = Gate()
    limits = Limits(10**8, 10**8, 10**8)
    principal = key(limits=limits, budgets=(Budget(MAX_BUDGET, MAX_BUDGET, "total"),))
    target = Target("up", "m", context_length=context, price=Price(price, price))
    permit = await gate.admit(principal, targets=[target], size=size, n=count, max_tokens=most)
    assert permit._grant is not None
    assert 0 <= permit._grant.micros <= MAX_BUDGET
    assert 0 <= permit._grant.tokens <= size // 4 + 4096 * count
    assert permit.check > 0
