"""request_id among many: callers at once, batches of the writer, two servers, and for how long it is kept."""

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
from store_service.database.connect import open_store
from store_service.model import PostDraft, Request
from store_service.server import serving
from store_service.store import requests
from store_service.store.keeping import STEP_ROWS, Keeping
from store_service.store.posts import Posts
from store_service.store.requests import WriteOperation, was_repeated
from tests.rpc.helpers import ON_POSTGRESQL, Side, Taken, become, connected, outcome_of, together
from tests.rpc.writes import (
    CHANGES,
    WRITES,
    changes_by_request,
    everything,
    new_id,
    new_world,
    remembered,
    request_of,
    send,
)
from tests.support import Stubs, error_seen, failure

HOUR = 3_600_000_000
MINUTE = 60_000_000


@pytest.fixture
def config(database_url: str) -> Config:
    """Settings of a server that by itself forgets nothing that a test makes a little older."""
    return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", request_id_hours=8760)


@pytest.fixture
async def second(config: Config) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to another server on the same database."""
    async with serving(config) as running, grpc.aio.insecure_channel(running.address) as channel:
        yield channel


def reasons(outcomes: Sequence[Any]) -> list[str]:
    """The reasons of those that failed."""
    return [error_seen(outcome).reason for outcome in outcomes if isinstance(outcome, grpc.RpcError)]


def answers(outcomes: Sequence[Any]) -> list[Any]:
    """The answers of those that did not."""
    return [outcome for outcome in outcomes if not isinstance(outcome, grpc.RpcError)]


@pytest.mark.parametrize("method", WRITES, ids=lambda method: method.name)
async def test_one_request_from_50_callers_at_once_is_done_once(
    channel: grpc.aio.Channel, stubs: Stubs, database_url: str, method: Any
) -> None:
    """200 sends of one request, all of them at the same time, do it once and get one answer."""
    world = await new_world(stubs)
    before = everything(database_url)
    request = request_of(method, world, new_id())

    async def caller() -> list[Any]:
        return [await send(channel, method, request) for _ in range(4)]

    sent = await asyncio.gather(*(caller() for _ in range(50)))

    all_answers = [answer for answers in sent for answer in answers]
    assert len(all_answers) == 200
    assert all(answer == all_answers[0] for answer in all_answers)
    after = everything(database_url)
    assert len(after["changes"]) - len(before["changes"]) == CHANGES[method.name]
    assert len(after["requests"]) == 1


async def test_equal_requests_in_one_batch_are_one_write(side: Side, taken: Taken, database_url: str) -> None:
    """Sends of one request that the writer takes together are done once; each gets the answer."""
    id = new_id()
    calls = [lambda: side.create(side.draft("same"), request_id=id)] * 10

    outcomes = await together(taken, side, database_url, calls)

    assert outcomes == [outcomes[0]] * 10
    assert side.of(await side.page()) == [outcomes[0]]
    assert changes_by_request(database_url)[-1] == (outcomes[0].id, id)
    assert remembered(database_url) == [id]


async def test_of_different_requests_with_one_id_in_one_batch_one_is_done(
    side: Side, taken: Taken, database_url: str
) -> None:
    """An id that several requests bring at the same time belongs to one of them; the others are told."""
    id = new_id()
    calls = [lambda n=n: side.create(side.draft(f"body {n}"), request_id=id) for n in range(10)]

    outcomes = await together(taken, side, database_url, calls)

    assert reasons(outcomes) == ["REQUEST_ID_REUSED"] * 9
    assert side.of(await side.page()) == answers(outcomes)
    assert remembered(database_url) == [id]


async def test_of_different_methods_with_one_id_in_one_batch_one_is_done(
    stubs: Stubs, taken: Taken, channel: grpc.aio.Channel, database_url: str
) -> None:
    """The same when the requests are for different methods of both services."""
    world = await new_world(stubs)
    before = everything(database_url)
    id = new_id()
    calls = [lambda method=method: send(channel, method, request_of(method, world, id)) for method in WRITES]

    outcomes = await together(taken, Side("Post", stubs), database_url, calls)

    assert reasons(outcomes) == ["REQUEST_ID_REUSED"] * (len(WRITES) - 1)
    (done,) = [method for method, outcome in zip(WRITES, outcomes, strict=True) if answers([outcome])]
    after = everything(database_url)
    assert len(after["changes"]) - len(before["changes"]) == CHANGES[done.name]
    assert len(after["requests"]) == 1


async def test_a_failed_request_does_not_take_the_id_from_another_in_its_batch(
    side: Side, taken: Taken, database_url: str
) -> None:
    """What fails uses up nothing, also for those that the writer takes together with it."""
    resource = await side.stored()
    id = new_id()
    calls = [
        lambda: side.update(side.resource(id=404, body="x"), request_id=id),
        lambda: side.update(side.resource(id=resource.id, body="x"), request_id=id),
    ]

    outcomes = await together(taken, side, database_url, calls)

    assert reasons(outcomes) == [side.not_found]
    assert (await side.get(resource.id)).body == "x"
    assert remembered(database_url) == [id]


async def test_writes_in_one_batch_keep_their_own_ids(side: Side, taken: Taken, database_url: str) -> None:
    """Each change names the request that made it, and none when that had no id."""
    old = await side.several(12)
    known = len(changes_by_request(database_url))
    ids = {n: new_id() for n in range(24) if n % 4}
    calls = (
        [lambda n=n: side.create(side.draft(f"{n}"), request_id=ids.get(n, "")) for n in range(12)]
        + [
            lambda n=n: side.update(side.resource(id=old[n - 12].id, body="x"), request_id=ids.get(n, ""))
            for n in range(12, 18)
        ]
        + [lambda n=n: side.delete(old[n - 12].id, request_id=ids.get(n, "")) for n in range(18, 24)]
    )

    outcomes = await together(taken, side, database_url, calls)

    assert reasons(outcomes) == []
    expected = {outcome.id: ids.get(n) for n, outcome in enumerate(outcomes)}
    assert dict(changes_by_request(database_url)[known:]) == expected
    assert sorted(remembered(database_url)) == sorted(ids.values())


async def test_updates_of_one_resource_in_one_batch_keep_their_own_answers(
    side: Side, taken: Taken, database_url: str
) -> None:
    """Each of them is a change with its own request, and gets its own answer again."""
    resource = await side.stored()
    known = len(changes_by_request(database_url))
    ids = [new_id() for _ in range(5)]

    def update(n: int) -> Any:
        return side.update(side.resource(id=resource.id, body=f"body {n}"), request_id=ids[n])

    outcomes = await together(taken, side, database_url, [partial(update, n) for n in range(5)])

    assert reasons(outcomes) == []
    assert changes_by_request(database_url)[known:] == [(resource.id, id) for id in ids]
    assert [await update(n) for n in range(5)] == outcomes


async def test_equal_requests_are_answered_from_memory_with_one_reading(
    side: Side, taken: Taken, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that the writer takes together, however many they are."""
    id = new_id()
    first = await side.create(side.draft("same"), request_id=id)
    read: list[str] = []
    result = WriteOperation._result
    monkeypatch.setattr(WriteOperation, "_result", lambda it, text: read.append(text) or result(it, text))

    outcomes = await together(
        taken, side, database_url, [lambda: side.create(side.draft("same"), request_id=id)] * 10
    )

    assert outcomes == [first] * 10
    assert len(read) == 1


