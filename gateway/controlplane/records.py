"""The records of adapters in the database.

A save writes the rows that differ, in one transaction: the move of a name touches two or three of them, however many
versions there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy import BindParameter, Connection, Delete, Insert, Table, Update, and_, bindparam, select

from gateway.controlplane.desired import AdapterRecord, CanaryRecord, VersionRecord
from gateway.controlplane.storage import Storage
from gateway.controlplane.tables import ADAPTERS, CANARIES, FITS, HISTORY, OF_ADAPTERS, UPSTREAMS, VERSIONS
from gateway.domain.errors import StorageError

_Row = Mapping[str, Any]
_Key = tuple[Any, ...]


class Records:
    """The stored records.  To be loaded once, before anything is saved."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._stored: dict[str, AdapterRecord] = {}  # what is in the database; the storage thread's alone

    async def load(self) -> dict[str, AdapterRecord]:
        """All of them, by name.  Raises StorageError, also when one contradicts itself."""
        return await self._storage.call(self._load)

    async def save(self, record: AdapterRecord) -> None:
        """The record is what is stored under its name, durably when this returns.  Raises StorageError: what was stored
        before still is."""
        await self._storage.call(self._replace, record.name, record)

    async def remove(self, name: str) -> None:
        """Nothing is stored under this name, durably when this returns.  Raises StorageError: what was stored before
        still is."""
        await self._storage.call(self._replace, name, None)

    def _load(self) -> dict[str, AdapterRecord]:
        with self._storage.begin() as connection:
            try:
                self._stored = _read(connection)
            except ValueError as error:
                raise StorageError(
                    f"{error}: stop the gateway and put a sound copy of the database in place"
                ) from error
        return dict(self._stored)

    def _replace(self, name: str, record: AdapterRecord | None) -> None:
        with self._storage.begin() as connection:
            _write(connection, self._stored.get(name), record)
        if record is None:
            self._stored.pop(name, None)
        else:
            self._stored[name] = record


class _Statements:
    """What is said of one table's rows; made once, so that the driver prepares each of them once."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._key = tuple(column.name for column in table.primary_key)
        this = and_(*(column == bindparam(f"key_{column.name}") for column in table.primary_key))
        rest: Mapping[str, BindParameter[Any]] = {
            column.name: bindparam(column.name) for column in table.columns if not column.primary_key
        }
        self._insert: Insert = table.insert()
        self._update: Update = table.update().where(this).values(rest)
        self._delete: Delete = table.delete().where(this)

    def keyed(self, rows: Iterable[_Row]) -> dict[_Key, _Row]:
        """The rows by their primary keys."""
        return {tuple(row[name] for name in self._key): row for row in rows}

    def put(self, connection: Connection, before: Mapping[_Key, _Row], after: Mapping[_Key, _Row]) -> None:
        """Writes what is new or differs."""
        if new := [row for key, row in after.items() if key not in before]:
            connection.execute(self._insert, new)
        if changed := [{**row, **self._named(key)} for key, row in after.items() if before.get(key, row) != row]:
            connection.execute(self._update, changed)

    def drop(self, connection: Connection, before: Mapping[_Key, _Row], after: Mapping[_Key, _Row]) -> None:
        """Deletes what is gone."""
        if gone := [self._named(key) for key in before if key not in after]:
            connection.execute(self._delete, gone)

    def _named(self, key: _Key) -> _Row:
        return {f"key_{name}": value for name, value in zip(self._key, key, strict=True)}


_STATEMENTS = tuple(map(_Statements, OF_ADAPTERS))


def _write(connection: Connection, before: AdapterRecord | None, after: AdapterRecord | None) -> None:
    old, new = _rows(before), _rows(after)
    steps = [(of, of.keyed(old[of.table]), of.keyed(new[of.table])) for of in _STATEMENTS]
    for of, was, becomes in steps:
        of.put(connection, was, becomes)
    for of, was, becomes in reversed(steps):
        of.drop(connection, was, becomes)


def _rows(record: AdapterRecord | None) -> Mapping[Table, Sequence[_Row]]:
    """The rows of a record, by table."""
    if record is None:
        return dict.fromkeys(OF_ADAPTERS, ())
    name = record.name
    return {
        VERSIONS: [
            {
                "adapter": name,
                "digest": version.digest,
                "position": position,
                "source": version.source,
                "watched": version.watched,
                "base": version.base,
                "rank": version.rank,
                "size": version.size,
                "added": version.added,
            }
            for position, version in enumerate(record.versions)
        ],
        FITS: [
            {"adapter": name, "digest": version.digest, "position": position, "fingerprint": fingerprint}
            for version in record.versions
            for position, fingerprint in enumerate(version.fits)
        ],
        ADAPTERS: [
            {
                "name": name,
                "current": record.current,
                "next": record.next,
                "salt": record.salt,
                "pinned": record.pinned,
                "load": record.load,
            }
        ],
        HISTORY: [
            {"adapter": name, "position": position, "digest": digest} for position, digest in enumerate(record.history)
        ],
        CANARIES: [
            {"adapter": name, "position": position, "digest": canary.digest, "weight": canary.weight}
            for position, canary in enumerate(record.canaries)
        ],
        UPSTREAMS: [
            {"adapter": name, "position": position, "upstream": upstream}
            for position, upstream in enumerate(record.upstreams or ())
        ],
    }


def _read(connection: Connection) -> dict[str, AdapterRecord]:
    """Raises ValueError when a record contradicts itself."""
    fits = _grouped(connection, FITS, "adapter", "digest")
    versions = _grouped(connection, VERSIONS, "adapter")
    history = _grouped(connection, HISTORY, "adapter")
    canaries = _grouped(connection, CANARIES, "adapter")
    upstreams = _grouped(connection, UPSTREAMS, "adapter")
    return {
        row.name: AdapterRecord(
            name=row.name,
            versions=tuple(
                VersionRecord(
                    digest=version.digest,
                    source=version.source,
                    watched=version.watched,
                    base=version.base,
                    rank=version.rank,
                    size=version.size,
                    fits=tuple(fit.fingerprint for fit in fits[row.name, version.digest]),
                    added=version.added,
                )
                for version in versions[row.name]
            ),
            current=row.current,
            history=tuple(past.digest for past in history[row.name]),
            canaries=tuple(CanaryRecord(canary.digest, canary.weight) for canary in canaries[row.name]),
            salt=row.salt,
            next=row.next,
            pinned=row.pinned,
            load=row.load,
            upstreams=tuple(place.upstream for place in upstreams[row.name]) or None,
        )
        for row in connection.execute(select(ADAPTERS).order_by(ADAPTERS.c.name))
    }


def _grouped(connection: Connection, table: Table, *by: str) -> Mapping[Any, Sequence[Any]]:
    """The table's rows in the order of their positions, by what these columns hold."""
    key = attrgetter(*by)
    groups: defaultdict[Any, list[Any]] = defaultdict(list)
    for row in connection.execute(select(table).order_by(table.c.position)):
        groups[key(row)].append(row)
    return groups
