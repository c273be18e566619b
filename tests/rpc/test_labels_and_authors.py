"""Authors and labels: their limits, update masks of single labels, and the table of labels."""

import asyncio
import json
from collections.abc import Mapping
from random import Random
from typing import Any

import grpc
import pytest
from sqlalchemy import text

from store_service.config import Config
from store_service.server import serving
from tests.support.database import database_connection
from tests.support.engines import POSTGRESQL_ONLY, SQLITE_ONLY
from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs

SMILE = "\U0001f600"
VALID = [
    "x" * 256,
    SMILE * 64,
    SMILE * 63 + "abcd",
    "é" * 128,
    " ",
    "\u200b",
    "\ufeff",
    "\u2028",
    "'\"\\%_{}",
]
TOO_LONG = ["x" * 257, SMILE * 64 + "a", "é" * 128 + "x", "é" * 256]
CONTROL = ["a\0b", "\n", "\t", "\x1f", "\x7f", "\x80", "\x85", "\x9f"]
DISTINCT = [
    "A",
    "a",
    "ß",
    "ss",
    "\ufb01",
    "fi",
    "x",
    "x ",
    "\u00e9",
    "e\u0301",
    "\u0130",
    "i",
    "\u00c5",
    "\u00e5",
]

VALID_KEYS = ["a", "z9", "a" * 63, "a.b", "a/b-c", "a..", "a-", "spam.example/status"]
INVALID_KEYS = ["", "A", "a_b", "9a", ".a", "-a", "a" * 64, "é", "a b", "a\n", "a*", "a`b"]


def label_rows(database_url: str) -> list[tuple[int, int, str, str]]:
    """The rows of the table of labels: kind, resource, key and value."""
    with database_connection(database_url) as connection:
        rows = connection.execute(text('SELECT kind, resource_id, "key", value FROM labels'))
        return sorted(tuple(row) for row in rows)  # type: ignore[misc]  # of these four


def expected_rows(database_url: str) -> list[tuple[int, int, str, str]]:
    """The rows that the labels of all posts and comments must have."""
    with database_connection(database_url) as connection:
        return sorted(
            (kind, id, key, value)
            for kind, table in ((1, "posts"), (2, "comments"))
            for id, labels in connection.execute(text(f"SELECT id, labels FROM {table} WHERE labels <> ''"))
            for key, value in json.loads(labels).items()
        )


async def labelled(api: ResourceApi, **labels: str) -> Any:
    return await api.create(api.draft(labels=labels))


async def updated(
    api: ResourceApi, stored: Any, paths: list[str], labels: Mapping[str, str]
) -> dict[str, str]:
    """The labels after an update with a mask."""
    after = await api.update(api.resource(id=stored.id, labels=labels), paths)
    assert await api.get(stored.id) == after
    return dict(after.labels)


async def test_texts_are_stored_unchanged(api: ResourceApi) -> None:
    """Up to 256 bytes; no normalization, no trimming."""
    for value in VALID + DISTINCT:
        created = await api.create(api.draft(author=value, labels={"k": value}, external_id=value))
        assert (created.author, created.labels["k"], created.external_id) == (value, value, value)
        assert await api.get(created.id) == created
        assert await api.get(external_id=value) == created


@SQLITE_ONLY
async def test_invalid_texts_are_refused(api: ResourceApi) -> None:
    """Everywhere, with the path of the field."""
    field, id = api.field, (await api.create_one()).id
    for value in TOO_LONG + CONTROL:
        bad = {
            f"{field}.author": {"author": value},
            f"{field}.external_id": {"external_id": value},
            f"{field}.labels": {"labels": {"k": value}},
        }
        for path, fields in bad.items():
            error = await expect_error(api.create(api.draft(**fields)))
            assert (error.reason, error.fields) == ("FIELD_INVALID", [path]), value
            assert ("256 bytes" in error.message) == (value in TOO_LONG)
            error = await expect_error(api.batch_create([api.draft(), api.draft(**fields)]))
            assert error.fields == [f"requests[1].{path}"]
            if "external_id" not in fields:
                error = await expect_error(api.update(api.resource(id=id, **fields)))
                assert (error.reason, error.fields) == ("FIELD_INVALID", [path])
                error = await expect_error(api.batch_update([(api.resource(id=id, **fields), [])]))
                assert (error.reason, error.fields) == ("FIELD_INVALID", [f"requests[0].{path}"])
        error = await expect_error(api.update(api.resource(id=id, labels={"k": value}), ["labels.k"]))
        assert (error.reason, error.fields) == ("FIELD_INVALID", [f"{field}.labels"])
        assert (await expect_error(api.get(external_id=value))).fields == ["external_id"]
        assert (await expect_error(api.batch_get([], external_ids=[value]))).fields == ["external_ids[0]"]


