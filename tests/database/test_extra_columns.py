"""Foreign columns of posts and comments, and the preview and messages of an upgrade."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from store_service.database import connect, schema
from store_service.model import CommentDraft, PostDraft
from store_service.service.comments import Comments
from store_service.service.posts import Posts
from tests.support import legacy_database
from tests.support.database import execute, query
from tests.support.postgresql import new_database
from tests.support.server_process import run_command


@pytest.fixture(params=["sqlite", "postgresql"])
def extended_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A legacy database with foreign columns, on each engine in turn."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'store.db'}"
        extend(url)
        yield url
        return
    with new_database(request.getfixturevalue("postgres")) as url:
        extend(url)
        yield url


def extend(url: str) -> None:
    """Columns that are NOT NULL, have constraints, and refer to other tables and to their own table."""
    execute(
        url,
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name VARCHAR)",
        "INSERT INTO users VALUES (1, 'somebody')",
        "CREATE TABLE posts (id INTEGER PRIMARY KEY, body VARCHAR, title VARCHAR NOT NULL UNIQUE,"
        ' author INTEGER REFERENCES users (id), "order" INTEGER CHECK ("order" > 0))',
        "CREATE TABLE comments (id INTEGER PRIMARY KEY, body VARCHAR, post_id INTEGER REFERENCES posts (id),"
        " version INTEGER NOT NULL, parent_id INTEGER REFERENCES comments (id))",
        "INSERT INTO posts VALUES (1, 'first', 'A', 1, 3), (0, NULL, 'B', NULL, NULL)",
        "INSERT INTO comments VALUES (5, 'on it', 1, 7, NULL), (6, 'of none', NULL, 8, 5)",
    )


async def test_foreign_columns_are_moved_to_their_own_tables(extended_url: str) -> None:
    """The rows have the new ids."""
    schema.upgrade(extended_url, move_extra_columns=True)

    columns = 'id, title, author, "order"'
    assert query(extended_url, f"SELECT {columns} FROM posts_extra_columns ORDER BY id") == [
        (1, "A", 1, 3),
        (2, "B", None, None),
    ]
    assert query(extended_url, "SELECT old_id, new_id FROM renumbered_resources") == [(0, 2)]
    assert query(extended_url, "SELECT id, version, parent_id FROM comments_extra_columns ORDER BY id") == [
        (5, 7, None),
        (6, 8, 5),
    ]
    assert query(extended_url, "SELECT id FROM orphaned_comments") == [(6,)]
    assert query(extended_url, "SELECT name FROM users") == [("somebody",)]
    schema.check(extended_url)
    async with connect.open_database(extended_url, readers=1) as store:
        (post,) = await Posts(store).create([PostDraft(body="new")])
        await Comments(store).create([CommentDraft(body="new", post_id=post.id)])
    assert query(extended_url, "SELECT body, version FROM posts ORDER BY id") == [
        ("first", 1),
        ("", 1),
        ("new", 1),
    ]


def test_moved_columns_are_logged(extended_url: str) -> None:
    """The log names the tables with the moved columns."""
    with structlog.testing.capture_logs() as lines:
        schema.upgrade(extended_url, move_extra_columns=True)

    told = {str(line["event"]): line.get("count") for line in lines if line["log_level"] == "warning"}
    assert told["columns of posts that are not the service's moved to posts_extra_columns"] == 2
    assert told["columns of comments that are not the service's moved to comments_extra_columns"] == 2


def test_foreign_columns_are_moved_only_with_consent(extended_url: str, tmp_path: Path) -> None:
    """The line names the columns and the option."""
    settings = {"DATABASE_URL": extended_url, "STORE_LISTEN": "127.0.0.1:0"}
    for command in ("check", "migrate", "serve"):
        done = run_command(command, folder=tmp_path, settings=settings)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "posts has title, author, order; comments has version, parent_id" in line
        assert "`store-service migrate --move-extra-columns`" in line
    assert query(extended_url, "SELECT title FROM posts ORDER BY id") == [("B",), ("A",)]

    done = run_command("migrate", "--move-extra-columns", folder=tmp_path, settings=settings)
    assert (done.returncode, done.stdout) == (0, f"schema {schema.HEAD} (was 0001)\n")


def test_constraints_of_kept_columns_prevent_the_upgrade(extended_url: str) -> None:
    """Constraints on moved columns are removed with the columns."""
    execute(extended_url, "CREATE UNIQUE INDEX once ON posts (body)")

    with pytest.raises(schema.ForeignSchema, match="unique index once of posts may refuse") as caught:
        schema.upgrade(extended_url, move_extra_columns=True)
    assert "UNIQUE constraint" not in str(caught.value)


def test_check_previews_the_upgrade(extended_url: str, tmp_path: Path) -> None:
    """Counts, actions and an estimate; nothing is changed."""
    if connect.is_sqlite(extended_url):
        execute(extended_url, "INSERT INTO posts VALUES (9, x'ff', 'C', NULL, NULL)")
    settings = {"DATABASE_URL": extended_url, "STORE_LISTEN": "127.0.0.1:0"}
    done = run_command("check", folder=tmp_path, settings=settings)
    told = [line for line in done.stdout.splitlines() if line.startswith("upgrade: ")]

    posts, bad = (3, 1) if connect.is_sqlite(extended_url) else (2, 0)
    bodies = "upgrade: 1 bodies that are not UTF-8 become text, their bytes stay in undecodable_bodies"
    assert told[0].startswith(f"upgrade: {posts} posts, 2 comments, in about ")
    assert told[1:] == [
        "upgrade: 1 comments without a post move to the table orphaned_comments",
        *([bodies] if bad else []),
        "upgrade: 1 ids are replaced, old and new are kept in renumbered_resources",
        "upgrade: columns title, author, order of posts move to posts_extra_columns",
        "upgrade: columns version, parent_id of comments move to comments_extra_columns",
    ]


def test_preview_counts_match_the_upgrade(tmp_path: Path) -> None:
    url = legacy_database.create_file(tmp_path / "store.db")
    done = run_command("check", folder=tmp_path, settings={"STORE_LISTEN": "127.0.0.1:0"})
    schema.upgrade(url)

    posts, comments = len(legacy_database.POSTS), len(legacy_database.COMMENTS)
    assert f"upgrade: {posts} posts, {comments} comments, in about 1 s\n" in done.stdout
    ((orphans,),) = query(url, "SELECT count(*) FROM orphaned_comments")
    assert f"upgrade: {orphans} comments without a post" in done.stdout


def test_long_upgrade_reports_its_steps(tmp_path: Path) -> None:
    rows = [(number, "a post") for number in range(1, schema.ROWS_THAT_TAKE_LONG + 1)]
    url = legacy_database.create_file(tmp_path / "store.db", post_rows=rows, comment_rows=[])
    reported: list[tuple[str, int, int]] = []
    with structlog.testing.capture_logs() as lines:
        schema.upgrade(url, report=lambda *told: reported.append(told))

    first, *steps, last = lines
    assert (first["event"], first["posts"], first["comments"]) == ("upgrading the schema", len(rows), 0)
    assert last["event"] == "schema upgraded"
    assert [(line["doing"], line["done"], line["total"]) for line in steps] == reported
    assert ("copying posts", 0, len(rows)) in reported
    assert len({doing for doing, _, _ in reported}) > 5
