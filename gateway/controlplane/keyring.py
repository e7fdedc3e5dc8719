"""The keys: their one owner.

move (pure) → saved durably, with its row in the audit → assigned → told
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

from gateway.controlplane.config import Auth, ClientKey
from gateway.controlplane.keyrecords import KeyRecords
from gateway.controlplane.keys import KeyRecord
from gateway.domain.audit import Act
from gateway.domain.errors import Conflict
from gateway.domain.keys import NO_KEYS, KeyTable, Pepper
from gateway.domain.principal import Principal
from gateway.domain.secret import Secret

log = logging.getLogger("gateway.keys")

#: Takes the record and gives the next one, and what the audit says of it.
Move = Callable[[KeyRecord | None], tuple[KeyRecord, Act]]


class Keyring:
    """Holds every key: those of the file, which never change, and those that are made at run time.

    `records` (by id, in the order in which they were made) and `table` are replaced, never changed.  One key's change
    costs a copy of both and the hash of nothing.
    """

    def __init__(self, auth: Auth) -> None:
        self.records: Mapping[str, KeyRecord] = MappingProxyType({})
        self.table: KeyTable = NO_KEYS
        self.pepper: Pepper  # from `open` on
        self.static: Mapping[str, ClientKey] = MappingProxyType({key.name: key for key in auth.keys})
        self._admin = auth.admin_key
        self._saved: KeyRecords
        self._names: dict[str, str] = {}  # name → id, of those that are not revoked
        self._moving = asyncio.Lock()

    async def open(self, records: KeyRecords, pepper: Pepper) -> None:
        """Reads what was saved, and saves there from now on.  Raises StorageError."""
        self._saved, self.pepper = records, pepper
        loaded = await records.load()
        principals = {_digest(pepper, key.key): _of_file(key) for key in self.static.values()}
        for record in loaded.values():
            principals.update(record.principals())
            if record.revoked is None:
                self._names[record.name] = record.id
        strangers = sum(record.revoked is None and record.pepper != pepper.name for record in loaded.values())
        if strangers:
            log.error(
                "%d keys were made with another pepper and let nobody in: give the gateway that pepper back "
                "(auth.pepper, or the file beside the storage), or rotate them", strangers,
            )  # fmt: skip
        self.records = MappingProxyType(loaded)
        self.table = KeyTable(
            pepper, MappingProxyType(principals), None if self._admin is None else _digest(pepper, self._admin)
        )

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
            self._take(before, after)
            moved(after)
        return after

    def _take(self, before: KeyRecord | None, after: KeyRecord) -> None:
        principals = dict(self.table.principals)
        if before is not None:
            for digest, _ in before.principals():
                del principals[digest]
            if self._names.get(before.name) == before.id:
                del self._names[before.name]
        principals.update(after.principals())
        if after.revoked is None:
            self._names[after.name] = after.id
        self.records = MappingProxyType({**self.records, after.id: after})
        self.table = KeyTable(self.pepper, MappingProxyType(principals), self.table.admin)

    def _is_taken(self, name: str) -> bool:
        return name in self._names or name in self.static

    async def settled(self) -> None:
        """Returns when the moves that were asked for until now are made."""
        async with self._moving:
            pass


def _of_file(key: ClientKey) -> Principal:
    endpoints = None if key.endpoints is None else frozenset(key.endpoints)
    return Principal(key.name, frozenset(key.allow), key.models, key=key.name, team=key.team, endpoints=endpoints)


def _digest(pepper: Pepper, key: Secret) -> bytes:
    return pepper.digest(key.reveal().encode())
