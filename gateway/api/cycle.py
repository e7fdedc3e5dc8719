"""How an answer leaves: uvicorn's side of a request, with another way to send.

uvicorn writes the head of an answer and each piece of its body for itself, and uvloop sends at once what is written.
Here the head waits for the first piece, so that both leave in one system call and one packet; and it is looked through
once as a whole, where uvicorn looks at each name and each value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

# Nothing of a head may be any of these, but for the end of its lines.
_CONTROL = bytes(range(9)) + b"\x0b\x0c" + bytes(range(14, 32)) + b"\x7f"
_BODILESS = (204, 304)


class Cycle(RequestResponseCycle):
    """One request and its answer, from the moment that the application may answer.

    What the application sends is an ASGI message (https://asgi.readthedocs.io/en/latest/specs/www.html).  Names of
    headers are lower-case tokens, `content-length` and `connection` stand once, and `transfer-encoding` is ours.
    Raises RuntimeError for an answer that cannot be: while nothing has left, which is what `response_started` says, the
    client is told of an internal error then.
    """

    _head = b""  # waits

    @classmethod
    def taken_over(cls, cycle: RequestResponseCycle) -> Self:
        """The same, one of ours: uvicorn leaves nobody a choice of which it makes.  Nothing was sent yet."""
        cycle.__class__ = cls
        return cast(Self, cycle)

    async def send(self, message: Any) -> None:
        """As ASGI has it; waits while the client does not read."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._go_on(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"there is no message {message['type']}")

    async def send_500_response(self) -> None:
        """In place of what waits."""
        self._head = b""
        await super().send_500_response()

    def close(self) -> None:
        """Sends what waits, and closes the connection."""
        if self._head and not self.transport.is_closing():
            self._write(b"")
        self.transport.close()

    def _start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if self._head or self.response_started:
            raise RuntimeError("an answer was begun twice")
        known = dict(headers)
        lines = [b"%b: %b\r\n" % (name, value) for name, value in headers]
        length = known.get(b"content-length")
        chunked = length is None and status not in _BODILESS and self.scope["method"] != "HEAD"
        if chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if b"close" in known.get(b"connection", b"").lower():
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if not head.count(b"\n") == head.count(b"\r") == len(lines) or len(head.translate(None, _CONTROL)) < len(head):
            raise RuntimeError("a header of an answer holds a line break or another control character")
        self._head = b"%b%b\r\n" % (STATUS_LINE[status], head)
        self.expected_content_length = 0 if length is None else int(length)
        self.chunked_encoding = chunked
        self.waiting_for_100_continue = False

    def _go_on(self, body: bytes, more: bool) -> None:
        if not (self._head or self.response_started) or self.response_complete:
            raise RuntimeError("a body outside of its answer")
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or not (more or self.expected_content_length == 0):
                raise RuntimeError("an answer is not as long as its content-length")
        self._write(body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def _write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
            self.response_started = True
        if data:
            self.transport.write(data)
