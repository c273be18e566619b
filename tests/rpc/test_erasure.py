"""AdminService.EraseAuthor: what it erases, what remains, and what consumers of the feed receive."""

import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import grpc
import pytest
from storeapi.v1 import admin_pb2, changes_pb2, comments_pb2, filters_pb2, posts_pb2
from structlog.testing import capture_logs

from store_service.config import Config
from store_service.database import rewriting
from store_service.database.connect import Database, is_sqlite
from store_service.database.job_queue import LARGE_JOB_BYTES
from store_service.service import erasure, erasure_count, erasure_scan, erasure_steps
from tests.support.database import database_contents, query
from tests.support.engines import SQLITE_ONLY
from tests.support.erasure import (
    ANONYMIZE,
    AUTHOR,
    DELETE,
    KEPT,
    MARKER,
    OTHER,
    add_many_posts,
    add_small_rows,
    childless_tombstones,
    counts,
    create_world,
    erase,
    stored_bytes,
    unconnected,
)
from tests.support.errors import expect_error
from tests.support.polling import eventually
from tests.support.running_server import server_with
from tests.support.search import when_ready
from tests.support.stubs import Stubs
from tests.support.watches import POST, open_watch

BOTH_MODES = pytest.mark.parametrize("mode", [ANONYMIZE, DELETE], ids=["anonymize", "delete"])


RESTORABLE_OR_NOT = pytest.mark.parametrize("undelete_hours", [24.0, 0.0], ids=["restorable", "final"])
"""For tests of both; the other tests can restore what is deleted."""


@pytest.fixture
def undelete_hours() -> float:
    """How long deleted resources can be restored."""
    return 24.0


@pytest.fixture
def config(config: Config, undelete_hours: float) -> Config:
    """Settings of the server."""
    return config.model_copy(update={"undelete_hours": undelete_hours})


async def count_found(stubs: Stubs) -> int:
    """Returns how many posts and comments on one page a search for the marker finds."""
    posts = await when_ready(lambda: stubs.posts.SearchPosts(posts_pb2.SearchPostsRequest(query=MARKER)))
    request = comments_pb2.SearchCommentsRequest(query=MARKER)
    comments = await when_ready(lambda: stubs.comments.SearchComments(request))
    return len(posts.results) + len(comments.results)


def indexed_parts(database_url: str) -> int:
    """Returns how many blocks of the search index have the end of the marker: FTS5 stores a word without what
    it has in common with the word before it."""
    if not is_sqlite(database_url):
        like = f"tokens::text LIKE '%{MARKER}%'"
        ((posts, comments),) = query(
            database_url,
            f"SELECT (SELECT count(*) FROM post_search WHERE {like}),"
            f" (SELECT count(*) FROM comment_search WHERE {like})",
        )
    else:
        end = f"instr(block, CAST('{MARKER[-6:]}' AS BLOB)) > 0"
        ((posts, comments),) = query(
            database_url,
            f"SELECT (SELECT count(*) FROM post_search_data WHERE {end}),"
            f" (SELECT count(*) FROM comment_search_data WHERE {end})",
        )
    return int(str(posts)) + int(str(comments))


@BOTH_MODES
@RESTORABLE_OR_NOT
async def test_no_byte_of_the_author_remains(
    stubs: Stubs, config: Config, database_url: str, mode: int
) -> None:
    """Neither texts, authors, labels nor external ids, in any table, index, free page or log."""
    world, _ = await create_world(stubs, mode=mode, can_be_restored=config.undelete_hours > 0)
    # So that the search index consists of several parts, and has texts that were replaced since.
    assert await count_found(stubs) > 0
    await add_small_rows(world, 150)
    assert await count_found(stubs) > 0
    before = stored_bytes(database_url)
    assert before.count(MARKER.encode()) > 500
    assert indexed_parts(database_url) > 0

    responses = await erase(stubs, mode)

    assert responses[-1].complete
    assert responses[-1].progress == 1
    assert [it.complete for it in responses[:-1]] == [False] * (len(responses) - 1)
    assert await count_found(stubs) == 0
    assert indexed_parts(database_url) == 0
    after = stored_bytes(database_url)
    found, kept = after.count(MARKER.encode()), after.count(KEPT.encode())
    assert found == 0
    assert kept > 100
    assert unconnected(database_url) == set()
    assert childless_tombstones(database_url) == []


