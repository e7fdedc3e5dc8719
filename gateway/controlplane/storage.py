"""What must outlive the gateway: one database, one connection to it, and one thread that speaks to it.

All reading and writing happens in that thread, one transaction after the other. The rest of the gateway never waits for
the disk, and nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, Self, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gateway.controlplane import migrations
from gateway.controlplane.sqlitefile import SQLiteFile
from gateway.domain.errors import StorageError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Storage:
    """An open database, its schema the newest.  To be closed."""

    def __init__(self, thread: ThreadPoolExecutor, file: SQLiteFile, connection: Connection) -> None:
        self._thread = thread
        # All that follows is the thread's.
        self._file = file
        self._connection = connection
        self._broken: str | None = None

    @classmethod
    async def open(cls, url: str) -> Self:
        """Opens the database (`sqlite:///PATH`), makes it if there is none and brings its schema up to date.  Raises
        StorageError."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="storage")
        try:
            return await asyncio.wrap_future(thread.submit(cls._open, thread, url))
        except BaseException:
            thread.shutdown(wait=False)
            raise

    async def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Runs `function` in the thread, after all that was asked for before.

        When the caller is cancelled meanwhile, it happens all the same, or not at all if it had not begun.
        """
        return await asyncio.wrap_future(self._thread.submit(function, *args, **kwargs))

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction, for functions that `call` runs: on the disk when the block has ended, undone when it raises.

        Raises StorageError; once the disk itself has failed, every time.
        """
        if self._broken is not None:
            raise StorageError(self._broken)
        try:
            with self._connection.begin():
                yield self._connection
        except DBAPIError as error:
            if (told := self._file.explain(error)) is None:
                raise
            if self._file.lasting(error):
                self._broken = told.message
            raise told from error

    async def close(self) -> None:
        """Ends when all that was asked for before has; then another gateway may open the database."""
        await self.call(self._close)
        self._thread.shutdown()

    @classmethod
    def _open(cls, thread: ThreadPoolExecutor, url: str) -> Self:
        with ExitStack() as undo:
            file = SQLiteFile.take(url)
            undo.callback(file.give_back)
            connection = file.connect()
            undo.callback(connection.close)
            storage = cls(thread, file, connection)
            with storage.begin():
                migrations.upgrade(connection, str(file.path))
            undo.pop_all()
        return storage

    def _close(self) -> None:
        self._connection.close()
        self._file.give_back()
