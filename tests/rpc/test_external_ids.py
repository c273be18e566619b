"""External ids: unique for each type of resource, also with concurrent callers, batches and two servers."""

import asyncio
import unicodedata
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2

from store_service.config import Config
from store_service.server import serving
from tests.support.database import database_contents, query
from tests.support.engines import POSTGRESQL_ONLY
from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.polling import eventually
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.write_queue import WriteQueue, run_in_one_batch
from tests.support.write_requests import new_request_id

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
assert unicodedata.normalize("NFC", DECOMPOSED) == COMPOSED

DISTINCT = [
    "a",
    "A",
    "a ",
    " a",
    "a\u00a0",
    " ",
    COMPOSED,
    DECOMPOSED,
    "\u200b",
    "\ufeff",
    "ß",
    "ss",
    "0",
    "%",
]
"""External ids that a comparison other than byte by byte would confuse with each other."""


@pytest.fixture
async def second(config: Config) -> AsyncIterator[Stubs]:
    """Stubs of another server on the same database."""
    async with serving(config) as running, grpc.aio.insecure_channel(running.address) as channel:
        yield Stubs(channel)


def reasons(outcomes: list[Any]) -> list[str]:
    return [received_error(it).reason for it in outcomes if isinstance(it, grpc.RpcError)]


async def test_resource_is_found_by_its_external_id(api: ResourceApi) -> None:
    """Alone, in a batch, and next to ids; resources without external id are not found."""
    await api.create_one()
    created = await api.create(api.draft(external_id="article:42"))
    assert created.external_id == "article:42"

    assert await api.get(external_id="article:42") == created
    assert api.resources_in(await api.batch_get([], external_ids=["article:42"])) == [created]
    assert api.resources_in(await api.batch_get([created.id], external_ids=["article:42"])) == [
        created,
        created,
    ]


async def test_missing_external_ids_are_reported(api: ResourceApi) -> None:
    """As errors, or in the response with allow_missing."""
    stored = await api.create(api.draft(external_id="a"))

    error = await expect_error(api.get(external_id="b"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, api.not_found)
    assert (await expect_error(api.batch_get([stored.id], external_ids=["a", "b"]))).reason == api.not_found
    found = await api.batch_get([stored.id, 99], external_ids=["c", "a", "b"], allow_missing=True)

    assert api.resources_in(found) == [stored, stored]
    assert list(found.missing_ids) == [99]
    assert list(found.missing_external_ids) == ["c", "b"]


async def test_get_needs_exactly_one_of_id_and_external_id(api: ResourceApi) -> None:
    """A call with both or none is refused."""
    one = await api.create(api.draft(external_id="a"))

    both = await expect_error(api.get(one.id, external_id="a"))
    none = await expect_error(api.get())

    assert (both.reason, both.fields) == ("FIELD_INVALID", ["external_id"])
    assert (none.reason, none.fields) == ("FIELD_INVALID", ["id"])


@pytest.mark.parametrize("external_id", ["a\n", "\x00", "é" * 129])
async def test_reads_refuse_an_external_id_that_no_resource_can_have(
    api: ResourceApi, external_id: str
) -> None:
    alone = await expect_error(api.get(external_id=external_id))
    in_batch = await expect_error(api.batch_get([], external_ids=["a", external_id]))
    assert (alone.reason, alone.fields) == ("FIELD_INVALID", ["external_id"])
    assert (in_batch.reason, in_batch.fields) == ("FIELD_INVALID", ["external_ids[1]"])


async def test_batch_get_limits_ids_and_external_ids_together(api: ResourceApi) -> None:
    """1000 of both."""
    ids = list(range(1, 501))
    names = [f"x{n}" for n in range(500)]
    found = await api.batch_get(ids, external_ids=names, allow_missing=True)
    assert (len(found.missing_ids), len(found.missing_external_ids)) == (500, 500)

    error = await expect_error(api.batch_get(ids, external_ids=[*names, "y"], allow_missing=True))
    assert (error.reason, error.metadata["count"]) == ("BATCH_TOO_LARGE", "1001")
    empty = await expect_error(api.batch_get([], external_ids=["a", ""]))
    assert (empty.reason, empty.fields) == ("FIELD_INVALID", ["external_ids[1]"])


async def test_external_ids_are_compared_byte_by_byte(api: ResourceApi) -> None:
    """Neither case, spaces nor normalization make two of them equal."""
    created = [await api.create(api.draft(external_id=it)) for it in DISTINCT]

    assert [it.external_id for it in created] == DISTINCT
    assert [await api.get(external_id=it) for it in DISTINCT] == created
    assert api.resources_in(await api.batch_get([], external_ids=DISTINCT)) == created
    for it in DISTINCT:
        assert (await expect_error(api.create(api.draft(external_id=it)))).reason == "EXTERNAL_ID_TAKEN"


async def test_taken_external_id_is_refused_with_the_id_of_its_resource(
    api: ResourceApi, database_url: str
) -> None:
    """The stored resource is unchanged."""
    first = await api.create(api.draft("first", external_id="a:\u00e9"))
    before = database_contents(database_url)

    for call in (
        api.create(api.draft("second", external_id="a:\u00e9")),
        api.create(api.draft("second", external_id="a:\u00e9"), validate_only=True),
        api.create(api.draft("second", external_id="a:\u00e9"), request_id=new_request_id()),
        api.batch_create([api.draft("second"), api.draft("third", external_id="a:\u00e9")]),
    ):
        error = await expect_error(call)
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "EXTERNAL_ID_TAKEN")
        assert error.metadata == {"id": str(first.id), "external_id": "a:\u00e9"}
        info = error.detail(error_details_pb2.ResourceInfo)
        assert (info.resource_type, info.resource_name) == (f"storeapi.v1.{api.name}", str(first.id))
    assert database_contents(database_url) == before