@SQLITE_ONLY
async def test_keys_of_labels_are_checked(api: ResourceApi) -> None:
    """In the map and in the mask."""
    stored = await labelled(api, **dict.fromkeys(VALID_KEYS, "v"))
    assert sorted(stored.labels) == sorted(VALID_KEYS)
    for key in VALID_KEYS:
        assert key not in await updated(api, stored, [f"labels.{key}"], {})
    for key in INVALID_KEYS:
        error = await expect_error(api.create(api.draft(labels={key: "v"})))
        assert (error.reason, error.fields) == ("FIELD_INVALID", [f"{api.field}.labels"])
        for more in ([], ["labels"], ["body"], ["*"]):
            error = await expect_error(
                api.update(api.resource(id=stored.id, body="b"), [f"labels.{key}", *more])
            )
            assert (error.reason, error.fields[0]) == ("FIELD_MASK_INVALID", "update_mask")


async def test_labels_are_limited_to_64(api: ResourceApi, database_url: str) -> None:
    """Also if they are added one by one."""
    labels = {f"k{n}": f"{n}" for n in range(64)}
    error = await expect_error(api.create(api.draft(labels=labels | {"one-more": ""})))
    assert (error.reason, error.fields) == ("FIELD_INVALID", [f"{api.field}.labels"])

    stored = await labelled(api)
    for key, value in labels.items():
        await updated(api, stored, [f"labels.{key}"], {key: value})
    for paths, new in (
        (["labels.new"], {"new": ""}),
        (["labels.k1", "labels.a", "labels.b"], {"a": "", "b": ""}),
    ):
        error = await expect_error(api.update(api.resource(id=stored.id, labels=new), paths))
        assert (error.reason, error.fields) == ("FIELD_INVALID", [f"{api.field}.labels"])
        error = await expect_error(api.batch_update([(api.resource(id=stored.id, labels=new), paths)]))
        assert error.fields == [f"requests[0].{api.field}.labels"]
    assert (await api.get(stored.id)).labels == labels
    swapped = await updated(api, stored, ["labels.k1", "labels.new"], {"new": ""})
    assert len(swapped) == 64
    assert label_rows(database_url) == expected_rows(database_url)


async def test_mask_selects_single_labels(api: ResourceApi, database_url: str) -> None:
    """A label that the request does not have is removed. Keys with dots and slashes are not paths."""
    stored = await labelled(api, **{"a": "1", "a.b": "2", "a/b": "3"})

    assert await updated(api, stored, ["labels.a.b"], {"a.b": "9", "a": "x"}) == {
        "a": "1",
        "a.b": "9",
        "a/b": "3",
    }
    assert await updated(api, stored, ["labels.a"], {}) == {"a.b": "9", "a/b": "3"}
    assert await updated(api, stored, ["labels.a"], {"a": ""}) == {"a": "", "a.b": "9", "a/b": "3"}
    assert await updated(api, stored, ["labels.none"], {}) == {"a": "", "a.b": "9", "a/b": "3"}
    assert await updated(api, stored, ["labels.a", "labels.new", "labels.a/b"], {"new": "1"}) == {
        "a.b": "9",
        "new": "1",
    }
    assert label_rows(database_url) == expected_rows(database_url)


async def test_mask_replaces_all_labels(api: ResourceApi, database_url: str) -> None:
    """With "labels", also next to a single label, and with "*". An empty map removes all."""
    stored = await labelled(api, a="1", b="2")

    assert await updated(api, stored, ["labels"], {"c": "3"}) == {"c": "3"}
    assert await updated(api, stored, ["labels", "labels.c"], {"d": "4"}) == {"d": "4"}
    assert await updated(api, stored, ["labels.d", "labels"], {}) == {}
    assert label_rows(database_url) == []
    whole = api.resource(id=stored.id, body="b", labels={"e": "5"})
    assert dict((await api.update(whole, ["*"])).labels) == {"e": "5"}
    assert dict((await api.update(whole, ["*", "labels.x"])).labels) == {"e": "5"}
    after = await api.update(api.resource(id=stored.id, body="c"), ["*"])
    assert (dict(after.labels), after.author) == ({}, "")
    assert label_rows(database_url) == expected_rows(database_url) == []


async def test_update_without_mask_changes_fields_that_are_set(api: ResourceApi) -> None:
    """An empty map or an empty author is not set. Other fields keep their values."""
    stored = await api.create(api.draft("b", author="me", labels={"a": "1"}, external_id="x"))

    changed = await api.update(api.resource(id=stored.id, author="you"))
    assert (changed.body, changed.author, dict(changed.labels)) == ("b", "you", {"a": "1"})
    changed = await api.update(api.resource(id=stored.id, labels={"b": "2"}))
    assert (changed.body, changed.author, dict(changed.labels)) == ("b", "you", {"b": "2"})
    assert (await expect_error(api.update(api.resource(id=stored.id)))).reason == "FIELD_INVALID"
    cleared = await api.update(api.resource(id=stored.id), ["author"])
    assert (cleared.author, cleared.body, cleared.external_id) == ("", "b", "x")
    changed.body = "whole"
    assert (await expect_error(api.update(changed))).reason == "ETAG_MISMATCH"
    cleared.body = "whole"
    whole = await api.update(cleared)
    assert (whole.body, whole.author, dict(whole.labels)) == ("whole", "", {"b": "2"})


