"""A command that has succeeded stays done: what it changed is on disk, and so are the names of its files."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import event

from store_service.auth import api_keys
from store_service.auth.principal import ALL_PERMISSIONS
from store_service.database import schema
from tests.support import legacy_database
from tests.support.database import execute, query
from tests.support.postgresql import new_database
from tests.support.syscalls import unsynced_after


def nothing(path: Path) -> None:
    """No database file."""


def old_version(path: Path) -> None:
    """As an older store-service leaves it: in WAL mode, with a schema that is not the last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "HEAD", "0003")
        schema.upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


@pytest.mark.parametrize("made_by", [nothing, legacy_database.create_file, old_version])
def test_upgraded_schema_survives_a_power_cut(tmp_path: Path, made_by: Callable[[Path], object]) -> None:
    """Without a sync of the directory the deleted journal could return and undo the upgrade."""
    made_by(tmp_path / "store.db")

    left = unsynced_after("migrate", folder=tmp_path)

    # A log that comes back holds what is in the file already.
    assert [it for it in left if not it.endswith("store.db-wal: removed")] == []
    schema.check(f"sqlite:///{tmp_path / 'store.db'}")


def test_backup_survives_a_power_cut(database_file: Path) -> None:
    """The copy and its name."""
    assert unsynced_after("backup", "copy.db", folder=database_file.parent) == []


def test_restored_database_survives_a_power_cut(database_file: Path, tmp_path: Path) -> None:
    """Including the mode and the owner of the file."""
    (tmp_path / "copy.db").write_bytes(database_file.read_bytes())

    assert unsynced_after("restore", "copy.db", folder=tmp_path) == []


def test_new_key_survives_a_power_cut(tmp_path: Path) -> None:
    """The file is new, so its name counts too; later keys are appended."""
    for name in ("first", "second"):
        arguments = ("keys", "new", name, "--permissions", "read")
        assert unsynced_after(*arguments, folder=tmp_path, settings={"STORE_API_KEYS_FILE": "keys"}) == []


def test_removed_key_stays_removed_after_a_power_cut(tmp_path: Path) -> None:
    """The content of the new file, and its rename."""
    api_keys.append(tmp_path / "keys", name="a", key=api_keys.new_key(), permissions=ALL_PERMISSIONS)

    arguments = ("keys", "remove", "a")
    assert unsynced_after(*arguments, folder=tmp_path, settings={"STORE_API_KEYS_FILE": "keys"}) == []


def test_postgresql_upgrade_is_committed_synchronously(postgres: str) -> None:
    """Also if synchronous_commit is off for the database."""
    seen: list[object] = []

    def look(connection: sqlalchemy.Connection) -> None:
        seen.append(connection.exec_driver_sql("SHOW synchronous_commit").scalar_one())

    with new_database(postgres) as url:
        ((name,),) = query(url, "SELECT current_database()")
        execute(url, f"ALTER DATABASE {name} SET synchronous_commit = off")
        event.listen(sqlalchemy.Engine, "commit", look)
        try:
            schema.upgrade(url)
        finally:
            event.remove(sqlalchemy.Engine, "commit", look)

    assert seen == ["on"]
