"""Guessing keys: who shows too many wrong ones is told to wait."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from gateway.api.addresses import neighbourhood
from gateway.domain.errors import GatewayError, Unauthenticated

_FAILURES = 20
_SECONDS = 60.0
_REMEMBERED = 4096  # addresses; the one that has failed least lately goes

_log = logging.getLogger("gateway.auth")


class Failures:
    """Counts wrong keys by the address that they come from.

    A right key is never refused for its address: many people may sit behind one.  So an address is not locked out; its
    wrong keys are only answered with less and less use.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def judged(self, error: GatewayError, client: str) -> GatewayError:
        """What the client is told: the error, or to wait, when it is a wrong key and too many came before it within a
        minute.  `client` is an address."""
        if not isinstance(error, Unauthenticated) or error.code != Unauthenticated.code:
            return error
        now, place = self._clock(), neighbourhood(client)
        times = self._failed.get(place)
        if times is None:
            times = self._failed[place] = deque(maxlen=_FAILURES)
            if len(self._failed) > _REMEMBERED:
                self._failed.popitem(last=False)
        self._failed.move_to_end(place)
        if len(times) == _FAILURES and now - times[0] < _SECONDS:
            return Unauthenticated(
                f"Too many wrong API keys came from {place}: try again later, or with the right one.",
                status=429,
                code="too_many_wrong_keys",
                retry_after=_SECONDS - (now - times[0]),
                should_retry=False,
            )
        times.append(now)
        if len(times) == _FAILURES and now - times[0] < _SECONDS:
            _log.warning("too many wrong API keys", extra={"client": place, "within_s": round(now - times[0], 1)})
        return error

    def __len__(self) -> int:
        return len(self._failed)
