"""What a request used and how it ended: collected while it runs, accounted for once when it is settled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.dataplane.metered import Permit
from gateway.dataplane.transcript import Transcript
from gateway.domain.call import Call, Endpoint
from gateway.domain.content import Content
from gateway.domain.entry import Entry
from gateway.domain.errors import GatewayError, Reason, Unaccounted
from gateway.domain.money import MILLION, Price
from gateway.domain.principal import Principal
from gateway.domain.snapshot import Target
from gateway.domain.usage import Usage
from gateway.telemetry.metrics import Metrics

# For upstreams that report no usage.
_BYTES_PER_TOKEN = 4  # English text
_ENVELOPE = 400  # bytes of a whole answer that are not text
_NOTHING = Usage()

_access = logging.getLogger("gateway.access")


class Ledger(Protocol):
    """Where requests are written down.  Nothing here waits; what is handed over is not forgotten any more, whatever
    becomes of the task that did it.  What returns a bool says whether that also outlives a `kill -9`."""

    @property
    def trouble(self) -> GatewayError | None:
        """Why nothing can be written at this moment, None when it can."""
        ...

    def opened(self, request_id: str, known: Callable[[], Entry]) -> None:
        """A request runs; `known` tells what is known of it at that moment, as often as it is asked.  Said again when
        more is known than was."""
        ...

    def shown(self, request_id: str) -> bool:
        """The client of a request that runs is about to be shown something."""
        ...

    def checkpoint(self, request_id: str, completion: int) -> None:
        """A request that runs has had so many tokens."""
        ...

    def settled(self, entry: Entry) -> bool:
        """A request has ended."""
        ...


class Progress(Protocol):
    """What counts the tokens of a stream."""

    @property
    def tokens(self) -> int: ...


@dataclass(slots=True)
class Record:
    """One request's account.  Owned by the task that serves it; settled exactly once.  `at`: Unix time in nanoseconds;
    the other times are the monotonic clock's, in seconds.  `progress`: what counts the stream that is relayed.
    `reason`: how it ended, once it is settled.  `transcript`: only where the key has it that way."""

    request_id: str
    at: int
    endpoint: str
    principal: Principal
    ledger: Ledger
    metrics: Metrics
    started: float = field(default_factory=time.monotonic)
    model: str = ""
    upstream: str = ""
    adapter: str = ""
    price: Price | None = None
    task: str = ""
    user: str = ""
    team: str = ""
    status: int = 0
    attempts: int = 0
    usage: Usage | None = None
    progress: Progress | None = None
    permit: Permit = field(default_factory=Permit)
    first_byte: float | None = None
    last_byte: float | None = None
    reason: Reason | None = None
    transcript: Transcript | None = None
    _expected: int = 0  # tokens of the prompt
    _opened: bool = False
    _accounted: bool = True

    def serve_from(self, target: Target) -> None:
        """This target is tried now."""
        self.upstream = target.upstream
        self.adapter = target.adapter or ""
        self.price = target.price
        self.attempts += 1

    def open(self, call: Call) -> None:
        """From now on the ledger knows that the request runs, and what is known of it."""
        self._expected = call.size // _BYTES_PER_TOKEN
        self._opened = True
        self.ledger.opened(self.request_id, self._known)

    def show(self) -> None:
        """The client is about to be shown something: this request is not forgotten any more.  Raises Unaccounted."""
        if not self.ledger.shown(self.request_id):
            raise Unaccounted

    def checkpoint(self) -> None:
        """Notes how far a stream is."""
        if self.progress is not None and self.first_byte is not None:
            self.ledger.checkpoint(self.request_id, self.progress.tokens)

    def inter_token(self, usage: Usage) -> float | None:
        """Mean seconds between two tokens; None for an answer that had no two of them."""
        if usage.completion > 1 and self.first_byte is not None and self.last_byte is not None:
            return (self.last_byte - self.first_byte) / (usage.completion - 1)
        return None

    def cost(self, usage: Usage) -> int:
        """Micros."""
        return 0 if self.price is None else self.price.cost(usage)

    def settle(self, reason: Reason, phase: str) -> None:
        """The terminal step.  The first call counts; the ledger, the access log and the metrics then have this request.

        A request that was refused while the ledger is in trouble, before it was opened, has no row: it used nothing,
        and rows would pile up.  The metrics count it.
        """
        if self.reason is not None:
            return
        self.reason = reason
        now = time.monotonic()
        usage = self.usage
        cost = 0 if usage is None else self.cost(usage)
        if self._opened or self.ledger.trouble is None:
            duration = round((now - self.started) * MILLION)
            self._accounted = self.ledger.settled(self._entry(reason.value, usage or _NOTHING, cost, duration))
        else:
            self.metrics.unaccounted()
        self.permit.release(usage, cost)
        ttft = None if self.first_byte is None else self.first_byte - self.started
        if reason in (Reason.CLIENT_CANCEL, Reason.SLOW_CLIENT):
            self.metrics.cancelled(phase)
        self.metrics.request(
            model=self.model,
            adapter=self.adapter,
            upstream=self.upstream,
            status=self.status,
            reason=reason.value,
            usage=usage,
            cost=cost,
            ttft=ttft,
            inter_token=None if usage is None else self.inter_token(usage),
            duration=now - self.started,
        )
        if _access.isEnabledFor(logging.INFO):
            # What `_access.info` does, without looking for the line of code that called it.
            said = (self.endpoint, self.status, reason.value)
            fields = self._fields(reason, ttft, now)
            _access.handle(_access.makeRecord(_access.name, logging.INFO, "", 0, "%s %d %s", said, None, extra=fields))

    def content(self, transcript: Transcript) -> Content:
        """What was asked and answered."""
        return Content(
            self.request_id,
            self.at,
            self.endpoint,
            self.principal.key,
            self.principal.name,
            self.user,
            self.team,
            self.model,
            self.adapter,
            self.status,
            "" if self.reason is None else self.reason.value,
            transcript.body,
            tuple(transcript.answer),
            transcript.whole,
            transcript.size,
        )

    def show_end(self) -> None:
        """The client is about to be shown the end, and its account is not forgotten any more.  Raises Unaccounted."""
        if not self._accounted:
            raise Unaccounted

    def _known(self) -> Entry:
        """What is known while it runs."""
        return self._entry("", Usage(self._expected, estimated=True), 0, 0)

    def _entry(self, reason: str, usage: Usage, cost: int, duration: int) -> Entry:
        principal, price = self.principal, self.price
        first_byte = None if self.first_byte is None else round((self.first_byte - self.started) * MILLION)
        return Entry(
            self.request_id,
            self.at // 1000,
            self.endpoint,
            self.model,
            self.adapter,
            self.upstream,
            principal.key,
            principal.name,
            self.team,
            self.user,
            self.task,
            self.attempts,
            self.status,
            reason,
            usage.prompt,
            usage.completion,
            usage.cached,
            usage.reasoning,
            usage.estimated,
            cost,
            "" if price is None else price.words,
            first_byte,
            duration,
        )

    def _fields(self, reason: Reason, ttft: float | None, now: float) -> dict[str, Any]:
        usage = self.usage or _NOTHING
        return {
            "request_id": self.request_id,
            "key": self.principal.name,
            "team": self.team,
            "user": self.user,
            "model": self.model,
            "upstream": self.upstream,
            "adapter": self.adapter,
            "task": self.task,
            "status": self.status,
            "reason": reason.value,
            "attempts": self.attempts,
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "estimated": usage.estimated,
            "ttft_ms": None if ttft is None else round(ttft * 1000, 1),
            "duration_ms": round((now - self.started) * 1000, 1),
        }


def estimate(call: Call, completion: int) -> Usage:
    """Usage of an answer whose upstream reported none: the prompt by its size, the answer by its pieces."""
    return Usage(prompt=call.size // _BYTES_PER_TOKEN, completion=completion, estimated=True)


def answer_tokens(call: Call, body: bytes) -> int:
    """An estimate for a whole answer without usage: its text by its size; embeddings generate nothing."""
    if call.endpoint not in (Endpoint.CHAT, Endpoint.COMPLETIONS):
        return 0
    return max(0, len(body) - _ENVELOPE) // _BYTES_PER_TOKEN


def display_extras(call: Call, target: Target, record: Record, usage: Usage) -> dict[str, Any]:
    """Keys that Open WebUI shows beside an answer's usage; no other client gets them."""
    if not call.client.openwebui:
        return {}
    extras: dict[str, Any] = {"upstream": target.upstream}
    if target.adapter:
        extras["adapter"] = target.adapter
    if record.first_byte is not None:
        extras["time_to_first_token_ms"] = round((record.first_byte - record.started) * 1000)
        if seconds := record.inter_token(usage):
            extras["tokens_per_second"] = round(1 / seconds, 1)
    if record.price is not None:
        extras["cost"] = record.cost(usage) / MILLION
    return extras
