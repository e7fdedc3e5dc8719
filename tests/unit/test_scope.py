"""What ends a request, where two things end it in the same moment."""

from __future__ import annotations

import asyncio

import pytest

from gateway.dataplane.scope import Scope
from gateway.domain.errors import Reason

LIMITS = (Reason.UPSTREAM_CONNECT, Reason.UPSTREAM_TTFT, Reason.LIMIT)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("other", [Reason.CLIENT_CANCEL, Reason.GATEWAY_DRAIN])
async def test_who_leaves_in_the_moment_of_a_time_out_has_still_left(limit: Reason, other: Reason) -> None:
    """The attempt is over either way, but only without the other reason may the next one begin."""
    scopes: list[Scope] = []

    async def serve() -> tuple[bool, Reason | None]:
        scope = Scope(total=60)
        scopes.append(scope)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            goes_on = scope.resume()
        await asyncio.sleep(0)  # no second cancellation is on its way
        return goes_on, scope.caught()

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    scopes[0].cancel(limit)
    scopes[0].cancel(other)
    assert await task == (False, other)
    assert task.cancelling() == 0


async def test_a_time_out_alone_ends_the_attempt_and_not_the_request() -> None:
    scope = Scope(total=60)
    scope.cancel(Reason.UPSTREAM_TTFT)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(60)
    assert scope.resume()
    assert scope.reason is None
    await asyncio.sleep(0)
    scope.close()
    scope.cancel(Reason.CLIENT_CANCEL)
    await asyncio.sleep(0)  # it is being settled: nothing ends it any more
