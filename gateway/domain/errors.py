"""What can go wrong with a request, and how the client is told.

    GatewayError
    ├── Refusal            the request, the key or the moment is wrong: the client's side
    │   ├── InvalidRequest · Unauthenticated · Forbidden · NotFound · Conflict · TooLarge …
    │   ├── RateLimited    a limit is reached, or a budget used up
    │   └── Overloaded     no slot in time, draining, no target ready
    ├── StorageError       what must outlive the gateway cannot be read or written
    │   └── StorageAway    the database that several gateways share is not reached
    ├── Unaccounted        what a request used cannot be written down
    └── UpstreamFault      an upstream failed; knows whether another target may be tried

Every error renders to OpenAI's form and to the exception class that the OpenAI SDK derives from the status.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum


class Reason(StrEnum):
    """How a request ended.  These words are fixed: the access log, the metrics and the ledger use them."""

    COMPLETED = "completed"
    CLIENT_CANCEL = "client_cancel"
    SLOW_CLIENT = "slow_client"
    UPSTREAM_CONNECT = "upstream_connect"
    UPSTREAM_STATUS = "upstream_status"
    UPSTREAM_TTFT = "upstream_ttft"
    UPSTREAM_IDLE = "upstream_idle"
    UPSTREAM_TOTAL = "upstream_total"
    UPSTREAM_CUT = "upstream_cut"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    GATEWAY_DRAIN = "gateway_drain"
    GATEWAY_CRASH = "gateway_crash"
    LIMIT = "limit"
    AUTH = "auth"
    REFUSED = "refused"


class GatewayError(Exception):
    """An error that the client is told of.

    `retry_after` is in seconds.  `should_retry` overrides the OpenAI SDK's own guess through `x-should-retry`;
    None leaves the guess alone.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    reason = Reason.GATEWAY_CRASH

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        reason: Reason | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type
        if code is not None:
            self.code = code
        if reason is not None:
            self.reason = reason
        self.param = param
        self.retry_after = retry_after
        self.should_retry = should_retry

    def body(self) -> bytes:
        """The JSON answer in OpenAI's form."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers that tell clients when and whether to try again."""
        headers = []
        if self.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(self.retry_after))))
        if self.should_retry is not None:
            headers.append((b"x-should-retry", b"true" if self.should_retry else b"false"))
        return headers


class Refusal(GatewayError):
    """The request is not served, and the upstreams were not at fault."""

    status = 400
    type = "invalid_request_error"
    reason = Reason.REFUSED


class InvalidRequest(Refusal):
    """400: malformed, or a parameter that cannot be."""


class Unauthenticated(Refusal):
    """401: no key, or not one of ours.  Deliberately says nothing about the key that was sent."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    reason = Reason.AUTH


class Forbidden(Refusal):
    """403: a key that is known, without the right to this."""

    status = 403
    type = "permission_error"
    code = "permission_denied"
    reason = Reason.AUTH


class NotFound(Refusal):
    """404: no such route, or no such model."""

    status = 404
    code = "not_found"


class MethodNotAllowed(Refusal):
    """405.  `allowed`: the methods that the path has (RFC 9110, 15.5.6 wants them in `Allow`)."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allowed: Iterable[str]) -> None:
        super().__init__(message)
        self.allowed = ", ".join(sorted(allowed))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """With `Allow`."""
        return [(b"allow", self.allowed.encode("ascii")), *super().headers()]


class Conflict(Refusal):
    """409: what is asked for contradicts how things stand.  The OpenAI SDK would try again, which helps nobody."""

    status = 409
    code = "conflict"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code, should_retry=False)


class TooLarge(Refusal):
    """413: the body is over the limit."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(Refusal):
    """415: the body is not JSON."""

    status = 415
    code = "unsupported_media_type"


class Overloaded(Refusal):
    """503: nothing is free or ready at this moment; worth trying again."""

    status = 503
    type = "server_error"
    code = "overloaded"
    reason = Reason.LIMIT

    def __init__(
        self, message: str, *, retry_after: float = 1.0, code: str | None = None, reason: Reason | None = None
    ) -> None:
        super().__init__(message, code=code, reason=reason, retry_after=retry_after, should_retry=True)


class RateLimited(Refusal):
    """429: a limit is reached or a budget used up.  `standing`: the `x-ratelimit-*` headers."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    reason = Reason.LIMIT

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None,
        should_retry: bool,
        standing: Iterable[tuple[bytes, bytes]] = (),
        type: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, type=type, code=code, retry_after=retry_after, should_retry=should_retry)
        self.standing = tuple(standing)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """With where the limit stands."""
        return [*super().headers(), *self.standing]


class StorageError(GatewayError):
    """507 (RFC 4918, 11.5): the gateway cannot keep what was asked for, or cannot open what it has kept.

    The text names the file, what is wrong with it, and what to do.
    """

    status = 507
    code = "storage_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, should_retry=False)


class Unaccounted(GatewayError):
    """503: what a request used cannot be written down, so that its answer is not given, or not to its end.  What it has
    used is kept until it can be; to ask again by itself would use it twice."""

    status = 503
    code = "ledger_unavailable"

    def __init__(self) -> None:
        super().__init__("The gateway cannot account for this answer at this moment.", should_retry=False)


class StorageAway(StorageError):
    """503: the database that several gateways share is not reached at this moment; without it goes on what can."""

    status = 503
    code = "storage_away"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.retry_after = 2.0
        self.should_retry = True


class UpstreamFault(GatewayError):
    """An upstream failed.

    `retryable`: another target may be tried while nothing was sent to the client.
    `upstream_status`: the HTTP status that the upstream answered with, if it came that far.
    """

    status = 502
    type = "server_error"
    code = "upstream_error"
    reason = Reason.UPSTREAM_STATUS

    def __init__(
        self,
        message: str,
        *,
        reason: Reason,
        retryable: bool,
        status: int = 502,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        upstream_status: int | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(
            message,
            status=status,
            type=type,
            code=code or reason.value,
            param=param,
            reason=reason,
            retry_after=retry_after,
            should_retry=should_retry,
        )
        self.retryable = retryable
        self.upstream_status = upstream_status


def model_not_found(model: str) -> NotFound:
    """The same words for a model that does not exist and for one that this key may not use."""
    return NotFound(
        f"The model '{model[:200]}' does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
    )


def model_not_for(model: str, whose: str) -> Forbidden:
    """For somebody whose key may use the model, and who may not."""
    return Forbidden(
        f"You may not use the model '{model[:200]}': it is not among those that {whose} may use. "
        "Choose another one, or ask whoever runs this gateway.",
        code="model_not_allowed",
        param="model",
    )
