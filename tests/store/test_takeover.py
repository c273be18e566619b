"""What the application before let happen that the service could not serve, and what is in the upgrade's way.

That nothing is lost otherwise is in test_upgrade.py.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from store_service.database import connect, schema
from store_service.model import (
    Bookmark,
    CommentDraft,
    Deletion,
    Filter,
    Kind,
    Position,
    PostDraft,
    SnapshotPlace,
)
from store_service.store.comments import Comments
from store_service.store.posts import Posts
from store_service.store.snapshot import Snapshot
from tests.postgres import new_database
from tests.store import old_application
from tests.store.by_hand import execute, query

LARGEST = 2**62
END = 2**63 - 1


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables, on each engine in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
        return
    with new_database(request.getfixturevalue("postgres")) as url:
        yield url


on_sqlite = pytest.mark.parametrize("bare_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("bare_url", ["postgresql"], indirect=True)


def warnings_of_upgrade(database_url: str) -> list[dict[str, object]]:
    """Upgrades, and returns what the log warned of."""
    with structlog.testing.capture_logs() as lines:
        schema.upgrade(database_url)
    return [dict(line) for line in lines if line["log_level"] == "warning"]


async def everything(database_url: str) -> list[tuple[str, int, int, str]]:
    """What a watch with initial state is told: kind, id, post and body of each."""
    async with connect.open_store(database_url, readers=1) as store:
        start = Bookmark(position=Position(xid=0, seq=0), snapshot=SnapshotPlace(kind=Kind.POST))
        pages = [page async for page in Snapshot(store).pages(start, Filter())]
    return [
        (change.kind.name, change.resource.id, change.post_id, change.resource.body)
        for page in pages
        for change in page.changes
        if change.resource is not None
    ]


# Bodies that are no text

BAD = {
    1: "CAST(x'ff6162' AS TEXT)",
    2: "x'ff00'",
    3: "CAST(x'eda080' AS TEXT)",
    4: "x'67c3bc'",
    5: "12",
}
"""SQL of bodies by id: three that are no UTF-8, then two that become text without loss."""


def fill_with_bad_bodies(database_url: str) -> None:
    old_application.fill(database_url, post_rows=[], comment_rows=[])
    for id, body in BAD.items():
        execute(database_url, f"INSERT INTO posts VALUES ({id}, {body})")
    execute(
        database_url,
        "INSERT INTO comments VALUES (1, x'80', 1), (2, x'616280', 99), (3, 'fine', 1)",
    )


@on_sqlite
async def test_bodies_that_are_no_utf_8_become_text_that_can_be_read(bare_url: str) -> None:
    """Each byte that is none becomes U+FFFD, as Python's errors="replace" has it; the rest stays."""
    fill_with_bad_bodies(bare_url)
    schema.upgrade(bare_url)

    assert await everything(bare_url) == [
        ("POST", 1, 1, "\ufffdab"),
        ("POST", 2, 2, "\ufffd\0"),
        ("POST", 3, 3, "\ufffd\ufffd\ufffd"),
        ("POST", 4, 4, "gü"),
        ("POST", 5, 5, "12"),
        ("COMMENT", 1, 1, "\ufffd"),
        ("COMMENT", 3, 1, "fine"),
    ]
    assert query(bare_url, "SELECT id, body, post_id FROM orphaned_comments") == [(2, "ab\ufffd", 99)]


@on_sqlite
def test_the_bytes_of_a_body_that_was_no_utf_8_are_kept_and_counted(bare_url: str) -> None:
    """Whoever knows in which encoding they were can still read them."""
    fill_with_bad_bodies(bare_url)
    warnings = warnings_of_upgrade(bare_url)

    (warning,) = [it for it in warnings if "undecodable_bodies" in str(it["event"])]
    assert warning["count"] == 5
    assert query(bare_url, "SELECT kind, id, body FROM undecodable_bodies ORDER BY kind, id") == [
        ("comment", 1, b"\x80"),
        ("comment", 2, b"ab\x80"),
        ("post", 1, b"\xffab"),
        ("post", 2, b"\xff\0"),
        ("post", 3, b"\xed\xa0\x80"),
    ]


@on_sqlite
async def test_a_file_in_utf_16_keeps_its_bodies(bare_url: str, tmp_path: Path) -> None:
    """Their bytes in the file are no UTF-8, and their text is fine all the same."""
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection, connection:
        connection.execute("PRAGMA encoding = 'UTF-16le'")
        connection.execute("CREATE TABLE made_by (somebody TEXT)")
    old_application.fill(bare_url, post_rows=[(1, "grüße, 😀")], comment_rows=[])
    execute(bare_url, "INSERT INTO posts VALUES (2, CAST(x'00d84100' AS TEXT))")
    schema.upgrade(bare_url)

    assert query(bare_url, "PRAGMA encoding") == [("UTF-16le",)]
    first, second = await everything(bare_url)
    assert first == ("POST", 1, 1, "grüße, 😀")
    assert "\ud800" not in second[3]


# Ids that no call takes


