"""The ledger's file: what is written to it, in one transaction for all that waits, and what is read from it.

It lives in one thread (ledger.py).  What is written a thousand times a second is written past SQLAlchemy, in as few
statements as there can be: for each, the driver lets go of the interpreter and has to get it back.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Container, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from operator import attrgetter
from typing import Any, Self, TypeVar, cast

from sqlalchemy import Connection, Insert, select
from sqlalchemy.dialects.sqlite import dialect, insert

from gateway.controlplane import migrations
from gateway.controlplane.ledgertables import OPEN, REQUESTS, day_of, first_of
from gateway.controlplane.sqlitefile import SQLiteFile
from gateway.domain import money
from gateway.domain.entry import Entry
from gateway.domain.errors import Reason
from gateway.domain.usage import Usage

_T = TypeVar("_T")
_SIZES = tuple(1 << power for power in range(9, -1, -1))  # rows in one statement
_DAY = 86_400  # seconds
_FIELDS = tuple(field.name for field in fields(Entry))
_values = attrgetter(*_FIELDS)


@dataclass(slots=True)
class Batch:
    """What is written in one transaction.  `opened` and `settled` by the id of the request; `marks`: the tokens that a
    running request has had so far; `unnoted`: requests in `settled` that no journal has."""

    opened: dict[str, Entry] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    settled: dict[str, Entry] = field(default_factory=dict)
    unnoted: set[str] = field(default_factory=set)

    def open(self, entry: Entry) -> None:
        """A request runs."""
        self.opened[entry.request_id] = entry

    def mark(self, request_id: str, completion: int) -> None:
        """A request has had so many tokens."""
        self.marks[request_id] = completion

    def settle(self, entry: Entry) -> None:
        """A request has ended."""
        self.settled[entry.request_id] = entry

    def add(self, later: Batch) -> None:
        """What came after this."""
        self.opened |= later.opened
        self.marks |= later.marks
        self.settled |= later.settled
        self.unnoted |= later.unnoted

    def without(self, requests: Container[str]) -> Batch:
        """What is to be written of all others."""
        return Batch(
            {name: entry for name, entry in self.opened.items() if name not in requests},
            {name: tokens for name, tokens in self.marks.items() if name not in requests},
            {name: entry for name, entry in self.settled.items() if name not in requests},
        )

    def __len__(self) -> int:
        return len(self.opened) + len(self.marks) + len(self.settled)


class LedgerFile:
    """An open ledger, its schema the newest.  To be closed, by the thread that opened it."""

    def __init__(self, file: SQLiteFile, connection: Connection, boot: str) -> None:
        self._file = file
        self._connection = connection
        self._raw = cast(sqlite3.Connection, connection.connection.driver_connection)
        self._boot = boot
        self._seq = -1  # of the last row in REQUESTS; -1 when it must be looked up

    @classmethod
    def open(cls, url: str, boot: str) -> Self:
        """Opens `sqlite:///PATH`, makes it if there is none, and brings its schema up to date.  `boot` is a name for
        this life of the gateway.  Raises StorageError."""
        with ExitStack() as undo:
            file = SQLiteFile.take(url)
            undo.callback(file.give_back)
            connection = file.connect("NORMAL")
            undo.callback(connection.close)
            with connection.begin():
                migrations.upgrade(connection, str(file.path), migrations.LEDGER)
            ledger = cls(file, connection, boot)
            # `sync` does it, between two transactions and not at the end of one that is waited for.
            ledger._raw.execute("PRAGMA wal_autocheckpoint = 0")
            undo.pop_all()
        return ledger

    @property
    def file(self) -> SQLiteFile:
        """Knows what errors mean."""
        return self._file

    def write(self, batch: Batch) -> None:
        """Writes all of it, or nothing.  It outlives this process, however that ends; the machine's end only after the
        next `sync`.  Raises sqlite3.Error."""
        running = batch.without(batch.settled)
        todo = _OPENED.statements([(*_values(entry), self._boot) for entry in running.opened.values()])
        if running.marks:
            todo.append((_MARKED, (json.dumps(running.marks),)))
        try:
            todo += _SETTLED.statements(self._numbered(batch.settled.values()))
            if len(todo) == 1:  # is a transaction by itself
                self._run(*todo[0])
                return
            self._run("BEGIN IMMEDIATE")
            for text, values in todo:
                self._run(text, values)
            self._run("COMMIT")
        except BaseException:
            if self._raw.in_transaction:
                with suppress(sqlite3.Error):
                    self._raw.execute("ROLLBACK")
            self._seq = -1
            raise

    def sync(self) -> None:
        """Makes what was written safe against the end of the machine.  Raises sqlite3.Error."""
        self._raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def recover(self, journalled: Batch) -> int:
        """Writes what an earlier life of the gateway left in its journals, though it may have written some of it, and
        settles the requests that it did not, with the tokens that they are known to have had.  Returns how many there
        were.  Killed on its way, it can begin anew.  Raises sqlite3.Error."""
        self._write_some(journalled.without(self._settled_among([*journalled.opened, *journalled.settled])))
        left = self.read(lambda connection: connection.execute(select(*(OPEN.c[name] for name in _FIELDS))).all())
        crashed = Batch()
        for row in left:
            crashed.settle(_crashed(Entry(*row)))
        self._write_some(crashed)
        self.sync()
        return len(left)

    def _write_some(self, batch: Batch) -> None:
        if len(batch):
            self.write(batch)

    def _settled_among(self, requests: Sequence[str]) -> set[str]:
        return {name for (name,) in self._raw.execute(_KNOWN, (json.dumps(requests),))}

    def read(self, question: Callable[[Connection], _T]) -> _T:
        """Asks; what is answered is of one moment."""
        with self._connection.begin():
            return question(self._connection)

    def close(self) -> None:
        """Another gateway may open it then."""
        self._connection.close()
        self._file.give_back()

    def _numbered(self, entries: Collection[Entry]) -> list[tuple[Any, ...]]:
        """The rows of requests that end today.  Numbers never fall, also when the clock goes back over midnight: who
        has read up to one has read all before it (shipper.py)."""
        if not entries:
            return []
        day = int(time.time()) // _DAY
        if day_of(self._seq) < day:
            (last,) = self._raw.execute(_LAST).fetchone()
            self._seq = max(last or 0, first_of(day))
        rows = [(seq, *_values(entry)) for seq, entry in enumerate(entries, self._seq + 1)]
        self._seq += len(rows)
        return rows

    def _run(self, text: str, values: Sequence[Any] = ()) -> None:
        self._raw.execute(text, values)


def _crashed(entry: Entry) -> Entry:
    """What is known of a request that ran when the gateway was killed.  One that had no token had nothing."""
    if entry.completion == 0:
        return replace(entry, reason=Reason.GATEWAY_CRASH.value, prompt=0, estimated=False)
    used = Usage(entry.prompt, entry.completion, estimated=True)
    price = money.from_words(entry.price)
    cost = 0 if price is None else price.cost(used)
    return replace(entry, reason=Reason.GATEWAY_CRASH.value, estimated=True, cost=cost)


class _Rows:
    """A statement that inserts any number of rows, whose values are in the order of the table's columns."""

    def __init__(self, statement: Insert, columns: Sequence[str]) -> None:
        one = str(statement.values(dict.fromkeys(columns, "")).compile(dialect=dialect()))
        row = f"({', '.join('?' * len(columns))})"
        head, _, tail = one.partition(row)
        self._texts = {size: head + ", ".join([row] * size) + tail for size in _SIZES}

    def statements(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[str, Sequence[Any]]]:
        """As few as there can be."""
        left, count = iter(rows), len(rows)
        todo: list[tuple[str, Sequence[Any]]] = []
        for size, text in self._texts.items():
            while count >= size:
                todo.append((text, [value for row in islice(left, size) for value in row]))
                count -= size
        return todo


def _opened() -> Insert:
    statement = insert(OPEN)
    return statement.on_conflict_do_update(
        index_elements=[OPEN.c.request_id], set_={name: statement.excluded[name] for name in _FIELDS[1:]}
    )


_OPENED = _Rows(_opened(), (*_FIELDS, "boot"))
_SETTLED = _Rows(insert(REQUESTS), ("seq", *_FIELDS))
_LAST = "SELECT max(seq) FROM requests"
_KNOWN = "SELECT request_id FROM requests WHERE request_id IN (SELECT value FROM json_each(?))"
_MARKED = "UPDATE open_requests SET completion = mark.value FROM json_each(?) AS mark WHERE request_id = mark.key"
