"""What calls have seen on PostgreSQL: the numbers of transactions."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from store_service.database import connect
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.consistency import CallConsistency, set_current
from store_service.errors import EtagMismatch
from store_service.model import CommentDraft, Deletion, PostDraft, Update
from store_service.service.comments import Comments
from store_service.service.posts import Posts
from tests.support.database import query

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Database]:
    """An open database."""
    async with connect.open_database(database_url) as store:
        yield store


def update(id: int, body: str, *, etag: str = "") -> list[Update]:
    """The update of a post."""
    return [Update(id=id, values={"body": body}, etag=etag, request_field="post")]


WRITES: dict[str, Callable[[Posts, Comments, int], Awaitable[Any]]] = {
    "create": lambda posts, comments, post_id: posts.create([PostDraft(body="b")] * 3),
    "create of a comment": lambda posts, comments, post_id: comments.create(
        [CommentDraft(body="b", post_id=post_id, author="ann")]
    ),
    "update": lambda posts, comments, post_id: posts.update(update(post_id, "b")),
    "delete": lambda posts, comments, post_id: posts.delete(Deletion(ids=(post_id,))),
}


@pytest.mark.parametrize("name", WRITES)
async def test_write_has_seen_its_own_transaction(
    store: Database, database_url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further statement reads its number."""
    posts, comments = Posts(store, undelete_hours=1), Comments(store)
    (post,) = await posts.create([PostDraft(body="a")])
    set_current(CallConsistency())
    await posts.get(post.id)  # reads the timeline
    await posts.update(update(post.id, "a"))
    statements = []
    fetch = Connection.fetch

    async def counted(self: Connection, statement: Any, **values: Any) -> Any:
        statements.append(statement.on("postgresql", values)[0])
        return await fetch(self, statement, **values)

    monkeypatch.setattr(Connection, "fetch", counted)
    call = CallConsistency()
    set_current(call)

    await WRITES[name](posts, comments, post.id)

    assert call.seen.xid == last_xid(database_url)
    assert call.seen.timeline == 1
    assert not [it for it in statements if "max(xid)" in it]


async def test_refused_write_has_seen_the_newest_transaction(store: Database, database_url: str) -> None:
    """The state that it was refused for."""
    posts = Posts(store)
    (post,) = await posts.create([PostDraft(body="a")])
    call = CallConsistency()
    set_current(call)

    with pytest.raises(EtagMismatch):
        await posts.update(update(post.id, "b", etag="v9"))

    assert call.seen.xid == last_xid(database_url)


async def test_dry_run_has_seen_no_transaction_that_is_rolled_back(
    store: Database, database_url: str
) -> None:
    posts = Posts(store)
    (post,) = await posts.create([PostDraft(body="a")])
    call = CallConsistency()
    set_current(call)

    await posts.update(update(post.id, "b"), dry_run=True)

    assert call.seen.xid == last_xid(database_url)


async def test_code_without_a_call_records_nothing(store: Database) -> None:
    """Background tasks and callers that send no metadata pay nothing."""
    await Posts(store).create([PostDraft(body="a")])

    assert not store._seen._made


def last_xid(database_url: str) -> int:
    """The number of the last transaction with changes."""
    ((xid,),) = query(database_url, "SELECT max(xid) FROM changes")
    assert isinstance(xid, int)
    return xid
