"""The ledger of all gateways, their keys, and the log of administrative acts."""

from __future__ import annotations

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "requests",
        sql.Column("request_id", sql.Text, primary_key=True),
        sql.Column("day", sql.Integer, nullable=False),
        sql.Column("started", sql.BigInteger, nullable=False),
        sql.Column("endpoint", sql.Text, nullable=False),
        sql.Column("model", sql.Text, nullable=False),
        sql.Column("adapter", sql.Text, nullable=False),
        sql.Column("upstream", sql.Text, nullable=False),
        sql.Column("key", sql.Text, nullable=False),
        sql.Column("key_name", sql.Text, nullable=False),
        sql.Column("team", sql.Text, nullable=False),
        sql.Column("user", sql.Text, nullable=False),
        sql.Column("task", sql.Text, nullable=False),
        sql.Column("attempts", sql.Integer, nullable=False),
        sql.Column("status", sql.Integer, nullable=False),
        sql.Column("reason", sql.Text, nullable=False),
        sql.Column("prompt", sql.BigInteger, nullable=False),
        sql.Column("completion", sql.BigInteger, nullable=False),
        sql.Column("cached", sql.BigInteger, nullable=False),
        sql.Column("reasoning", sql.BigInteger, nullable=False),
        sql.Column("estimated", sql.Boolean, nullable=False),
        sql.Column("cost", sql.BigInteger, nullable=False),
        sql.Column("price", sql.Text, nullable=False),
        sql.Column("first_byte", sql.BigInteger),
        sql.Column("duration", sql.BigInteger, nullable=False),
    )
    op.create_index("requests_day", "requests", ["day"])
    op.create_table(
        "usage_days",
        sql.Column("day", sql.Integer, primary_key=True, autoincrement=False),
        sql.Column("key", sql.Text, primary_key=True),
        sql.Column("team", sql.Text, primary_key=True),
        sql.Column("user", sql.Text, primary_key=True),
        sql.Column("model", sql.Text, primary_key=True),
        sql.Column("adapter", sql.Text, primary_key=True),
        sql.Column("upstream", sql.Text, primary_key=True),
        sql.Column("key_name", sql.Text, nullable=False),
        sql.Column("requests", sql.BigInteger, nullable=False),
        sql.Column("prompt", sql.BigInteger, nullable=False),
        sql.Column("completion", sql.BigInteger, nullable=False),
        sql.Column("cached", sql.BigInteger, nullable=False),
        sql.Column("reasoning", sql.BigInteger, nullable=False),
        sql.Column("cost", sql.BigInteger, nullable=False),
    )
    op.execute(sql.schema.CreateSequence(sql.Sequence("changes")))
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
        sql.Column("change", sql.BigInteger, nullable=False),
    )
    op.create_index("api_keys_change", "api_keys", ["change"], unique=True)
    op.create_index("api_keys_name", "api_keys", ["name"], unique=True, postgresql_where=sql.text("revoked IS NULL"))
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
        sql.Column("origin", sql.Text, unique=True),
    )
