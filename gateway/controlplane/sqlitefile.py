"""The SQLite file in which the gateway keeps what must outlive it: one gateway to a file, one connection to it.

A second connection that writes could meet SQLite's WAL-reset bug (mended in 3.51.3; Python brings older ones), and a
second gateway would undo the first one's moves. So a lock file beside the database keeps both away; the kernel gives it
back when its holder ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from sqlalchemy import Connection, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from gateway.controlplane.migrations import VERSION_TABLE
from gateway.domain.errors import StorageError

_URL = "sqlite:///"
_BUSY = 5.0  # seconds to wait for another program's lock: somebody may look into the file, or copy it
_WAL_LIMIT = 16 << 20  # bytes of the write-ahead log that stay on the disk once they are written back

# What is wrong, and what to do, by SQLite's primary result code (https://sqlite.org/rescode.html).
_UNWRITABLE = ("it cannot be written", "give the gateway's user the right to write to it and to its folder")
_SENTENCES = {
    sqlite3.SQLITE_FULL: ("the disk is full", "make room and try again"),
    sqlite3.SQLITE_READONLY: _UNWRITABLE,
    sqlite3.SQLITE_CANTOPEN: _UNWRITABLE,
    sqlite3.SQLITE_PERM: _UNWRITABLE,
    sqlite3.SQLITE_BUSY: ("another program has locked it", "end that program and try again"),
    sqlite3.SQLITE_LOCKED: ("another program has locked it", "end that program and try again"),
    sqlite3.SQLITE_NOTADB: ("it is no SQLite database", "move it away, or give the gateway another storage.url"),
    sqlite3.SQLITE_CORRUPT: ("it is damaged", "stop the gateway and put a sound copy in its place"),
    sqlite3.SQLITE_IOERR: ("the disk fails", "see to the disk and start the gateway again"),
}
_LASTING = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@dataclass(frozen=True, slots=True)
class SQLiteFile:
    """A database file that this process alone holds.  `path` is absolute."""

    path: Path
    _lock: int

    @classmethod
    def take(cls, url: str) -> Self:
        """Takes `sqlite:///PATH`, a relative path from the working directory on; makes it where there is none, for the
        gateway's user alone.  Raises StorageError: another gateway has it, or it cannot be opened."""
        path = Path(os.path.realpath(url.removeprefix(_URL)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        except OSError as error:
            raise _cannot_open(path, error) from error
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would ask the umask only
            _sync(path.parent)
        except OSError as error:
            os.close(lock)
            raise _cannot_open(path, error) from error
        return cls(path, lock)

    def connect(self, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> Connection:
        """The connection, for the calling thread: a transaction holds all that happens in it, changes of the schema
        included.  A commit is on the disk when it returns; with NORMAL it is the kernel's then, which survives the end
        of this process, and on the disk after the next checkpoint.  Raises StorageError."""
        engine = create_engine("sqlite+pysqlite://", creator=lambda: self._connect(synchronous), poolclass=NullPool)
        # Left alone, Python's driver begins no transaction before it sees an INSERT, UPDATE or DELETE.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        try:
            return engine.connect()
        except DBAPIError as error:
            raise self.explain(error) or error from error

    def explain(self, error: DBAPIError | sqlite3.Error) -> StorageError | None:
        """What a person needs to know of an error; None when the fault is the code's."""
        if (code := _code(error)) not in _SENTENCES:
            return None
        what, remedy = _SENTENCES[code]
        return StorageError(f"{self.path}: {what} ({_origin(error)}): {remedy}")

    def lasting(self, error: DBAPIError | sqlite3.Error) -> bool:
        """Whether the file must not be trusted any more before it was opened anew: after a failed fsync the kernel may
        take for written what never was."""
        return _code(error) in _LASTING

    def give_back(self) -> None:
        """Another gateway may take the file; nobody is connected any more."""
        os.close(self._lock)

    def _connect(self, synchronous: str) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, cached_statements=256)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
            if tables and VERSION_TABLE not in tables:
                raise StorageError(f"{self.path} is another program's: give the gateway another storage.url")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StorageError(f"{self.path}: its file system has no shared memory: give storage.url a local disk")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
        except BaseException:
            connection.close()
            raise
        return connection


def _lock(path: Path) -> int:
    """Not a lock on the database itself: to close any descriptor of it would end SQLite's own locks."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 300, 0).decode("utf-8", "replace")
        os.close(lock)
        raise StorageError(
            f"{path} is in use by another gateway ({holder}): stop that one, or give this one another storage.url"
        ) from None
    except OSError:
        os.close(lock)
        raise
    return lock


def _cannot_open(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be opened: {error.strerror} ({error.filename}): give the gateway's user the right to read and "
        f"write there, or give it another storage.url"
    )


def _origin(error: DBAPIError | sqlite3.Error) -> BaseException | None:
    """The driver's own error."""
    return error.orig if isinstance(error, DBAPIError) else error


def _code(error: DBAPIError | sqlite3.Error) -> int:
    """SQLite's primary result code: the low byte of the extended one; 0 when it was not SQLite that failed."""
    return int(getattr(_origin(error), "sqlite_errorcode", 0)) & 0xFF


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
