"""What every dialect has to say of a failed upstream, in the same words."""

from __future__ import annotations

import re

from gateway.backends.base import DecodeFault
from gateway.domain.call import Call
from gateway.domain.errors import Reason, UpstreamFault
from gateway.domain.snapshot import Target

_MAX_MESSAGE = 1000  # characters of an upstream's message that are passed on
#: What an upstream's message may give away: addresses in memory, paths, credentials.
_TELLTALE = re.compile(
    r"0x[0-9a-fA-F]{6,}|(?:sk|pk|gw|key|hf|gsk)[-_][A-Za-z0-9_\-]{8,}|Bearer\s+\S+|(?<![\w:/.])/(?:[\w.@+-]+/)+[\w.@+-]*"
)
_PUBLIC_TYPES = frozenset({"invalid_request_error", "rate_limit_error", "not_found_error"})


def protocol(message: str) -> DecodeFault:
    """What came is no answer of this dialect."""
    return DecodeFault(message, reason=Reason.UPSTREAM_PROTOCOL, retryable=True)


def broke_off(status: int = 500) -> DecodeFault:
    """An error event in a stream.  Its text is the upstream's own business; what the client needs is that the answer
    is not complete and whether asking again makes sense."""
    return DecodeFault(
        "The upstream reported an error while it was answering.",
        reason=Reason.UPSTREAM_STATUS, retryable=status >= 500 or status == 429, upstream_status=status,
    )  # fmt: skip


def of_status(
    call: Call, target: Target, status: int, message: str, *,
    type: str | None = None, code: str | None = None, param: str | None = None,
) -> UpstreamFault:  # fmt: skip
    """What an answer with this status means.  A 4xx is the client's and keeps its message, type, code and parameter;
    everything else is ours to explain."""
    if status in (401, 403):
        return UpstreamFault(
            f"The upstream '{target.upstream}' refused the gateway's key; the operator must mend it.",
            reason=Reason.UPSTREAM_STATUS, retryable=True, status=502, upstream_status=status, should_retry=False,
        )  # fmt: skip
    if status in (408, 429) or status >= 500:  # not here, not now: another target may do better
        return UpstreamFault(
            f"The upstream '{target.upstream}' answered with status {status}."
            + (" It is over its rate limit; try again shortly." if status == 429 else ""),
            reason=Reason.UPSTREAM_STATUS, retryable=True, status=status if status in (429, 503, 504) else 502,
            type="rate_limit_error" if status == 429 else None,
            code="rate_limit_exceeded" if status == 429 else None, upstream_status=status,
        )  # fmt: skip
    if status < 400:
        return protocol(f"The upstream answered with status {status}, which is not followed.")
    return UpstreamFault(
        _public(message, call, target) or f"The upstream refused the request (status {status}).",
        reason=Reason.UPSTREAM_STATUS, retryable=False, status=status if status in (404, 409, 413, 422) else 400,
        type=type if type in _PUBLIC_TYPES else "invalid_request_error", code=code or "upstream_refused",
        param=param, upstream_status=status,
    )  # fmt: skip


def _public(message: str, call: Call, target: Target) -> str:
    """An upstream's message, under the client's model name and without what it must not give away."""
    if "<html" in message[:500].lower():
        return ""
    if target.model != call.model:
        message = re.sub(rf"(?<![\w.-]){re.escape(target.model)}(?![\w.-])", lambda _: call.model, message)
    return _TELLTALE.sub("[…]", message[:_MAX_MESSAGE]).strip()
