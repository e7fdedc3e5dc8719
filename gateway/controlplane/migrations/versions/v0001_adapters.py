"""The desired state of adapters."""

from __future__ import annotations

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "adapter_versions",
        sql.Column("adapter", sql.Text, primary_key=True),
        sql.Column("digest", sql.Text, primary_key=True),
        sql.Column("position", sql.Integer, nullable=False),
        sql.Column("source", sql.Text, nullable=False),
        sql.Column("watched", sql.Boolean, nullable=False),
        sql.Column("base", sql.Text, nullable=False),
        sql.Column("rank", sql.Integer, nullable=False),
        sql.Column("size", sql.BigInteger, nullable=False),
        sql.Column("added", sql.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "adapter_fits",
        sql.Column("adapter", sql.Text, primary_key=True),
        sql.Column("digest", sql.Text, primary_key=True),
        sql.Column("position", sql.Integer, primary_key=True),
        sql.Column("fingerprint", sql.Text, nullable=False),
        _to_version("adapter", "digest"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "adapters",
        sql.Column("name", sql.Text, primary_key=True),
        sql.Column("current", sql.Text, nullable=False),
        sql.Column("next", sql.Text),
        sql.Column("salt", sql.Text, nullable=False),
        sql.Column("pinned", sql.Boolean, nullable=False),
        sql.Column("load", sql.Text),
        _to_version("name", "current"),
        _to_version("name", "next"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "adapter_history",
        sql.Column("adapter", sql.Text, primary_key=True),
        sql.Column("position", sql.Integer, primary_key=True),
        sql.Column("digest", sql.Text, nullable=False),
        _to_version("adapter", "digest"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "adapter_canaries",
        sql.Column("adapter", sql.Text, primary_key=True),
        sql.Column("position", sql.Integer, primary_key=True),
        sql.Column("digest", sql.Text, nullable=False),
        sql.Column("weight", sql.Double, nullable=False),
        _to_version("adapter", "digest"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "adapter_upstreams",
        sql.Column("adapter", sql.Text, sql.ForeignKey("adapters.name"), primary_key=True),
        sql.Column("position", sql.Integer, primary_key=True),
        sql.Column("upstream", sql.Text, nullable=False),
        sqlite_with_rowid=False,
    )


def _to_version(adapter: str, digest: str) -> sql.ForeignKeyConstraint:
    return sql.ForeignKeyConstraint([adapter, digest], ["adapter_versions.adapter", "adapter_versions.digest"])
