"""Exports and imports: everything is kept, nothing is stored twice, and ids are never given twice."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2
from storeapi.v1 import transfer_pb2 as pb

from store_service.config import Config
from store_service.model import Position, ResumePoint
from store_service.server import serving
from store_service.service import resume_tokens
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import expect_error
from tests.support.postgresql import clear_database
from tests.support.stubs import Stubs
from tests.support.transfer import (
    FAIL,
    OVERWRITE,
    SKIP,
    export,
    final_records,
    import_all,
    import_stream,
    stored_rows,
    total,
)

TIME = Timestamp(seconds=1_000_000)
LATER = Timestamp(seconds=1_500_000_000)


@pytest.fixture
def config(default_config: Config, database_url: str) -> Config:
    """Deleted resources can be restored, and former versions are kept."""
    return default_config.model_copy(
        update={"DATABASE_URL": database_url, "undelete_hours": 24.0, "revisions": 5}
    )


@pytest.fixture
async def target(
    request: pytest.FixtureRequest, config: Config, migrated_file: Path, tmp_path: Path
) -> AsyncIterator[tuple[Stubs, str]]:
    """A server on an empty database of the other engine, and the URL of the database."""
    if config.DATABASE_URL.startswith("sqlite"):
        url = request.getfixturevalue("postgres_database")
        clear_database(url)
    else:
        url = f"sqlite:///{shutil.copy(migrated_file, tmp_path / 'target.db')}"
    async with (
        serving(config.model_copy(update={"DATABASE_URL": url})) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield Stubs(channel), url


async def fill(stubs: Stubs) -> None:
    """Creates posts and comments in every state."""
    posts = [await stubs.create_post(f"post {n}") for n in range(5)]
    await stubs.posts.CreatePost(
        posts_pb2.CreatePostRequest(
            post=posts_pb2.Post(
                body="ü\U0001f600 labelled", author="ann", labels={"a": "1", "b": 'q"\\'}, external_id="x:1"
            )
        )
    )
    for n in range(3):
        changed = posts_pb2.Post(id=posts[0].id, body=f"version {n}", author="bob", labels={"n": str(n)})
        await stubs.posts.UpdatePost(posts_pb2.UpdatePostRequest(post=changed))
    ids = []
    for n in range(12):
        comment = comments_pb2.Comment(
            post_id=posts[n % 2].id,
            body=f"comment {n}",
            author="ann" if n % 3 else "",
            external_id=f"c:{n}" if n % 4 == 0 else "",
            reply_to_id=ids[n - 2] if n >= 2 and n < 10 else 0,
        )
        created = await stubs.comments.CreateComment(comments_pb2.CreateCommentRequest(comment=comment))
        ids.append(created.id)
    await stubs.comments.UpdateComment(
        comments_pb2.UpdateCommentRequest(comment=comments_pb2.Comment(id=ids[1], body="edited"))
    )
    # A tombstone with restorable content, a deleted leaf, a deleted thread, a deleted post with comments.
    for id, force in ((ids[2], False), (ids[11], False), (ids[5], True)):
        await stubs.comments.DeleteComment(comments_pb2.DeleteCommentRequest(id=id, force=force))
    await stubs.create_comment(posts[3].id)
    await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=posts[3].id, force=True))
    await stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=posts[4].id))


def post(id: int = 0, body: str = "a post", **fields: Any) -> pb.Record:
    return pb.Record(post=posts_pb2.Post(id=id, body=body, **fields))


def comment(id: int = 0, body: str = "a comment", **fields: Any) -> pb.Record:
    outer = ("post_external_id", "reply_to_external_id", "ancestor_ids", "state", "deleted_with")
    more = {name: fields.pop(name) for name in outer if name in fields}
    return pb.Record(comment=comments_pb2.Comment(id=id, body=body, **fields), **more)


async def import_one(stubs: Stubs, *records: pb.Record, on_conflict: Any = FAIL, **options: Any) -> Any:
    request = pb.ImportRecordsRequest(records=records, on_conflict=on_conflict, **options)
    return (await stubs.transfers.ImportRecords(request)).result


async def test_an_import_of_an_export_has_equal_rows(
    stubs: Stubs, target: tuple[Stubs, str], database_url: str
) -> None:
    await fill(stubs)
    responses = await export(stubs)
    records = final_records(responses)
    target_stubs, target_url = target

    answers = await import_all(target_stubs, records)

    assert total(answers) == {"created": len(records)}
    assert stored_rows(target_url) == stored_rows(database_url)
    last = responses[-1]
    assert len(records) == last.totals.posts + last.totals.comments + last.totals.deleted_posts + (
        last.totals.deleted_comments + last.totals.revisions
    )
    assert [it.records for it in (await export(target_stubs))] == [it.records for it in responses]


@pytest.mark.parametrize("policy", [FAIL, SKIP, OVERWRITE])
async def test_a_second_import_changes_nothing(stubs: Stubs, target: tuple[Stubs, str], policy: Any) -> None:
    await fill(stubs)
    records = final_records(await export(stubs))
    target_stubs, target_url = target
    await import_all(target_stubs, records)
    before = stored_rows(target_url)

    answers = await import_all(target_stubs, records, on_conflict=policy, size=3)

    assert total(answers) == {"unchanged": len(records)}
    assert stored_rows(target_url) == before


# Conflicts


async def test_conflict_policies(stubs: Stubs) -> None:
    """Of a resource that is stored with other values."""
    stored = await stubs.create_post("stored")
    changed = post(stored.id, "changed", author="ann", etag="v7")

    failed = await import_one(stubs, changed)
    skipped = await import_one(stubs, changed, on_conflict=SKIP)
    assert await get_post(stubs, stored.id) == stored
    overwritten = await import_one(stubs, changed, on_conflict=OVERWRITE)
    again = await import_one(stubs, changed, on_conflict=OVERWRITE)

    assert [(it.index, it.reason, it.field) for it in failed.errors] == [
        (0, pb.RECORD_ERROR_REASON_CONFLICT, "records[0].post.id")
    ]
    assert (failed.failed, skipped.skipped, overwritten.overwritten) == (1, 1, 1)
    assert (again.unchanged, again.overwritten) == (1, 0)
    now = await get_post(stubs, stored.id)
    assert (now.body, now.author, now.etag) == ("changed", "ann", "v7")
    assert not now.HasField("create_time")


async def test_overwrite_without_etag_is_an_update(stubs: Stubs) -> None:
    """Unset times are kept, and the etag changes."""
    stored = await stubs.create_post("stored")

    result = await import_one(stubs, post(stored.id, "changed"), on_conflict=OVERWRITE)

    assert result.overwritten == 1
    now = await get_post(stubs, stored.id)
    assert (now.body, now.etag, now.create_time) == ("changed", "v2", stored.create_time)
    assert now.update_time.ToMicroseconds() >= stored.update_time.ToMicroseconds()


async def test_overwrite_keeps_threads_and_deletions(stubs: Stubs) -> None:
    """It moves no comment, deletes and restores nothing, and takes no external id."""
    one, two = await stubs.create_post(), await stubs.create_post()
    taken = await import_one(stubs, post(two.id + 1, external_id="taken"))
    assert taken.created == 1
    top = await stubs.create_comment(one.id)
    gone = await stubs.create_comment(one.id)
    await stubs.comments.DeleteComment(comments_pb2.DeleteCommentRequest(id=gone.id))

    moved = comment(top.id, post_id=two.id)
    deleted = comment(
        top.id, post_id=one.id, delete_time=TIME, purge_time=TIME, state=pb.RECORD_STATE_DELETED
    )
    restored = comment(gone.id, post_id=one.id)
    result = await import_one(
        stubs, moved, deleted, restored, post(one.id, external_id="taken"), on_conflict=OVERWRITE
    )

    assert [it.reason for it in result.errors] == [
        *[pb.RECORD_ERROR_REASON_CONFLICT] * 3,
        pb.RECORD_ERROR_REASON_EXTERNAL_ID_TAKEN,
    ]


async def test_lower_version_removes_newer_former_versions(stubs: Stubs) -> None:
    """Otherwise the next updates would store them again."""
    stored = await stubs.create_post("one")
    for body in ("two", "three"):
        await update_post(stubs, stored.id, body)

    result = await import_one(stubs, post(stored.id, "from elsewhere", etag="v2"), on_conflict=OVERWRITE)
    await update_post(stubs, stored.id, "after")
    await update_post(stubs, stored.id, "after that")

    assert result.overwritten == 1
    assert await revisions_of(stubs, stored.id) == [("v3", "after"), ("v2", "from elsewhere"), ("v1", "one")]


async def test_same_resource_twice_in_a_batch(stubs: Stubs) -> None:
    """The later record is decided by the result of the earlier one."""
    records = [post(5, "one"), post(5, "one"), post(5, "two")]

    failing = await import_one(stubs, *records)
    replacing = await import_one(stubs, *records, on_conflict=OVERWRITE)

    assert (failing.created, failing.unchanged, failing.failed) == (1, 1, 1)
    assert (replacing.unchanged, replacing.overwritten) == (2, 1)
    assert (await get_post(stubs, 5)).body == "two"


# References


async def test_external_ids_replace_ids(stubs: Stubs) -> None:
    """In the batch, and in what is stored. New resources get the time of the import."""
    first = await import_one(
        stubs,
        post(external_id="p"),
        comment(external_id="c", post_external_id="p", create_time=TIME),
        comment(external_id="r", post_external_id="p", reply_to_external_id="c"),
    )
    second = await import_one(
        stubs, comment(external_id="s", post_external_id="p", reply_to_external_id="r", depth=2)
    )
    again = await import_one(
        stubs,
        comment(external_id="c", post_external_id="p"),
        comment(external_id="q", post_id=99),
    )

    assert (first.created, second.created, again.unchanged, again.failed) == (3, 1, 1, 1)
    found = await stubs.comments.ListComments(comments_pb2.ListCommentsRequest())
    by_name = {it.external_id: it for it in found.comments}
    assert [it.depth for it in found.comments] == [0, 1, 2]
    assert by_name["c"].create_time == by_name["c"].update_time == TIME
    assert by_name["r"].HasField("create_time")
    assert by_name["s"].reply_to_id == by_name["r"].id


async def test_missing_references_are_refused(stubs: Stubs) -> None:
    """A reply with ancestor_ids keeps its place, also if the comments above it are missing."""
    one, two = await stubs.create_post(), await stubs.create_post()
    other = await stubs.create_comment(two.id)
    result = await import_one(
        stubs,
        comment(50, post_id=99),
        comment(51, post_external_id="none"),
        comment(52, post_id=one.id, reply_to_id=40),
        comment(53, post_id=one.id, reply_to_id=other.id),
        comment(54, post_id=one.id, reply_to_id=40, ancestor_ids=[30, 40], depth=2),
        comment(55, post_id=one.id, reply_to_id=54, ancestor_ids=[40, 54]),
        comment(56, post_id=one.id, reply_to_id=54),
    )

    assert [(it.index, pb.RecordErrorReason.Name(it.reason)[20:], it.field) for it in result.errors] == [
        (0, "POST_NOT_FOUND", "records[0].comment.post_id"),
        (1, "POST_NOT_FOUND", "records[1].post_external_id"),
        (2, "COMMENT_NOT_FOUND", "records[2].comment.reply_to_id"),
        (3, "REPLY_POST_MISMATCH", "records[3].comment.reply_to_id"),
        (5, "FIELD_INVALID", "records[5].ancestor_ids"),
    ]
    deepest = await stubs.comments.GetComment(comments_pb2.GetCommentRequest(id=56))
    assert deepest.depth == 3


async def test_replies_have_a_maximum_depth(stubs: Stubs) -> None:
    """As for creates: 64 by default."""
    parent = await stubs.create_post()
    thread = [
        comment(n, post_id=parent.id, reply_to_id=n - 1 if n > 1 else 0, depth=n - 1) for n in range(1, 67)
    ]

    result = await import_one(stubs, *thread)

    assert result.created == 65
    assert [it.reason for it in result.errors] == [pb.RECORD_ERROR_REASON_REPLY_TOO_DEEP]


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (pb.Record(), "resource"),
        (post(-1), "post.id"),
        (post(2**62 + 1), "post.id"),
        (post(), "post.id"),
        (post(5, "a" * 65_537), "post.body"),
        (post(5, "a\0"), "post.body"),
        (post(5, ""), "post.etag"),
        (post(5, "", etag="v1", author="ann"), "post.body"),
        (post(5, etag="1"), "post.etag"),
        (post(5, etag="v1-t"), "post.etag"),
        (post(5, etag="v" + "f" * 16), "post.etag"),
        (post(5, author="a\n"), "post.author"),
        (post(5, labels={"A": "b"}), "post.labels"),
        (post(5, create_time=Timestamp(nanos=1)), "post.create_time"),
        (post(5, update_time=Timestamp(seconds=2**40)), "post.update_time"),
        (post(5, delete_time=Timestamp(seconds=1)), "post.delete_time"),
        (post(5, purge_time=Timestamp(seconds=1)), "post.purge_time"),
        (pb.Record(post=posts_pb2.Post(id=5, body="a"), post_external_id="x"), "post_external_id"),
        (pb.Record(post=posts_pb2.Post(id=5, body="a"), deleted_with=3), "deleted_with"),
        (pb.Record(post=posts_pb2.Post(id=5, body="a"), state=9), "state"),
        (pb.Record(post=posts_pb2.Post(id=5, body="a"), state=pb.RECORD_STATE_DELETED), "post.delete_time"),
        (pb.Record(post=posts_pb2.Post(id=5, body="a"), state=pb.RECORD_STATE_REVISION), "post.etag"),
        (
            pb.Record(
                post=posts_pb2.Post(id=5, body="a", etag="v1", external_id="x"),
                state=pb.RECORD_STATE_REVISION,
            ),
            "post.external_id",
        ),
        (comment(5), "comment.post_id"),
        (comment(5, post_id=1, post_external_id="x"), "comment.post_id"),
        (comment(5, ""), "comment.body"),
        (comment(5, post_id=1, reply_to_id=5), "comment.reply_to_id"),
        (comment(5, post_id=1, reply_to_id=-1), "comment.reply_to_id"),
        (comment(5, post_id=1, depth=-1), "comment.depth"),
        (comment(5, post_id=1, reply_to_id=2, ancestor_ids=[3, 2]), "ancestor_ids"),
        (comment(5, post_id=1, reply_to_id=2, reply_to_external_id="x"), "reply_to_external_id"),
        (comment(5, post_id=1, deleted_with=-2, state=pb.RECORD_STATE_DELETED), "comment.delete_time"),
        (comment(5, post_id=1, deleted_with=1), "deleted_with"),
    ],
)
@SQLITE_ONLY
async def test_invalid_record_is_refused(stubs: Stubs, record: pb.Record, field: str) -> None:
    """Without the other records of its batch."""
    result = await import_one(stubs, post(1), record)

    assert result.created == 1
    assert [(it.index, it.reason, it.field) for it in result.errors] == [
        (1, pb.RECORD_ERROR_REASON_FIELD_INVALID, f"records[1].{field}")
    ]


async def test_former_version_needs_its_resource(stubs: Stubs) -> None:
    """And is older than it."""
    stored = await stubs.create_post("one")
    await update_post(stubs, stored.id, "two")

    def former(id: int, etag: str, body: str) -> pb.Record:
        record = post(id, body, etag=etag)
        record.state = pb.RECORD_STATE_REVISION
        return record

    result = await import_one(
        stubs,
        former(99, "v1", "lost"),
        former(stored.id, "v2", "as new as the post"),
        former(stored.id, "v1", "other"),
    )
    replaced = await import_one(stubs, former(stored.id, "v1", "other"), on_conflict=OVERWRITE)

    assert [pb.RecordErrorReason.Name(it.reason)[20:] for it in result.errors] == [
        "POST_NOT_FOUND",
        "FIELD_INVALID",
        "CONFLICT",
    ]
    assert replaced.overwritten == 1
    assert await revisions_of(stubs, stored.id) == [("v1", "other")]


# Effects


async def test_new_ids_are_greater_than_imported_ones(stubs: Stubs) -> None:
    """Also than those of deleted resources, and while other callers create."""
    stop = asyncio.Event()
    created: list[int] = []

    async def create() -> None:
        while not stop.is_set():
            created.append((await stubs.create_post()).id)

    creating = [asyncio.create_task(create()) for _ in range(4)]
    for n in range(1, 20):
        gone = post(1000 * n + 500, delete_time=TIME, purge_time=LATER)
        gone.state = pb.RECORD_STATE_DELETED
        result = await import_one(stubs, post(1000 * n), post(external_id=f"x{n}"), gone)
        assert result.created == 3, result.errors
        assert (await stubs.create_post()).id > 1000 * n + 500
    stop.set()
    await asyncio.gather(*creating)

    assert len(created) == len(set(created))


async def test_imported_resources_are_in_the_change_feed(stubs: Stubs) -> None:
    """With the times of the resource and the time of the import; without tombstones and deleted ones."""
    watch = stubs.changes.Watch(changes_pb2.WatchRequest())
    await watch.read()
    tombstone = comment(7, "", post_id=5, delete_time=TIME)
    gone = post(6, delete_time=TIME, purge_time=LATER)
    gone.state = pb.RECORD_STATE_DELETED
    await import_one(
        stubs,
        post(5, create_time=TIME, update_time=TIME, etag="v3"),
        gone,
        tombstone,
        comment(8, post_id=5, reply_to_id=7, create_time=TIME),
    )
    await import_one(stubs, post(5, "changed", etag="v4"), on_conflict=OVERWRITE)

    changes: list[Any] = []
    while len(changes) < 3:
        changes += (await watch.read()).changes
    watch.cancel()
    assert [(it.action, it.kind, it.id) for it in changes] == [
        (changes_pb2.ACTION_CREATE, changes_pb2.RESOURCE_KIND_POST, 5),
        (changes_pb2.ACTION_CREATE, changes_pb2.RESOURCE_KIND_COMMENT, 8),
        (changes_pb2.ACTION_UPDATE, changes_pb2.RESOURCE_KIND_POST, 5),
    ]
    assert changes[0].post.create_time == TIME
    assert changes[0].post.etag == "v3"
    assert changes[0].commit_time.seconds > LATER.seconds
    assert changes[1].comment.depth == 1


async def test_check_stores_nothing(stubs: Stubs, database_url: str) -> None:
    """In a stream, records of earlier batches are assumed to be stored."""
    before = stored_rows(database_url)
    records = [post(5), comment(6, post_id=5), comment(7, post_id=5, reply_to_id=6), comment(8, post_id=9)]

    answers = await import_all(stubs, records[:3], validate_only=True, size=1)
    alone = await import_one(stubs, *records, validate_only=True)

    assert total(answers) == {"created": 3}
    assert (alone.created, alone.failed) == (3, 1)
    assert stored_rows(database_url) == before
    assert (await stubs.create_post()).id == 1


async def test_stream_of_requests_is_checked(stubs: Stubs) -> None:
    """The first request has the options, and batches have ascending numbers."""
    options = pb.ImportRequest(options=pb.ImportOptions(on_conflict=FAIL))
    batch = pb.ImportRequest(batch=2, records=[post(5)])
    too_many = pb.ImportRequest(batch=1, records=[post(n) for n in range(1, 1002)])
    for requests, reason, fields in (
        ([], "FIELD_INVALID", ["options"]),
        ([batch], "FIELD_INVALID", ["options", "batch", "records"]),
        ([pb.ImportRequest(options=pb.ImportOptions())], "FIELD_INVALID", ["options.on_conflict"]),
        ([options, options], "FIELD_INVALID", ["options", "batch", "records"]),
        ([options, batch, batch], "FIELD_INVALID", ["batch"]),
        ([options, pb.ImportRequest(batch=1)], "BATCH_EMPTY", ["records"]),
        ([options, too_many], "BATCH_TOO_LARGE", ["records"]),
    ):
        error = await expect_error(import_stream(stubs, requests))
        assert (error.reason, error.fields) == (reason, fields)


async def test_batch_is_stored_before_the_next_one_is_sent(stubs: Stubs) -> None:
    """A caller may wait for each response."""
    call = stubs.transfers.Import()
    await call.write(pb.ImportRequest(options=pb.ImportOptions(on_conflict=FAIL)))
    for number in (1, 5):
        await call.write(pb.ImportRequest(batch=number, records=[post(number)]))
        assert (await call.read()).batch == number
        assert (await get_post(stubs, number)).id == number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


@SQLITE_ONLY
async def test_read_only_server_exports_and_does_not_import(config: Config) -> None:
    async with (
        serving(config.model_copy(update={"read_only": True})) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stubs = Stubs(channel)
        assert (await export(stubs))[-1].resume_token
        assert (await expect_error(import_one(stubs, post(5)))).reason == "READ_ONLY"
        assert (await expect_error(import_all(stubs, [post(5)]))).reason == "READ_ONLY"


# Exports


@SQLITE_ONLY
async def test_cursor_is_checked(stubs: Stubs) -> None:
    """It belongs to the store and to the kinds."""
    cursor = (await export(stubs))[0].cursor
    for wrong in ("x", "3.0.0.0", f"3.9{cursor[3:]}", f"3.0.-1{cursor[5:]}", cursor[:-1], f"{cursor}="):
        assert (await expect_error(export(stubs, cursor=wrong))).reason == "FIELD_INVALID"
    posts = [changes_pb2.RESOURCE_KIND_POST]
    assert (await expect_error(export(stubs, cursor=cursor, kinds=posts))).fields == ["cursor"]
    foreign = resume_tokens.make("another store", ResumePoint(position=Position(xid=1, seq=1)))
    error = await expect_error(export(stubs, cursor=f"3.0.0.0.{foreign}"))
    assert (error.reason, error.fields) == ("RESUME_TOKEN_FOREIGN", ["cursor"])


async def test_watch_goes_on_after_an_export(stubs: Stubs) -> None:
    """From its resume token, without a gap."""
    await stubs.create_post("before")
    token = (await export(stubs))[-1].resume_token
    later = await stubs.create_post("later")

    watch = stubs.changes.Watch(changes_pb2.WatchRequest(resume_token=token))
    changes: list[Any] = []
    while not changes:
        changes += (await watch.read()).changes
    watch.cancel()
    assert [it.id for it in changes] == [later.id]


async def get_post(stubs: Stubs, id: int) -> Any:
    return await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=id))


async def update_post(stubs: Stubs, id: int, body: str) -> Any:
    return await stubs.posts.UpdatePost(posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=id, body=body)))


async def revisions_of(stubs: Stubs, id: int) -> list[tuple[str, str]]:
    answer = await stubs.posts.ListPostRevisions(posts_pb2.ListPostRevisionsRequest(id=id))
    return [(it.etag, it.body) for it in answer.posts]
