"""A real server on loopback, of no dialect: it reads HTTP requests and lets each be answered byte by byte.

It keeps its own ledger: what arrived, how much was said, and when the client's side of the connection closed (the
loop's clock, seconds).  Nothing that the gateway claims is needed to know what really happened.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.patience import LATE

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
_WRITE_LIMIT = 64 * 1024

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came; header names in lower case, in their order."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Attempt:
    """One line of the ledger.

    `outcome`: "answered" (the behaviour came to its end, whatever that was), "left" (the client closed before that),
    "" (still running).  `ended` is the time of either; `over` is set with it.
    """

    number: int
    request: Request
    arrived: float
    tokens: int = 0
    sent: int = 0
    outcome: str = ""
    ended: float = math.nan
    over: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))  # released for each word on demand

    @property
    def model(self) -> str:
        return str(self.request.json.get("model"))

    def end(self, outcome: str, when: float) -> None:
        self.outcome, self.ended = outcome, when
        self.over.set()


class Exchange:
    """One request and the means to answer it, down to single bytes and the way the connection ends."""

    def __init__(self, request: Request, attempt: Attempt, upstream: Upstream, writer: asyncio.StreamWriter):
        self.request = request
        self.attempt = attempt
        self.upstream = upstream
        self.keep_alive = True
        self._writer = writer

    async def write(self, data: bytes) -> None:
        """Exactly these bytes, as one write."""
        if self._writer.transport.is_closing():  # uvloop raises something else than ConnectionError
            raise ConnectionResetError("the client has left")
        self._writer.write(data)
        self.attempt.sent += len(data)
        await self._writer.drain()

    async def head(self, status: int = 200, headers: Headers = ()) -> None:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in (("x-request-id", f"req_{self.attempt.number}"), *headers)]
        await self.write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def json(self, body: bytes, status: int = 200, headers: Headers = ()) -> None:
        """A whole answer."""
        length = ("content-length", str(len(body)))
        await self.head(status, (("content-type", "application/json"), length, *headers))
        await self.write(body)

    async def open_stream(self, headers: Headers = ()) -> None:
        """The head of an event stream in chunks."""
        kind = (("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked"))
        await self.head(200, (*kind, *headers))

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self.write(b"0\r\n\r\n")

    async def hang(self) -> None:
        """Never comes back: the exchange ends when the client leaves."""
        await asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """FIN after what was written."""
        self.keep_alive = False
        self._writer.close()

    def reset(self) -> None:
        """RST."""
        self.keep_alive = False
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Behaviour = Callable[[Exchange], Awaitable[None]]


class _Connection(asyncio.StreamReaderProtocol):
    """Knows at once when the client has closed, also while nobody reads."""

    def __init__(self, upstream: Upstream) -> None:
        self.left = asyncio.Event()
        self.left_at = math.nan
        self._upstream = upstream
        reader = asyncio.StreamReader(limit=2**20)
        super().__init__(reader, self._serve)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Awaitable[None]:
        return self._upstream._serve(self, reader, writer)

    def _leave(self) -> None:
        if not self.left.is_set():
            self.left_at = asyncio.get_running_loop().time()
            self.left.set()

    def eof_received(self) -> bool:
        self._leave()
        return bool(super().eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)


class Upstream(ABC):
    """The server.  What `answer` raises by accident is raised again when the server closes: a fake that breaks must
    not look like a fault by design."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.ledger: list[Attempt] = []
        self.connections = 0  # accepted so far
        self._arrived = asyncio.Condition()
        self._broken: list[Exception] = []
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self.port = 0  # set when it listens, and kept

    @abstractmethod
    async def answer(self, exchange: Exchange) -> None:
        """Answers one request, or breaks off on the way."""

    async def enter(self, attempt: Attempt) -> None:
        """Writes a line of the ledger: for inference, and before it is known what becomes of it."""
        async with self._arrived:
            attempt.number = len(self.ledger)
            self.ledger.append(attempt)
            self._arrived.notify_all()

    async def start(self) -> None:
        """Listens; on the same port again after a `stop`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening and cuts every connection: from now on the port refuses."""
        self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        if self._open:
            await asyncio.wait(set(self._open))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if self._broken and error is None:
            raise self._broken[0]

    async def attempt(self, number: int, within: float = LATE) -> Attempt:
        """The attempt of that number (from 0), as soon as it has arrived."""
        async with asyncio.timeout(within), self._arrived:
            await self._arrived.wait_for(lambda: len(self.ledger) > number)
        return self.ledger[number]

    async def attempt_with(self, text: str, within: float = LATE) -> Attempt:
        """The latest attempt whose body holds this text, as soon as it has arrived."""
        async with asyncio.timeout(within), self._arrived:
            while True:
                for attempt in reversed(self.ledger):
                    if text.encode() in attempt.request.body:
                        return attempt
                await self._arrived.wait()

    async def _serve(self, client: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        self.connections += 1
        writer.transport.set_write_buffer_limits(_WRITE_LIMIT)
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                if not await self._answer(request, client, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:  # noqa: BLE001 - kept, and raised when the server closes
            self._broken.append(error)
        finally:
            del self._open[task]
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, request: Request, client: _Connection, writer: asyncio.StreamWriter) -> bool:
        """Answers, and says whether the connection may be used again."""
        loop = asyncio.get_running_loop()
        attempt = Attempt(len(self.ledger), request, loop.time())
        exchange = Exchange(request, attempt, self, writer)
        playing: asyncio.Future[None] = asyncio.ensure_future(self.answer(exchange))
        leaving: asyncio.Future[Any] = asyncio.ensure_future(client.left.wait())
        both: set[asyncio.Future[Any]] = {playing, leaving}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                with suppress(ConnectionError):
                    playing.result()
                    attempt.end("answered", loop.time())
        finally:
            for future in both:
                future.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            if not attempt.over.is_set():
                attempt.end("left", client.left_at)
        return exchange.keep_alive and not client.left.is_set()


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request; None when the client has closed between two."""
    try:
        block = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as cut:
        if cut.partial:
            raise
        return None
    start, *lines = block.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = start.split(" ")
    headers = tuple((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
    fields = dict(headers)
    body = b""
    if "chunked" in fields.get("transfer-encoding", ""):
        while size := int((await reader.readline()).partition(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif length := int(fields.get("content-length", "0")):
        body = await reader.readexactly(length)
    return Request(method, target, headers, body)