async def test_answers_that_would_fill_the_memory_are_given_in_turn(
    side: Side, taken: Taken, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request that was done before gets its own, and a new one in their midst is done."""
    monkeypatch.setattr(requests, "MAX_HELD_BYTES", 1)
    ids = [new_id() for _ in range(5)]
    calls = [lambda n=n: side.create(side.draft(f"body {n}"), request_id=ids[n]) for n in range(5)]
    first = [await call() for call in calls[:4]]
    before = taken.arrived

    outcomes = await together(taken, side, database_url, [*calls, *calls])

    assert outcomes == [*first, outcomes[4]] * 2
    assert outcomes[4].body == "body 4"
    assert sorted(remembered(database_url)) == sorted(ids)
    # Besides what held up the writer and the ten, those again that had to wait: six, four and two.
    assert taken.arrived - before == 1 + 10 + 6 + 4 + 2


async def test_only_what_did_nothing_counts_as_repeated(database_url: str) -> None:
    """Its caller may be refused the answer, for the request may be sent again; who has done it is told."""
    request = Request(id=new_id(), fingerprint="x")

    async with open_store(database_url) as store:

        async def create() -> bool:
            await Posts(store).create([PostDraft(body="a")], request=request)
            return was_repeated()

        at_once = await asyncio.gather(*(asyncio.create_task(create()) for _ in range(3)))
        later = await asyncio.create_task(create())

    assert at_once == [False, True, True]
    assert later


# Two servers


@ON_POSTGRESQL
async def test_two_servers_do_one_request_once(
    channel: grpc.aio.Channel, second: grpc.aio.Channel, stubs: Stubs, database_url: str
) -> None:
    """A request that reaches two servers at the same moment is done by one; both give its answer."""
    for _ in range(8):
        for method in WRITES:
            world = await new_world(stubs)
            before = len(changes_by_request(database_url))
            request = request_of(method, world, new_id())

            one, two = await asyncio.gather(send(channel, method, request), send(second, method, request))

            assert one == two, method.name
            made = changes_by_request(database_url)[before:]
            assert [id for _, id in made] == [request.request_id] * CHANGES[method.name], method.name


@ON_POSTGRESQL
async def test_an_id_that_two_servers_see_at_once_is_of_one_request(
    channel: grpc.aio.Channel, second: grpc.aio.Channel, database_url: str
) -> None:
    """Different requests with one id at two servers at the same moment: one is done, one is refused."""
    sides = [Side("Post", Stubs(channel)), Side("Post", Stubs(second))]
    for n in range(50):
        id = new_id()
        calls = [side.create(side.draft(f"{n} {m}"), request_id=id) for m, side in enumerate(sides)]

        outcomes = await asyncio.gather(*map(outcome_of, calls))

        assert reasons(outcomes) == ["REQUEST_ID_REUSED"]
        (done,) = answers(outcomes)
        assert changes_by_request(database_url)[n:] == [(done.id, id)]


@ON_POSTGRESQL
async def test_two_servers_do_many_requests_once(
    channel: grpc.aio.Channel, second: grpc.aio.Channel, database_url: str
) -> None:
    """Crowds that bring the same requests to two servers, in different orders, get the same answers."""
    chance = random.Random(11)
    sides = [Side("Post", Stubs(channel)), Side("Post", Stubs(second))]
    told: dict[str, list[Any]] = {}

    async def send_to(side: Side, id: str) -> None:
        told[id].append(await side.create(side.draft(id), request_id=id))

    for _ in range(5):
        ids = [new_id() for _ in range(40)]
        told |= {id: [] for id in ids}
        crowd = [(side, id) for side in sides for id in chance.sample(ids, len(ids))]
        await asyncio.gather(*(send_to(side, id) for side, id in crowd))

    assert all(one == two for one, two in told.values())
    made = {request_id: id for id, request_id in changes_by_request(database_url)}
    assert made == {id: posts[0].id for id, posts in told.items()}
    assert len(everything(database_url)["posts"]) == len(told)


# For how long


def age(database_url: str, request_id: str, *, microseconds: int) -> None:
    """Makes a remembered request older."""
    with connected(database_url) as connection:
        older = text("UPDATE requests SET create_time = create_time - :by WHERE id = :id")
        assert connection.execute(older, {"by": microseconds, "id": request_id}).rowcount == 1


async def is_all_forgotten(database_url: str, *, hours: float = 24) -> bool:
    """Does one step; whether nothing is left that is too old."""
    async with open_store(database_url) as store:
        keeping = Keeping(store, change_hours=8760, change_rows=10**9, request_id_hours=hours)
        return await keeping.step()


async def test_a_request_is_forgotten_after_its_time(side: Side, database_url: str) -> None:
    """Behind request_id_hours an id is free again: the same request is done anew, another one is done."""
    old, older, young = [new_id() for _ in range(3)]
    first = {id: await side.create(side.draft(), request_id=id) for id in (old, older, young)}
    age(database_url, old, microseconds=24 * HOUR + MINUTE)
    age(database_url, older, microseconds=1000 * HOUR)
    age(database_url, young, microseconds=24 * HOUR - MINUTE)

    assert await is_all_forgotten(database_url)

    assert remembered(database_url) == [young]
    assert await side.create(side.draft(), request_id=young) == first[young]
    assert (await side.create(side.draft(), request_id=old)).id not in [it.id for it in first.values()]
    assert (await side.create(side.draft("another"), request_id=older)).body == "another"
    error = await failure(side.create(side.draft("another"), request_id=young))
    assert error.reason == "REQUEST_ID_REUSED"


async def test_an_answer_from_memory_does_not_make_a_request_younger(side: Side, database_url: str) -> None:
    """The time counts from when the request was done."""
    id = new_id()
    await side.create(side.draft(), request_id=id)
    age(database_url, id, microseconds=24 * HOUR + MINUTE)

    await side.create(side.draft(), request_id=id)

    assert await is_all_forgotten(database_url)
    assert remembered(database_url) == []


async def test_what_is_done_is_not_forgotten_with_its_request(side: Side, database_url: str) -> None:
    """Only the request goes; what it did and the changes that tell of it stay."""
    id = new_id()
    await side.create(side.draft(), request_id=id)
    age(database_url, id, microseconds=1000 * HOUR)
    before = everything(database_url)

    await is_all_forgotten(database_url)

    assert everything(database_url) == before | {"requests": []}


async def test_many_requests_are_forgotten_in_steps(side: Side, database_url: str) -> None:
    """A step deletes the oldest ones, no more than callers can wait for, and says when nothing is left."""
    young = new_id()
    await side.create(side.draft(), request_id=young)
    with connected(database_url) as connection:
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
        assert remembered(database_url) == [*left, young]


async def test_large_answers_are_forgotten_a_few_at_a_time(side: Side, database_url: str) -> None:
    """A step ends when it has deleted 8 MiB, so that no transaction does more; small ones before them too."""
    await side.create(side.draft(), request_id=new_id())
    with connected(database_url) as connection:
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
    async with open_store(database_url) as store:
        keeping = Keeping(store, change_hours=8760, change_rows=10**9, request_id_hours=24)
        left = []
        while not await keeping.step():
            left.append(len(remembered(database_url)) - 1)

    assert left == [7, 5, 3, 1]


async def test_it_is_known_how_large_an_answer_is(side: Side, database_url: str) -> None:
    """Without a look at the answer, which may be of 4 MiB."""
    await side.batch_create([side.draft(body="x" * 1000), side.draft(body="é")], request_id=new_id())
    with connected(database_url) as connection:
        ((size, length),) = connection.execute(text("SELECT size, length(answer) FROM requests"))

    assert size == length > 1000


async def test_the_server_forgets_by_its_setting(config: Config, database_url: str) -> None:
    """A server whose request_id_hours is 1 forgets by itself what is older than that, and nothing else."""
    old, young = new_id(), new_id()
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        side = Side("Post", Stubs(channel))
        first = {id: await side.create(side.draft(), request_id=id) for id in (old, young)}
    age(database_url, old, microseconds=HOUR + MINUTE)
    age(database_url, young, microseconds=HOUR - MINUTE)

    shorter = config.model_copy(update={"request_id_hours": 1.0})
    async with serving(shorter) as server, grpc.aio.insecure_channel(server.address) as channel:
        await become(lambda: remembered(database_url) == [young])
        side = Side("Post", Stubs(channel))
        assert await side.create(side.draft(), request_id=young) == first[young]
        assert await side.create(side.draft(), request_id=old) != first[old]
