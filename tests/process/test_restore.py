"""`store-service restore`: the backup is the database, or nothing has happened; the one before is kept."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from storeapi.v1 import changes_pb2, posts_pb2

from store_service.database import backup, connect, schema
from store_service.database.files import COMPANIONS
from store_service.database.sqlite_file import RestoreUnfinished
from tests.support import legacy_database
from tests.support.database import query
from tests.support.errors import received_error
from tests.support.forked_process import start_module
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess, run_command
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout


@pytest.fixture
def server_process(database_file: Path) -> Iterator[ServerProcess]:
    """A server as a child process, not started yet, whose database needs no upgrade."""
    process = ServerProcess(database_file.parent)
    yield process
    process.kill()


@pytest.fixture
def copy(database_file: Path) -> Path:
    """A backup of the database with one post in it; the database has another one besides."""
    path = database_file.with_name("copy.db")
    add(database_file, "in the backup")
    backup.back_up(f"sqlite:///{database_file}", path, force=False, progress=quiet)
    add(database_file, "after the backup")
    return path


def quiet(doing: str, done: int, total: int) -> None:
    """Ignores progress."""


def add(path: Path, body: str) -> None:
    """Stores a post by hand."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO posts (body) VALUES (?)", [body])


def bodies(path: Path) -> list[str]:
    """Every post."""
    return [str(body) for (body,) in query(path, "SELECT body FROM posts ORDER BY id")]


def kept(path: Path) -> list[Path]:
    """The databases before, oldest first, without their logs."""
    return sorted(it for it in path.parent.glob(f"{path.name}.before-restore-*") if it.name.endswith("Z"))


def files(folder: Path) -> dict[str, bytes]:
    """Every file with its bytes, but for the lock, which is always empty."""
    return {it.name: it.read_bytes() for it in folder.iterdir() if it.is_file() and it.suffix != ".lock"}


def log_of(path: Path) -> list[Path]:
    """The files that SQLite has beside a database."""
    return [it for end in COMPANIONS if (it := Path(f"{path}{end}")).exists()]


def test_backup_becomes_the_database_and_the_previous_one_is_kept(database_file: Path, copy: Path) -> None:
    """The backup file stays; its contents and the name of the previous database are printed."""
    backup_bytes = copy.read_bytes()
    done = run_command("restore", "copy.db", folder=database_file.parent)

    (before,) = kept(database_file)
    assert (done.returncode, done.stderr) == (0, "")
    told, where = done.stdout.splitlines()
    assert told.startswith("store.db: ")
    assert f" bytes, 1 posts, 0 comments, schema {schema.HEAD}, " in told
    assert where == f"the previous database is {before}"
    assert bodies(database_file) == ["in the backup"]
    assert bodies(before) == ["in the backup", "after the backup"]
    assert copy.read_bytes() == backup_bytes


def test_previous_database_sorts_last_after_the_clock_was_set_back(database_file: Path, copy: Path) -> None:
    """An interrupted restore takes the last one as its own and restores its log."""
    earlier = database_file.with_name("store.db.before-restore-29990101T000000.000000Z")
    earlier.write_bytes(b"another")

    for _ in range(2):
        assert run_command("restore", "copy.db", folder=database_file.parent).returncode == 0

    assert [bodies(it) for it in kept(database_file)[1:]] == [
        ["in the backup", "after the backup"],
        ["in the backup"],
    ]
    assert kept(database_file)[0] == earlier


def test_backup_is_restored_without_a_previous_database(copy: Path, tmp_path: Path) -> None:
    """A new machine: nothing to keep."""
    new = tmp_path / "new"
    new.mkdir()
    done = run_command("restore", str(copy), folder=new)

    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    assert bodies(new / "store.db") == ["in the backup"]
    assert {it.name for it in new.iterdir()} == {"store.db", "store.db.lock"}


def test_restore_is_refused_while_a_server_runs(server_process: ServerProcess, copy: Path) -> None:
    """It would keep writing to the replaced file."""
    server_process.start()
    done = run_command("restore", "copy.db", folder=server_process.folder)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "store-service: another store-service is using store.db\n"
    assert server_process.stop() == 0
    assert bodies(server_process.folder / "store.db") == ["in the backup", "after the backup"]
    assert kept(server_process.folder / "store.db") == []


