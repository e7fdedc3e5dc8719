"""The transport to upstreams: HTTP/1.1 on asyncio, written for relaying.  The one import of an HTTP client on the hot
path is httptools' parser.

Why not a general client: httpx 0.28's pool dies under cancellation (httpcore issues 1093, 658) and general clients
cost more for a request than everything else here together (docs/adr/0003).  What a relay needs is small: reuse of
connections, back-pressure by pausing reading, cancellation by closing the socket, limits, TLS.  No redirects, no
cookies, no compression, no proxies.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import cast

import httptools

from gateway.backends.base import UpstreamRequest
from gateway.domain.errors import Reason, UpstreamFault
from gateway.domain.snapshot import Upstream

_MAX_HEAD = 64 * 1024  # bytes of an answer's head
_MAX_HEADERS = 200
_HIGH_WATER = 256 * 1024  # unread bytes of an answer at which reading pauses
_JOIN = 64 * 1024  # a request body up to this size is sent in one write with its head
_MAX_IDLE = 64  # connections kept for reuse
_MAX_REST = 55.0  # seconds; what stands between us and an upstream forgets a silent connection, often after 60
_LINGER = 1.0  # seconds that a finished answer's last bytes are waited for, so that its connection can be reused


class ConnectionDied(Exception):
    """The connection closed before a byte of the answer came."""


class Connection(asyncio.Protocol):
    """One connection; at most one request at a time.  It closes itself on anything that it did not ask for."""

    def __init__(self, client: UpstreamClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._busy = False
        self._closed = False
        self._paused = False
        self._idle_since = 0.0  # the loop's time
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._headed = False  # the head is complete
        self._complete = False  # the body is complete
        self._framed = False  # the body's end is told by a length or by chunks
        self._keep_alive = False
        self._touched = False  # a byte of the answer has come
        self._fault: UpstreamFault | None = None
        self._chunks: list[bytes] = []
        self._unread = 0
        self._head_size = 0

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it."""
        return not self._closed and self._transport is not None and not self._transport.is_closing()

    @property
    def fresh(self) -> bool:
        """Whether it is usable and has not rested for too long."""
        return self.usable and self._loop.time() - self._idle_since < _MAX_REST

    # -- what the pipeline calls

    async def exchange(self, head: bytes, body: bytes) -> None:
        """Sends a request and waits for the head of its answer (`status`, `headers`).

        Raises ConnectionDied before, UpstreamFault after the first byte.  Whatever it raises, the socket is closed.
        """
        self._reset()
        self._busy = True
        try:
            transport = self._transport
            if transport is None or self._closed:
                raise ConnectionDied
            if len(body) <= _JOIN:
                transport.write(head + body)
            else:
                transport.writelines((head, body))
            while not self._headed:
                await self._wait()
                if self._fault is not None:
                    raise self._fault
                if self.usable or self._headed:
                    continue
                if not self._touched:
                    raise ConnectionDied
                raise _cut(self._client.upstream)
        except BaseException:
            self.abort()
            raise

    async def read(self) -> bytes:
        """What has come since the last call, b"" at the end of a complete answer.  Raises UpstreamFault."""
        while True:
            if self._chunks:
                data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                self._unread = 0
                if self._paused and self._transport is not None and not self._closed:
                    self._paused = False
                    self._transport.resume_reading()
                return data
            if self._fault is not None:
                raise self._fault
            if self._complete:
                return b""
            if self._closed:
                raise _cut(self._client.upstream)
            await self._wait()

    def release(self, linger: bool) -> None:
        """The answer has served its purpose: the connection is reused if the answer is complete, or becomes so in a
        moment (`linger`: only its terminating chunk may be missing), and closed otherwise."""
        if not self._busy:
            return
        if self._complete and self._fault is None:
            self._idle()
        elif linger and self._fault is None and not self._closed and self._framed:
            self._linger = self._loop.call_later(_LINGER, self.abort)
            if self._paused and self._transport is not None:
                self._paused = False
                self._transport.resume_reading()
        else:
            self.abort()

    def abort(self) -> None:
        """Closes the socket at once: this is how an upstream learns that nobody wants its answer."""
        self._busy = False
        self._stop_linger()
        if self._transport is not None and not self._closed:
            self._transport.abort()

    def _idle(self) -> None:
        self._stop_linger()
        self._busy = False
        if self.usable and self._framed and self._keep_alive:
            self._idle_since = self._loop.time()
            self._client.give_back(self)
        else:
            self.abort()

    def _stop_linger(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, message: str) -> None:
        if self._fault is None:
            self._fault = _protocol(self._client.upstream, message)
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._busy or (self._complete and self._linger is None):
            self._fail("sent bytes that nobody asked for")
            return
        self._touched = True
        headed = self._headed
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._fault is None:
                self._fail("did not speak HTTP/1.1")
            return
        if not headed and not self._headed:
            self._head_size += len(data)
            if self._head_size > _MAX_HEAD:
                self._fail("sent a head of more than 64 KiB")
                return
        if self._linger is not None:
            self._chunks.clear()
            self._unread = 0
            if self._complete:
                self._idle()
            return
        if self._unread > _HIGH_WATER and not self._paused and self._transport is not None and not self._complete:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        if self._headed and not self._framed and self._fault is None:
            self._complete = True  # a body that is delimited by the end of the connection
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._stop_linger()
        self._client.forget(self)
        self._wake()

    # -- httptools callbacks

    def on_message_begin(self) -> None:
        if self._complete:  # in one piece with the end of the answer, so that data_received could not tell
            self._fail("sent more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= _MAX_HEADERS:
            self._fail(f"sent more than {_MAX_HEADERS} headers")
            return
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            if status == 101:
                self._fail("tried to switch protocols")
            self.headers.clear()
            return
        self.status = status
        for name, value in self.headers:
            if name == b"content-encoding" and value.lower() != b"identity":
                self._fail("sent a compressed answer, which was not asked for")
                return
            if name in (b"content-length", b"transfer-encoding"):
                self._framed = True
        if status in (204, 304):
            self._framed = True
        self._headed = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._unread += len(body)

    def on_message_complete(self) -> None:
        if self._headed:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()  # llhttp knows it in this callback only


class UpstreamClient:
    """The connections to one upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._idle: list[Connection] = []
        self._closed = False
        self._ssl: ssl.SSLContext | None = None
        if upstream.scheme == "https":
            self._ssl = ssl.create_default_context(cafile=upstream.ca_file)
            self._ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
        default = 443 if upstream.scheme == "https" else 80
        authority = host if upstream.port == default else f"{host}:{upstream.port}"
        lines = [
            ("host", authority),
            ("user-agent", "lora-gateway"),
            ("accept", "*/*"),
            ("accept-encoding", "identity"),
            ("content-type", "application/json"),
        ]
        own = [(name, value.reveal()) for name, value in upstream.headers]
        named = {name for name, _ in own}
        self._lines = "".join(
            f"{name}: {value}\r\n" for name, value in [*(line for line in lines if line[0] not in named), *own]
        ).encode("latin-1")

    async def send(
        self, request: UpstreamRequest, request_id: str, connecting: Callable[[], None], connected: Callable[[], None]
    ) -> Connection:
        """Sends a request; returns its connection when the head of the answer is there.

        `connecting` is called when a new connection is made, `connected` once the request goes out.  Where a kept
        connection dies before a byte came, the upstream had most likely closed it and did not see the request: that is
        sent once more, on a new connection and no other, lest one that kills its server kills many.
        Raises UpstreamFault.  Cancelling closes the socket.
        """
        head = b"%s %s HTTP/1.1\r\n%sx-request-id: %s\r\ncontent-length: %d\r\n\r\n" % (
            request.method.encode("ascii"),
            request.path.encode("ascii"),
            self._lines,
            request_id.encode("ascii"),
            len(request.body),
        )
        if (kept := self._take()) is not None:
            connected()
            with contextlib.suppress(ConnectionDied):
                await kept.exchange(head, request.body)
                return kept
        connecting()
        connection = await self._connect()
        connected()
        try:
            await connection.exchange(head, request.body)
        except ConnectionDied:
            raise _cut(self.upstream) from None
        return connection

    def give_back(self, connection: Connection) -> None:
        """A connection that can take another request."""
        if len(self._idle) < _MAX_IDLE and not self._closed:
            self._idle.append(connection)
        else:
            connection.abort()

    def forget(self, connection: Connection) -> None:
        """A connection that closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Closes what is idle; what is busy closes when its request ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.fresh:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        upstream = self.upstream
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self, loop),
                upstream.host,
                upstream.port,
                ssl=self._ssl,
                server_hostname=upstream.host if self._ssl else None,
            )
        except ssl.SSLError as error:
            detail = getattr(error, "verify_message", None) or error.reason or "TLS failed"
            raise connect_fault(upstream.name, f"no trusted TLS connection ({detail})") from None
        except OSError as error:
            raise connect_fault(upstream.name, error.strerror or "cannot be reached") from None
        return connection


def connect_fault(upstream: str, detail: str) -> UpstreamFault:
    """No connection: nothing was sent, so trying elsewhere or again is always safe."""
    return UpstreamFault(
        f"The upstream '{upstream}' cannot be reached: {detail}.",
        reason=Reason.UPSTREAM_CONNECT, retryable=True, status=503, retry_after=2, should_retry=True,
    )  # fmt: skip


def _cut(upstream: Upstream) -> UpstreamFault:
    return UpstreamFault(
        f"The upstream '{upstream.name}' closed the connection before its answer was complete.",
        reason=Reason.UPSTREAM_CUT, retryable=True,
    )  # fmt: skip


def _protocol(upstream: Upstream, what: str) -> UpstreamFault:
    return UpstreamFault(f"The upstream '{upstream.name}' {what}.", reason=Reason.UPSTREAM_PROTOCOL, retryable=True)
