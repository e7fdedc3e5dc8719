"""Requests that run, requests that have ended, and what was used on each day."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sql
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "open_requests",
        sql.Column("request_id", sql.Text, primary_key=True),
        *_entry(),
        sql.Column("boot", sql.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "requests",
        sql.Column("seq", sql.Integer, primary_key=True),
        sql.Column("request_id", sql.Text, nullable=False, unique=True),
        *_entry(),
    )
    names = ("key", "team", "user", "model", "adapter", "upstream")
    sums = ("requests", "prompt", "completion", "cached", "reasoning", "cost")
    op.create_table(
        "usage_days",
        sql.Column("day", sql.Integer, primary_key=True),
        *(sql.Column(name, sql.Text, primary_key=True) for name in names),
        sql.Column("key_name", sql.Text, nullable=False),
        *(sql.Column(name, sql.BigInteger, nullable=False) for name in sums),
        sqlite_with_rowid=False,
    )
    op.execute(_SETTLED)


#: One statement writes a request down, and nobody can write one without its sums.
_SETTLED = """
CREATE TRIGGER requests_settled AFTER INSERT ON requests BEGIN
    DELETE FROM open_requests WHERE request_id = new.request_id;
    INSERT INTO usage_days (
        day, "key", team, user, model, adapter, upstream, key_name,
        requests, prompt, completion, cached, reasoning, cost
    ) VALUES (
        new.seq >> 32, new."key", new.team, new.user, new.model, new.adapter, new.upstream, new.key_name,
        1, new.prompt, new.completion, new.cached, new.reasoning, new.cost
    ) ON CONFLICT (day, "key", team, user, model, adapter, upstream) DO UPDATE SET
        key_name = excluded.key_name, requests = requests + 1, prompt = prompt + excluded.prompt,
        completion = completion + excluded.completion, cached = cached + excluded.cached,
        reasoning = reasoning + excluded.reasoning, cost = cost + excluded.cost;
END
"""


def _entry() -> list[sql.Column[Any]]:
    """What is known of a request, but for its id."""
    return [
        sql.Column("started", sql.BigInteger, nullable=False),
        *(
            sql.Column(name, sql.Text, nullable=False)
            for name in ("endpoint", "model", "adapter", "upstream", "key", "key_name", "team", "user", "task")
        ),
        sql.Column("attempts", sql.Integer, nullable=False),
        sql.Column("status", sql.Integer, nullable=False),
        sql.Column("reason", sql.Text, nullable=False),
        *(sql.Column(name, sql.BigInteger, nullable=False) for name in ("prompt", "completion", "cached", "reasoning")),
        sql.Column("estimated", sql.Boolean, nullable=False),
        sql.Column("cost", sql.BigInteger, nullable=False),
        sql.Column("price", sql.Text, nullable=False),
        sql.Column("first_byte", sql.BigInteger),
        sql.Column("duration", sql.BigInteger, nullable=False),
    ]
