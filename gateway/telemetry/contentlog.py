"""The content log: prompts and answers of keys with `log_content`, a JSON object a line, in a file of its own.

A thread writes it, so that no request waits for the disk or fails with it.  What cannot be written is dropped, and
counted.  Who moves the file away to rotate it finds the next line in a new one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from gateway.domain.content import Content
from gateway.telemetry import contentline

_log = logging.getLogger("gateway.content")

_MOST = 64 * 1024 * 1024  # bytes that may wait to be written
_EACH = 1024  # of them for a line, however short
_PATIENCE = 5.0  # seconds that the end of the gateway waits for what is still to be written


class ContentLog:
    """Used from one event loop, from `start` to `close`.  `dropped` is called for each line that is not written, by any
    thread."""

    def __init__(self, path: Path, dropped: Callable[[], None], *, most: int = _MOST) -> None:
        self._file = _File(path)
        self._dropped = dropped
        self._most = most
        self._queue: SimpleQueue[Content | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0  # bytes in the queue
        self._full = False
        self._thread = threading.Thread(target=self._write, name="content log", daemon=True)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def put(self, content: Content) -> None:
        """Takes what is to be written.  Neither waits nor fails."""
        size = content.size + _EACH
        with self._lock:
            room = self._waiting + size <= self._most
            if room:
                self._waiting += size
            waiting = self._waiting
        if room:
            self._queue.put(content)
            if self._full and waiting < self._most // 2:
                self._full = False
                _log.warning("the content log keeps up again")
            return
        self._dropped()
        if not self._full:
            self._full = True
            _log.warning("the content log does not keep up, and requests are left out of it")

    async def close(self) -> None:
        """Returns when everything is written, or after some seconds."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, _PATIENCE)
        if self._thread.is_alive():
            _log.warning(
                "the content log could not be finished, and about %d requests are not in it", self._queue.qsize()
            )

    # In the thread

    def _write(self) -> None:
        trouble = self._tried(b"", "")  # a path that is wrong is told at the start
        while (content := self._queue.get()) is not None:
            try:
                line = contentline.line(content)
            except Exception:  # noqa: BLE001 - a fault of our own costs a line, and its trace might quote the prompt
                _log.error("a request could not be put into the content log", extra={"request_id": content.request_id})
                self._dropped()
            else:
                before, trouble = trouble, self._tried(line, trouble)
                if trouble:
                    self._dropped()
                elif before:
                    _log.warning("the content log is written again")
            with self._lock:
                self._waiting -= content.size + _EACH
            del content  # it may be large, and the next one may be long in coming
        self._file.close()

    def _tried(self, line: bytes, told: str) -> str:
        """Why this could not be written, which is logged unless it was `told`; "" when it was."""
        try:
            self._file.append(line)
        except OSError as error:
            why = error.strerror or str(error)
            if not told:
                _log.warning("requests are left out of the content log: %s cannot be written: %s", self._file.path, why)
            return why
        return ""


class _File:
    """A file of lines at a path, opened again when another one, or none, is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def append(self, line: bytes) -> None:
        """The line is at the end of the file, or nothing of it is.  Raises OSError."""
        try:
            descriptor = self._opened()
            size = os.fstat(descriptor).st_size
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """It is opened again for the next line."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _opened(self) -> int:
        if self._descriptor is not None and not self._is_there(self._descriptor):
            self.close()
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._begin(self._descriptor)
        return self._descriptor

    def _is_there(self, descriptor: int) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(descriptor))

    def _begin(self, descriptor: int) -> None:
        """A file that was there before: others may not read it, and a line that was not written whole ends."""
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return
        if found.st_mode & stat.S_IRWXO:
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & ~stat.S_IRWXO)
        if found.st_size and os.pread(descriptor, 1, found.st_size - 1) != b"\n":
            os.write(descriptor, b"\n")
