"""The ledger: one row for each request that was let in, whatever ended it (docs/adr/0012).

The data plane hands over what happens, which costs it one append to a queue.  One thread writes it down: whatever waits
at a moment is one transaction, and nobody waits for company.  A row survives the end of this process as soon as it is
written, and that of the machine a second later at the latest.  That a request runs is written before its client is
shown anything, or after a quarter of a second: one that has ended by then is written once.

When the file cannot be written nothing is dropped: what is to be written stays here and is written when it can be,
whoever waits for it is told, and the data plane lets nobody in (`trouble`).  After the disk itself has failed nothing
is written before the next start: the kernel may take for written what never was.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection

from gateway.controlplane.ledgerfile import Batch, LedgerFile
from gateway.domain.entry import Entry
from gateway.domain.errors import StorageError, Unaccounted

_log = logging.getLogger("gateway.ledger")

_T = TypeVar("_T")
_SYNC = 1.0  # seconds between two moments at which what is written becomes safe against the end of the machine
_RETRY = 1.0  # seconds until what could not be written is tried again
_MOST = 2000  # things that are done in one transaction
_EARLY = 0.25  # seconds until a request that runs is written that shows nothing to its client before


def ledger_url(storage: str) -> str:
    """Where the ledger is: beside the storage's file."""
    stem, suffix = os.path.splitext(storage)
    return f"{stem}.ledger{suffix or '.db'}"


@dataclass(slots=True)
class _Turn:
    """What the thread does next."""

    batch: Batch = field(default_factory=Batch)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    questions: list[tuple[Callable[[Connection], Any], concurrent.futures.Future[Any]]] = field(default_factory=list)
    last: bool = False

    def open(self, entry: Entry, _: None) -> None:
        self.batch.open(entry)

    def mark(self, request_id: str, completion: int) -> None:
        self.batch.mark(request_id, completion)

    def settle(self, entry: Entry, done: asyncio.Future[None]) -> None:
        self.batch.settle(entry)
        self.waiting.append(done)

    def wait(self, done: asyncio.Future[None], _: None) -> None:
        self.waiting.append(done)

    def ask(self, question: Callable[[Connection], Any], answer: concurrent.futures.Future[Any]) -> None:
        self.questions.append((question, answer))

    def end(self, *_: None) -> None:
        self.last = True