@BOTH_MODES
async def test_dry_run_counts_what_the_erasure_erases(stubs: Stubs, database_url: str, mode: int) -> None:
    """validate_only changes nothing, and has the numbers of the erasure."""
    await create_world(stubs, mode=mode)
    before = database_contents(database_url)

    planned = (await erase(stubs, mode, validate_only=True))[-1]
    unchanged = database_contents(database_url)
    erased = (await erase(stubs, mode))[-1]
    repeated = (await erase(stubs, mode))[-1]

    assert planned.complete
    assert unchanged == before
    assert min(counts(planned).values()) > 0
    assert counts(planned) == counts(erased)
    assert counts(repeated) == dict.fromkeys(counts(repeated), 0)


async def test_anonymized_threads_stay_connected(stubs: Stubs) -> None:
    """Comments with replies are tombstones that cannot be restored; a post with comments stays empty."""
    _, ids = await create_world(stubs, mode=ANONYMIZE)

    await erase(stubs, ANONYMIZE)

    listed = await stubs.comments.ListComments(
        comments_pb2.ListCommentsRequest(post_id=ids.kept_post, order_by="thread")
    )
    depths = [(it.depth, bool(it.body), it.HasField("delete_time")) for it in listed.comments]
    # The comment of the other author; three generations of tombstones and replies; a tombstone and a reply.
    assert depths[0] == (0, True, False)
    assert [it for it in depths if it[0] == 4] == [(4, True, False)]
    assert all(has_text != is_deleted for _, has_text, is_deleted in depths)
    tombstones = [it for it in listed.comments if it.HasField("delete_time")]
    assert len(tombstones) == 4
    assert not any(it.author or it.labels or it.external_id or it.HasField("purge_time") for it in tombstones)
    post = await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=ids.commented_post))
    assert (post.body, post.author, dict(post.labels), post.external_id) == ("", "", {}, "")
    for id in (ids.plain_post, ids.deleted_post):
        error = await expect_error(stubs.posts.GetPost(posts_pb2.GetPostRequest(id=id)))
        assert error.reason == "POST_NOT_FOUND"
    error = await expect_error(
        stubs.comments.UndeleteComment(comments_pb2.UndeleteCommentRequest(id=tombstones[0].id))
    )
    assert error.reason == "COMMENT_NOT_FOUND"


async def test_comments_of_others_can_be_restored_with_an_anonymized_post(
    stubs: Stubs,
) -> None:
    """A deleted post with comments of others stays without content."""
    _, ids = await create_world(stubs, mode=ANONYMIZE)
    await erase(stubs, ANONYMIZE)

    post = await stubs.posts.UndeletePost(posts_pb2.UndeletePostRequest(id=ids.deleted_post))

    assert (post.body, post.author) == ("", "")
    listed = await stubs.comments.ListComments(comments_pb2.ListCommentsRequest(post_id=ids.deleted_post))
    assert [it.author for it in listed.comments] == [OTHER]


async def test_delete_removes_replies_of_others(stubs: Stubs, database_url: str) -> None:
    """Comments of the author go with everything below them; other threads remain."""
    _, ids = await create_world(stubs, mode=DELETE)

    await erase(stubs, DELETE)

    listed = await stubs.comments.ListComments(comments_pb2.ListCommentsRequest(post_id=ids.kept_post))
    assert ids.kept_comment in {it.id for it in listed.comments}
    assert ids.reply not in {it.id for it in listed.comments}
    error = await expect_error(stubs.posts.GetPost(posts_pb2.GetPostRequest(id=ids.commented_post)))
    assert error.reason == "POST_NOT_FOUND"
    assert query(database_url, f"SELECT count(*) FROM comments WHERE post_id = {ids.commented_post}") == [
        (0,)
    ]


