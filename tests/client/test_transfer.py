"""`client.transfer`: both clients against a real server."""

from collections.abc import Iterator
from typing import Any

import pytest
import storeapi
from storeapi import Comment, ImportProgress, Post, Record
from storeapi.testing import RunningServer, running_server


@pytest.fixture(scope="module")
def real() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@pytest.fixture
async def client(make_client: Any, real: RunningServer) -> Any:
    return make_client(real.target)


async def read(steps: Any) -> list[Any]:
    return [it async for it in steps]


async def exported(client: Any, **options: Any) -> list[Record]:
    return [record for batch in await read(client.transfer.export(**options)) for record in batch]


async def imported(client: Any, *records: Record, **options: Any) -> ImportProgress:
    return (await read(client.transfer.import_records(records, **options)))[-1]


async def test_export_has_every_record(client: Any) -> None:
    """The last batch has the totals and a token with which a watch begins."""
    post = await client.posts.create("a post", author="ann", labels={"a": "b"})
    comment = await client.comments.create(post_id=post.id, body="a comment")
    reply = await client.comments.create(post_id=post.id, body="a reply", reply_to_id=comment.id)

    batches = await read(client.transfer.export())

    records = [record for batch in batches for record in batch]
    assert Record(resource=post) in records
    assert Record(resource=reply, ancestor_ids=(comment.id,)) in records
    assert batches[0].estimated_records == len(records) == batches[-1].totals.all
    async with client.changes.watch(resume_token=batches[-1].resume_token) as watch:
        await client.posts.delete(post.id, force=True)
        assert {(await anext(watch)).action for _ in range(3)} == {"delete"}


async def test_export_continues_from_a_cursor(client: Any) -> None:
    """It returns what follows."""
    for n in range(3):
        await client.posts.create(f"post {n}")
    async with client.transfer.export(kinds=["post"]) as export:
        first, second = await anext(export), await anext(export)
        cursor = export.cursor
    assert cursor == second.cursor != first.cursor

    rest = await exported(client, kinds=["post"], cursor=cursor)

    assert [*second, *rest] == await exported(client, kinds=["post"])


async def test_import_keeps_ids_and_times(client: Any) -> None:
    """Of records without an id, the external id decides. A second import changes nothing."""
    template = await client.posts.create("template")
    records = [
        Record(
            resource=Post(
                id=template.id + 1000,
                body="kept",
                create_time=template.create_time,
                update_time=template.update_time,
                etag="v5",
            )
        ),
        Record(resource=Post(id=0, body="found by name", external_id="other:1")),
        Record(
            resource=Comment(id=0, post_id=0, body="a comment", external_id="other:2"),
            post_external_id="other:1",
        ),
        Record(
            resource=Comment(id=0, post_id=0, body="a reply", external_id="other:3"),
            post_external_id="other:1",
            reply_to_external_id="other:2",
        ),
    ]

    checked = await imported(client, *records, validate_only=True)
    first = await imported(client, *records, batch_size=1)
    second = await imported(client, *records)

    assert await client.posts.get(template.id + 1000) == records[0].resource
    reply = await client.comments.get(external_id="other:3")
    assert (reply.body, reply.depth) == ("a reply", 1)
    assert (checked.created, first.created, second.unchanged) == (4, 4, 4)
    assert (await client.posts.create("later")).id > template.id + 1000
    await client.comments.delete(reply.id)
    await client.posts.delete((await client.posts.get(external_id="other:1")).id, force=True)
    await client.posts.delete(template.id + 1000)


async def test_refused_records_are_named(client: Any) -> None:
    """The others are stored."""
    post = await client.posts.create("a post")
    other = Record(resource=Post(id=post.id, body="another text"))
    lost = Record(resource=Comment(id=post.id + 5000, post_id=2**40, body="lost"))
    kept = Record(resource=Comment(id=post.id + 5001, post_id=post.id, body="kept"))

    progress = await imported(client, other, lost, kept)

    assert (progress.created, progress.failed, progress.records) == (1, 2, 3)
    assert [(it.index, it.reason, it.field, it.record) for it in progress.failures] == [
        (0, "CONFLICT", "post.id", other),
        (1, "POST_NOT_FOUND", "comment.post_id", lost),
    ]
    assert (await imported(client, other, on_conflict="skip")).skipped == 1
    assert (await imported(client, other, on_conflict="overwrite")).overwritten == 1
    assert (await client.posts.get(post.id)).body == "another text"
    await client.posts.delete(post.id, force=True)


async def test_invalid_arguments_are_errors(client: Any) -> None:
    with pytest.raises(ValueError, match="kinds"):
        client.transfer.export(kinds=["revision"])
    with pytest.raises(ValueError, match="on_conflict"):
        client.transfer.import_records([], on_conflict="merge")
    with pytest.raises(ValueError, match="batch_size"):
        client.transfer.import_records([], batch_size=0)
    with pytest.raises(storeapi.FieldInvalid):
        await read(client.transfer.export(cursor="nonsense"))
    assert await read(client.transfer.import_records([])) == []
