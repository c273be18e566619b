"""A command that has succeeded stays done: what it changed is on disk, and so are the names of its files."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import event

from store_service.access import keys
from store_service.access.caller import ALL_RIGHTS
from store_service.database import schema
from tests.postgres import new_database
from tests.process.syscalls import unsynced_after
from tests.store import old_application
from tests.store.by_hand import execute, query


def nothing(path: Path) -> None:
    """There is no file."""


def old_version(path: Path) -> None:
    """As an older store-service leaves it: in WAL mode, with a schema that is not the last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "HEAD", "0003")
        schema.upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


@pytest.mark.parametrize("made_by", [nothing, old_application.make, old_version])
def test_an_upgraded_schema_survives_a_power_cut(tmp_path: Path, made_by: Callable[[Path], object]) -> None:
    """Without a sync of the folder, the removed journal could come back and undo the upgrade."""
    made_by(tmp_path / "store.db")

    left = unsynced_after("migrate", folder=tmp_path)

    # A log that comes back holds what is in the file already.
    assert [it for it in left if not it.endswith("store.db-wal: removed")] == []
    schema.check(f"sqlite:///{tmp_path / 'store.db'}")


def test_a_backup_survives_a_power_cut(database_file: Path) -> None:
    """The copy and its name."""
    assert unsynced_after("backup", "copy.db", folder=database_file.parent) == []


def test_a_restored_database_survives_a_power_cut(database_file: Path, tmp_path: Path) -> None:
    """Also the mode and the owner of the file, without which nobody could serve it."""
    (tmp_path / "copy.db").write_bytes(database_file.read_bytes())

    assert unsynced_after("restore", "copy.db", folder=tmp_path) == []


def test_a_new_key_survives_a_power_cut(tmp_path: Path) -> None:
    """The file is new, so its name counts too; later ones only add to it."""
    for name in ("first", "second"):
        arguments = ("keys", "new", name, "--rights", "read")
        assert unsynced_after(*arguments, folder=tmp_path, settings={"STORE_API_KEYS_FILE": "keys"}) == []


def test_a_removed_key_stays_removed_after_a_power_cut(tmp_path: Path) -> None:
    """The content of the new file, and that it took the place of the one before."""
    keys.append(tmp_path / "keys", name="a", key=keys.new_key(), rights=ALL_RIGHTS)

    arguments = ("keys", "remove", "a")
    assert unsynced_after(*arguments, folder=tmp_path, settings={"STORE_API_KEYS_FILE": "keys"}) == []


def test_an_upgrade_of_postgresql_is_committed_synchronously(postgres: str) -> None:
    """Also where somebody has switched that off for the database."""
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
