"""request_id with concurrent callers, batches of the writer and two servers, and its retention."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import grpc
import pytest
from sqlalchemy import text

from store_service import config as settings
from store_service.config import Config
from store_service.database.connect import open_database
from store_service.model import IdempotencyKey, PostDraft
from store_service.server import serving
from store_service.service import idempotency
from store_service.service import retention as retention_module
from store_service.service.idempotency import IdempotentWrite, is_replay
from store_service.service.posts import Posts
from store_service.service.retention import STEP_ROWS, Retention
from tests.support.database import database_connection
from tests.support.engines import POSTGRESQL_ONLY
from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.polling import eventually
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.write_queue import WriteQueue, run_in_one_batch
from tests.support.write_requests import (
    CHANGES,
    WRITES,
    all_rows,
    build_request,
    changes_by_request,
    create_dataset,
    new_request_id,
    send,
    stored_request_ids,
)

HOUR = 3_600_000_000
MINUTE = 60_000_000


@pytest.fixture
def config(database_url: str) -> Config:
    """A server that keeps idempotency keys that a test makes a little older, and deleted resources."""
    return settings.load(
        DATABASE_URL=database_url,
        listen="127.0.0.1:0",
        request_id_retention_hours=8760,
        undelete_hours=24,
    )


@pytest.fixture
async def second(config: Config) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to another server on the same database."""
    async with serving(config) as running, grpc.aio.insecure_channel(running.address) as channel:
        yield channel


def reasons(outcomes: Sequence[Any]) -> list[str]:
    """The reasons of those that failed."""
    return [received_error(outcome).reason for outcome in outcomes if isinstance(outcome, grpc.RpcError)]


def answers(outcomes: Sequence[Any]) -> list[Any]:
    """The answers of those that did not."""
    return [outcome for outcome in outcomes if not isinstance(outcome, grpc.RpcError)]


