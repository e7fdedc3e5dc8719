"""The records of keys in the main database, and this gateway's copy of them.

    saved there, with a number that rises ─▶ seen by every gateway within a second ─▶ copied ─▶ in force

While the main database is away, the copy is what is in force, also after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, NoReturn

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import IntegrityError

from gateway.controlplane import tables
from gateway.controlplane.keyrecords import read, record_of, row_of
from gateway.controlplane.keys import KeyRecord
from gateway.controlplane.maindb import MainDatabase
from gateway.controlplane.maintables import CHANGES, KEYS
from gateway.controlplane.postgres import Lock, take
from gateway.controlplane.sharedaudit import SharedAudit
from gateway.controlplane.storage import Storage
from gateway.domain.audit import Act, Actor
from gateway.domain.errors import Conflict, StorageAway, StorageError

_log = logging.getLogger("gateway.keys")

_TICK = 1.0  # seconds between two looks for changes
_PAGE = 500  # records that are read, and put in force, at once
_PLAIN = tuple(column.name for column in tables.KEYS.columns if not column.primary_key)

#: What changed elsewhere, by id; None: the key is there no more.
News = Mapping[str, KeyRecord | None]


class SharedKeys:
    """The records that several gateways have in common.

    A record is changed by one at a time: who changes one that another gateway has changed meanwhile is told so.
    """

    def __init__(self, main: MainDatabase, storage: Storage, audit: SharedAudit, *, tick: float = _TICK) -> None:
        self._main = main
        self._storage = storage
        self._audit = audit
        self._tick = tick
        self._seen: int | None = None  # the last change that was seen; None: not one, so all of it is looked at
        self._last = 0  # the newest change that is known to have been made
        self._changes: dict[str, int] = {}  # id → the change that is in force here
        self._copied: set[str] = set()  # ids in the copy
        self._owed: dict[str, KeyRecord] = {}  # what the copy could not take
        #: Whether all keys are known here that there are, as far as can be told.
        self.complete = False

    async def load(self) -> dict[str, KeyRecord]:
        """All records of the copy.  Raises StorageError, also when one is damaged."""
        loaded = await self._storage.call(_load, self._storage)
        self._copied = set(loaded)
        return loaded

    async def save(self, record: KeyRecord, act: Act, *, new: bool) -> None:
        """The record is stored and the act is in the log, both durably when this returns, or neither.  Raises
        StorageAway, and Conflict when another gateway was faster."""
        known = None if new else self._changes.get(record.id, -1)
        if known == -1:
            raise self._main.trouble or StorageAway("The keys are being read from the main database: try again.")
        change = await self._main.call(self._save, record, act, known)
        self._changes[record.id] = change
        self._last = max(self._last, change)
        await self._copy({record.id: record})

    async def follow(
        self, learn: Callable[[Callable[[], News]], Awaitable[None]], told: Callable[[], None]
    ) -> NoReturn:
        """Puts in force, by `learn`, what changes elsewhere.  `learn` calls what it is given once it can put in force
        what that returns.  `told` is called when `complete` was changed."""
        while True:
            more = False
            try:
                more = await self._look(learn)
                if not more and not self.complete:
                    self.complete = True
                    told()
            except StorageAway:
                if self.complete:
                    self.complete = False
                    told()
                await self._main.reached()
                continue
            await asyncio.sleep(0 if more else self._tick)

    async def _look(self, learn: Callable[[Callable[[], News]], Awaitable[None]]) -> bool:
        """Takes what has changed since; returns whether there may be more."""
        await self._copy({})
        if self._seen is None:
            await self._bring()
        after, last = self._seen or 0, self._last
        newest, rows = await self._main.call(_since, after)
        if newest < last:  # the database is an older copy of what it was
            _log.warning("the main database was set back, and is read anew")
            self._seen, self._last = None, 0
            self._changes.clear()
            return True
        if rows:
            fresh = {row["id"]: (row["change"], _readable(row)) for row in rows}
            await learn(lambda: self._news(fresh))
            self._seen = rows[-1]["change"]
            self._last = max(self._last, rows[-1]["change"])
            await self._copy({id: record for id, (_, record) in fresh.items() if record is not None})
            await self._drop({id for id, (_, record) in fresh.items() if record is None})
        if len(rows) == _PAGE:
            return True
        if self._seen is None:
            self._seen = 0
        if gone := self._copied - self._changes.keys():
            _log.error("%d keys are not in the main database and let nobody in any more", len(gone))
            await learn(lambda: dict.fromkeys(gone))
            await self._drop(gone)
        return False

    def _news(self, fresh: Mapping[str, tuple[int, KeyRecord | None]]) -> News:
        """What is newer than what is in force here, which is taken to be in force from now on."""
        newer = {id: found for id, found in fresh.items() if found[0] > self._changes.get(id, -1)}
        self._changes.update({id: change for id, (change, _) in newer.items()})
        return {id: record for id, (_, record) in newer.items()}

    async def _bring(self) -> None:
        """A database without keys gets those that are known here: they come along when a gateway is given one."""
        if self._copied:
            known = await self._storage.call(_load, self._storage)
            if brought := await self._main.move(lambda connection: self._import(connection, known)):
                _log.warning("the main database had no keys and was given the %d that are known here", brought)

    async def _copy(self, records: Mapping[str, KeyRecord]) -> None:
        """What the disk does not take is in force all the same, and owed to it."""
        owed = {**self._owed, **records}
        if not owed:
            return
        try:
            await self._storage.call(_keep, self._storage, list(owed.values()))
        except StorageError as error:
            if not self._owed:
                _log.error("the copy of the keys cannot be written: %s", error.message)
            self._owed = owed
        else:
            self._owed = {}
            self._copied |= owed.keys()

    async def _drop(self, ids: Collection[str]) -> None:
        if gone := self._copied & set(ids):
            await self._storage.call(_forget, self._storage, gone)
            self._copied -= gone

    # In the main database's thread

    def _save(self, connection: Connection, record: KeyRecord, act: Act, known: int | None) -> int:
        self._audit.append(connection, act)
        change: int = connection.scalar(CHANGES)
        row = {**row_of(record), "change": change}
        try:
            if known is None:
                connection.execute(KEYS.insert(), row)
                return change
            done = connection.execute(KEYS.update().where(KEYS.c.id == record.id, KEYS.c.change == known).values(row))
        except IntegrityError as error:
            raise Conflict(f"There is a key {record.name} already: revoke it, or take another name.") from error
        if done.rowcount == 0:
            raise Conflict(
                f"The key {record.name} ({record.id}) was changed through another gateway meanwhile: look at it, and "
                f"try again."
            )
        return change

    def _import(self, connection: Connection, records: Mapping[str, KeyRecord]) -> int:
        take(connection, Lock.CHAIN)
        if connection.execute(select(func.count()).select_from(KEYS)).scalar_one():
            return 0
        changes = connection.execute(select(CHANGES.next_value()).select_from(func.generate_series(1, len(records))))
        rows = [
            {**row_of(record), "change": change}
            for record, change in zip(records.values(), changes.scalars(), strict=True)
        ]
        connection.execute(KEYS.insert(), rows)
        self._audit.append(connection, Act(Actor("gateway", ""), "keys.import", "", detail={"keys": len(records)}))
        return len(records)


def _since(connection: Connection, after: int) -> tuple[int, list[dict[str, Any]]]:
    """The newest change, and a page of those behind `after`, in their order."""
    newest: int = connection.execute(_NEWEST).scalar_one()
    if newest <= after:
        return newest, []
    chosen = select(KEYS).where(KEYS.c.change > after).order_by(KEYS.c.change).limit(_PAGE)
    return newest, [dict(row) for row in connection.execute(chosen).mappings()]


def _readable(row: Mapping[str, Any]) -> KeyRecord | None:
    """None: it is not understood here, and better lets nobody in."""
    try:
        return record_of(row)
    except (ValueError, TypeError, KeyError) as error:
        _log.error("the key %s of the main database is not understood here: %s", row["id"], error)
        return None


# In the storage's thread


def _load(storage: Storage) -> dict[str, KeyRecord]:
    with storage.begin() as connection:
        return read(connection)


def _keep(storage: Storage, records: Collection[KeyRecord]) -> None:
    with storage.begin() as connection:
        connection.execute(_KEEP, [row_of(record) for record in records])


def _forget(storage: Storage, ids: Collection[str]) -> None:
    with storage.begin() as connection:
        for id in ids:
            connection.execute(tables.KEYS.delete().where(tables.KEYS.c.id == id))


_NEWEST = select(func.coalesce(func.max(KEYS.c.change), 0))
_NEW = insert(tables.KEYS)
_KEEP = _NEW.on_conflict_do_update(
    index_elements=[tables.KEYS.c.id], set_={name: _NEW.excluded[name] for name in _PLAIN}
)