@BOTH_MODES
async def test_replays_get_responses_without_content(stubs: Stubs, database_url: str, mode: int) -> None:
    """A write that is sent again after the erasure is not executed again."""
    world, _ = await create_world(stubs, mode=mode)
    await erase(stubs, mode, skip_rewrite=True)
    before = database_contents(database_url)

    for method, request, response in world.requests:
        again = await method(request)
        assert again.id == response.id
        assert MARKER not in str(again)
        assert again.body == ("" if MARKER in str(response) else response.body)

    assert database_contents(database_url) == before


async def test_later_erasures_keep_stored_responses_of_others(stubs: Stubs) -> None:
    """A post that was emptied and then belongs to another author is not erased with the next author."""
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="text", author=AUTHOR))
    post = await stubs.posts.CreatePost(request)
    comment = comments_pb2.Comment(post_id=post.id, body="text", author=OTHER)
    await stubs.comments.CreateComment(comments_pb2.CreateCommentRequest(comment=comment))
    await erase(stubs, ANONYMIZE, skip_rewrite=True)
    update = posts_pb2.UpdatePostRequest(
        post=posts_pb2.Post(id=post.id, body="text of another", author=OTHER), request_id=str(uuid4())
    )
    updated = await stubs.posts.UpdatePost(update)

    next_erasure = admin_pb2.EraseAuthorRequest(author="somebody", mode=ANONYMIZE, skip_rewrite=True)
    responses = [it async for it in stubs.admin.EraseAuthor(next_erasure)]

    assert responses[-1].stored_responses == 0
    assert await stubs.posts.UpdatePost(update) == updated


@BOTH_MODES
@RESTORABLE_OR_NOT
async def test_watches_receive_changes_without_content(
    stubs: Stubs, channel: grpc.aio.Channel, config: Config, mode: int
) -> None:
    """A watch that filters by the author learns what it has to forget, also of deleted resources."""
    filters = {
        "post_filter": filters_pb2.PostFilter(author=AUTHOR),
        "comment_filter": filters_pb2.CommentFilter(author=AUTHOR),
    }
    async with open_watch(channel, **filters) as watch:
        await watch.read()
        _, ids = await create_world(stubs, mode=mode)
        before = await watch.until((await create_last(stubs)).id)
        await erase(stubs, mode, skip_rewrite=True)
        after = await watch.until((await create_last(stubs)).id)

    *received, _ = after
    assert not any(it.post.body or it.comment.body or it.post.author for it in received)
    assert {it.action for it in received} <= {changes_pb2.ACTION_DELETE, changes_pb2.ACTION_UPDATE}
    last = {(it.kind, it.id): it.action for it in before}
    if not config.undelete_hours:
        last = {key: action for key, action in last.items() if action != changes_pb2.ACTION_DELETE}
    assert {(it.kind, it.id) for it in received} >= last.keys() - {(POST, ids.transferred_post)}


async def create_last(stubs: Stubs) -> posts_pb2.Post:
    """Creates a post of the author, up to which a watch is read."""
    post = posts_pb2.Post(body="the last one", author=AUTHOR)
    return await stubs.posts.CreatePost(posts_pb2.CreatePostRequest(post=post))


