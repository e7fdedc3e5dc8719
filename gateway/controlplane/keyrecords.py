"""The records of keys in the database.  A change of one key touches its one row, and comes with a row of the audit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, bindparam, select

from gateway.controlplane.audit import AuditLog
from gateway.controlplane.keys import KeyRecord
from gateway.controlplane.storage import Storage
from gateway.controlplane.tables import KEYS
from gateway.domain.audit import Act
from gateway.domain.errors import StorageError
from gateway.domain.limits import Budget, Limits

_INSERT = KEYS.insert()
_UPDATE = (
    KEYS.update()
    .where(KEYS.c.id == bindparam("key_id"))
    .values({column.name: bindparam(column.name) for column in KEYS.columns if not column.primary_key})
)


class KeyRecords:
    """The stored records, none of which is ever deleted: what was used with a key names it."""

    def __init__(self, storage: Storage, audit: AuditLog) -> None:
        self._storage = storage
        self._audit = audit

    async def load(self) -> dict[str, KeyRecord]:
        """All of them by id, in the order in which they were made.  Raises StorageError, also when one is damaged."""
        return await self._storage.call(self._load)

    async def save(self, record: KeyRecord, act: Act, *, new: bool) -> None:
        """The record is stored and the act is in the log, both durably when this returns, or neither.  Raises
        StorageError."""
        await self._storage.call(self._save, record, act, new)

    def _load(self) -> dict[str, KeyRecord]:
        with self._storage.begin() as connection:
            return read(connection)

    def _save(self, record: KeyRecord, act: Act, new: bool) -> None:
        row = row_of(record)
        with self._storage.begin() as connection:
            if new:
                connection.execute(_INSERT, row)
            else:
                connection.execute(_UPDATE, {**row, "key_id": record.id})
            self._audit.append(connection, act)


def row_of(record: KeyRecord) -> dict[str, Any]:
    """The record as a row."""
    return {
        "id": record.id,
        "name": record.name,
        "digest": record.digest.hex(),
        "pepper": record.pepper,
        "created": record.created,
        "rotation": record.rotation,
        "previous": None if record.previous is None else record.previous.hex(),
        "previous_until": record.previous_until,
        "owner": record.owner,
        "team": record.team,
        "models": json.dumps(record.models),
        "endpoints": None if record.endpoints is None else json.dumps(record.endpoints),
        "allow": json.dumps(record.allow),
        "limits": None if record.limits is None else json.dumps(asdict(record.limits)),
        "budgets": json.dumps([asdict(budget) for budget in record.budgets]),
        "metadata": json.dumps(dict(record.metadata)),
        "expires": record.expires,
        "revoked": record.revoked,
        "log_content": record.log_content,
    }


def read(connection: Connection) -> dict[str, KeyRecord]:
    """All records by id, in the order in which they were made.  Raises StorageError when one is damaged."""
    rows = connection.execute(select(KEYS).order_by(KEYS.c.created, KEYS.c.id)).mappings()
    try:
        return {row["id"]: record_of(dict(row)) for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{error}: stop the gateway and put a sound copy of the database in place") from error


def record_of(row: Mapping[str, Any]) -> KeyRecord:
    """Raises ValueError, TypeError, KeyError for a row that no record makes."""
    limits = None if row["limits"] is None else Limits(**json.loads(row["limits"]))
    return KeyRecord(
        id=row["id"],
        name=row["name"],
        digest=bytes.fromhex(row["digest"]),
        pepper=row["pepper"],
        created=row["created"],
        rotation=row["rotation"],
        previous=None if row["previous"] is None else bytes.fromhex(row["previous"]),
        previous_until=row["previous_until"],
        owner=row["owner"],
        team=row["team"],
        models=tuple(json.loads(row["models"])),
        endpoints=None if row["endpoints"] is None else tuple(json.loads(row["endpoints"])),
        allow=tuple(json.loads(row["allow"])),
        limits=limits,
        budgets=tuple(Budget(**budget) for budget in json.loads(row["budgets"])),
        metadata=MappingProxyType(json.loads(row["metadata"])),
        expires=row["expires"],
        revoked=row["revoked"],
        log_content=row["log_content"],
    )