async def test_log_of_the_previous_database_moves_with_it(server_process: ServerProcess, copy: Path) -> None:
    """A killed server leaves one; beside another database it would destroy it."""
    path = server_process.folder / "store.db"
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        for number in range(20):
            await Stubs(channel).create_post(f"in the log {number}")
    server_process.kill()
    assert any(it.name.endswith("-wal") and it.stat().st_size for it in log_of(path))
    done = run_command("restore", "copy.db", folder=path.parent)

    assert (done.returncode, done.stderr) == (0, "")
    assert log_of(path) == []
    assert bodies(path) == ["in the backup"]
    (before,) = kept(path)
    assert bodies(before)[-1] == "in the log 19"
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        created = await Stubs(channel).create_post("new")
    assert server_process.stop() == 0
    assert created.id == 2
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5_000)


def overwrite(path: Path) -> None:
    legacy_database.damage(path, "posts")


def no_database(path: Path) -> None:
    path.write_text("no database at all\n" * 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def of_another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT)")


def by_hand(*statements: str) -> Callable[[Path], None]:
    """Runs foreign statements in a backup."""

    def run(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    return run


TRIGGER = "CREATE TRIGGER shout AFTER INSERT ON {} BEGIN UPDATE posts SET body = upper(body); END"
OWN_NAME = TRIGGER.replace("shout", "posts_labels_insert").format("posts")
DIFFERS = "is missing or differs from the one that the service creates"
AS_IT_IS = "copy.db cannot be restored as it is: "


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (cut_off, "copy.db"),
        (overwrite, "copy.db is damaged: "),
        (no_database, "copy.db"),
        (empty, "copy.db is empty"),
        (newer, "a newer store-service made it"),
        (of_another_program, "copy.db is not a database of this service: "),
        (gone, "file copy.db does not exist"),
        (by_hand(TRIGGER.format("posts")), f"{AS_IT_IS}trigger shout on posts may change"),
        (by_hand(TRIGGER.format("changes")), f"{AS_IT_IS}trigger shout on changes may change"),
        (
            by_hand('CREATE TRIGGER "two\nlines" DELETE ON feed BEGIN SELECT 1; END'),
            f"{AS_IT_IS}trigger two lines on feed",
        ),
        (by_hand("CREATE UNIQUE INDEX once ON posts (body)"), f"{AS_IT_IS}unique index once of posts"),
        (
            by_hand("CREATE TABLE likes (post_id INTEGER REFERENCES posts)"),
            f"{AS_IT_IS}table likes, which refers to posts",
        ),
        (
            by_hand("DROP TRIGGER posts_labels_insert", OWN_NAME),
            f"{AS_IT_IS}trigger posts_labels_insert {DIFFERS}; trigger"
            " posts_labels_insert on posts may change",
        ),
        (
            by_hand("DROP TRIGGER comments_labels_update"),
            f"{AS_IT_IS}trigger comments_labels_update {DIFFERS}",
        ),
        (
            by_hand(
                "DROP INDEX posts_external_id_idx",
                "CREATE UNIQUE INDEX posts_external_id_idx ON posts (external_id)",
            ),
            f"{AS_IT_IS}index posts_external_id_idx {DIFFERS}; unique index",
        ),
        (by_hand("DROP TABLE requests"), f"{AS_IT_IS}there is no table requests"),
        (
            by_hand("ALTER TABLE feed RENAME TO fed", "CREATE VIEW feed AS SELECT * FROM fed"),
            f"{AS_IT_IS}there is no table feed",
        ),
        (
            by_hand("ALTER TABLE posts DROP COLUMN version"),
            f"{AS_IT_IS}table posts has no column version",
        ),
    ],
)
def test_incomplete_backup_is_refused(database_file: Path, copy: Path, harm, problem: str) -> None:
    """Exit code 1, one line with the reason, and everything unchanged."""
    harm(copy)
    before = files(database_file.parent)
    done = run_command("restore", "copy.db", folder=database_file.parent)

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert problem in line
    assert files(database_file.parent) == before


