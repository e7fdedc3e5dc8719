"""HTTP/1.1 by hand: what a client really gets, byte by byte, and ways of leaving that no HTTP library offers."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.patience import LATE

_LIMIT = 2**24  # the longest line that is read; far over anything the gateway may send


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.  `complete`: it ended as HTTP wants it (last chunk, or the promised length); False: it was cut."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    complete: bool

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, checked to have OpenAI's form: four keys, a message, nothing beside."""
        assert self.header("content-type") == "application/json", self
        assert set(self.json) == {"error"}, self.body
        return checked_error(self.json["error"])

    @property
    def events(self) -> list[bytes]:
        """The stream's events.  Fails on anything that is not a single `data:` line followed by an empty one."""
        return split_events(self.body)

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The stream's JSON events, without `[DONE]` and errors."""
        parsed = [json.loads(event) for event in self.events if event != b"[DONE]"]
        return [chunk for chunk in parsed if "error" not in chunk]

    @property
    def done(self) -> bool:
        return self.events[-1:] == [b"[DONE]"]

    @property
    def failure(self) -> dict[str, Any]:
        """The error event that ended a broken stream, after which nothing may come."""
        assert b"[DONE]" not in self.events, "a broken stream claims to be done"
        assert not self.complete, "a broken stream ends like a whole one"
        last = json.loads(self.events[-1])
        assert sum(b'"error"' in event for event in self.events) == 1, self.events[-3:]
        return checked_error(last["error"])

    @property
    def text(self) -> str:
        """What the first choice said."""
        choices = [choice for chunk in self.chunks for choice in chunk["choices"] if choice["index"] == 0]
        return "".join(
            (choice["delta"].get("content") if "delta" in choice else choice["text"]) or "" for choice in choices
        )


def checked_error(error: Any) -> dict[str, Any]:
    assert isinstance(error, dict), error
    assert {"message", "type", "param", "code"} <= set(error), error
    assert isinstance(error["message"], str), error
    assert error["message"], error
    return error


def split_events(body: bytes) -> list[bytes]:
    if not body:
        return []
    assert body.endswith(b"\n\n"), body[-200:]
    events = body[:-2].split(b"\n\n")
    for event in events:
        assert event.startswith(b"data: "), event[:200]
        assert b"\n" not in event, event[:200]
        assert b"\r" not in event, event[:200]
    return [event.removeprefix(b"data: ") for event in events]


class Wire:
    """One connection.  Times in seconds on the loop's clock."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def post(self, path: str, body: Any, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Sends a request; `body` is bytes, or becomes JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.request("POST", path, data, (("content-type", "application/json"), *headers))

    async def request(self, method: str, path: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._host}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    async def head(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        block = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = block.split("\r\n")[:-2]
        pairs = (line.partition(":") for line in lines)
        return int(start.split(" ")[1]), tuple((name.lower(), value.strip()) for name, _, value in pairs)

    async def chunk(self) -> bytes | None:
        """The next chunk of a chunked body; b"" for the last one, None when the connection ends without it."""
        try:
            size = int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16)
            return (await self._reader.readexactly(size + 2))[:-2]
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return None

    async def rest(self, status: int, headers: tuple[tuple[str, str], ...]) -> Reply:
        fields = dict(headers)
        body = b""
        if fields.get("transfer-encoding") == "chunked":
            while data := await self.chunk():
                body += data
            return Reply(status, headers, body, complete=data is not None)
        try:
            body = await self._reader.readexactly(int(fields["content-length"]))
        except asyncio.IncompleteReadError as cut:
            return Reply(status, headers, cut.partial, complete=False)
        return Reply(status, headers, body, complete=True)

    async def reply(self) -> Reply:
        return await self.rest(*await self.head())

    async def closed(self) -> bytes:
        """What still comes until the peer closes."""
        return await self._reader.read()

    def half_close(self) -> None:
        self._writer.write_eof()

    def close(self) -> None:
        """FIN."""
        self._writer.close()

    def reset(self) -> None:
        """RST."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Wire]:
    """A connection to the server of that URL."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=_LIMIT)
    try:
        yield Wire(reader, writer, place.netloc)
    finally:
        writer.transport.abort()


async def post(
    url: str, path: str, body: Any, headers: Iterable[tuple[str, str]] = (), within: float = 3 * LATE
) -> Reply:
    """One request on a connection of its own."""
    async with asyncio.timeout(within), connected(url) as wire:
        await wire.post(path, body, headers)
        return await wire.reply()


async def get(url: str, path: str, headers: Iterable[tuple[str, str]] = (), within: float = 3 * LATE) -> Reply:
    async with asyncio.timeout(within), connected(url) as wire:
        await wire.request("GET", path, headers=headers)
        return await wire.reply()
