"""An HTTP client that sends whatever bytes it is told to, and reads answers without repairing anything."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool = True  # False: the connection ended before the answer did

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One TCP connection.  Every wait is bounded by `timeout` seconds and raises TimeoutError beyond it."""

    def __init__(
        self, port: int, timeout: float = 10.0, receive_buffer: int | None = None, send_buffer: int | None = None
    ) -> None:
        self._socket = socket.socket()
        if send_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(timeout)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.reset = False  # the server ended the connection with RST

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def try_send(self, data: bytes) -> int:
        """Sends until everything is out or the server has closed; how many bytes went out."""
        sent = 0
        view = memoryview(data)
        while sent < len(data):
            try:
                sent += self._socket.send(view[sent : sent + 65536])
            except (BrokenPipeError, ConnectionResetError):
                return sent
        return sent

    def half_close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def leave(self, *, reset: bool = False) -> None:
        """Closes the connection, with FIN or with RST."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def receive(self) -> bytes:
        """The next bytes; b"" when the server has closed."""
        try:
            return self._socket.recv(65536)
        except ConnectionResetError:
            self.reset = True
            return b""

    def try_receive(self) -> bytes | None:
        """As receive, but None when nothing came within the time."""
        try:
            return self.receive()
        except TimeoutError:
            return None

    def set_timeout(self, seconds: float) -> None:
        self._socket.settimeout(seconds)

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark."""
        while (found := self._buffer.find(mark)) < 0:
            if not (more := self.receive()):
                raise EOFError(f"closed before {mark!r}; came: {self._buffer[:200]!r}")
            self._buffer += more
        end = found + len(mark)
        taken, self._buffer = self._buffer[:end], self._buffer[end:]
        return taken

    def read_rest(self) -> bytes:
        """Everything until the server closes."""
        while more := self.receive():
            self._buffer += more
        taken, self._buffer = self._buffer, b""
        return taken

    def answer(self) -> Answer:
        """The next answer."""
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        try:
            if headers.get("transfer-encoding") == "chunked":
                body = b"".join(iter(self._chunk, b""))
            else:
                body = self._exactly(int(headers.get("content-length", 0)))
        except EOFError:
            return Answer(status, headers, self._buffer, complete=False)
        return Answer(status, headers, body)

    def answers(self) -> list[Answer]:
        """All answers until the server closes."""
        found = []
        self._buffer = self.read_rest()
        while self._buffer:
            found.append(self.answer())
        return found

    def _chunk(self) -> bytes:
        size = int(self.read_until(b"\r\n"), 16)
        return self._exactly(size + 2)[:size]

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not (more := self.receive()):
                raise EOFError("closed inside a body")
            self._buffer += more
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken
