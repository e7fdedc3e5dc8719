"""The schemas of the databases, version by version (`versions/` the storage's, `ledger/` the ledger's, `main/` the
shared database's), each of which says how to get there from the one before.

What was published is never changed: a change of the schema is a new file.
"""

from __future__ import annotations

from threading import Lock

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gateway.domain.errors import StorageError

#: Where the version is noted; no database of ours is without it.
VERSION_TABLE = "schema_version"

STORAGE = "gateway.controlplane.migrations:versions"
LEDGER = "gateway.controlplane.migrations:ledger"
MAIN = "gateway.controlplane.migrations:main"

#: Alembic's `op` is the process's: of two threads that ran it at once, one would change the other's database.
_ALEMBIC = Lock()


def upgrade(connection: Connection, database: str, schema: str = STORAGE) -> None:
    """Brings the schema up to date, within the transaction that `connection` has begun: wholly or not at all.

    Raises StorageError when the database (`database`: its name, for people) is a newer gateway's.
    """
    config = Config()
    config.set_main_option("script_location", "gateway.controlplane:migrations")
    config.set_main_option("path_separator", "space")
    config.set_main_option("version_locations", schema)
    scripts = ScriptDirectory.from_config(config)

    def steps(heads: tuple[str, ...], _: MigrationContext) -> list[MigrationStep]:
        missing = list(scripts.iterate_revisions("head", heads, implicit_base=True))
        return [MigrationStep.upgrade_from_script(scripts.revision_map, script) for script in reversed(missing)]

    context = MigrationContext.configure(
        connection,
        opts={
            "version_table": VERSION_TABLE,
            "fn": steps,
            # Alembic takes it that SQLite's driver commits at each change of the schema.  This one does not
            # (sqlitefile.py).
            "transactional_ddl": True,
        },
    )
    present, newest = context.get_current_revision(), scripts.get_current_head()
    if present == newest:
        return
    if present is not None and present not in {script.revision for script in scripts.walk_revisions()}:
        raise StorageError(
            f"{database} was written by a newer gateway (its schema is {present}, this one knows {newest} at most): "
            f"start the newer gateway, or put the copy in its place that was made before the upgrade"
        )
    with _ALEMBIC, Operations.context(context):
        context.run_migrations()