async def test_posts_and_comments_have_separate_external_ids(stubs: Stubs) -> None:
    """A post and a comment can have the same one."""
    posts = ResourceApi("Post", stubs)
    post = await posts.create(posts.draft(external_id="a"))
    comments = ResourceApi("Comment", stubs, post_id=post.id)
    comment = await comments.create(comments.draft(external_id="a"))

    assert await posts.get(external_id="a") == post
    assert await comments.get(external_id="a") == comment


async def test_return_existing_returns_the_stored_resource(api: ResourceApi, database_url: str) -> None:
    """Unchanged, and nothing is written."""
    draft = api.draft("first", external_id="a", author="me", labels={"x": "1"})
    first = await api.create(draft, return_existing=True)
    before = database_contents(database_url)

    again = await api.create(api.draft("other", external_id="a"), return_existing=True)
    dry = await api.create(api.draft("other", external_id="a"), return_existing=True, validate_only=True)

    assert again == dry == first
    assert database_contents(database_url) == before


async def test_return_existing_requires_an_external_id(api: ResourceApi) -> None:
    """Otherwise it would have no effect."""
    error = await expect_error(api.create(api.draft(), return_existing=True))
    assert (error.reason, error.fields) == ("FIELD_INVALID", ["return_existing"])

    error = await expect_error(api.batch_create([api.draft()], return_existing=True))
    assert (error.reason, error.fields) == ("FIELD_INVALID", ["requests[0].return_existing"])


async def test_batch_returns_existing_and_new_resources_in_order(api: ResourceApi) -> None:
    """return_existing applies to each element."""
    b = await api.create(api.draft("b", external_id="b"))
    d = await api.create(api.draft("d", external_id="d"))
    drafts = [api.draft(name, external_id=name) for name in "abcde"] + [api.draft("none"), api.draft("none")]

    created = api.resources_in(await batch_with(api, drafts, existing="bd"))

    assert [it.body for it in created] == ["a", "b", "c", "d", "e", "none", "none"]
    assert (created[1], created[3]) == (b, d)
    new = [it.id for it in created if it not in (b, d)]
    assert new == sorted(new)
    error = await expect_error(
        batch_with(api, [api.draft(external_id="f"), drafts[1], drafts[3]], existing="d")
    )
    assert (error.reason, error.metadata["external_id"]) == ("EXTERNAL_ID_TAKEN", "b")
    assert (await expect_error(api.get(external_id="f"))).reason == api.not_found


def batch_with(api: ResourceApi, drafts: list[Any], *, existing: str, **options: Any) -> Any:
    """A batch create with return_existing for the drafts with these external ids."""
    requests = [
        {api.field: it, "return_existing": bool(it.external_id) and it.external_id in existing}
        for it in drafts
    ]
    return api.call(f"BatchCreate{api.name}s", requests=requests, **options)


@pytest.mark.parametrize("return_existing", [False, True])
async def test_batch_with_one_external_id_twice_is_refused(
    api: ResourceApi, database_url: str, return_existing: bool
) -> None:
    """Nothing is stored."""
    before = database_contents(database_url)
    drafts = [api.draft(external_id=it) for it in ("a", "b", "a")]

    error = await expect_error(api.batch_create(drafts, return_existing=return_existing))

    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.fields) == (
        "BATCH_DUPLICATE",
        [f"requests[2].{api.field}.external_id"],
    )
    assert database_contents(database_url) == before