async def test_concurrent_requests_of_50_callers_are_done_once(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """100 copies of one request get one response, whichever the method."""
    for method in WRITES:
        request = build_request(method, await create_dataset(stubs), new_request_id())
        before = all_rows(database_url)

        async def caller(method: Any = method, request: Any = request) -> list[Any]:
            return [await send(channel, method, request) for _ in range(2)]

        sent = await asyncio.gather(*(caller() for _ in range(50)))

        all_answers = [answer for answers in sent for answer in answers]
        assert len(all_answers) == 100
        assert all(answer == all_answers[0] for answer in all_answers), method.name
        after = all_rows(database_url)
        assert len(after["changes"]) - len(before["changes"]) == CHANGES[method.name], method.name
        assert len(after["requests"]) - len(before["requests"]) == 1, method.name


async def test_equal_requests_in_one_batch_are_one_write(
    api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """Sends of one request that the writer takes together are done once; each gets the answer."""
    id = new_request_id()
    calls = [lambda: api.create(api.draft("same"), request_id=id)] * 10

    outcomes = await run_in_one_batch(write_queue, api, database_url, calls)

    assert outcomes == [outcomes[0]] * 10
    assert api.resources_in(await api.page()) == [outcomes[0]]
    assert changes_by_request(database_url)[-1] == (outcomes[0].id, id)
    assert stored_request_ids(database_url) == [id]


async def test_one_of_different_requests_with_one_id_in_a_batch_is_done(
    api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """The others are refused."""
    id = new_request_id()
    calls = [lambda n=n: api.create(api.draft(f"body {n}"), request_id=id) for n in range(10)]

    outcomes = await run_in_one_batch(write_queue, api, database_url, calls)

    assert reasons(outcomes) == ["REQUEST_ID_REUSED"] * 9
    assert api.resources_in(await api.page()) == answers(outcomes)
    assert stored_request_ids(database_url) == [id]


async def test_one_of_different_methods_with_one_id_in_a_batch_is_done(
    stubs: Stubs, write_queue: WriteQueue, channel: grpc.aio.Channel, database_url: str
) -> None:
    """The same when the requests are for different methods of both services."""
    world = await create_dataset(stubs)
    before = all_rows(database_url)
    id = new_request_id()
    calls = [
        lambda method=method: send(channel, method, build_request(method, world, id)) for method in WRITES
    ]

    outcomes = await run_in_one_batch(write_queue, ResourceApi("Post", stubs), database_url, calls)

    assert reasons(outcomes) == ["REQUEST_ID_REUSED"] * (len(WRITES) - 1)
    (done,) = [method for method, outcome in zip(WRITES, outcomes, strict=True) if answers([outcome])]
    after = all_rows(database_url)
    assert len(after["changes"]) - len(before["changes"]) == CHANGES[done.name]
    assert len(after["requests"]) == 1


async def test_failed_request_does_not_use_an_id_in_its_batch(
    api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """What fails uses up nothing, also for those that the writer takes together with it."""
    resource = await api.create_one()
    id = new_request_id()
    calls = [
        lambda: api.update(api.resource(id=404, body="x"), request_id=id),
        lambda: api.update(api.resource(id=resource.id, body="x"), request_id=id),
    ]

    outcomes = await run_in_one_batch(write_queue, api, database_url, calls)

    assert reasons(outcomes) == [api.not_found]
    assert (await api.get(resource.id)).body == "x"
    assert stored_request_ids(database_url) == [id]


async def test_writes_in_one_batch_keep_their_request_ids(
    api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """Each change names the request that made it, and none when that had no id."""
    old = await api.create_many(12)
    known = len(changes_by_request(database_url))
    ids = {n: new_request_id() for n in range(24) if n % 4}
    calls = (
        [lambda n=n: api.create(api.draft(f"{n}"), request_id=ids.get(n, "")) for n in range(12)]
        + [
            lambda n=n: api.update(api.resource(id=old[n - 12].id, body="x"), request_id=ids.get(n, ""))
            for n in range(12, 18)
        ]
        + [lambda n=n: api.delete(old[n - 12].id, request_id=ids.get(n, "")) for n in range(18, 24)]
    )

    outcomes = await run_in_one_batch(write_queue, api, database_url, calls)

    assert reasons(outcomes) == []
    expected = {outcome.id: ids.get(n) for n, outcome in enumerate(outcomes)}
    assert dict(changes_by_request(database_url)[known:]) == expected
    assert sorted(stored_request_ids(database_url)) == sorted(ids.values())


async def test_updates_of_one_resource_in_one_batch_keep_their_responses(
    api: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """Each of them is a change with its own request, and gets its own answer again."""
    resource = await api.create_one()
    known = len(changes_by_request(database_url))
    ids = [new_request_id() for _ in range(5)]

    def update(n: int) -> Any:
        return api.update(api.resource(id=resource.id, body=f"body {n}"), request_id=ids[n])

    outcomes = await run_in_one_batch(write_queue, api, database_url, [partial(update, n) for n in range(5)])

    assert reasons(outcomes) == []
    assert changes_by_request(database_url)[known:] == [(resource.id, id) for id in ids]
    assert [await update(n) for n in range(5)] == outcomes


async def test_replays_in_one_batch_are_read_once(
    api: ResourceApi, write_queue: WriteQueue, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = new_request_id()
    first = await api.create(api.draft("same"), request_id=id)
    read: list[str] = []
    from_text = IdempotentWrite._from_text
    monkeypatch.setattr(
        IdempotentWrite, "_from_text", lambda it, text: read.append(text) or from_text(it, text)
    )

    outcomes = await run_in_one_batch(
        write_queue, api, database_url, [lambda: api.create(api.draft("same"), request_id=id)] * 10
    )

    assert outcomes == [first] * 10
    assert len(read) == 1


async def test_large_replays_are_read_in_turns(
    api: ResourceApi, write_queue: WriteQueue, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new request among them is done."""
    monkeypatch.setattr(idempotency, "MAX_HELD_BYTES", 1)
    ids = [new_request_id() for _ in range(5)]
    calls = [lambda n=n: api.create(api.draft(f"body {n}"), request_id=ids[n]) for n in range(5)]
    first = [await call() for call in calls[:4]]
    before = write_queue.arrived

    outcomes = await run_in_one_batch(write_queue, api, database_url, [*calls, *calls])

    assert outcomes == [*first, outcomes[4]] * 2
    assert outcomes[4].body == "body 4"
    assert sorted(stored_request_ids(database_url)) == sorted(ids)
    # Besides what held up the writer and the ten, those again that had to wait: six, four and two.
    assert write_queue.arrived - before == 1 + 10 + 6 + 4 + 2


async def test_only_a_replay_counts_as_repeated(database_url: str) -> None:
    """Its response may be refused for its size, because it can be requested again."""
    request = IdempotencyKey(id=new_request_id(), fingerprint="x")

    async with open_database(database_url) as store:

        async def create() -> bool:
            await Posts(store).create([PostDraft(body="a")], key=request)
            return is_replay()

        at_once = await asyncio.gather(*(asyncio.create_task(create()) for _ in range(3)))
        later = await asyncio.create_task(create())

    assert at_once == [False, True, True]
    assert later


# Two servers


@POSTGRESQL_ONLY
async def test_two_servers_do_one_request_once(
    channel: grpc.aio.Channel, second: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """A request that reaches two servers at the same moment is done by one; both give its answer."""
    for _ in range(8):
        for method in WRITES:
            world = await create_dataset(stubs)
            before = len(changes_by_request(database_url))
            request = build_request(method, world, new_request_id())

            one, two = await asyncio.gather(send(channel, method, request), send(second, method, request))

            assert one == two, method.name
            made = changes_by_request(database_url)[before:]
            assert [id for _, id in made] == [request.request_id] * CHANGES[method.name], method.name


@POSTGRESQL_ONLY
async def test_one_of_two_servers_does_a_request_of_a_shared_id(
    channel: grpc.aio.Channel, second: grpc.aio.Channel, database_url: str
) -> None:
    """Different requests with one id at two servers at the same moment: one is done, one is refused."""
    apis = [ResourceApi("Post", Stubs(channel)), ResourceApi("Post", Stubs(second))]
    for n in range(50):
        id = new_request_id()
        calls = [api.create(api.draft(f"{n} {m}"), request_id=id) for m, api in enumerate(apis)]

        outcomes = await asyncio.gather(*map(result_or_error, calls))

        assert reasons(outcomes) == ["REQUEST_ID_REUSED"]
        (done,) = answers(outcomes)
        assert changes_by_request(database_url)[n:] == [(done.id, id)]


@POSTGRESQL_ONLY
async def test_two_servers_do_many_requests_once(
    channel: grpc.aio.Channel, second: grpc.aio.Channel, database_url: str
) -> None:
    """In different orders."""
    chance = random.Random(11)
    apis = [ResourceApi("Post", Stubs(channel)), ResourceApi("Post", Stubs(second))]
    told: dict[str, list[Any]] = {}

    async def send_to(api: ResourceApi, id: str) -> None:
        told[id].append(await api.create(api.draft(id), request_id=id))

    for _ in range(5):
        ids = [new_request_id() for _ in range(40)]
        told |= {id: [] for id in ids}
        calls = [(api, id) for api in apis for id in chance.sample(ids, len(ids))]
        await asyncio.gather(*(send_to(api, id) for api, id in calls))

    assert all(one == two for one, two in told.values())
    made = {request_id: id for id, request_id in changes_by_request(database_url)}
    assert made == {id: posts[0].id for id, posts in told.items()}
    assert len(all_rows(database_url)["posts"]) == len(told)


# For how long


def age(database_url: str, request_id: str, *, microseconds: int) -> None:
    """Makes a remembered request older."""
    with database_connection(database_url) as connection:
        older = text("UPDATE requests SET create_time = create_time - :by WHERE id = :id")
        assert connection.execute(older, {"by": microseconds, "id": request_id}).rowcount == 1


async def is_all_forgotten(database_url: str, *, hours: float = 24) -> bool:
    """Does one step; whether nothing is left that is too old."""
    async with open_database(database_url) as store:
        retention = Retention(
            store, change_retention_hours=8760, max_change_rows=10**9, request_id_retention_hours=hours
        )
        return await retention.step()


async def test_request_id_expires_after_its_retention(api: ResourceApi, database_url: str) -> None:
    """The id is free again."""
    old, older, young = [new_request_id() for _ in range(3)]
    first = {id: await api.create(api.draft(), request_id=id) for id in (old, older, young)}
    age(database_url, old, microseconds=24 * HOUR + MINUTE)
    age(database_url, older, microseconds=1000 * HOUR)
    age(database_url, young, microseconds=24 * HOUR - MINUTE)

    assert await is_all_forgotten(database_url)

    assert stored_request_ids(database_url) == [young]
    assert await api.create(api.draft(), request_id=young) == first[young]
    assert (await api.create(api.draft(), request_id=old)).id not in [it.id for it in first.values()]
    assert (await api.create(api.draft("another"), request_id=older)).body == "another"
    error = await expect_error(api.create(api.draft("another"), request_id=young))
    assert error.reason == "REQUEST_ID_REUSED"


async def test_replay_does_not_extend_the_retention(api: ResourceApi, database_url: str) -> None:
    """The time counts from when the request was done."""
    id = new_request_id()
    await api.create(api.draft(), request_id=id)
    age(database_url, id, microseconds=24 * HOUR + MINUTE)

    await api.create(api.draft(), request_id=id)

    assert await is_all_forgotten(database_url)
    assert stored_request_ids(database_url) == []


async def test_expiry_keeps_the_resources_and_changes(api: ResourceApi, database_url: str) -> None:
    id = new_request_id()
    await api.create(api.draft(), request_id=id)
    age(database_url, id, microseconds=1000 * HOUR)
    before = all_rows(database_url)

    await is_all_forgotten(database_url)

    assert all_rows(database_url) == before | {"requests": []}


async def test_many_request_ids_expire_in_steps(
    api: ResourceApi, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oldest first, in a bounded number per transaction."""
    monkeypatch.setattr(retention_module, "MAX_REPEATS", 1)
    young = new_request_id()
    await api.create(api.draft(), request_id=young)
    with database_connection(database_url) as connection:
        ((now,),) = connection.execute(text("SELECT create_time FROM requests"))
        row = text("INSERT INTO requests (id, fingerprint, answer, create_time) VALUES (:id, 'x', '{}', :t)")
        count = 2 * STEP_ROWS + 100
        rows = [{"id": f"{n:08}", "t": now - 48 * HOUR + n} for n in range(count)]
        random.Random(1).shuffle(rows)
        connection.execute(row, rows)
    left = [f"{n:08}" for n in range(count)]

    for is_last in (False, False, True):
        assert await is_all_forgotten(database_url) is is_last
        left = left[STEP_ROWS:]
        assert stored_request_ids(database_url) == [*left, young]


async def test_large_responses_expire_in_small_steps(
    api: ResourceApi, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction deletes at most 8 MiB."""
    monkeypatch.setattr(retention_module, "MAX_REPEATS", 1)
    await api.create(api.draft(), request_id=new_request_id())
    with database_connection(database_url) as connection:
        ((now,),) = connection.execute(text("SELECT create_time FROM requests"))
        row = text(
            "INSERT INTO requests (id, fingerprint, size, answer, create_time)"
            " VALUES (:id, 'x', :size, :answer, :t)"
        )
        answers = [*["{}"] * 30, *["a" * 2**22] * 9]
        connection.execute(
            row,
            [
                {"id": str(n), "size": len(answer), "answer": answer, "t": now - 48 * HOUR + n}
                for n, answer in enumerate(answers)
            ],
        )
    async with open_database(database_url) as store:
        retention = Retention(
            store, change_retention_hours=8760, max_change_rows=10**9, request_id_retention_hours=24
        )
        left = []
        while not await retention.step():
            left.append(len(stored_request_ids(database_url)) - 1)

    assert left == [7, 5, 3, 1]


async def test_size_of_a_stored_response_is_a_column(api: ResourceApi, database_url: str) -> None:
    """The response itself, of up to 4 MiB, is not read."""
    await api.batch_create([api.draft(body="x" * 1000), api.draft(body="é")], request_id=new_request_id())
    with database_connection(database_url) as connection:
        ((size, length),) = connection.execute(text("SELECT size, length(answer) FROM requests"))

    assert size == length > 1000


async def test_server_expires_request_ids_by_its_setting(config: Config, database_url: str) -> None:
    old, young = new_request_id(), new_request_id()
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        api = ResourceApi("Post", Stubs(channel))
        first = {id: await api.create(api.draft(), request_id=id) for id in (old, young)}
    age(database_url, old, microseconds=HOUR + MINUTE)
    age(database_url, young, microseconds=HOUR - MINUTE)

    shorter = config.model_copy(update={"request_id_retention_hours": 1.0})
    async with serving(shorter) as server, grpc.aio.insecure_channel(server.address) as channel:
        await eventually(lambda: stored_request_ids(database_url) == [young])
        api = ResourceApi("Post", Stubs(channel))
        assert await api.create(api.draft(), request_id=young) == first[young]
        assert await api.create(api.draft(), request_id=old) != first[old]
