"""The main database's tables as the code knows them; `migrations/main/` makes them.

Texts of the ledger and days are as the ledger's own tables have them: there they come from.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, Sequence, Table, Text, text

from gateway.controlplane import tables

METADATA = MetaData()

#: What a row of the ledger says, in the order of its fields; `day`: on which the request ended.
ENTRY: tuple[tuple[str, type[Any], bool], ...] = (
    ("day", Integer, False),
    ("started", BigInteger, False),
    ("endpoint", Text, False),
    ("model", Text, False),
    ("adapter", Text, False),
    ("upstream", Text, False),
    ("key", Text, False),
    ("key_name", Text, False),
    ("team", Text, False),
    ("user", Text, False),
    ("task", Text, False),
    ("attempts", Integer, False),
    ("status", Integer, False),
    ("reason", Text, False),
    ("prompt", BigInteger, False),
    ("completion", BigInteger, False),
    ("cached", BigInteger, False),
    ("reasoning", BigInteger, False),
    ("estimated", Boolean, False),
    ("cost", BigInteger, False),
    ("price", Text, False),
    ("first_byte", BigInteger, True),
    ("duration", BigInteger, False),
)

#: Requests of all gateways that have ended.
REQUESTS = Table(
    "requests",
    METADATA,
    Column("request_id", Text, primary_key=True),
    *(Column(name, kind, nullable=nullable) for name, kind, nullable in ENTRY),
    Index("requests_day", "day"),
)

#: What usage can be asked for by, and what is summed up.
OF = ("day", "key", "team", "user", "model", "adapter", "upstream")
SUMS = ("prompt", "completion", "cached", "reasoning", "cost")

#: The sums of REQUESTS: changed in the transaction that writes there.
USAGE_DAYS = Table(
    "usage_days",
    METADATA,
    *(Column(name, Integer if name == "day" else Text, primary_key=True, autoincrement=False) for name in OF),
    Column("key_name", Text, nullable=False),
    Column("requests", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in SUMS),
)

#: Numbers each change of a key.  It is drawn under the lock of the audit, so that numbers appear in their order.
CHANGES = Sequence("changes", metadata=METADATA)

KEYS = Table(
    "api_keys",
    METADATA,
    *(Column(column.name, column.type, primary_key=column.primary_key, nullable=column.nullable)
      for column in tables.KEYS.columns),
    Column("change", BigInteger, nullable=False),
    Index("api_keys_change", "change", unique=True),
    Index("api_keys_name", "name", unique=True, postgresql_where=text("revoked IS NULL")),
)  # fmt: skip

#: `origin`: the hash of the row in a gateway's own log from which this one was copied; None for one that was made here.
AUDIT = Table(
    "audit",
    METADATA,
    *(Column(column.name, column.type, primary_key=column.primary_key, nullable=column.nullable, autoincrement=False)
      for column in tables.AUDIT.columns),
    Column("origin", Text, unique=True),
)  # fmt: skip
