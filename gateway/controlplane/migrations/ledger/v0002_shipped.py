"""How far the rows were shipped to the main database."""

from __future__ import annotations

import sqlalchemy as sql
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the table."""
    op.create_table("shipped", sql.Column("seq", sql.BigInteger, primary_key=True, autoincrement=False))
