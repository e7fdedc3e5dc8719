"""The tables as the code knows them; `migrations/` makes them.

A table stands behind those that its rows refer to. So what points to a version cannot be there without it: rows are
written in this order and deleted in the opposite one.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    Table,
    Text,
)

METADATA = MetaData()


def _to_version(adapter: str, digest: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint([adapter, digest], ["adapter_versions.adapter", "adapter_versions.digest"])


#: `position`: the oldest has 0.
VERSIONS = Table(
    "adapter_versions",
    METADATA,
    Column("adapter", Text, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("watched", Boolean, nullable=False),
    Column("base", Text, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("added", BigInteger, nullable=False),
)

FITS = Table(
    "adapter_fits",
    METADATA,
    Column("adapter", Text, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    _to_version("adapter", "digest"),
)

ADAPTERS = Table(
    "adapters",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("current", Text, nullable=False),
    Column("next", Text),
    Column("salt", Text, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("load", Text),
    _to_version("name", "current"),
    _to_version("name", "next"),
)

HISTORY = Table(
    "adapter_history",
    METADATA,
    Column("adapter", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("digest", Text, nullable=False),
    _to_version("adapter", "digest"),
)

CANARIES = Table(
    "adapter_canaries",
    METADATA,
    Column("adapter", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("weight", Double, nullable=False),
    _to_version("adapter", "digest"),
)

#: None for an adapter that may be wherever it fits.
UPSTREAMS = Table(
    "adapter_upstreams",
    METADATA,
    Column("adapter", Text, ForeignKey("adapters.name"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("upstream", Text, nullable=False),
)

OF_ADAPTERS = (VERSIONS, FITS, ADAPTERS, HISTORY, CANARIES, UPSTREAMS)

#: Lists and objects are JSON.  `limits`, `endpoints` None: without limit.
KEYS = Table(
    "api_keys",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("pepper", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("rotation", Integer, nullable=False),
    Column("previous", Text),
    Column("previous_until", BigInteger, nullable=False),
    Column("owner", Text, nullable=False),
    Column("team", Text, nullable=False),
    Column("models", Text, nullable=False),
    Column("endpoints", Text),
    Column("allow", Text, nullable=False),
    Column("limits", Text),
    Column("budgets", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
    Column("log_content", Boolean, nullable=False),
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("act", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("hash", Text, nullable=False),
)
