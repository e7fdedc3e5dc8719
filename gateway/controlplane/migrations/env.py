"""Alembic's entry: it runs this file when a schema is to be upgraded."""

from __future__ import annotations

from alembic import context

context.configure(**context.config.attributes)
context.run_migrations()
