"""Exports and imports: everything is kept, nothing is stored twice, and ids are never given twice."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from storeapi.v1 import comments_pb2, posts_pb2
from storeapi.v1 import transfer_pb2 as pb

from store_service.config import Config
from store_service.server import serving
from tests.support.postgresql import clear_database
from tests.support.stubs import Stubs
from tests.support.transfer import (
    FAIL,
    OVERWRITE,
    SKIP,
    export,
    final_records,
    import_all,
    stored_rows,
    total,
)


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
