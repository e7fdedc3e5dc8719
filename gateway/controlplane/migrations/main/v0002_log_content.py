"""Whether what is asked with a key, and answered, is written down."""

from __future__ import annotations

import sqlalchemy as sql
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the column; it is so for no key that was made before."""
    op.add_column("api_keys", sql.Column("log_content", sql.Boolean, nullable=False, server_default=sql.false()))