def test_database_with_a_legacy_trigger_is_refused(tmp_path: Path) -> None:
    """The upgrade at the next start would refuse it."""
    legacy_database.create_file(tmp_path / "copy.db")
    by_hand(TRIGGER.format("posts"))(tmp_path / "copy.db")
    done = run_command("restore", "copy.db", folder=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert f"{AS_IT_IS}trigger shout on posts" in done.stderr
    assert not (tmp_path / "store.db").exists()


def test_foreign_objects_beside_our_tables_are_restored(database_file: Path) -> None:
    """Views, tables and indexes that do not affect the service."""
    by_hand(
        "CREATE VIEW titles AS SELECT substr(body, 1, 10) AS title FROM posts",
        "CREATE TABLE notes (text TEXT UNIQUE)",
        "CREATE TRIGGER noted AFTER INSERT ON notes BEGIN SELECT 1; END",
        "CREATE INDEX bodies ON posts (body)",
    )(database_file)
    add(database_file, "in the backup")
    made = run_command("backup", "copy.db", folder=database_file.parent)
    done = run_command("restore", "copy.db", folder=database_file.parent)

    assert (made.returncode, done.returncode, done.stderr) == (0, 0, "")
    assert query(database_file, "SELECT title FROM titles") == [("in the bac",)]


@pytest.mark.parametrize("file", ["store.db", "store.db.lock", "link.db"])
def test_database_is_not_restored_from_itself(database_file: Path, file: str) -> None:
    """It would be set aside and its copy put there, for nothing."""
    Path(f"{database_file}.lock").touch()
    (database_file.parent / "link.db").symlink_to(database_file)
    done = run_command("restore", file, folder=database_file.parent)

    assert (done.returncode, done.stderr) == (
        1,
        f"store-service: {file} belongs to the database itself\n",
    )
    assert kept(database_file) == []


def test_manually_copied_file_is_restored_with_its_log(server_process: ServerProcess, tmp_path: Path) -> None:
    """Also without a log although its header names one; no files are created beside it."""
    server_process.start()
    other = tmp_path / "by hand"
    other.mkdir()
    server_process.kill()
    path = server_process.folder / "store.db"
    shutil.copy(path, other / "bare.db")
    with closing(sqlite3.connect(other / "bare.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO posts (body) VALUES ('bare')")
        connection.commit()
    with closing(sqlite3.connect(other / "logged.db")) as writing:
        writing.execute("PRAGMA journal_mode = WAL")
        with closing(sqlite3.connect(other / "bare.db")) as source:
            source.backup(writing)
        writing.execute("INSERT INTO posts (body) VALUES ('logged')")
        writing.commit()
        # The log has it; a copy of the file alone has not.
        for end in ("", "-wal"):
            shutil.copy(other / f"logged.db{end}", other / f"taken.db{end}")
    before = {name for name in files(other) if name != "taken.db-shm"}

    for name, wanted in (("bare.db", ["bare"]), ("taken.db", ["bare", "logged"])):
        assert run_command("restore", str(other / name), folder=path.parent).returncode == 0
        assert bodies(path) == wanted
    assert {name for name in files(other) if name != "taken.db-shm"} == before


def test_legacy_file_is_restored_and_upgraded_at_the_next_start(tmp_path: Path) -> None:
    """Going back to before the move, and moving again."""
    legacy_database.create_file(tmp_path / "copy.db")
    done = run_command("restore", "copy.db", folder=tmp_path)
    migrated = run_command("migrate", folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert "schema 0001" in done.stdout
    assert f"upgrades it to schema {schema.HEAD}" in done.stdout
    assert migrated.returncode == 0
    kept_rows = query(tmp_path / "store.db", "SELECT id, body FROM posts ORDER BY id")
    assert kept_rows == [(id, body or "") for id, body in legacy_database.POSTS]


def test_restored_file_has_the_owner_of_the_previous_one(database_file: Path, copy: Path) -> None:
    """A restore by root must not lock the service out of its database."""
    database_file.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(database_file, 10001, 10001)
    before = database_file.stat()
    assert run_command("restore", "copy.db", folder=database_file.parent).returncode == 0

    now = database_file.stat()
    assert (now.st_mode, now.st_uid, now.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert now.st_ino != before.st_ino


def test_database_behind_a_link_stays_behind_it(copy: Path, tmp_path: Path) -> None:
    """The link is kept; its target is replaced."""
    disk, service = tmp_path / "disk", tmp_path / "service"
    disk.mkdir()
    service.mkdir()
    shutil.copy(tmp_path / "store.db", disk / "data.db")
    (service / "store.db").symlink_to(disk / "data.db")
    assert run_command("restore", str(copy), folder=service).returncode == 0

    assert (service / "store.db").is_symlink()
    assert bodies(disk / "data.db") == ["in the backup"]
    assert [bodies(it) for it in kept(disk / "data.db")] == [["in the backup", "after the backup"]]


# A log without its database


def without_its_database(path: Path) -> bytes:
    """Moves a database away after a kill of its server, and returns the remaining log."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO posts (body) VALUES ('in the log')")
        connection.commit()
        data, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    path.unlink()
    path.with_name("moved.db").write_bytes(data)
    Path(f"{path}-wal").write_bytes(log)
    return log


def set_aside(path: Path, copy: Path, *, log: bytes | None) -> dict[str, bytes]:
    """A previous database that an earlier restore kept, with or without its log."""
    aside = path.with_name(f"{path.name}.before-restore-20260101T000000.000000Z")
    shutil.copy(copy, aside)
    if log is not None:
        Path(f"{aside}-wal").write_bytes(log)
    return {name: content for name, content in files(path.parent).items() if name.startswith(aside.name)}


def lone_logs(path: Path) -> list[Path]:
    """Logs that were set aside, and the databases of whose names were not."""
    logs = path.parent.glob(f"{path.name}.before-restore-*-wal")
    return [it for it in logs if not Path(str(it).removesuffix("-wal")).exists()]


@pytest.mark.parametrize("log", [None, b"its own"], ids=["without a log", "with a log"])
def test_log_of_a_moved_database_is_not_given_to_another(
    database_file: Path, copy: Path, log: bytes | None
) -> None:
    """An older previous database is unchanged; the new place of the log is printed."""
    before = set_aside(database_file, copy, log=log)
    moved_log = without_its_database(database_file)
    done = run_command("restore", "copy.db", folder=database_file.parent)

    (lone,) = lone_logs(database_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [f"a log without a database is {lone}"]
    assert lone.read_bytes() == moved_log
    assert before.items() <= files(database_file.parent).items()
    assert log_of(database_file) == []
    assert bodies(database_file) == ["in the backup"]
    lone.rename(database_file.with_name("moved.db-wal"))
    assert bodies(database_file.with_name("moved.db"))[-1] == "in the log"


def test_log_without_a_previous_database_is_kept(database_file: Path, copy: Path) -> None:
    moved_log = without_its_database(database_file)
    done = run_command("restore", "copy.db", folder=database_file.parent)

    (lone,) = lone_logs(database_file)
    assert (done.returncode, lone.read_bytes()) == (0, moved_log)


def test_invalid_backup_leaves_the_log_in_place(database_file: Path, copy: Path) -> None:
    """Its database may be moved back."""
    without_its_database(database_file)
    no_database(copy)
    before = files(database_file.parent)

    assert run_command("restore", "copy.db", folder=database_file.parent).returncode == 1
    assert files(database_file.parent) == before


def test_interrupted_restore_overwrites_no_log(database_file: Path, copy: Path) -> None:
    """A program that opened the previous database meanwhile may have left one."""
    path = interrupted(database_file, copy)
    (aside,) = kept(path)
    Path(f"{aside}-wal").write_bytes(b"its own")
    log = Path(f"{path}-wal").read_bytes()
    restored = backup.restore(f"sqlite:///{path}", copy, progress=quiet)

    assert restored.kept == aside
    assert [it.read_bytes() for it in restored.logs] == [log]
    assert Path(f"{aside}-wal").read_bytes() == b"its own"


# Interrupted


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_interrupted_restore_does_not_create_an_empty_database(
    database_file: Path, copy: Path, command: str
) -> None:
    """A restore that died between two renames leaves no store.db, and the server refuses to start."""
    path = interrupted(database_file, copy)
    before = files(path.parent)
    done = run_command(command, folder=path.parent)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "store-service: a restore of store.db was interrupted; run `store-service restore` again\n"
    )
    assert files(path.parent) == before


def test_interrupted_restore_is_completed_by_repeating_it(database_file: Path, copy: Path) -> None:
    """The remaining log goes to the database that it belongs to."""
    path = interrupted(database_file, copy)
    done = run_command("restore", "copy.db", folder=path.parent)

    assert (done.returncode, done.stderr) == (0, "")
    (before,) = kept(path)
    assert bodies(path) == ["in the backup"]
    assert bodies(before) == ["in the backup", "after the backup", "in the log"]
    assert not [it for it in path.parent.iterdir() if "restoring" in it.name]


def test_invalid_backup_does_not_end_an_interrupted_restore(database_file: Path, copy: Path) -> None:
    """The server refuses to start until a restore has succeeded."""
    path = interrupted(database_file, copy)
    no_database(copy)
    assert run_command("restore", "copy.db", folder=path.parent).returncode == 1

    with pytest.raises(RestoreUnfinished), connect.sole_use(f"sqlite:///{path}"):
        pass


def interrupted(path: Path, copy: Path) -> Path:
    """The state in which kill -9 between two renames leaves the folder."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO posts (body) VALUES ('in the log')")
        connection.commit()
        log = Path(f"{path}-wal").read_bytes()
        data = path.read_bytes()
    path.unlink()
    path.with_name(f"{path.name}.before-restore-20260101T000000.000000Z").write_bytes(data)
    Path(f"{path}-wal").write_bytes(log)
    shutil.copy(copy, f"{path}.restoring")
    return path


DYING = """
import os, sys, traceback
from pathlib import Path
from store_service.cli import main
# What the command imports, so that each child need not.
from store_service.database import backup, connect, schema

def dying(real):
    def step(*args, **kwargs):
        global left
        if not left:
            os._exit(9)
        left -= 1
        return real(*args, **kwargs)
    return step

copy, *folders = sys.argv[1:]
for left, folder in enumerate(folders):
    process = os.fork()
    if not process:
        for name in ("rename", "replace", "unlink", "chmod"):
            setattr(Path, name, dying(getattr(Path, name)))
        os.fsync = dying(os.fsync)
        os.chdir(folder)
        main(["restore", copy], prog_name="store-service")
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
"""The command in each folder, but it dies before a step of all that change a folder: in the first folder
before the first one, and so on. Prints the exit codes, each after what the command printed."""

STEPS = 20
"""More than there are, so that the last folders see a whole restore."""


def dying_in(folders: list[Path], copy: Path) -> list[int]:
    """Restores in each folder, and dies at the first step of all in the first one, and so on; exit codes."""
    done = subprocess.run(
        [sys.executable, "-c", DYING, copy, *folders],
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
        check=False,
    )
    codes = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert done.stderr == ""
    assert set(codes) == {9, 0}
    assert codes == sorted(codes, reverse=True)
    return codes


def test_restore_can_die_at_every_step(database_file: Path, copy: Path, tmp_path: Path) -> None:
    """Afterwards there is the previous database with its log, or the new one, or the server refuses to
    start; repeating the restore completes it without loss.
    """
    with closing(sqlite3.connect(database_file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO posts (body) VALUES ('in the log')")
        connection.commit()
        kept_files = {end: Path(f"{database_file}{end}").read_bytes() for end in ("", "-wal", "-shm")}
    old = ["in the backup", "after the backup", "in the log"]
    folders = [tmp_path / str(step) for step in range(STEPS)]
    for folder in folders:
        folder.mkdir()
        for end, content in kept_files.items():
            Path(f"{folder / 'store.db'}{end}").write_bytes(content)
    codes = dying_in(folders, copy)
    found: list[str] = []
    for folder, code in zip(folders, codes, strict=True):
        found.append(state_of(folder / "store.db", old))
        if code:
            backup.restore(f"sqlite:///{folder / 'store.db'}", copy, progress=quiet)
        assert bodies(folder / "store.db") == ["in the backup"]
        assert old in [bodies(it) for it in kept(folder / "store.db")]

    assert found[-1] == "new"
    assert found == sorted(found, key=["old", "refused", "new"].index)
    assert set(found) == {"old", "refused", "new"}


def test_restore_beside_a_log_alone_can_die_at_every_step(
    database_file: Path, copy: Path, tmp_path: Path
) -> None:
    """An older previous database never gets the log."""
    log = without_its_database(database_file)
    folders = [tmp_path / str(step) for step in range(STEPS)]
    for folder in folders:
        folder.mkdir()
        (folder / "store.db-wal").write_bytes(log)
        set_aside(folder / "store.db", copy, log=None)
    for folder, code in zip(folders, dying_in(folders, copy), strict=True):
        if code:
            backup.restore(f"sqlite:///{folder / 'store.db'}", copy, progress=quiet)
        assert [it.read_bytes() for it in lone_logs(folder / "store.db")] == [log]
        assert log_of(kept(folder / "store.db")[0]) == []


def state_of(path: Path, old: list[str]) -> str:
    """What a server that starts now would find."""
    try:
        with connect.sole_use(f"sqlite:///{path}"):
            # A look at a copy, for a look at the files themselves would tidy them up.
            look = path.parent / "look"
            shutil.copytree(path.parent, look)
            seen = bodies(look / path.name)
            shutil.rmtree(look)
    except RestoreUnfinished:
        return "refused"
    assert seen in (old, ["in the backup"])
    return "old" if seen == old else "new"


def test_restore_killed_during_the_copy_changes_nothing(database_file: Path, copy: Path) -> None:
    """The database is served as before, and leftovers do not block the next restore."""
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.executemany("INSERT INTO posts (body) VALUES (?)", [["x" * 60_000]] * 3_000)
    process = start_module(
        "store_service", "restore", "copy.db", folder=database_file.parent, environment=os.environ
    )
    partial = Path(f"{database_file}.restoring.partial")
    wait_until(lambda: partial.exists() and partial.stat().st_size > 0)
    process.kill()
    process.wait()

    assert bodies(database_file) == ["in the backup", "after the backup"]
    assert run_command("migrate", folder=database_file.parent).returncode == 0
    assert run_command("restore", "copy.db", folder=database_file.parent).returncode == 0
    assert len(bodies(database_file)) == 3_001
    assert not partial.exists()


# The change feed


async def test_tokens_from_the_lost_future_are_foreign(
    server_process: ServerProcess,
) -> None:
    """Tokens from before the backup continue; new changes in the same positions are not skipped."""
    folder = server_process.folder
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        stubs = Stubs(channel)
        await stubs.create_post("kept")
        early = await token(stubs)
        backup.back_up(f"sqlite:///{folder / 'store.db'}", folder / "copy.db", force=False, progress=quiet)
        await stubs.create_post("lost")
        await stubs.create_post("lost too")
        late = await token(stubs)
    assert server_process.stop() == 0
    assert run_command("restore", "copy.db", folder=folder).returncode == 0
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        stubs = Stubs(channel)
        with pytest.raises(grpc.RpcError) as ahead:
            await first_change(stubs, late)
        for number in range(5):
            await stubs.create_post(f"new {number}")
        with pytest.raises(grpc.RpcError) as passed:
            await first_change(stubs, late)
        change = await first_change(stubs, early)

    assert received_error(ahead.value).reason == "RESUME_TOKEN_FOREIGN"
    assert received_error(passed.value).reason == "RESUME_TOKEN_FOREIGN"
    assert change.post.body == "new 0"


async def token(stubs: Stubs) -> str:
    """Where the feed ends now."""
    return (await stubs.posts.ListPosts(posts_pb2.ListPostsRequest())).resume_token


async def first_change(stubs: Stubs, resume_token: str) -> changes_pb2.Change:
    """Returns the first change after a token."""
    watch = stubs.changes.Watch(changes_pb2.WatchRequest(resume_token=resume_token), timeout=scaled_timeout())
    async for response in watch:
        if response.changes:
            return response.changes[0]
    raise AssertionError("the watch ended")
