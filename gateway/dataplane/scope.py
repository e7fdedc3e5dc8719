"""The life of one request: whichever of {client gone, time-out, drain} comes first ends it.

One task does a request's whole work; ending a request is cancelling that task with a reason.  Time-outs are points in
time, not timers: the one timer of a scope looks at them when it fires and goes to sleep again if they have moved, so
that a chunk that arrives costs two assignments.
"""

from __future__ import annotations

import asyncio

from gateway.domain.errors import Reason

_NEVER = float("inf")
_RECHECK = 0.01  # seconds


class Scope:
    """Owned by the task that makes it.  `reason` is None while nothing has ended the request."""

    __slots__ = (
        "_after",
        "_bytes_due",
        "_closed",
        "_loop",
        "_phase_due",
        "_phase_reason",
        "_sure",
        "_task",
        "_timer",
        "_timer_at",
        "_total_due",
        "phase",
        "reason",
    )

    def __init__(self, total: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a Scope is made inside the task that serves the request")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._total_due = self._loop.time() + total
        self._phase_due = self._bytes_due = _NEVER
        self._phase_reason = Reason.UPSTREAM_TOTAL
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER
        self._sure = False
        self._closed = False
        self._after: Reason | None = None
        self.phase = "admit"
        self.reason: Reason | None = None

    def enter(self, phase: str, seconds: float, reason: Reason) -> None:
        """From now on the request is in `phase`, which may last so long; `reason` ends it after that."""
        self.phase = phase
        self._phase_due = self._loop.time() + seconds
        self._phase_reason = reason
        self._bytes_due = _NEVER
        self._arm()

    def limit(self, total: float) -> None:
        """The whole request, all its attempts together, may take so many seconds from now.  Said before `enter`, which
        sets the timer."""
        self._total_due = self._loop.time() + total

    def streaming(self, byte_idle: float, token_idle: float, event: bool) -> None:
        """Bytes came, and with `event` something that is worth waiting for."""
        now = self._loop.time()
        self._bytes_due = now + byte_idle
        if event:
            self._phase_due = now + token_idle
            self._phase_reason = Reason.UPSTREAM_IDLE
        self._arm()

    def client_turn(self) -> None:
        """It is the client that is waited for now, whose own limits are the server's: until the next `streaming` the
        upstream is not to blame, and only the whole request's time counts."""
        self._phase_due = self._bytes_due = _NEVER

    def cancel(self, reason: Reason) -> None:
        """Ends the request; after `close` it has no effect.  A second reason counts only if the first turns out to end
        no more than an attempt (`resume`): a client that leaves in the moment of a time-out has still left."""
        if self._closed:
            return
        if self.reason is None:
            self.reason = reason
            self._task.cancel()
        elif self._after is None:
            self._after = reason

    def caught(self) -> Reason | None:
        """Called where CancelledError was caught: takes back the cancellation if it was this scope's."""
        if self.reason is not None:
            self._task.uncancel()
        return self.reason

    def resume(self) -> bool:
        """Called where CancelledError was caught: whether what ended was one attempt, and the request goes on with the
        next.  It does not if a second reason has come since: then the cancellation stands, for that reason."""
        self.reason, self._after = self._after, None
        if self.reason is None:
            self._task.uncancel()
        return self.reason is None

    def close(self) -> None:
        """Nothing ends the request any more: it is being settled."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        due = min(self._phase_due, self._bytes_due, self._total_due)
        if due < self._timer_at or self._timer is None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._fire)
            self._timer_at = due
            self._sure = False

    def _fire(self) -> None:
        self._timer, self._timer_at = None, _NEVER
        due = min(self._phase_due, self._bytes_due, self._total_due)
        now = self._loop.time()
        if now < due:
            self._arm()
        elif not self._sure:
            # The loop may have stalled, and what was waited for may lie in the socket: give it one turn to be read.
            # Whatever comes meanwhile does not move this look, or a busy stream would put it off for ever.
            self._sure = True
            self._timer_at = -_NEVER
            self._timer = self._loop.call_later(_RECHECK, self._fire)
        elif due == self._total_due:
            self.cancel(Reason.UPSTREAM_TOTAL)
        elif due == self._bytes_due:
            self.cancel(Reason.UPSTREAM_IDLE)
        else:
            self.cancel(self._phase_reason)
