"""The guard of the naked port.

uvicorn with httptools keeps a silent connection for ever, takes headers of any size and number, serves a request
without Host, and never gives up on a client that does not read.  `GuardedProtocol` adds what is missing, so that the
port may face anyone.  What llhttp reports by itself (bare CR and LF, obs-fold, both framings at once, bad chunk sizes,
control characters) stays its affair: it is strict, and tests/integration/test_naked_port.py holds it to that.

A client counts as gone when its connection is lost and also when it half-closes while its request is unfinished, as
HAProxy's `abortonclose` and nginx have it: no HTTP client in use half-closes and goes on reading, and a FIN is all
that is seen of most clients that leave.

The protocol is that of uvicorn 0.54.x, whose internals this module overrides: move the pin only together with the
tests of this module.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.api.cycle import Cycle
from gateway.api.head import (
    EdgeLimits,
    body_limit,
    body_too_large,
    checked_target,
    head_size,
    headers_too_large,
    takes_upload,
    target_too_long,
    without_upgrade,
)
from gateway.domain.errors import InvalidRequest, Overloaded, Refusal

__all__ = ["ClientConnection", "EdgeLimits", "GuardedProtocol", "guarded"]

MAX_PIPELINED = 16  # requests of one connection that are read ahead of their answers

# Bytes of chunk framing (sizes, extensions, trailers) that a body may carry beyond eight for each byte of content.
# Nothing keeps them, but reading them costs time, and without a bound a body under its limit could cost any amount.
MAX_CHUNK_OVERHEAD = 64 * 1024

# After a refusal the connection is read and its bytes dropped for a moment: closing while a body is still on its way
# makes the kernel send a reset, which can destroy the answer before the client reads it.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1024 * 1024


def refusal_answer(refusal: Refusal, request_id: str) -> bytes:
    """The whole HTTP answer to a request that never reaches the application."""
    body = refusal.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", request_id.encode()),
        *refusal.headers(),
    ]
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"%s%s\r\n%s" % (STATUS_LINE[refusal.status], lines, body)


class ClientConnection:
    """The client's side of one request, at `scope["extensions"]["gateway"]`.

    `on_disconnect` is called at most once, at once, from the event loop, when the client leaves before the request is
    finished, so that nobody needs a task that waits for it.  Whoever holds the request sets it, replaces it, or sets
    None.  `gone` says that this has happened, `stalled` that it was we who ended it because the client did not read.
    """

    __slots__ = ("_cycle", "gone", "on_disconnect", "stalled")

    def __init__(self) -> None:
        self.on_disconnect: Callable[[], None] | None = None
        self.gone = False
        self.stalled = False
        # uvicorn's side of the same request, while it is unfinished.  It is made after the scope that holds this
        # object, and holds that scope: letting go of it at the end spares the garbage collector a cycle per request.
        self._cycle: Cycle | None = None

    def cut(self) -> None:
        """Sends what was written, then closes the connection without a terminating chunk.

        The client sees a broken answer, never a complete one.  What the application sends afterwards is dropped.
        """
        self.on_disconnect = None
        if self._cycle is not None:
            self._cycle.disconnected = True  # uvicorn neither waits for the end of the answer nor logs its absence
            self._cycle.close()

    def begin(self, cycle: Cycle) -> None:
        self._cycle = cycle

    def finish(self) -> None:
        """The answer is complete."""
        self._cycle = None

    def leave(self) -> None:
        """The client is gone: ends the application's `receive` and `send`, and tells who asked to be told."""
        self.gone = True
        if self._cycle is not None:
            self._cycle.disconnected = True
            self._cycle.message_event.set()
            self._cycle = None
        callback, self.on_disconnect = self.on_disconnect, None
        if callback is not None:
            callback()


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits.  Made by `guarded`."""

    limits: EdgeLimits
    on_refused: Callable[[str], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = self.limits.keep_alive
        self.closed: asyncio.Future[None] = self.loop.create_future()
        # Requests without a complete answer.  The first is served, the others were pipelined behind it.
        self._unfinished: deque[tuple[ClientConnection, Cycle]] = deque()
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0  # of the head being read, without its first piece
        self._body_bytes = 0  # of the body being read
        self._overhead = 0
        self._refused = False
        self._lingered = 0
        self._read_timer: asyncio.TimerHandle | None = None
        self._window_start = 0  # _body_bytes when the read timer was set
        self._stall_timer: asyncio.TimerHandle | None = None
        self._stall_size = 0  # _unacknowledged() when the stall timer was set

    # From the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(Overloaded("Too many connections.", code="too_many_connections"))
        else:
            self._start_read_timer()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._linger(len(data))
            return
        self._unset_keepalive_if_required()
        # A head is fed in pieces no larger than a head may be, so that what llhttp keeps of an endless one is bounded.
        piece = self.limits.max_header_bytes
        if len(data) <= piece:
            reading = self._feed(data)
        else:
            reading = all(self._feed(data[start : start + piece]) for start in range(0, len(data), piece))
        if reading and self._read_timer is None and (self._in_head or self._in_body or not self._unfinished):
            self._start_read_timer()

    def eof_received(self) -> None:
        if self._unfinished:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_read_timer()
        self._stop_stall_timer()
        unfinished, self._unfinished = self._unfinished, deque()
        for client, _ in unfinished:
            # ETIMEDOUT: the kernel gave up on it before we did, see server._notice_vanished_clients.
            client.stalled = client.stalled or isinstance(exc, TimeoutError)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if not self.closed.done():
            self.closed.set_result(None)
        for client, _ in unfinished:
            client.leave()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._start_stall_timer()

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def shutdown(self) -> None:
        if self._refused:
            self.transport.close()
        else:
            super().shutdown()

    # From the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self.url = checked_target(
            self.parser.get_method(), self.parser.get_http_version(), self.url, self.headers, self.limits
        )
        self._check_head_size()
        if self.parser.should_upgrade():
            return  # read again by _ignore_upgrade
        if len(self._unfinished) >= MAX_PIPELINED:
            raise InvalidRequest("Too many requests without waiting for an answer.", code="pipeline_too_long")
        client = ClientConnection()
        self.scope["extensions"] = {"gateway": cast(Any, client)}
        super().on_headers_complete()
        cycle = Cycle.taken_over(self.cycle)
        client.begin(cycle)
        self._unfinished.append((client, cycle))
        if len(self._unfinished) > 1:
            # uvicorn stops reading here and would not see the client leave; MAX_PIPELINED is the bound instead.
            self.flow.resume_reading()
        self.headers = []  # trailers land here: not in the scope of a request that was authorised without them
        self._in_head = False
        self._in_body = True
        self._body_bytes = 0
        self._overhead = 0
        self._stop_read_timer()

    def on_body(self, body: bytes) -> None:
        size = len(body)
        self._body_bytes += size
        if self._body_bytes > self.limits.max_body_bytes:  # which is so for few: only they are looked up
            limit = body_limit(self.parser.get_method(), self.url, self.limits)
            if self._body_bytes > limit:
                raise body_too_large(limit)
        self._overhead = max(0, self._overhead - 9 * size)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_body = False
        self._stop_read_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        client, _ = self._unfinished.popleft()
        client.finish()
        super().on_response_complete()
        if self._in_body and not self._unfinished and takes_upload(self.parser.get_method(), self.url):
            self._end()  # refused: gigabytes are not read only to be dropped

    # Reading

    def _feed(self, piece: bytes) -> bool:
        """Whether to go on reading."""
        if self._in_head:
            self._head_bytes += len(piece)
        elif self._in_body:
            self._overhead += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(piece[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            # What a callback of ours raised comes wrapped; any other exception than a refusal is a defect of ours.
            cause = error.__context__
            if not isinstance(cause, Refusal):
                raise
            self._refuse(cause)
        except httptools.HttpParserError:
            self._refuse(InvalidRequest("This is not a well-formed HTTP request.", code="malformed_request"))
        if self._in_head or self._in_body:
            self._check_unfinished_message()
        return not self._refused

    def _check_unfinished_message(self) -> None:
        if self._refused:
            return
        if self._in_head:
            if len(self.url) > self.limits.max_target_bytes:
                self._refuse(target_too_long(self.limits))
            elif self._head_bytes > self.limits.max_header_bytes or len(self.headers) > self.limits.max_headers:
                self._refuse(headers_too_large(self.limits))
        elif self._in_body and self._overhead > MAX_CHUNK_OVERHEAD:
            self._refuse(InvalidRequest("The chunks carry more framing than content.", code="invalid_framing"))

    def _check_head_size(self) -> None:
        if len(self.headers) > self.limits.max_headers:
            raise headers_too_large(self.limits)
        # A head in one piece, which nearly all are, is never too large: see data_received.
        if self._head_bytes and head_size(self.url, self.headers) > self.limits.max_header_bytes:
            raise headers_too_large(self.limits)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Serves the request as if it had not asked for another protocol, as RFC 9110 (7.8) allows.

        Java's HTTP client asks for h2c by default.  llhttp takes such a message to end with its head, so that its body
        would be read as the next request: the head is parsed again without the wish, and the rest after it.
        """
        head = without_upgrade(self.parser.get_method(), self.parser.get_http_version(), self.url, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._feed(head + rest)

    def _start_read_timer(self) -> None:
        self._window_start = self._body_bytes
        seconds = self.limits.body_timeout if self._in_body else self.limits.header_timeout
        self._read_timer = self.loop.call_later(seconds, self._on_read_late)

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _on_read_late(self) -> None:
        self._read_timer = None
        if self.transport.is_closing():
            return
        if self._in_body:
            came = self._body_bytes - self._window_start
            # Not the client's fault: nobody takes what it sent, or it waits for our leave to send.
            ours = self.flow.read_paused or self.cycle.waiting_for_100_continue
            if ours or came >= self.limits.min_body_rate * self.limits.body_timeout:
                self._start_read_timer()
            else:
                self._refuse(Refusal("The body came too slowly.", status=408, code="body_timeout"))
        elif self._in_head:
            self._refuse(Refusal("The request's headers came too slowly.", status=408, code="header_timeout"))
        else:  # browsers open connections in advance: nothing was asked, nothing is answered
            self.on_refused("silent_connection")
            self.transport.close()

    # Refusing

    def _refuse(self, refusal: Refusal) -> None:
        """Answers with the refusal and closes; the connection reads no further request."""
        self._refused = True
        self.on_refused(refusal.code or "")
        self._stop_read_timer()
        if self._in_body and not self._unfinished:
            self.transport.close()  # the application answered before it had the whole body
            return
        if self._unfinished:
            client, cycle = self._unfinished[0]
            if len(self._unfinished) > 1 or not self._in_body:
                cycle.keep_alive = False  # an earlier request is whole: it gets its answer, then we close
                return
            client.leave()
            if cycle.response_started:
                self.transport.close()
                return
            self._unfinished.clear()
        self.transport.write(refusal_answer(refusal, uuid.uuid4().hex))
        self._end()

    def _end(self) -> None:
        """Says that nothing more is sent, and gives the client a moment to read what was."""
        self._refused = True
        self._stop_read_timer()
        self.transport.write_eof()
        self.flow.resume_reading()
        self._read_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _linger(self, size: int) -> None:
        self._lingered += size
        if self._lingered > LINGER_BYTES:
            self.flow.pause_reading()

    # Writing

    def _start_stall_timer(self) -> None:
        self._stall_size = self._unacknowledged()
        self._stall_timer = self.loop.call_later(self.limits.write_stall, self._on_stall)

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _on_stall(self) -> None:
        self._stall_timer = None
        taken = self._stall_size - self._unacknowledged()
        if taken >= self.limits.min_body_rate * self.limits.write_stall:
            self._start_stall_timer()
            return
        for client, _ in self._unfinished:
            client.stalled = True
        # A reset: without it the kernel would hold megabytes for a client that never reads them.
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _unacknowledged(self) -> int:
        """Bytes of the answer that the client's side has not taken: ours, and those that the kernel holds.

        The kernel holds up to four megabytes, and asks for more only when a third of them has gone: our buffer alone
        would make a client on a slow line look as if it did not read at all.
        """
        waiting = self.transport.get_write_buffer_size()
        try:
            queued = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:  # not on this system
            return waiting
        return waiting + int(struct.unpack("i", queued)[0])


def guarded(limits: EdgeLimits, on_refused: Callable[[str], None]) -> type[GuardedProtocol]:
    """The protocol class to give to uvicorn.

    `on_refused` is told a word for each request or connection that is turned away here: one of a fixed set.
    """
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits, "on_refused": staticmethod(on_refused)})
