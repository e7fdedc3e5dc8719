"""What the client is sent, and whether anything was sent yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import orjson

from gateway.domain.errors import GatewayError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_SAFE = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),
]


class ClientConnection(Protocol):
    """The client's end, as the server makes it available with each request (api/guard.py)."""

    on_disconnect: Callable[[], None] | None
    stalled: bool

    def cut(self) -> None:
        """Sends what was written and closes without the terminating chunk."""
        ...


class Reply:
    """One answer.  `committed`: content of an upstream was sent, so no other target may be tried."""

    __slots__ = ("_connection", "_request_id", "_send", "_told", "committed", "started")

    def __init__(self, send: Send, connection: ClientConnection, request_id: str) -> None:
        self._send = send
        self._connection = connection
        self._request_id = request_id
        self._told = ""
        self.started = False
        self.committed = False

    async def stream(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Starts an event stream, unless a status line has started it already."""
        if not self.started:
            self.started = True
            head = [*_STREAM, (b"x-request-id", self._request_id.encode()), *headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": head})

    async def event(self, data: bytes, more: bool = True) -> None:
        """Sends complete events."""
        self.committed = True
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def status(self, text: str) -> None:
        """A status line above the answer.  Only for Open WebUI: other clients fail on a chunk without `choices`.

        Open WebUI keeps every line that it is sent with the chat, so the same one is told once.
        """
        if text != self._told:
            self._told = text
            await self.stream([])
            await self._send_status({"description": text, "done": False})

    async def wait_over(self) -> None:
        """Takes the status line away, if there is one: it would shimmer above the answer for good."""
        if self._told:
            self._told = ""
            await self._send_status({"description": "Ready", "done": True, "hidden": True})

    async def _send_status(self, data: dict[str, object]) -> None:
        body = b"data: " + orjson.dumps({"event": {"type": "status", "data": data}}) + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def whole(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """A whole JSON answer."""
        self.started = self.committed = True
        head = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self._request_id.encode()),
            *_SAFE,
            *headers,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: GatewayError) -> None:
        """Tells the client of an error: as the answer, or as the one last event of a stream that has begun, which then
        ends without `[DONE]` and without its terminating chunk."""
        if not self.started:
            await self.whole(error.status, error.body(), error.headers())
            return
        await self.wait_over()
        body = b"data: " + error.body() + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        self._connection.cut()
