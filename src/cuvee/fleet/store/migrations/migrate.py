"""Create or upgrade the tables of a store; safe if several processes open it at once."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from cuvee.core.errors import StoreError
from cuvee.fleet.store.database import Database
from cuvee.fleet.store.schema import HEAD

_LOCK = 7_202_611  # id of a PostgreSQL advisory lock; arbitrary but never changed


def migrate(database: Database) -> None:
    """Create or upgrade the tables. Needs no write permission if they are current.

    Raises `StoreError` if a newer cuvee wrote the store, or if the database holds other tables.
    """
    if database.read(_revision) != HEAD:
        database.write(lambda connection: _upgrade(connection, database))


def _revision(connection: sa.Connection) -> str | None:
    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        return None
    versions = sa.table("alembic_version", sa.column("version_num"))
    return connection.execute(sa.select(versions.c.version_num)).scalar_one_or_none()


def _upgrade(connection: sa.Connection, database: Database) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    if not database.address.is_sqlite:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    found = _revision(connection)
    if found == HEAD:  # another process was faster
        return
    shown = database.address.shown
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StoreError(
            f"{shown} was written by a newer cuvee (schema {found!r}, this one knows {HEAD!r}): "
            "upgrade cuvee"
        )
    if found is None and (others := sa.inspect(connection).get_table_names()):
        raise StoreError(
            f"{shown} holds other tables ({', '.join(sorted(others)[:5])}): give cuvee a database "
            "of its own"
        )
    command.upgrade(config, "head")
