"""The ledger: one row for each request that was let in, whatever ended it (docs/adr/0012).

The data plane hands over what happens, which costs it a line at the end of a journal: from then on it survives the end
of this process.  Four times a second a thread writes what was handed over into the ledger's file, all of it in one
transaction, and once a second it makes that safe against the end of the machine.

When the file cannot be written nothing is dropped: what is to be written stays here and in the journal, it is tried
again until it can be, and the data plane lets nobody in (`trouble`).  After the disk itself has failed nothing is
written before the next start: the kernel may take for written what never was.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gateway.controlplane import journal
from gateway.controlplane.journal import Journal
from gateway.controlplane.ledgerfile import Batch, LedgerFile
from gateway.domain.entry import Entry
from gateway.domain.errors import StorageError

_log = logging.getLogger("gateway.ledger")

_T = TypeVar("_T")
_EVERY = 0.25  # seconds until what was handed over is written
_SYNC = 1.0  # seconds until what is written is safe against the end of the machine
_RETRY = 1.0  # seconds until what could not be written is tried again
_MOST = 100_000  # things that wait to be written at most
_BEHIND = StorageError("the ledger's disk does not keep up with the requests that come: give storage.url a faster one")


def ledger_url(storage: str) -> str:
    """Where the ledger is: beside the storage's file."""
    stem, suffix = os.path.splitext(storage)
    return f"{stem}.ledger{suffix or '.db'}"


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why the ledger cannot be written.  `lasting`: until the next start."""

    error: StorageError
    lasting: bool = False


class _Writer:
    """Writes batches into the file, one after the other and in the ledger's thread.  What could not be written is part
    of the next."""

    def __init__(self, file: LedgerFile) -> None:
        self.file = file
        self.left = Batch()
        self._journals: list[Path] = []

    def write(self, batch: Batch, done: Sequence[Path]) -> _Trouble | None:
        """Writes this batch, which is what is in the journals `done`.  Returns why not."""
        self.left.add(batch)
        self._journals += done
        try:
            if len(self.left):
                self.file.write(self.left)
                self.left = Batch()
            journal.remove(self._journals)
            self._journals.clear()
        except Exception as error:  # noqa: BLE001 - whatever it is, requests are refused and rows are kept
            return self._explained(error)
        return None

    def sync(self) -> _Trouble | None:
        """Makes what was written safe.  Returns why not."""
        try:
            self.file.sync()
        except Exception as error:  # noqa: BLE001 - as above
            return self._explained(error)
        return None

    def read(self, question: Callable[[Connection], _T]) -> _T:
        """Raises StorageError, or what `question` does."""
        try:
            return self.file.read(question)
        except (sqlite3.Error, DBAPIError) as error:
            raise self.file.file.explain(error) or error from error

    def close(self) -> None:
        """Nothing more is written."""
        self.sync()
        self.file.close()

    def _explained(self, error: Exception) -> _Trouble:
        if isinstance(error, OSError):
            return _Trouble(_unwritable(self.file.file.path, error))
        told = self.file.file.explain(error) if isinstance(error, sqlite3.Error) else None
        if told is None:
            _log.error("the ledger failed", exc_info=error)
            told = StorageError(f"the ledger failed ({type(error).__name__}): start the gateway again")
            return _Trouble(told, lasting=True)
        return _Trouble(told, isinstance(error, sqlite3.Error) and self.file.file.lasting(error))


class Ledger:
    """Used from one event loop, from `start` to `close`.  Its methods block it for as long as a line takes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._thread = ThreadPoolExecutor(1, "ledger")
        # Requests that run and are in no journal yet: one that ends before the next batch is written once.
        self._early: dict[str, Callable[[], Entry]] = {}
        self._batch = Batch()  # what the open journal has
        self._unnoted: set[str] = set()  # requests that run and are in no journal, as long as there is trouble
        self._trouble: _Trouble | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._syncing: asyncio.TimerHandle | None = None
        self._closing = False
        # Of what the thread was ever given: how much that was, and how much of it is in the file.
        self._handed = self._written = 0
        self.recovered = 0  # requests that an earlier life of the gateway had left unsettled

    async def start(self) -> None:
        """Opens the file, and settles what an earlier life of the gateway left.  Raises StorageError."""
        self._loop = asyncio.get_running_loop()
        try:
            opened = await self._loop.run_in_executor(self._thread, _open, self._url)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        self._writer, self._journal, self.recovered = opened
        if self.recovered:
            _log.warning("settled %d requests that were running when the gateway was killed", self.recovered)

    @property
    def trouble(self) -> StorageError | None:
        """Why nothing can be written at this moment, None when it can."""
        if self._trouble is not None:
            return self._trouble.error
        return _BEHIND if self._handed - self._written > _MOST else None

    @property
    def depth(self) -> int:
        """How much was handed over and is not in the file, about."""
        return len(self._early) + len(self._batch) + self._handed - self._written

    def opened(self, request_id: str, known: Callable[[], Entry]) -> None:
        """A request runs; `known` tells what is known of it at that moment, as often as it is asked.  Said again when
        more is known than was."""
        self._early[request_id] = known
        self._write_soon()

    def shown(self, request_id: str) -> bool:
        """From now on it is not forgotten that this request runs.  Returns whether that outlives a `kill -9`."""
        known = self._early.pop(request_id, None)
        if known is None:  # that was noted with a batch
            return request_id not in self._unnoted
        return self._runs(known())

    def checkpoint(self, request_id: str, completion: int) -> None:
        """A request that runs has had so many tokens."""
        self._batch.mark(request_id, completion)
        self._noted(self._journal.marked, request_id, completion)
        self._write_soon()

    def settled(self, entry: Entry) -> bool:
        """A request has ended.  From now on that is not forgotten.  Returns whether it outlives a `kill -9`."""
        self._early.pop(entry.request_id, None)
        self._batch.settle(entry)
        noted = self._noted(self._journal.settled, entry)
        if not noted:
            self._batch.unnoted.add(entry.request_id)
        self._write_soon()
        return noted

    async def ask(self, question: Callable[[Connection], _T]) -> _T:
        """Asks the file, in the thread that writes it and after what was handed over before is written: `question`
        should take milliseconds at most.  Raises StorageError."""
        self._write()
        return await self._loop.run_in_executor(self._thread, self._writer.read, question)

    async def close(self) -> None:
        """Returns when everything is written that can be; then another gateway may open the file."""
        self._write()
        self._closing = True
        for timer in (self._writing, self._syncing):
            if timer is not None:
                timer.cancel()
        await self._loop.run_in_executor(self._thread, self._writer.close)
        self._thread.shutdown()
        self._journal.close()
        for batch in (self._writer.left, self._batch):
            for name in batch.unnoted:
                # It is nowhere: it is told as a row, so that it can be entered by hand.
                _log.error("not in the ledger", extra={"entry": asdict(batch.settled[name])})

    def _runs(self, entry: Entry) -> bool:
        self._batch.open(entry)
        noted = self._noted(self._journal.opened, entry)
        if not noted:
            self._unnoted.add(entry.request_id)
        return noted

    def _noted(self, note: Callable[..., None], *what: Any) -> bool:
        """Whether it could be noted in the journal."""
        try:
            note(*what)
        except OSError as error:
            self._in_trouble(_Trouble(_unwritable(self._journal.path, error)))
            return False
        return True

    def _write_soon(self) -> None:
        if self._writing is None and not self._closing:
            self._writing = self._loop.call_later(_EVERY if self._trouble is None else _RETRY, self._write)

    def _write(self) -> None:
        """Has the thread write what was handed over."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if self._trouble is not None and self._trouble.lasting:
            return
        for known in self._early.values():
            self._runs(known())
        self._early.clear()
        batch, done = self._batch, []
        if len(batch):
            try:
                done.append(self._journal.cut())
            except OSError as error:
                self._in_trouble(_Trouble(_unwritable(self._journal.path, error)))
                return
            self._batch = Batch()
        elif self._trouble is None:
            return
        self._handed += len(batch)
        writing = self._loop.run_in_executor(self._thread, self._writer.write, batch, done)
        writing.add_done_callback(partial(self._tried, self._handed))
        if self._syncing is None:
            self._syncing = self._loop.call_later(_SYNC, self._sync)

    def _tried(self, handed: int, writing: asyncio.Future[_Trouble | None]) -> None:
        if (trouble := writing.result()) is not None:
            self._in_trouble(trouble)
            return
        self._written = handed
        if self._trouble is not None and not self._trouble.lasting and not self._batch.unnoted:
            self._trouble = None
            self._unnoted.clear()
            _log.warning("the ledger is written again, and requests are let in")

    def _sync(self) -> None:
        self._syncing = None
        self._loop.run_in_executor(self._thread, self._writer.sync).add_done_callback(self._synced)

    def _synced(self, syncing: asyncio.Future[_Trouble | None]) -> None:
        if (trouble := syncing.result()) is not None:
            self._in_trouble(trouble)

    def _in_trouble(self, trouble: _Trouble) -> None:
        if self._trouble is None:
            _log.error("requests are refused: the ledger cannot be written: %s", trouble.error.message)
        if self._trouble is None or not self._trouble.lasting:
            self._trouble = trouble
        self._write_soon()


def _open(url: str) -> tuple[_Writer, Journal, int]:
    """In the ledger's thread.  Raises StorageError."""
    file = LedgerFile.open(url, secrets.token_hex(8))
    path = file.file.path
    try:
        left = journal.left(path)
        recovered = file.recover(journal.replayed(left))
        journal.remove(left)
        return _Writer(file), Journal(path), recovered
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        if isinstance(error, sqlite3.Error) and (told := file.file.explain(error)) is not None:
            raise told from error
        raise


def _unwritable(path: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{path}: the disk is full ({error.strerror}): make room and try again")
    remedy = "see to the disk, and to the gateway's right to write in that folder"
    return StorageError(f"{path} cannot be written: {error.strerror}: {remedy}")