class Ledger:
    """Used from one event loop, from `start` to `close`.  Its methods do not block it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], Any, Any]] = queue.SimpleQueue()
        # The loop's: requests that run and that the thread does not know of.
        self._early: dict[str, Callable[[], Entry]] = {}
        self._flush: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._over = concurrent.futures.Future[None]()
        # The thread's; anybody may read them.
        self._trouble: StorageError | None = None
        self._unwritten = 0
        self.recovered = 0  # requests that an earlier life of the gateway had left unsettled

    async def start(self) -> None:
        """Opens the file, and settles what an earlier life of the gateway left.  Raises StorageError."""
        self._loop = asyncio.get_running_loop()
        ready = concurrent.futures.Future[None]()
        self._thread = threading.Thread(target=self._live, args=(ready,), name="ledger", daemon=True)
        self._thread.start()
        await asyncio.wrap_future(ready)

    @property
    def trouble(self) -> StorageError | None:
        """Why nothing can be written at this moment, None when it can."""
        return self._trouble

    @property
    def depth(self) -> int:
        """How much is handed over and not yet written, about."""
        return self._queue.qsize() + len(self._early) + self._unwritten

    def opened(self, request_id: str, known: Callable[[], Entry]) -> None:
        """A request runs; `known` tells what is known of it at that moment, as often as it is asked.  Said again when
        more is known than was."""
        self._early[request_id] = known
        if self._flush is None:
            self._flush = self._loop.call_later(_EARLY, self._hand_over)

    async def shown(self, request_id: str) -> None:
        """Returns when it is written that this request runs.  Raises Unaccounted when it cannot be."""
        if (known := self._early.pop(request_id, None)) is not None:
            self._queue.put((_Turn.open, known(), None))
        done = self._loop.create_future()
        self._queue.put((_Turn.wait, done, None))
        await done

    def checkpoint(self, request_id: str, completion: int) -> None:
        """A request that runs has had so many tokens."""
        self._queue.put((_Turn.mark, request_id, completion))

    def settled(self, entry: Entry) -> asyncio.Future[None]:
        """A request has ended: from now on it is not forgotten, and it is written when the future is done.  Its
        exception is Unaccounted; nobody needs to look at it."""
        self._early.pop(entry.request_id, None)
        done = self._loop.create_future()
        self._queue.put((_Turn.settle, entry, done))
        return done

    async def ask(self, question: Callable[[Connection], _T]) -> _T:
        """Asks the file, in its thread and between two transactions: `question` should take milliseconds at most, for
        requests wait for it.  Raises StorageError."""
        answer = concurrent.futures.Future[_T]()
        self._queue.put((_Turn.ask, question, answer))
        return await asyncio.wrap_future(answer)

    async def close(self) -> None:
        """Returns when everything is written that can be; then another gateway may open the file."""
        if self._thread is not None:
            if self._flush is not None:
                self._flush.cancel()
            self._hand_over()
            self._queue.put((_Turn.end, None, None))
            await asyncio.wrap_future(self._over)
            self._thread.join()

    def _hand_over(self) -> None:
        self._flush = None
        for known in self._early.values():
            self._queue.put((_Turn.open, known(), None))
        self._early.clear()

    # In the thread

    def _live(self, ready: concurrent.futures.Future[None]) -> None:
        try:
            file = LedgerFile.open(self._url, secrets.token_hex(8))
            try:
                self.recovered = file.recover()
            except BaseException:
                file.close()
                raise
        except BaseException as error:  # noqa: BLE001 - whoever starts it hears of it
            ready.set_exception(error)
            return
        ready.set_result(None)
        if self.recovered:
            _log.warning("settled %d requests that were running when the gateway was killed", self.recovered)
        try:
            self._write(file)
            file.close()
        finally:
            self._over.set_result(None)

    def _write(self, file: LedgerFile) -> None:
        turn = _Turn()
        lasting = False
        dirty, synced = False, time.monotonic()
        while not turn.last:
            again = self._trouble is not None and not lasting
            wait = _RETRY if again else max(0.0, synced + _SYNC - time.monotonic()) if dirty else None
            self._take(turn, wait)
            if not lasting:
                try:
                    if len(turn.batch):
                        file.write(turn.batch)
                        turn.batch = Batch()
                        dirty = True
                    if dirty and (turn.last or time.monotonic() >= synced + _SYNC):
                        file.sync()
                        dirty, synced = False, time.monotonic()
                    self._recover()
                except Exception as error:  # noqa: BLE001 - whatever it is, requests are told and rows are kept
                    lasting = self._fail(file, error)
            self._unwritten = len(turn.batch)
            self._tell(turn)
            self._answer(turn, file)
        self._lose(turn.batch)

    def _take(self, turn: _Turn, wait: float | None) -> None:
        """Waits for something to do, and takes whatever is there."""
        try:
            what, first, second = self._queue.get(timeout=wait)
            for _ in range(_MOST):
                what(turn, first, second)
                what, first, second = self._queue.get_nowait()
            what(turn, first, second)
        except queue.Empty:
            pass

    def _tell(self, turn: _Turn) -> None:
        if turn.waiting:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(_settle, turn.waiting, self._trouble is None)
            turn.waiting = []

    def _answer(self, turn: _Turn, file: LedgerFile) -> None:
        for question, answer in turn.questions:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(file.read(question))
                except Exception as error:  # noqa: BLE001 - who asked hears of it
                    answer.set_exception(self._explained(file, error) or error)
        turn.questions.clear()

    def _fail(self, file: LedgerFile, error: Exception) -> bool:
        """Nothing can be written.  Returns whether that lasts until the next start."""
        told = self._explained(file, error)
        lasting = told is None or (isinstance(error, sqlite3.Error) and file.file.lasting(error))
        if told is None:
            _log.error("the ledger failed", exc_info=error)
            told = StorageError(f"the ledger failed ({type(error).__name__}): start the gateway again")
        if self._trouble is None:
            _log.error("requests are refused: the ledger cannot be written: %s", told.message)
        self._trouble = told
        return lasting

    def _recover(self) -> None:
        if self._trouble is not None:
            self._trouble = None
            _log.warning("the ledger is written again, and requests are let in")

    @staticmethod
    def _explained(file: LedgerFile, error: Exception) -> StorageError | None:
        return file.file.explain(error) if isinstance(error, sqlite3.Error) else None

    def _lose(self, batch: Batch) -> None:
        """The gateway ends and these were not written: they are told as rows, so that they can be entered by hand."""
        for entry in batch.settled.values():
            _log.error("not in the ledger", extra={"entry": asdict(entry)})


def _settle(waiting: Iterable[asyncio.Future[None]], written: bool) -> None:
    for done in waiting:
        if not done.done():
            if written:
                done.set_result(None)
            else:
                done.set_exception(Unaccounted())
                done.exception()  # nobody has to look at it