async def test_existing_resources_count_for_the_size_of_the_response(api: ResourceApi) -> None:
    """A batch whose response would not fit into a message creates nothing."""
    names = [f"x{n}" for n in range(70)]
    for some in (names[:35], names[35:]):
        await api.batch_create([api.draft("b" * 60_000, external_id=it) for it in some])
    drafts = [api.draft("small", external_id=it) for it in [*names, "new"]]

    error = await expect_error(api.batch_create(drafts, return_existing=True))

    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE")
    assert (await expect_error(api.get(external_id="new"))).reason == api.not_found


async def test_replay_returns_the_first_response(api: ResourceApi) -> None:
    """Also after the resource has changed, and for a resource that existed."""
    new, existing = new_request_id(), new_request_id()
    draft = api.draft("first", external_id="a")
    first = await api.create(draft, request_id=new)
    found = await api.create(draft, request_id=existing, return_existing=True)
    assert found == first
    await api.update(api.resource(id=first.id, body="changed"))

    assert await api.create(draft, request_id=new) == first
    assert await api.create(draft, request_id=existing, return_existing=True) == first
    error = await expect_error(api.create(draft, request_id=new, return_existing=True))
    assert error.reason == "REQUEST_ID_REUSED"


async def test_external_id_is_immutable(api: ResourceApi, database_url: str) -> None:
    """An update may repeat it, and cannot take that of another resource."""
    one = await api.create(api.draft("one", external_id="1"))
    two = await api.create(api.draft("two", external_id="2"))
    before = database_contents(database_url)
    field = f"{api.field}.external_id"

    for call in (
        api.update(api.resource(id=one.id, external_id="2"), ["external_id"]),
        api.update(api.resource(id=one.id, external_id=""), ["external_id"]),
        api.update(api.resource(id=one.id, body="x", external_id="3")),
        api.update(api.resource(id=one.id, body="x", external_id="1 "), ["*"]),
    ):
        error = await expect_error(call)
        assert (error.reason, error.fields) == ("FIELD_IMMUTABLE", [field])
    swapped = [
        (api.resource(id=one.id, external_id="2"), ["external_id"]),
        (api.resource(id=two.id, external_id="1"), ["external_id"]),
    ]
    error = await expect_error(api.batch_update(swapped))
    assert (error.reason, error.fields[0]) == ("FIELD_IMMUTABLE", f"requests[0].{field}")
    assert database_contents(database_url) == before

    one.body = "changed"
    assert (await api.update(one)).external_id == "1"


async def test_external_id_is_free_after_deletion(api: ResourceApi) -> None:
    """Single and in a batch."""
    first = await api.create(api.draft(external_id="a"))
    await api.delete(first.id)
    second = await api.create(api.draft(external_id="a"))
    assert second.id > first.id
    await api.batch_delete([second.id])
    third = await api.create(api.draft(external_id="a"), return_existing=True)
    assert third.id > second.id


# Concurrent callers


async def test_concurrent_callers_get_one_resource(api: ResourceApi) -> None:
    """With return_existing all of them succeed."""
    created = await asyncio.gather(
        *(api.create(api.draft(f"{n}", external_id="a"), return_existing=True) for n in range(20))
    )

    assert created == [created[0]] * 20


async def test_one_of_concurrent_callers_creates(api: ResourceApi) -> None:
    """Without return_existing the others get the id of its resource."""
    outcomes = await asyncio.gather(
        *(result_or_error(api.create(api.draft(f"{n}", external_id="a"))) for n in range(20))
    )

    (created,) = [it for it in outcomes if not isinstance(it, grpc.RpcError)]
    assert reasons(list(outcomes)) == ["EXTERNAL_ID_TAKEN"] * 19
    for it in outcomes:
        if isinstance(it, grpc.RpcError):
            assert received_error(it).metadata == {"id": str(created.id), "external_id": "a"}


