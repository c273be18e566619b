"""Payloads of changes and stored responses, including those from before an upgrade."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from store_service.database import connect, schema
from store_service.model import (
    Action,
    Change,
    Comment,
    CommentDraft,
    Deletion,
    IdempotencyKey,
    Position,
    Post,
    PostDraft,
    ResourceKind,
    Update,
)
from store_service.service.changes import Changes
from store_service.service.comments import Comments
from store_service.service.posts import Posts
from tests.support.database import execute, query

BODIES = ["plain", 'it\'s "quoted" \\ back', "line\nbreak\ttab", "é日😀\u2028"]
REQUEST = IdempotencyKey(id="7f3c9c8e-0d5c-4f2b-9c59-2b5a4c2a8d01", fingerprint="f")
COLUMNS = (
    "xid, action, kind, resource_id, post_id, body, size, create_time, update_time, version, commit_time,"
    " request_id"
)


def text(body: str) -> str:
    """A literal of SQL."""
    return "'" + body.replace("'", "''") + "'"


async def test_change_feed_tells_what_was_stored(database_url: str) -> None:
    """Every action of both resources, with every kind of text."""
    async with connect.open_database(database_url, readers=1) as store:
        posts, comments = Posts(store), Comments(store)
        created = await posts.create([PostDraft(body=body) for body in BODIES])
        (comment,) = await comments.create([CommentDraft(body=BODIES[1], post_id=created[0].id)])
        (updated,) = await posts.update(
            [Update(id=created[1].id, values={"body": BODIES[3]}, etag="", request_field="post")]
        )
        await posts.delete(Deletion(ids=(created[0].id,), force=True), key=REQUEST)
        batch = await Changes(store).read_after(Position(xid=0, seq=0))

    assert batch is not None
    assert [(it.action, it.resource) for it in batch.changes] == [
        *((Action.CREATE, post) for post in created),
        (Action.CREATE, comment),
        (Action.UPDATE, updated),
        (Action.DELETE, comment),
        (Action.DELETE, created[0]),
    ]
    assert [it.request_id for it in batch.changes[-2:]] == [REQUEST.id] * 2


async def test_changes_from_before_the_upgrade_are_told(
    bare_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions, times and texts are unchanged, so resume tokens stay valid. No number is given again."""
    with monkeypatch.context() as patch:
        patch.setattr(schema, "HEAD", "0006")
        schema.upgrade(bare_url)
    rows = [
        f"(1, 2, 1, {n}, {n}, {text(body)}, {len(body.encode())}, NULL, 5, {n}, {n}, NULL)"
        for n, body in enumerate(BODIES, 1)
    ]
    rows.append("(2, 3, 2, 9, 3, 'of a comment', 12, 7, 8, 2, 9, 'some request')")
    rows.append("(3, 3, 2, 9, 3, 'is deleted', 12, 7, 8, 2, 9, NULL)")
    execute(
        bare_url,
        f"INSERT INTO changes ({COLUMNS}) VALUES {', '.join(rows)}",
        "DELETE FROM changes WHERE seq = 6",
    )

    assert schema.upgrade(bare_url) == "0006"
    async with connect.open_database(bare_url, readers=1) as store:
        batch = await Changes(store).read_after(Position(xid=0, seq=0))
        await Posts(store).create([PostDraft(body="new")])

    posts = [
        Change(
            action=Action.CREATE,
            kind=ResourceKind.POST,
            post_id=n,
            resource=Post(id=n, body=body, create_time=None, update_time=5, version=n),
            commit_time=n,
        )
        for n, body in enumerate(BODIES, 1)
    ]
    comment = Change(
        action=Action.UPDATE,
        kind=ResourceKind.COMMENT,
        post_id=3,
        resource=Comment(id=9, post_id=3, body="of a comment", create_time=7, update_time=8, version=2),
        commit_time=9,
        request_id="some request",
    )
    assert batch is not None
    assert list(batch.changes) == [*posts, comment]
    places = [(it.xid, it.seq, it.time) for it in batch.positions]
    assert places == [(1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 4, 4), (2, 5, 9)]
    assert query(bare_url, "SELECT max(seq) FROM changes") == [(7,)]


def test_upgrade_without_changes_keeps_the_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On SQLite the highest number is known although its change is deleted."""
    file = tmp_path / "store.db"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "HEAD", "0006")
        schema.upgrade(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT INTO sqlite_sequence VALUES ('changes', 41)")
    schema.upgrade(f"sqlite:///{file}")

    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name LIKE '%changes'").fetchall()
    assert found == [(41,)]


async def test_replay_of_an_answer_of_another_version(database_url: str) -> None:
    """Missing fields are empty, and unknown fields are ignored."""
    answer = json.dumps({"items": [{"id": 7, "body": "a", "color": "red"}]})
    execute(
        database_url,
        "INSERT INTO requests (id, fingerprint, size, answer, create_time)"
        f" VALUES ('{REQUEST.id}', 'f', 9, '{answer}', 1)",
    )
    async with connect.open_database(database_url, readers=1) as store:
        replayed = await Posts(store).create([PostDraft(body="a")], key=REQUEST)

    assert replayed == (Post(id=7, body="a", create_time=None, update_time=None, version=0),)
    assert query(database_url, "SELECT count(*) FROM posts") == [(0,)]
