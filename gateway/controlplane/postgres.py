"""The connection to PostgreSQL: how it is made, and what its errors mean.

Nothing of a session outlives a transaction, so that a pooler such as PgBouncer may stand between.
"""

from __future__ import annotations

import enum
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from gateway.controlplane.storageurl import PostgreSQL
from gateway.domain.errors import StorageError

#: Where our tables are, so that another program's in the same database are none of ours.
SCHEMA = "lora_gateway"

_CONNECT = 3  # seconds for a server to let us in
_STATEMENT = 3000  # milliseconds for a statement; the server ends it then
_LOCK = 2000  # milliseconds to wait for another gateway
_LONG = 600_000  # milliseconds for what is done once, such as a change of the schema

_BEGIN = text(
    "SELECT set_config('search_path', :schema, true), set_config('statement_timeout', :statement, true), "
    "set_config('lock_timeout', :lock, true), set_config('idle_in_transaction_session_timeout', :statement, true)"
)

_TAKE = text("SELECT pg_advisory_xact_lock(:lock)")

# SQLSTATEs, or their first two characters, of what passes, is mended by an operator, or is another server's turn
# (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_AWAY = ("08", "53", "57", "58", "28", "3D", "3F", "40", "42501", "55P03", "25006", "XX")
_SENTENCES = {
    "42501": "this user may not make or change its tables: GRANT CREATE ON DATABASE … TO …",
    "53": "it has no room: look at its max_connections and its disk",
    "25006": "it only lets read: give storage.url the primary (target_session_attrs=read-write)",
    "57014": "it took too long to answer",
    "55P03": "it took too long to answer",
}


class Lock(enum.IntEnum):
    """What only one gateway does at a time."""

    SCHEMA = 0x6C6F7261_0001
    CHAIN = 0x6C6F7261_0002


def take(connection: Connection, lock: Lock) -> None:
    """Waits for it; held until the transaction ends, however it does."""
    connection.execute(_TAKE, {"lock": int(lock)})


@dataclass(slots=True)
class Session:
    """An open connection, for the thread that opened it.  `cut` may be called by any thread."""

    connection: Connection
    _socket: socket.socket

    @classmethod
    def open(cls, engine: Engine) -> Self:
        """Raises DBAPIError."""
        connection = engine.connect()
        driver: Any = connection.connection.driver_connection
        return cls(connection, socket.socket(fileno=os.dup(driver.fileno())))

    @contextmanager
    def begin(self, *, long: bool = False) -> Iterator[Connection]:
        """A transaction: committed when the block has ended, undone when it raises.  `long`: it may take minutes."""
        with self.connection.begin():
            statement = _LONG if long else _STATEMENT
            values = {"schema": SCHEMA, "statement": str(statement), "lock": str(statement if long else _LOCK)}
            self.connection.execute(_BEGIN, values)
            yield self.connection

    def cut(self) -> None:
        """Whoever waits for the server's answer waits no more: it is lost."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends it; nothing is waited for."""
        self._socket.close()
        with suppress(DBAPIError):
            self.connection.invalidate()
            self.connection.close()


def engine_of(place: PostgreSQL) -> Engine:
    """Connects nowhere yet.  Raises StorageError when the driver is not installed."""
    url = URL.create(
        "postgresql+psycopg",
        place.user or None,
        place.password.reveal() or None,
        place.host,
        place.port,
        place.database,
        {"application_name": "lora-gateway", **place.parameters},
    )
    settings = {
        "connect_timeout": _CONNECT,
        "prepare_threshold": None,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }
    try:
        return create_engine(url, poolclass=NullPool, connect_args=settings, hide_parameters=True)
    except ImportError as error:
        raise StorageError(
            "storage.url is PostgreSQL, whose driver is not installed: pip install 'lora-gateway[postgres]'"
        ) from error


def is_away(error: DBAPIError) -> bool:
    """Whether the server, the way there or another one's transaction is at fault, and not what was asked."""
    state = _state(error)
    if not state:
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return state.startswith(_AWAY)


def explained(error: DBAPIError) -> str:
    """What is wrong with the server, for people."""
    state = _state(error)
    for known in (state, state[:2]):
        if known and known in _SENTENCES:
            return _SENTENCES[known]
    return " ".join(str(error.orig).split())[:300] or type(error.orig).__name__


def _state(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")
