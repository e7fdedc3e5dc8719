"""Keys that are made while the gateway runs, and the log of administrative acts."""

from __future__ import annotations

import sqlalchemy as sql
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "api_keys",
        sql.Column("id", sql.Text, primary_key=True),
        sql.Column("name", sql.Text, nullable=False),
        sql.Column("digest", sql.Text, nullable=False),
        sql.Column("pepper", sql.Text, nullable=False),
        sql.Column("created", sql.BigInteger, nullable=False),
        sql.Column("rotation", sql.Integer, nullable=False),
        sql.Column("previous", sql.Text),
        sql.Column("previous_until", sql.BigInteger, nullable=False),
        sql.Column("owner", sql.Text, nullable=False),
        sql.Column("team", sql.Text, nullable=False),
        sql.Column("models", sql.Text, nullable=False),
        sql.Column("endpoints", sql.Text),
        sql.Column("allow", sql.Text, nullable=False),
        sql.Column("limits", sql.Text),
        sql.Column("budgets", sql.Text, nullable=False),
        sql.Column("metadata", sql.Text, nullable=False),
        sql.Column("expires", sql.BigInteger),
        sql.Column("revoked", sql.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "audit",
        sql.Column("number", sql.BigInteger, primary_key=True, autoincrement=False),
        sql.Column("at", sql.BigInteger, nullable=False),
        sql.Column("who", sql.Text, nullable=False),
        sql.Column("address", sql.Text, nullable=False),
        sql.Column("act", sql.Text, nullable=False),
        sql.Column("target", sql.Text, nullable=False),
        sql.Column("outcome", sql.Text, nullable=False),
        sql.Column("detail", sql.Text, nullable=False),
        sql.Column("hash", sql.Text, nullable=False),
        sqlite_with_rowid=False,
    )
