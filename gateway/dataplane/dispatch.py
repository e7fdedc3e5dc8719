"""One attempt: a place on the upstream, the request, and the answer relayed as it comes."""

from __future__ import annotations

import asyncio
import time

from gateway.backends import BACKENDS
from gateway.backends.base import Backend, DecodeFault, Decoder, UpstreamRequest
from gateway.dataplane.admission import Admission, Place, WaitsFor
from gateway.dataplane.client import Connection, connect_fault
from gateway.dataplane.metering import Record, answer_tokens, display_extras, estimate
from gateway.dataplane.reply import Reply
from gateway.dataplane.scope import Scope
from gateway.dataplane.upstreams import LiveUpstream
from gateway.domain.call import Call
from gateway.domain.errors import InvalidRequest, Overloaded, Reason, UpstreamFault
from gateway.domain.snapshot import Target, Upstream
from gateway.domain.usage import Usage
from gateway.telemetry.metrics import Metrics

_MAX_ERROR = 64 * 1024  # bytes of an upstream's error that are read
_MAX_ANSWER = 256 * 1024 * 1024  # bytes of a whole answer (embeddings of a large batch, images)
_MAX_RETRY_AFTER = 120.0  # seconds; beyond it the OpenAI SDK gives up at once
_CREDENTIAL = 12  # characters; a header's shorter value is an ordinary word that an error may well hold
_TLS = 3.0  # seconds on top of the connect time-out
_STATUS_EVERY = 1.0  # seconds between two looks at the place of one who waits and is told of it
_TIMEOUTS = (Reason.UPSTREAM_CONNECT, Reason.UPSTREAM_TTFT, Reason.LIMIT)