async def test_concurrent_updates_of_single_labels_lose_none(api: ResourceApi, database_url: str) -> None:
    """Each changes only its label. With one etag for all, one succeeds."""
    stored = await labelled(api)
    await asyncio.gather(*(add_label(api, stored.id, n) for n in range(20)))
    after = await api.get(stored.id)
    assert sorted(after.labels) == sorted(f"k{n}" for n in range(20))
    assert label_rows(database_url) == expected_rows(database_url)

    outcomes = await asyncio.gather(
        *(result_or_error(add_label(api, stored.id, 30 + n, etag=after.etag)) for n in range(10))
    )
    failed = [received_error(it).reason for it in outcomes if isinstance(it, grpc.RpcError)]
    assert failed == ["ETAG_MISMATCH"] * 9


def add_label(api: ResourceApi, id: int, number: int, **fields: Any) -> Any:
    key = f"k{number}"
    return api.update(api.resource(id=id, labels={key: "v"}, **fields), [f"labels.{key}"])


@POSTGRESQL_ONLY
async def test_two_servers_lose_no_label(api: ResourceApi, config: Config, database_url: str) -> None:
    """The row is locked between the read and the write of an update."""
    stored = await labelled(api)
    async with serving(config) as running, grpc.aio.insecure_channel(running.address) as channel:
        other = ResourceApi(api.name, Stubs(channel), post_id=api.post_id)
        await asyncio.gather(*(add_label((api, other)[n % 2], stored.id, n) for n in range(40)))

    assert sorted((await api.get(stored.id)).labels) == sorted(f"k{n}" for n in range(40))
    assert label_rows(database_url) == expected_rows(database_url)


async def test_validate_only_changes_no_labels(api: ResourceApi, database_url: str) -> None:
    """The response has the labels that the resource would have."""
    stored = await labelled(api, a="1")
    before = label_rows(database_url)

    created = await api.create(api.draft(labels={"b": "2"}), validate_only=True)
    after = await api.update(api.resource(id=stored.id, labels={"b": "2"}), ["labels.b"], validate_only=True)

    assert (dict(created.labels), dict(after.labels)) == ({"b": "2"}, {"a": "1", "b": "2"})
    assert label_rows(database_url) == before


@pytest.mark.parametrize("seed", [1, 2])
async def test_table_of_labels_equals_the_labels(stubs: Stubs, database_url: str, seed: int) -> None:
    """After any writes, single, in batches, concurrent, refused, or rolled back."""
    random = Random(seed)
    posts, comments = ResourceApi("Post", stubs), ResourceApi("Comment", stubs)

    def labels() -> dict[str, str]:
        return {
            key: random.choice(["", "1", "2", 'a"\\\u2028']) for key in random.sample(["a", "b", "c.d"], 2)
        }

    async def ids_of(api: ResourceApi) -> list[int]:
        return [it.id for it in api.resources_in(await api.page(page_size=1000))]

    async def write() -> None:
        post_ids = await ids_of(posts)
        comments.post_id = random.choice(post_ids) if post_ids else 1
        api = random.choice([posts, comments])
        ids = random.sample(found, min(len(found), 3)) if (found := await ids_of(api)) else [1]
        options = {"validate_only": random.random() < 0.2}
        update = api.resource(id=ids[0], labels=labels())
        paths = random.choice([["labels"], ["labels.a"], ["labels.b", "labels.c.d"], ["*"], []])
        update.body = "b"
        call = random.choice(
            [
                lambda: api.create(api.draft(labels=labels()), **options),
                lambda: api.batch_create([api.draft(labels=labels()) for _ in range(5)], **options),
                lambda: api.batch_create([api.draft(labels=labels()), api.draft("")], **options),
                lambda: api.update(update, paths, **options),
                lambda: api.batch_update(
                    [(api.resource(id=it, labels=labels()), []) for it in ids], **options
                ),
                lambda: api.batch_update(
                    [(update, paths), (api.resource(id=10**9, body="x"), [])], **options
                ),
                lambda: api.delete(ids[0], **options),
                lambda: posts.delete(random.choice(post_ids or [1]), force=random.random() < 0.5, **options),
                lambda: api.batch_delete(ids, allow_missing=True, **options),
            ]
        )
        await result_or_error(call())

    found_any = False
    for _ in range(12):
        await asyncio.gather(*(write() for _ in range(10)))
        rows = label_rows(database_url)
        assert rows == expected_rows(database_url)
        found_any = found_any or bool(rows)
    assert found_any
