"""The main database: a PostgreSQL that several gateways share, one connection to it, and one thread that speaks to it.

It may be away: at the start, and at any time.  Then whoever needs it hears so at once (StorageAway), without waiting
each time, and it is tried again until it is back.  Nothing that answers a request for a model needs it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from gateway.controlplane import migrations
from gateway.controlplane.postgres import SCHEMA, Lock, Session, engine_of, explained, is_away, take
from gateway.controlplane.storageurl import PostgreSQL
from gateway.domain.errors import StorageAway, StorageError

_log = logging.getLogger("gateway.storage")

_P = ParamSpec("_P")
_T = TypeVar("_T")
_PATIENCE = 4.0  # seconds that an answer may take until the connection is given up
_MIGRATION = 600.0  # the same for the first, with which the schema is brought up to date
_RETRY = 1.0  # seconds between two tries to reach it, up to a half more or less: gateways do not come all at once


class MainDatabase:
    """Used from one event loop, from `start` to `close`.

    `changed` is called when it was reached or lost.  `name`: what people know it by, without the password.
    """

    def __init__(self, name: str, place: PostgreSQL, *, changed: Callable[[], None], retry: float = _RETRY) -> None:
        self.name = name
        self._place = place
        self._changed = changed
        self._retry = retry
        self._trouble: str | None = "it was not reached yet"
        self._since = 0.0
        self._told = False  # that it is away
        self._usable = asyncio.Event()
        self._lost = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="main database")
        self._task: asyncio.Task[None] | None = None
        # The thread's; anybody may cut the session.
        self._engine: Engine
        self._session: Session | None = None

    def start(self) -> None:
        """Begins to reach it, and does not wait for that.  Raises StorageError when the driver is not installed."""
        self._engine = engine_of(self._place)
        self._since = time.monotonic()
        self._task = asyncio.create_task(self._keep(), name="main database")

    @property
    def trouble(self) -> StorageAway | None:
        """Why it cannot be used at this moment, None when it can."""
        if self._trouble is None:
            return None
        return StorageAway(f"The main database {self.name} is away ({self._trouble}): try again later.")

    async def call(
        self,
        function: Callable[Concatenate[Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Runs `function` in the thread and in a transaction, after all that was asked for before.

        Raises what it raises, and StorageAway when the database is away: then it did not happen, unless the database
        got lost in the middle of the commit.  When the caller is cancelled, it happens all the same or not at all.
        """
        if (trouble := self.trouble) is not None:
            raise trouble
        return await self._asked(_PATIENCE, self._run, function, args, kwargs)

    async def move(self, function: Callable[[Connection], _T]) -> _T:
        """As `call`, for what is done once and may take minutes."""
        if (trouble := self.trouble) is not None:
            raise trouble
        return await self._asked(_MIGRATION, self._run, function, (), {}, True)

    async def reached(self) -> None:
        """Returns as soon as it can be used."""
        await self._usable.wait()

    async def close(self) -> None:
        """Ends when what was asked for before has, or was given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            await self._asked(_PATIENCE, self._close)
        self._thread.shutdown()

    async def _asked(self, patience: float, function: Callable[..., _T], *args: object) -> _T:
        """A server that is frozen, or behind a way that is blocked, says nothing: then the connection is cut."""
        began = time.monotonic()
        asked = self._thread.submit(function, *args)
        waiting = asyncio.get_running_loop().call_later(patience, self._cut)
        try:
            return await asyncio.wrap_future(asked)
        except StorageAway as error:
            cut = time.monotonic() - began >= patience
            self._lose(f"it did not answer for {patience:.0f} s" if cut else error.message)
            raise self.trouble or error from error
        finally:
            waiting.cancel()

    def _cut(self) -> None:
        if (session := self._session) is not None:
            session.cut()

    async def _keep(self) -> None:
        """Reaches it, again and again."""
        while True:
            try:
                await self._asked(_MIGRATION, self._open)
            except StorageAway:
                pass
            except StorageError as error:
                self._lose(error.message)
            else:
                self._find()
                await self._lost.wait()
            await asyncio.sleep(self._retry * (0.5 + secrets.randbelow(1000) / 1000))

    def _lose(self, why: str) -> None:
        self._usable.clear()
        self._lost.set()
        self._trouble = why
        if not self._told:
            self._told, self._since = True, time.monotonic()
            _log.error("the main database %s is away, what needs it waits: %s", self.name, why)
            self._changed()

    def _find(self) -> None:
        self._trouble = None
        self._lost.clear()
        self._usable.set()
        seconds = round(time.monotonic() - self._since, 1)
        if self._told:
            _log.warning("the main database %s is back", self.name, extra={"away_s": seconds})
        else:
            _log.info("the main database %s is reached", self.name)
        self._told = False
        self._changed()

    # In the thread

    def _open(self) -> None:
        self._close()
        try:
            self._session = Session.open(self._engine)
            with self._session.begin(long=True) as connection:
                take(connection, Lock.SCHEMA)
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
                migrations.upgrade(connection, self.name, migrations.MAIN)
        except DBAPIError as error:
            self._close()
            raise StorageAway(explained(error)) from error
        except BaseException:
            self._close()
            raise

    def _run(
        self, function: Callable[..., _T], args: tuple[object, ...], kwargs: dict[str, object], long: bool = False
    ) -> _T:
        if self._session is None:
            raise StorageAway("the connection was lost")
        try:
            with self._session.begin(long=long) as connection:
                return function(connection, *args, **kwargs)
        except DBAPIError as error:
            if not is_away(error):
                raise
            self._close()
            raise StorageAway(explained(error)) from error

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
