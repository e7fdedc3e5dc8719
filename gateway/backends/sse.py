"""Server-sent events, sans I/O: bytes in, payloads out, at any chunk boundary.

Follows the event stream grammar of the HTML standard (section 9.2): lines end in LF, CRLF or CR; an empty line ends
an event; several `data:` lines are joined by LF.  Comments, `event:`, `id:` and `retry:` are understood and dropped.
"""

from __future__ import annotations

MAX_EVENT = 8 * 1024 * 1024 + 1024  # bytes: an 8 MiB payload and its framing

_MARK = b"\xef\xbb\xbf"  # a byte order mark, which a stream may begin with


class EventTooLarge(ValueError):
    """An event that did not end within MAX_EVENT bytes."""


class EventSplitter:
    """Feed it what arrives; it returns the payloads of the events that are complete."""

    __slots__ = ("_pending_cr", "_rest", "_start")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._pending_cr = False
        self._start = True

    def feed(self, data: bytes) -> list[bytes]:
        """Raises EventTooLarge; what was complete before is lost then, and so is the stream."""
        if self._start or self._pending_cr or b"\r" in data:
            data = self._normalise(data)
        if not self._rest and data.endswith(b"\n\n"):
            return _payloads(data)
        seen = max(0, len(self._rest) - 1)
        self._rest += data
        end = self._rest.rfind(b"\n\n", seen)
        if end < 0:
            if len(self._rest) > MAX_EVENT:
                raise EventTooLarge
            return []
        block = bytes(self._rest[: end + 2])
        del self._rest[: end + 2]
        if len(self._rest) > MAX_EVENT:
            raise EventTooLarge
        return _payloads(block)

    def flush(self) -> list[bytes]:
        """The stream closed: an event that lacks only its empty line is taken as complete."""
        block, self._rest = bytes(self._rest), bytearray()
        return _payloads(block)

    def _normalise(self, data: bytes) -> bytes:
        """Line endings to LF.  A CR ends its line at once, so that no event waits for what follows it; if an LF comes
        next, in this chunk or another, it belongs to that CR."""
        if self._start and data:
            data = bytes(self._rest) + data
            self._rest.clear()
            self._start = len(data) < len(_MARK) and _MARK.startswith(data)
            if self._start:
                self._rest += data
                return b""
            data = data.removeprefix(_MARK)
        if self._pending_cr and data:
            self._pending_cr = False
            data = data.removeprefix(b"\n")
        if data.endswith(b"\r"):
            self._pending_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _payloads(block: bytes) -> list[bytes]:
    found = []
    for event in block.split(b"\n\n"):
        if event.startswith(b"data: ") and b"\n" not in event:
            if len(event) > MAX_EVENT:
                raise EventTooLarge
            found.append(event[6:])
        elif event:
            if len(event) > MAX_EVENT:
                raise EventTooLarge
            lines = [
                line[6:] if line.startswith(b"data: ") else line[5:]
                for line in event.split(b"\n")
                if line.startswith(b"data:")
            ]
            if lines:
                found.append(b"\n".join(lines))
    return found
