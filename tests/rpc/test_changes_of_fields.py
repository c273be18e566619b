"""The change feed and stored responses with authors, labels, external ids and replies."""

import json
from typing import Any

import grpc
from sqlalchemy import text

from tests.support.database import database_connection, query
from tests.support.resource_api import ResourceApi
from tests.support.watches import open_watch, watch_from_now
from tests.support.write_requests import new_request_id

BEFORE_THESE_FIELDS = ("author", "labels", "external_id", "reply_to_id", "path")


async def test_changes_have_all_fields(comments: ResourceApi, channel: grpc.aio.Channel) -> None:
    """Of a create, an update and a deletion, and in the initial state."""
    parent = await comments.create_one()
    async with watch_from_now(channel) as watch:
        created = await comments.create(
            comments.draft(author="me", labels={"a": "1"}, external_id="x", reply_to_id=parent.id)
        )
        updated = await comments.update(comments.resource(id=created.id), ["labels.a", "author"])
        async with open_watch(channel, initial_state=True) as initial:
            state = {it.id: it.comment for it in await initial.initial_state() if it.HasField("comment")}
        await comments.delete(created.id)
        changes = [it.comment for it in await watch.changes(3)]

    assert changes == [created, updated, updated]
    assert state == {parent.id: parent, created.id: updated}
    assert (updated.external_id, updated.reply_to_id, updated.depth) == ("x", parent.id, 1)


async def test_change_has_the_state_before_an_update_of_author_or_labels(
    api: ResourceApi, database_url: str
) -> None:
    """No other change has it."""
    one = await api.create(api.draft(author="me", labels={"a": "1"}))
    for fields, paths in (
        ({"body": "new"}, ["body"]),
        ({"author": "you"}, ["author"]),
        ({"author": "you"}, ["author"]),
        ({"labels": {"a": "2"}}, ["labels.a"]),
        ({"labels": {}}, ["labels"]),
    ):
        await api.update(api.resource(id=one.id, **fields), paths)
    await api.delete(one.id)

    kind = 1 if api.name == "Post" else 2
    rows = query(database_url, f"SELECT before FROM changes WHERE kind = {kind} ORDER BY seq")
    assert [json.loads(str(it)) if it else None for (it,) in rows] == [
        None,
        None,
        {"author": "me", "labels": '{"a":"1"}'},
        None,
        {"author": "you", "labels": '{"a":"1"}'},
        {"author": "you", "labels": '{"a":"2"}'},
        None,
    ]


def forget_fields(database_url: str, table: str, key: str, column: str) -> None:
    """Removes the fields from stored JSON, as the version before them has stored it."""

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [without(it) for it in value]
        if isinstance(value, dict):
            return {name: without(it) for name, it in value.items() if name not in BEFORE_THESE_FIELDS}
        return value

    with database_connection(database_url) as connection:
        for id, stored in connection.execute(text(f"SELECT {key}, {column} FROM {table}")).all():
            connection.execute(
                text(f"UPDATE {table} SET {column} = :stored WHERE {key} = :id"),
                {"stored": json.dumps(without(json.loads(stored))), "id": id},
            )


async def test_changes_of_the_version_before_are_read(
    api: ResourceApi, channel: grpc.aio.Channel, database_url: str
) -> None:
    """Their resources have none of the fields."""
    one = await api.create_one()
    after = await api.update(api.resource(id=one.id, body="new"))
    forget_fields(database_url, "changes", "seq", "payload")

    async with open_watch(channel, earliest=True) as watch:
        changes = await watch.changes(2)

    assert [getattr(it, api.field) for it in changes if it.HasField(api.field)][-2:] == [one, after]


async def test_stored_responses_of_the_version_before_are_replayed(
    api: ResourceApi, database_url: str
) -> None:
    """A caller that sends its request again after the upgrade gets the first response."""
    id = new_request_id()
    first = await api.create(api.draft("a"), request_id=id)
    forget_fields(database_url, "requests", "id", "answer")

    assert await api.create(api.draft("a"), request_id=id) == first