async def test_duplicate_does_not_affect_other_callers_of_its_batch(
    api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """Each of them gets its own outcome. The first caller creates."""
    await api.create(api.draft("stored", external_id="stored"))
    calls = [
        lambda: api.create(api.draft("1")),
        lambda: api.create(api.draft("2", external_id="stored")),
        lambda: api.create(api.draft("3", external_id="new")),
        lambda: api.batch_create([api.draft("4", external_id="other"), api.draft("5", external_id="new")]),
        lambda: api.create(api.draft("6", external_id="new"), return_existing=True),
        lambda: api.create(api.draft("7", external_id="other")),
        # Writes with a request id run in another order.
        lambda: api.create(api.draft("x", external_id="last"), request_id=new_request_id()),
        lambda: api.create(api.draft("x", external_id="last")),
    ]

    outcomes = await run_in_one_batch(write_queue, api, database_url, calls)

    bodies = [received_error(it).reason if isinstance(it, grpc.RpcError) else it.body for it in outcomes]
    taken = "EXTERNAL_ID_TAKEN"
    assert bodies[:6] == ["1", taken, "3", taken, "3", "7"]
    assert sorted(bodies[6:]) == [taken, "x"]


async def test_deferred_duplicate_is_created_if_the_first_fails(
    comments: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """A refused write does not take the external id."""
    calls = [
        lambda: comments.create(comments.draft("1", external_id="a", post_id=999)),
        lambda: comments.create(comments.draft("2", external_id="a")),
        lambda: comments.create(comments.draft("3", external_id="a")),
    ]

    outcomes = await run_in_one_batch(write_queue, comments, database_url, calls)

    assert reasons(outcomes) == ["POST_NOT_FOUND", "EXTERNAL_ID_TAKEN"]
    assert outcomes[1].body == "2"


@POSTGRESQL_ONLY
async def test_two_servers_create_one_resource(api: ResourceApi, second: Stubs) -> None:
    """In many rounds: all callers get it, and no caller fails. Other creates succeed meanwhile."""
    other = ResourceApi(api.name, second, post_id=api.post_id)
    for number in range(30):
        name = f"a{number}"
        outcomes = await asyncio.gather(
            *(
                it.create(it.draft(f"{n}", external_id=name), return_existing=True)
                for n in range(5)
                for it in (api, other)
            ),
            *(it.create(it.draft("plain")) for it in (api, other)),
        )
        assert {it.id for it in outcomes[:10]} == {outcomes[0].id}
        assert len({it.id for it in outcomes}) == 3


@POSTGRESQL_ONLY
async def test_one_caller_of_two_servers_creates(api: ResourceApi, second: Stubs) -> None:
    """The others get EXTERNAL_ID_TAKEN, and never INTERNAL or DATABASE_BUSY."""
    other = ResourceApi(api.name, second, post_id=api.post_id)
    for number in range(20):
        outcomes = await asyncio.gather(
            *(
                result_or_error(it.create(it.draft(external_id=f"a{number}")))
                for _ in range(5)
                for it in (api, other)
            )
        )
        assert reasons(list(outcomes)) == ["EXTERNAL_ID_TAKEN"] * 9


@POSTGRESQL_ONLY
async def test_two_importers_of_the_same_resources_do_not_fail(api: ResourceApi, second: Stubs) -> None:
    """Batches with the same external ids in opposite order do not block each other."""
    other = ResourceApi(api.name, second, post_id=api.post_id)
    names = [f"x{n}" for n in range(200)]
    calls = []
    for start in range(0, 200, 20):
        some = [api.draft(external_id=it) for it in names[start : start + 20]]
        calls += [api.batch_create(some, return_existing=True)]
        calls += [other.batch_create(some[::-1], return_existing=True)]
        calls += [it.create(it.draft(external_id=names[start]), return_existing=True) for it in (api, other)]

    await asyncio.gather(*calls)

    stored = [it for page in await api.all_pages(page_size=1000) for it in page]
    assert sorted(it.external_id for it in stored) == sorted(names)


@POSTGRESQL_ONLY
@pytest.mark.parametrize("commits", [True, False])
async def test_create_waits_for_another_transaction_with_the_external_id(
    posts: ResourceApi, database_url: str, commits: bool
) -> None:
    """It is refused if that transaction commits, although the row did not exist when it looked."""
    with psycopg.connect(database_url) as other:
        row = other.execute("INSERT INTO posts (body, external_id) VALUES ('x', 'a') RETURNING id").fetchone()
        assert row is not None
        call = asyncio.ensure_future(result_or_error(posts.create(posts.draft(external_id="a"))))
        await eventually(lambda: query(database_url, WAITING) == [(1,)])
        if commits:
            other.commit()
        else:
            other.rollback()
        outcome = await call

    if commits:
        error = received_error(outcome)
        assert (error.reason, error.metadata["id"]) == ("EXTERNAL_ID_TAKEN", str(row[0]))
    else:
        assert outcome.external_id == "a"


WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE application_name = 'store-service' AND wait_event_type = 'Lock'"
)