def old_with_ids(database_url: str, post_ids: list[int]) -> None:
    """Posts with these ids, and a comment of each with the same id."""
    old_application.fill(database_url, post_rows=[], comment_rows=[])
    if not connect.is_sqlite(database_url):
        execute(
            database_url,
            "ALTER TABLE posts ALTER id TYPE BIGINT",
            "ALTER TABLE comments ALTER id TYPE BIGINT, ALTER post_id TYPE BIGINT",
        )
    for id in post_ids:
        execute(
            database_url,
            f"INSERT INTO posts VALUES ({id}, 'p {id}')",
            f"INSERT INTO comments VALUES ({id}, 'c {id}', {id})",
        )


async def test_ids_that_no_call_takes_and_the_largest_are_replaced(bare_url: str) -> None:
    """New ones come behind the others; comments go with their posts, and all other ids stay."""
    old_with_ids(bare_url, [-5, 0, 3, 7, LARGEST + 1, END])
    warnings = warnings_of_upgrade(bare_url)

    new = {-5: 8, 0: 9, 3: 3, 7: 7, LARGEST + 1: 10, END: 11}
    in_order = sorted(new, key=lambda old: new[old])
    assert await everything(bare_url) == [
        *(("POST", new[old], new[old], f"p {old}") for old in in_order),
        *(("COMMENT", new[old], new[old], f"c {old}") for old in in_order),
    ]
    assert query(
        bare_url, "SELECT kind, old_id, new_id FROM renumbered_resources ORDER BY kind DESC, old_id"
    ) == [(kind, old, id) for kind in ("post", "comment") for old, id in new.items() if old != id]
    (warning,) = warnings
    assert "renumbered_resources" in str(warning["event"])
    assert warning["count"] == 8


async def test_after_the_largest_ids_there_is_room(bare_url: str) -> None:
    """SQLite would never give an id again after the last that there is, also if its row is gone."""
    old_with_ids(bare_url, [1, END])
    execute(bare_url, "DELETE FROM comments")
    schema.upgrade(bare_url)
    async with connect.open_store(bare_url, readers=1) as store:
        (post,) = await Posts(store).create_posts([PostDraft(body="new")])
        (comment,) = await Comments(store).create_comments([CommentDraft(body="new", post_id=post.id)])
        await Posts(store).delete_posts(Deletion(ids=(2, post.id), force=True))
        (next_post,) = await Posts(store).create_posts([PostDraft(body="newer")])

    assert (post.id, comment.id, next_post.id) == (3, 1, 4)


async def test_the_largest_id_that_may_stay_stays(bare_url: str) -> None:
    """The bound itself is fine, and ids count on behind it."""
    old_with_ids(bare_url, [0, LARGEST])
    schema.upgrade(bare_url)
    async with connect.open_store(bare_url, readers=1) as store:
        (post,) = await Posts(store).create_posts([PostDraft(body="new")])

    assert query(bare_url, "SELECT id, body FROM posts ORDER BY id LIMIT 2") == [
        (LARGEST, f"p {LARGEST}"),
        (LARGEST + 1, "p 0"),
    ]
    assert post.id == LARGEST + 2


async def test_orphans_of_posts_with_such_ids_leave_room_too(bare_url: str) -> None:
    """Their ids are kept with them, and no post counts on behind them."""
    old_with_ids(bare_url, [1, END])
    if not connect.is_sqlite(bare_url):
        execute(bare_url, "ALTER TABLE comments DROP CONSTRAINT comments_post_id_fkey")
    execute(bare_url, f"DELETE FROM posts WHERE id = {END}")
    schema.upgrade(bare_url)
    async with connect.open_store(bare_url, readers=1) as store:
        (post,) = await Posts(store).create_posts([PostDraft(body="new")])

    assert post.id == 2
    assert query(bare_url, "SELECT id, post_id FROM orphaned_comments") == [(END, END)]


@on_sqlite
def test_the_bytes_of_a_body_are_found_by_the_new_id(bare_url: str) -> None:
    """The post with the body tells where they are."""
    old_application.fill(bare_url, post_rows=[], comment_rows=[])
    execute(bare_url, "INSERT INTO posts VALUES (0, x'ff')")
    schema.upgrade(bare_url)

    assert query(bare_url, "SELECT id, body FROM undecodable_bodies") == [(1, b"\xff")]
    assert query(bare_url, "SELECT id, body FROM posts") == [(1, "\ufffd")]


def test_comments_that_never_had_a_post_are_kept_as_orphans(bare_url: str) -> None:
    """Where the old table took NULL for a post, such comments are no less there."""
    execute(
        bare_url,
        "CREATE TABLE posts (id INTEGER PRIMARY KEY, body VARCHAR)",
        "CREATE TABLE comments (id INTEGER PRIMARY KEY, body VARCHAR, post_id INTEGER REFERENCES posts (id))",
        "INSERT INTO comments VALUES (4, 'of none', NULL)",
    )
    schema.upgrade(bare_url)

    assert query(bare_url, "SELECT id, body, post_id FROM orphaned_comments") == [(4, "of none", None)]
    assert query(bare_url, "SELECT count(*) FROM comments") == [(0,)]