async def test_feed_from_its_start_has_no_content(stubs: Stubs, channel: grpc.aio.Channel) -> None:
    """Also not from the memory of the server, and the changes keep their order and their number."""
    async with open_watch(channel, earliest=True) as watch:
        await watch.read()
        world, _ = await create_world(stubs, mode=ANONYMIZE)
        last = await world.post(OTHER, KEPT)
        before = await watch.until(last.id)
        await erase(stubs, ANONYMIZE)
        async with open_watch(channel, earliest=True) as again:
            after = await again.until(last.id)
    assert MARKER in str(before)
    assert MARKER not in str(after)
    keys = [(it.kind, it.id, it.action) for it in before]
    assert [(it.kind, it.id, it.action) for it in after][: len(keys)] == keys
    assert KEPT in str(after)


async def test_steps_are_small(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write has few rows and a batch of its own, so other writes run in between."""
    world, ids = await create_world(stubs, mode=DELETE)
    for _ in range(3):
        parent = await world.comment(AUTHOR, MARKER, ids.kept_post)
        for _ in range(6):
            await world.comment(OTHER, MARKER, ids.kept_post, parent.id)
    for module, name in (
        (erasure_steps, "STEP_ROWS"),
        (erasure_scan, "SCAN_ROWS"),
        (erasure_count, "PAGE_ROWS"),
    ):
        monkeypatch.setattr(module, name, 4)
    written: list[int] = []
    write = Database.write

    async def counting(database: Database, operation: Any, argument: Any, **options: Any) -> Any:
        done = await write(database, operation, argument, **options)
        if isinstance(done, erasure_steps.Done):
            written.append(max(len(done.posts) + len(done.comments), done.revisions))
        elif isinstance(argument, list):
            written.append(len(argument))
        assert options["size"] > LARGE_JOB_BYTES
        return done

    planned = (await erase(stubs, DELETE, validate_only=True))[-1]
    monkeypatch.setattr(Database, "write", counting)
    erased = (await erase(stubs, DELETE, skip_rewrite=True))[-1]

    assert counts(erased) == counts(planned)
    assert len(written) > 30
    # Up to STEP_ROWS below others, and as many with nothing below them.
    assert max(written) <= 8


async def test_erasure_of_an_author_who_keeps_writing_is_not_complete(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "MAX_PASSES", 1)
    await create_world(stubs, mode=DELETE)

    error = await expect_error(erase(stubs, DELETE, skip_rewrite=True))

    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason == "DATABASE_BUSY"


async def test_erasure_ends_when_its_caller_leaves_and_can_be_repeated(
    stubs: Stubs, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is erased after that, and the rows form threads."""
    await create_world(stubs, mode=DELETE)
    monkeypatch.setattr(erasure_steps, "STEP_ROWS", 2)
    with capture_logs() as logged:
        request = admin_pb2.EraseAuthorRequest(author=AUTHOR, mode=DELETE)
        call = stubs.admin.EraseAuthor(request)
        for _ in range(3):
            await call.read()
        call.cancel()
        await eventually(lambda: any(it["event"] == "erasure of an author ended early" for it in logged))
    assert unconnected(database_url) == set()
    assert MARKER not in str(logged)
    monkeypatch.undo()

    last = (await erase(stubs, DELETE))[-1]

    assert last.complete
    assert last.comments > 0
    assert stored_bytes(database_url).count(MARKER.encode()) == 0


async def test_log_has_the_numbers_and_not_the_author(stubs: Stubs, config: Config) -> None:
    """The line of the call has the same id, and the name of the caller."""
    with capture_logs() as logged:
        await create_world(stubs, mode=ANONYMIZE)
        last = (await erase(stubs, ANONYMIZE, skip_rewrite=True))[-1]

    (event,) = [it for it in logged if it["event"] == "author erased"]
    assert {name: event[name] for name in counts(last)} == counts(last)
    assert event["mode"] == "anonymize"
    assert event["call_id"]
    assert MARKER not in str(logged)


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"mode": ANONYMIZE}, "author"),
        ({"author": "a\n", "mode": ANONYMIZE}, "author"),
        ({"author": "x" * 257, "mode": ANONYMIZE}, "author"),
        ({"author": "a"}, "mode"),
        ({"author": "a", "mode": 3}, "mode"),
    ],
)
async def test_invalid_requests_are_refused(stubs: Stubs, request_fields: dict[str, Any], field: str) -> None:
    error = await expect_error(stubs.admin.EraseAuthor(admin_pb2.EraseAuthorRequest(**request_fields)).read())

    assert (error.reason, error.fields) == ("FIELD_INVALID", [field])


