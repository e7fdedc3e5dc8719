"""What was handed to the ledger and is not in its file yet: lines at the end of a file beside it.

A line is the kernel's as soon as it is appended, which takes microseconds: it survives the end of this process, however
that ends.  So no request waits for a transaction, and a transaction has many of them (docs/adr/0012).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import orjson

from gateway.controlplane.ledgerfile import Batch
from gateway.domain.entry import Entry

_log = logging.getLogger("gateway.ledger")
_OPENED, _MARKED, _SETTLED = "opened", "marked", "settled"


class Journal:
    """The journals of the ledger at `path`, `PATH.journal-1` and so on, of which the last is written.  To be closed.
    Whoever makes one holds the ledger, and has dealt with what `left` tells.  Raises OSError when it cannot write, and
    then has written nothing."""

    def __init__(self, path: Path) -> None:
        self._stem = _stem(path)
        self._number = 0
        self._begin()

    def opened(self, entry: Entry) -> None:
        """A request runs, and so much is known of it."""
        self._append({_OPENED: entry})

    def marked(self, request_id: str, completion: int) -> None:
        """A request that runs has had so many tokens."""
        self._append({_MARKED: [request_id, completion]})

    def settled(self, entry: Entry) -> None:
        """A request has ended."""
        self._append({_SETTLED: entry})

    def cut(self) -> Path:
        """Begins another file.  Returns the one that was written until now, to be removed when the ledger has what is
        in it."""
        descriptor, path = self._descriptor, self.path
        self._begin()
        os.close(descriptor)
        return path

    def close(self) -> None:
        """Nothing more is written.  A file without a line is removed."""
        os.close(self._descriptor)
        if not self._size:
            self.path.unlink(missing_ok=True)

    def _begin(self) -> None:
        path = self._stem.with_name(f"{self._stem.name}{self._number + 1}")
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.path, self._number, self._size = path, self._number + 1, 0

    def _append(self, what: object) -> None:
        line = orjson.dumps(what, option=orjson.OPT_APPEND_NEWLINE)
        try:
            # Not O_APPEND: the next line overwrites what there is of one that was not written whole.
            written = os.pwrite(self._descriptor, line, self._size)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written


def left(path: Path) -> list[Path]:
    """The journals that an earlier life of the gateway left beside the ledger at `path`, the oldest first."""
    stem = _stem(path)
    numbers = [name[len(stem.name) :] for name in os.listdir(path.parent) if name.startswith(stem.name)]
    return [stem.with_name(stem.name + number) for number in sorted(filter(str.isdecimal, numbers), key=int)]


def replayed(journals: Sequence[Path]) -> Batch:
    """What is in these.  The line that was being written when the gateway was killed is not whole and does not count:
    nobody was told that it is there.  After a power cut there may be others, and not only the last."""
    batch = Batch()
    for journal in journals:
        lines = journal.read_bytes().split(b"\n")
        torn = sum(not _replay(line, batch) for line in lines[:-1])
        if torn:
            _log.error("%s: %d lines cannot be read and are left out", journal, torn)
    return batch


def remove(journals: Iterable[Path]) -> None:
    """The ledger has what is in these."""
    for journal in journals:
        journal.unlink(missing_ok=True)


def _replay(line: bytes, batch: Batch) -> bool:
    try:
        ((what, value),) = orjson.loads(line).items()
        if what == _OPENED:
            batch.open(Entry(**value))
        elif what == _MARKED:
            batch.mark(*value)
        else:
            batch.settle(Entry(**value))
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def _stem(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal-")