class Attempt:
    """Serves a call from one target.  Lives as long as the attempt."""

    def __init__(
        self, call: Call, target: Target, upstream: Upstream, live: LiveUpstream, scope: Scope, record: Record,
        reply: Reply, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._call = call
        self._target = target
        self._upstream = upstream
        self._live = live
        self._scope = scope
        self._record = record
        self._reply = reply
        self._metrics = metrics
        self._backend: Backend = BACKENDS[upstream.kind]
        self._place: Place | None = None  # in the queue, if it had to wait

    async def run(self) -> None:
        """Serves the call.  Raises UpstreamFault or Overloaded; `reply.committed` tells whether it was too late for
        another target.  A time-out before the first byte ends the attempt, any other the request."""
        if self._call.endpoint not in self._backend.endpoints:
            raise InvalidRequest(
                f"The model '{self._call.model}' has no {self._call.endpoint.value}: its upstream is of kind "
                f"'{self._upstream.kind}'.", param="model",
            )  # fmt: skip
        request = self._backend.prepare(self._call, self._target, self._upstream)
        admission, adapter = self._live.admission, self._target.adapter
        try:
            if not admission.try_enter(adapter):
                await self._queue(admission)
            try:
                await self._reply.wait_over()
                await self._exchange(request)
            finally:
                admission.release(adapter)
        except asyncio.CancelledError:
            limit = self._scope.reason
            if limit not in _TIMEOUTS or not self._scope.resume():
                raise
            raise self._timed_out(limit) from None

    async def _queue(self, admission: Admission) -> None:
        name = self._upstream.name
        self._scope.enter("queue", admission.bounds.queue_timeout, Reason.LIMIT)
        self._place = place = admission.enqueue(self._target.adapter, name)
        first, began = place.waits_for, time.monotonic()
        tell = self._call.client.openwebui and self._call.stream
        try:
            while not await place.wait(_STATUS_EVERY if tell else None):
                await self._reply.status(f"Queued, position {admission.position(place)}")
        except BaseException:
            admission.leave(place)
            raise
        finally:
            self._metrics.waited(name, first, time.monotonic() - began)

    async def _exchange(self, request: UpstreamRequest) -> None:
        scope, timeouts = self._scope, self._upstream.timeouts
        connect = timeouts.connect + (_TLS if self._upstream.scheme == "https" else 0)
        wait = timeouts.first_byte if self._call.stream else timeouts.answer
        connection = await self._live.client.send(
            request,
            self._call.request_id,
            connecting=lambda: scope.enter("connect", connect, Reason.UPSTREAM_CONNECT),
            connected=lambda: scope.enter("headers", wait, Reason.UPSTREAM_TTFT),
        )
        fault: UpstreamFault | None = None
        try:
            if connection.status != 200:
                fault = await self._refused(connection)
            elif self._call.stream:
                await self._relay(connection, request)
            else:
                await self._whole(connection, request)
        except BaseException:
            connection.abort()
            raise
        connection.release(linger=fault is None)
        if fault is not None:
            raise fault

    async def _relay(self, connection: Connection, request: UpstreamRequest) -> None:
        decoder = self._backend.decoder(self._call, self._target)
        record, reply, scope, timeouts = self._record, self._reply, self._scope, self._upstream.timeouts
        record.progress = decoder
        try:
            while not decoder.finished:
                data = await connection.read()
                if data:
                    out = decoder.feed(data)
                else:
                    out = b""
                    decoder.end()
                if out:
                    scope.client_turn()
                    now = time.monotonic()
                    if not reply.committed:
                        record.first_byte = now
                        record.status = 200
                        record.show()
                        await reply.stream(self._headers(request))
                    record.last_byte = now
                    await reply.event(out)
                    if decoder.tokens >= record.permit.check:
                        await record.permit.top_up(decoder.tokens)
                if reply.committed:
                    scope.phase = "stream"
                    scope.streaming(timeouts.byte_idle, timeouts.token_idle, event=bool(out))
        except DecodeFault as fault:
            if fault.flushed and reply.committed:
                await reply.event(fault.flushed)
            self._usage(decoder)
            raise
        except BaseException:
            self._usage(decoder)
            raise
        usage = self._usage(decoder)
        record.status = 200
        scope.close()
        record.settle(Reason.COMPLETED, scope.phase)
        record.show_end()
        await reply.stream(self._headers(request))
        await reply.event(decoder.tail(usage, display_extras(self._call, self._target, record, usage)), more=False)

    def _usage(self, decoder: Decoder) -> Usage:
        """Reported by the upstream, else counted here; an attempt that gave nothing used nothing."""
        usage = decoder.usage or estimate(self._call, decoder.tokens)
        if self._reply.committed or decoder.usage is not None:
            self._record.usage = usage
        return usage

    async def _whole(self, connection: Connection, request: UpstreamRequest) -> None:
        timeouts = self._upstream.timeouts
        parts = []
        size = 0
        while data := await connection.read():
            parts.append(data)
            size += len(data)
            if size > _MAX_ANSWER:
                raise DecodeFault(
                    "The upstream's answer is larger than 256 MiB.", reason=Reason.UPSTREAM_PROTOCOL, retryable=False
                )
            self._scope.phase = "body"
            self._scope.streaming(timeouts.byte_idle, timeouts.token_idle, event=True)
        body = b"".join(parts)
        answer = self._backend.answer(self._call, self._target, body)
        record = self._record
        record.first_byte = record.last_byte = time.monotonic()
        record.usage = answer.usage or estimate(self._call, answer_tokens(self._call, answer.body))
        record.status = 200
        self._scope.close()
        record.settle(Reason.COMPLETED, self._scope.phase)
        record.show_end()
        await self._reply.whole(200, answer.body, self._headers(request))

    async def _refused(self, connection: Connection) -> UpstreamFault:
        body = b""
        while len(body) < _MAX_ERROR and (data := await connection.read()):
            body += data
        body = _without_credentials(body[:_MAX_ERROR], self._upstream)
        fault = self._backend.fault(self._call, self._target, connection.status, body)
        if connection.status in (429, 503):
            fault.retry_after = _retry_after(connection.headers) or fault.retry_after
        return fault

    def _timed_out(self, reason: Reason | None) -> UpstreamFault | Overloaded:
        name, timeouts = self._upstream.name, self._upstream.timeouts
        if reason is Reason.LIMIT:
            return Overloaded(self._no_place(), retry_after=5)
        if reason is Reason.UPSTREAM_CONNECT:
            return connect_fault(name, f"no connection within {timeouts.connect:g} s")
        wait = timeouts.first_byte if self._call.stream else timeouts.answer
        return UpstreamFault(
            f"The upstream '{name}' sent nothing within {wait:g} s.",
            reason=Reason.UPSTREAM_TTFT, retryable=True, status=504, should_retry=False,
        )  # fmt: skip

    def _no_place(self) -> str:
        name, waited = self._upstream.name, f"{self._upstream.concurrency.queue_timeout:g} s"
        if self._place is None or self._place.waits_for is not WaitsFor.ADAPTER:
            return f"No place on the upstream '{name}' became free within {waited}."
        limit = self._live.admission.max_loras
        return (
            f"No place for the adapter '{self._target.adapter}' on the upstream '{name}' became free within {waited}: "
            f"{limit} {'adapter' if limit == 1 else 'adapters'} at once is its limit (max_loras)."
        )

    def _headers(self, request: UpstreamRequest) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-gateway-upstream", self._target.upstream.encode())]
        if self._target.adapter:
            headers.append((b"x-gateway-adapter", self._target.adapter.encode()))
        if request.dropped:
            names = ",".join(name for name in request.dropped if name.isascii() and name.isidentifier())
            headers.append((b"x-gateway-dropped-params", names[:500].encode()))
        return headers + self._record.permit.headers()


def _without_credentials(body: bytes, upstream: Upstream) -> bytes:
    """An upstream's error without what it was sent to know us by: some repeat the key that they refuse."""
    for _, value in upstream.headers:
        credential = value.reveal().rpartition(" ")[2].encode()
        if len(credential) >= _CREDENTIAL:
            body = body.replace(credential, b"***")
    return body


def _retry_after(headers: list[tuple[bytes, bytes]]) -> float | None:
    for name, value in headers:
        if name == b"retry-after" and value.isdigit() and len(value) < 6:
            return min(float(value), _MAX_RETRY_AFTER)
    return None