async def test_read_only_server_refuses(config: Config) -> None:
    """Also to count."""
    async with server_with(config, read_only=True) as (_, stubs):
        request = admin_pb2.EraseAuthorRequest(author="a", mode=DELETE, validate_only=True)
        error = await expect_error(stubs.admin.EraseAuthor(request).read())

    assert error.reason == "READ_ONLY"


@SQLITE_ONLY
async def test_one_transaction_for_everything_cannot_be_rewritten(config: Config) -> None:
    """With DB_FORCE_ROLL_BACK the file never changes."""
    async with server_with(config, DB_FORCE_ROLL_BACK=True) as (_, stubs):
        await create_world(stubs, mode=DELETE)
        error = await expect_error(
            stubs.admin.EraseAuthor(admin_pb2.EraseAuthorRequest(author=AUTHOR, mode=DELETE)).read()
        )
        last = (await erase(stubs, DELETE, skip_rewrite=True))[-1]

    assert (error.reason, error.fields) == ("FIELD_INVALID", ["skip_rewrite"])
    assert last.complete
    assert last.posts > 0


@SQLITE_ONLY
async def test_rewrite_without_room_is_refused(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else is erased."""
    await create_world(stubs, mode=DELETE)
    usage = SimpleNamespace(free=0)
    monkeypatch.setattr(rewriting.shutil, "disk_usage", lambda _: usage)
    request = admin_pb2.EraseAuthorRequest(author=AUTHOR, mode=DELETE)

    async def read_all() -> None:
        async for it in stubs.admin.EraseAuthor(request):
            assert not it.complete

    error = await expect_error(read_all())

    assert error.reason == "STORAGE_FULL"
    monkeypatch.undo()
    assert counts((await erase(stubs, DELETE))[-1]) == dict.fromkeys(
        counts(admin_pb2.EraseAuthorResponse()), 0
    )


@SQLITE_ONLY
async def test_rewrite_waits_for_readers_of_the_log(
    stubs: Stubs, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that does not end is an error; writes go on in between."""
    await create_world(stubs, mode=DELETE)
    monkeypatch.setattr(erasure, "LOG_SECONDS", 0.5)
    path = Path(database_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM posts").fetchall()

        async def read_all() -> None:
            async for _ in stubs.admin.EraseAuthor(admin_pb2.EraseAuthorRequest(author=AUTHOR, mode=DELETE)):
                await stubs.create_post(KEPT)

        error = await expect_error(read_all())
    assert error.reason == "DATABASE_BUSY"
    last = (await erase(stubs, DELETE))[-1]

    assert last.complete
    assert stored_bytes(database_url).count(MARKER.encode()) == 0


@SQLITE_ONLY
async def test_rewrite_removes_what_deletions_leave_in_pages(
    stubs: Stubs, database_url: str, tmp_path: Path
) -> None:
    """Pages that were rearranged have gaps with parts of texts, which secure_delete does not overwrite."""
    await add_many_posts(stubs, 1500)
    await erase(stubs, DELETE, skip_rewrite=True)
    path = Path(database_url.removeprefix("sqlite:///"))
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database,
        closing(sqlite3.connect(tmp_path / "pages")) as pages,
    ):
        # All pages as they are, with the content of the log.
        database.backup(pages)
    left = (tmp_path / "pages").read_bytes().count(MARKER.encode())

    await erase(stubs, DELETE)

    assert left > 0
    assert stored_bytes(database_url).count(MARKER.encode()) == 0
