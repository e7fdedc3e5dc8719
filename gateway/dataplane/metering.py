"""What a request used and how it ended: collected while it runs, told once when it is settled."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from gateway.dataplane.metered import Permit, micros
from gateway.domain.call import Call, Endpoint
from gateway.domain.errors import Reason
from gateway.domain.snapshot import Price, Target
from gateway.domain.usage import Usage
from gateway.telemetry.metrics import Metrics

# For upstreams that report no usage.
_BYTES_PER_TOKEN = 4  # English text
_ENVELOPE = 400  # bytes of a whole answer that are not text

_access = logging.getLogger("gateway.access")


@dataclass(slots=True)
class Record:
    """One request's account.  Owned by the task that serves it; settled exactly once."""

    request_id: str
    endpoint: str
    principal: str
    started: float = field(default_factory=time.monotonic)
    model: str = ""
    upstream: str = ""
    adapter: str = ""
    task: str = ""
    status: int = 0
    attempts: int = 0
    usage: Usage | None = None
    first_byte: float | None = None
    last_byte: float | None = None
    settled: bool = False
    permit: Permit = field(default_factory=Permit)
    price: Price | None = None

    def serve_from(self, target: Target) -> None:
        """This target is tried now."""
        self.upstream = target.upstream
        self.adapter = target.adapter or ""
        self.price = target.price
        self.attempts += 1

    def inter_token(self, usage: Usage) -> float | None:
        """Mean seconds between two tokens; None for an answer that had no two of them."""
        if usage.completion > 1 and self.first_byte is not None and self.last_byte is not None:
            return (self.last_byte - self.first_byte) / (usage.completion - 1)
        return None

    def cost(self) -> int:
        """Micros."""
        usage, price = self.usage, self.price
        return 0 if usage is None or price is None else micros(price, usage.prompt, usage.completion)

    def settle(self, reason: Reason, metrics: Metrics, phase: str) -> None:
        """The terminal step.  The first call counts; the access log and the metrics then hold this request."""
        if self.settled:
            return
        self.settled = True
        now = time.monotonic()
        usage = self.usage
        self.permit.release(usage, self.cost())
        ttft = None if self.first_byte is None else self.first_byte - self.started
        inter_token = None if usage is None else self.inter_token(usage)
        if reason in (Reason.CLIENT_CANCEL, Reason.SLOW_CLIENT):
            metrics.cancelled(phase)
        metrics.request(
            model=self.model,
            adapter=self.adapter,
            upstream=self.upstream,
            status=self.status,
            reason=reason.value,
            usage=usage,
            ttft=ttft,
            inter_token=inter_token,
            duration=now - self.started,
        )
        if _access.isEnabledFor(logging.INFO):
            # What `_access.info` does, without looking for the line of code that called it.
            said = (self.endpoint, self.status, reason.value)
            fields = self._fields(reason, ttft, now)
            _access.handle(_access.makeRecord(_access.name, logging.INFO, "", 0, "%s %d %s", said, None, extra=fields))

    def _fields(self, reason: Reason, ttft: float | None, now: float) -> dict[str, Any]:
        usage = self.usage or Usage()
        return {
            "request_id": self.request_id,
            "key": self.principal,
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
    if target.price is not None:
        cost = (usage.prompt * target.price.input + usage.completion * target.price.output) / 1e6
        extras["cost"] = round(cost, 8)
    return extras
