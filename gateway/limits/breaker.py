"""Whether it is worth asking.  Pure: the caller says what time it is."""

from __future__ import annotations

from collections import deque
from random import Random

_FAILURES = 5
_WITHIN = 2.0  # seconds
_SOON = 0.05  # seconds between two tries while it is closed
_PROBE = 1.0  # seconds between two tries while it is open, for ever
_JITTER = 0.2  # of that, so that processes that failed together do not come back together


class Breaker:
    """Opens after 5 failures within 2 s, closes with the first success.  Times in seconds."""

    def __init__(self, random: Random) -> None:
        self._failures: deque[float] = deque(maxlen=_FAILURES)
        self._random = random
        self.open = False

    def failed(self, now: float) -> bool:
        """Whether this failure has opened it."""
        self._failures.append(now)
        opens = not self.open and len(self._failures) == _FAILURES and now - self._failures[0] <= _WITHIN
        self.open = self.open or opens
        return opens

    def succeeded(self) -> None:
        """Closes it."""
        if self.open:
            self.open = False
            self._failures.clear()

    def pause(self) -> float:
        """Seconds until the next try."""
        if not self.open:
            return _SOON
        return _PROBE * (1 + _JITTER * (2 * self._random.random() - 1))
