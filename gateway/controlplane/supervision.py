"""When an engine is believed dead, and when one that died is started again.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Supervision:
    """The rules, with times in seconds.

    An engine starts again after `first_delay`, after twice as long for each further death in a row, at most after
    `longest_delay`; a death after `settled` seconds of being ready is not in a row with those before.  After `deaths`
    within `window` it is given up.

    It is asked for /health each `boot_poll` until it is ready and each `poll` after that.  One that has no answer
    within `probe_timeout`, `misses` times in a row, hangs and is killed.  That is patient, because an engine under load
    may be slow to answer, and killing it costs every stream.
    """

    first_delay: float = 1.0
    longest_delay: float = 30.0
    settled: float = 120.0
    deaths: int = 5
    window: float = 600.0
    boot_poll: float = 0.25
    poll: float = 5.0
    probe_timeout: float = 10.0
    misses: int = 5


@dataclass(frozen=True, slots=True)
class Death:
    """The end of one life of an engine.

    `at`: when, on the monotonic clock.  `ready_for`: seconds that it was ready; 0: it never was.  `final`: starting it
    again cannot help.
    """

    reason: str
    at: float
    ready_for: float = 0.0
    final: bool = False


def restart_delay(deaths: Sequence[Death], rules: Supervision, jitter: float) -> float | None:
    """Seconds until an engine that died like this (oldest first) starts again; None: it is given up.

    `jitter`, from 0 to 1, adds up to a fifth, so that engines that died together do not start together.
    """
    last = deaths[-1]
    if last.final or sum(last.at - death.at <= rules.window for death in deaths) >= rules.deaths:
        return None
    delay = rules.first_delay
    for death in reversed(deaths):
        if death is not last:
            delay *= 2
        if death.ready_for >= rules.settled:
            break
    return min(rules.longest_delay, delay * (1 + jitter / 5))
