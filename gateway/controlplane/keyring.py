"""The keys: their one owner.

move (pure) → saved durably, with its row in the audit → assigned → told
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from gateway.controlplane.accounts import Auth, ClientKey
from gateway.controlplane.keys import KeyRecord
from gateway.domain.audit import Act
from gateway.domain.errors import Conflict
from gateway.domain.keys import NO_KEYS, KeyTable, Pepper
from gateway.domain.principal import Principal
from gateway.domain.secret import Secret

log = logging.getLogger("gateway.keys")

#: Takes the record and gives the next one, and what the audit says of it.
Move = Callable[[KeyRecord | None], tuple[KeyRecord, Act]]


class Records(Protocol):
    """Where the records are kept: in this gateway's database, or in one that several share."""

    async def load(self) -> dict[str, KeyRecord]:
        """All of them by id, in the order in which they were made.  Raises StorageError."""
        ...

    async def save(self, record: KeyRecord, act: Act, *, new: bool) -> None:
        """The record is stored and the act is in the log, both durably when this returns, or neither.  Raises
        StorageError, and Conflict."""
        ...


class Keyring:
    """Holds every key: those of the file, which never change, and those that are made at run time.

    `records` (by id, in the order in which they were made) and `table` are replaced, never changed.  One key's change
    costs a copy of both and the hash of nothing.

    `logs_content`: whether there is a file for prompts and answers.  Without one nobody's are logged, whatever was set
    when there was.
    """

    def __init__(self, auth: Auth, *, logs_content: bool = False) -> None:
        self.logs_content = logs_content
        self.records: Mapping[str, KeyRecord] = MappingProxyType({})
        self.table: KeyTable = NO_KEYS
        self.pepper: Pepper  # from `open` on
        self.static: Mapping[str, ClientKey] = MappingProxyType({key.name: key for key in auth.keys})
        self._admin = auth.admin_key
        self._saved: Records
        # What the two show; a dictionary is copied ten times faster than what shows it.
        self._records: dict[str, KeyRecord] = {}
        self._principals: dict[bytes, Principal] = {}
        self._names: dict[str, str] = {}  # name → id, of those that are not revoked
        self._moving = asyncio.Lock()
        self._felt: Callable[[Mapping[str, frozenset[int]]], None] = lambda _: None

    async def open(self, records: Records, pepper: Pepper) -> None:
        """Reads what was saved, and saves there from now on.  Raises StorageError."""
        self._saved, self.pepper = records, pepper
        loaded = await records.load()
        principals = {_digest(pepper, key.key): _of_file(key) for key in self.static.values()}
        for record in loaded.values():
            principals.update(self._let_in(record))
            if record.revoked is None:
                self._names[record.name] = record.id
        strangers = sum(record.revoked is None and record.pepper != pepper.name for record in loaded.values())
        if strangers:
            log.error(
                "%d keys were made with another pepper and let nobody in: give the gateway that pepper back "
                "(auth.pepper, or the file beside the storage), or rotate them", strangers,
            )  # fmt: skip
        unlogged = sum(record.log_content and record.revoked is None for record in loaded.values())
        if unlogged and not self.logs_content:
            log.warning("%d keys have log_content, and nothing of them is logged: log.content is not set", unlogged)
        self._publish(loaded, principals)

    def named(self, name: str) -> KeyRecord | None:
        """The key of this name that is not revoked."""
        return self.records[self._names[name]] if name in self._names else None

    async def move(self, id: str, move: Move, moved: Callable[[KeyRecord], None]) -> KeyRecord:
        """Changes one key: durable, in `records` and `table`, and told to `moved`, when it returns.  Raises what the
        move raises, Conflict for a name that another key has, and StorageError; nothing has changed then.

        Whoever is cancelled while waiting does not undo it: what is saved is always what is in force.
        """
        return await asyncio.shield(asyncio.create_task(self._move(id, move, moved)))

    async def _move(self, id: str, move: Move, moved: Callable[[KeyRecord], None]) -> KeyRecord:
        async with self._moving:
            before = self.records.get(id)
            after, act = move(before)
            if after == before:
                return after
            if (before is None or before.name != after.name) and self._is_taken(after.name):
                raise Conflict(f"There is a key {after.name} already: revoke it, or take another name.")
            await self._saved.save(after, act, new=before is None)
            self._take([(id, after)])
            moved(after)
        return after

    def feel(self, felt: Callable[[Mapping[str, frozenset[int]]], None]) -> None:
        """`felt` is called with what `learn` has put in force: a key's id → the rotations that are let in."""
        self._felt = felt

    async def learn(self, news: Callable[[], Mapping[str, KeyRecord | None]]) -> None:
        """Puts in force what another gateway has saved.  `news` is called between two moves, and returns that by id;
        None: there is no such key any more."""
        async with self._moving:
            changed = {id: after for id, after in news().items() if after != self.records.get(id)}
            if changed:
                self._take(changed.items())
                now = time.time()
                self._felt({id: frozenset() if r is None else r.live(now) for id, r in changed.items()})

    def know(self, *, all: bool) -> None:
        """Whether there are no keys but those that are known here, as far as can be told."""
        if self.table.partial == all:
            self.table = replace(self.table, partial=not all)

    def _take(self, changed: Iterable[tuple[str, KeyRecord | None]]) -> None:
        principals, records = self._principals.copy(), self._records.copy()
        for id, after in changed:
            before = records.pop(id, None) if after is None else records.get(id)
            if before is not None:
                for digest, _ in before.principals():
                    del principals[digest]
                if self._names.get(before.name) == id:
                    del self._names[before.name]
            if after is not None:
                records[id] = after
                principals.update(self._let_in(after))
                if after.revoked is None:
                    self._names[after.name] = id
        self._publish(records, principals)

    def _let_in(self, record: KeyRecord) -> Iterator[tuple[bytes, Principal]]:
        for digest, principal in record.principals():
            known = self.logs_content or not principal.log_content
            yield digest, principal if known else replace(principal, log_content=False)

    def _publish(self, records: dict[str, KeyRecord], principals: dict[bytes, Principal]) -> None:
        self._records, self._principals = records, principals
        self.records = MappingProxyType(records)
        admin = None if self._admin is None else _digest(self.pepper, self._admin)
        self.table = KeyTable(self.pepper, MappingProxyType(principals), admin, self.table.partial)

    def _is_taken(self, name: str) -> bool:
        return name in self._names or name in self.static

    async def settled(self) -> None:
        """Returns when the moves that were asked for until now are made."""
        async with self._moving:
            pass


def _of_file(key: ClientKey) -> Principal:
    endpoints = None if key.endpoints is None else frozenset(key.endpoints)
    return Principal(
        key.name,
        frozenset(key.allow),
        key.models,
        key=key.name,
        team=key.team or "",
        users_required=key.users == "required",
        endpoints=endpoints,
        limits=None if key.limits is None else key.limits.of_domain(),
        budgets=tuple(budget.of_domain() for budget in key.budgets),
        log_content=key.log_content,
    )


def _digest(pepper: Pepper, key: Secret) -> bytes:
    return pepper.digest(key.reveal().encode())
