"""The health service: who is served, and that it really looks at the database."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc
from sqlalchemy import text

from store_service.config import Config
from store_service.database import schema
from store_service.errors import SchemaMismatch
from store_service.rpc import health as health_module
from store_service.server import serving
from tests.rpc.helpers import ONE_ENGINE, become, connected, locked
from tests.support import failure

SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING
LIVE = "live"
NAMES = ["", "storeapi.v1.ChangeService", "storeapi.v1.CommentService", "storeapi.v1.PostService"]


@pytest.fixture
def health(channel: grpc.aio.Channel) -> Any:
    """The stub."""
    return health_pb2_grpc.HealthStub(channel)


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watched statuses are looked at many times a second."""
    monkeypatch.setattr(health_module, "WATCH_SECONDS", 0.02)


def set_revision(database_url: str, revision: str) -> None:
    """Makes the database say that it has another schema, as an upgrade by a newer program would."""
    with connected(database_url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


async def status(health: Any, name: str = "") -> int:
    answer = await health.Check(pb.HealthCheckRequest(service=name))
    return int(answer.status)


async def test_the_server_and_its_services_are_serving(health: Any) -> None:
    """The empty name is the whole server."""
    for name in NAMES:
        assert await status(health, name) == SERVING


@ONE_ENGINE
async def test_the_health_of_an_unknown_service_is_not_found(health: Any) -> None:
    """Check answers NOT_FOUND for what is not served here, as the protocol says."""
    for name in ("x", "storeapi.v1", "PostService", "grpc.health.v1.Health", " ", "storeapi.v1.postservice"):
        error = await failure(health.Check(pb.HealthCheckRequest(service=name)))

        assert error.code == grpc.StatusCode.NOT_FOUND
        assert error.trailing["x-call-id"]


@ONE_ENGINE
async def test_an_unknown_service_is_watched_as_unknown(health: Any) -> None:
    """Watch answers SERVICE_UNKNOWN and goes on, as the protocol says, for it may come."""
    watch = health.Watch(pb.HealthCheckRequest(service="x"))

    assert (await watch.read()).status == pb.HealthCheckResponse.SERVICE_UNKNOWN
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch.read(), 0.1)


async def test_all_services_are_listed(health: Any) -> None:
    """List tells of every name at once."""
    answer = await health.List(pb.HealthListRequest())

    assert {name: it.status for name, it in answer.statuses.items()} == dict.fromkeys([*NAMES, LIVE], SERVING)


async def test_health_looks_at_the_database_every_time(health: Any, database_url: str) -> None:
    """A database with another schema is not healthy, and is again when it has ours."""
    assert await status(health) == SERVING

    set_revision(database_url, "9999")
    assert [await status(health, name) for name in NAMES] == [NOT_SERVING] * len(NAMES)
    answer = await health.List(pb.HealthListRequest())
    statuses = {name: it.status for name, it in answer.statuses.items()}
    assert statuses == {**dict.fromkeys(NAMES, NOT_SERVING), LIVE: SERVING}

    set_revision(database_url, schema.HEAD)
    assert [await status(health, name) for name in NAMES] == [SERVING] * len(NAMES)


async def test_a_database_without_a_revision_is_not_healthy(health: Any, database_url: str) -> None:
    """A version table that says nothing is not ours."""
    with connected(database_url) as connection:
        connection.execute(text("DELETE FROM alembic_version"))

    assert await status(health) == NOT_SERVING


async def test_a_database_without_its_tables_is_not_healthy(health: Any, database_url: str) -> None:
    """Whatever the look at the database meets is an answer, not an error."""
    with connected(database_url) as connection:
        connection.execute(text("DROP TABLE alembic_version"))

    assert await status(health) == NOT_SERVING


async def test_the_process_is_live_without_its_database(
    health: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever would start it anew is told that this mends nothing; the database is not even looked at."""
    looks = []

    async def look(_: object) -> None:
        looks.append(1)
        raise OSError

    watch = health.Watch(pb.HealthCheckRequest(service=LIVE))
    assert (await watch.read()).status == SERVING
    monkeypatch.setattr(schema, "look", look)

    assert await status(health, LIVE) == SERVING
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch.read(), 0.2)
    assert not looks
    assert await status(health) == NOT_SERVING


async def test_a_watch_reports_every_change_and_nothing_else(health: Any, database_url: str) -> None:
    """The status now, and then each time it is another one."""
    watch = health.Watch(pb.HealthCheckRequest(service="storeapi.v1.PostService"))
    assert (await watch.read()).status == SERVING

    for _ in range(3):
        set_revision(database_url, "9999")
        assert (await watch.read()).status == NOT_SERVING
        set_revision(database_url, schema.HEAD)
        assert (await watch.read()).status == SERVING


async def test_many_may_watch(health: Any, database_url: str) -> None:
    """Each gets each change."""
    watches = [health.Watch(pb.HealthCheckRequest(service=name)) for name in NAMES * 3]
    assert [(await watch.read()).status for watch in watches] == [SERVING] * len(watches)

    set_revision(database_url, "9999")

    assert [(await watch.read()).status for watch in watches] == [NOT_SERVING] * len(watches)


@ONE_ENGINE
async def test_one_looks_for_all_who_watch_and_nobody_for_none(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many watch, the database is looked at once for all; those who come later hear what was seen."""
    looks = 0
    gate = asyncio.Event()
    look = schema.look

    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:

        async def counted(store: Any) -> None:
            nonlocal looks
            looks += 1
            await gate.wait()
            await look(store)

        monkeypatch.setattr(schema, "look", counted)
        monkeypatch.setattr(health_module, "LOOK_SECONDS", 20.0)
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(pb.HealthCheckRequest(service=name)) for name in NAMES * 4]
        await become(lambda: server.guard._running == len(watches) and looks > 0)
        before = looks
        gate.set()
        told = [(await watch.read()).status for watch in watches]
        gate.clear()
        await become(lambda: looks > before)
        later = stub.Watch(pb.HealthCheckRequest())
        told.append((await later.read()).status)
        gate.set()

        assert before == 1
        assert told == [SERVING] * len(told)
        for watch in (*watches, later):
            watch.cancel()
        await become(lambda: all(task.get_name() != "health" for task in asyncio.all_tasks()))
        await become(lambda: server.guard._running == 0)
        before = looks
        again = stub.Watch(pb.HealthCheckRequest())
        assert (await again.read()).status == SERVING
        assert looks > before


async def test_a_database_that_does_not_answer_in_time_is_not_healthy(
    health: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Health gives up before its caller would."""
    monkeypatch.setattr(health_module, "LOOK_SECONDS", 0.01)

    async def for_ever(_: object) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(schema, "look", for_ever)
        assert await status(health) == NOT_SERVING
    monkeypatch.setattr(health_module, "LOOK_SECONDS", 20.0)
    assert await status(health) == SERVING


async def test_health_answers_while_calls_wait_for_the_writer(health: Any, database_url: str) -> None:
    """The look is a read, which waits for no writer."""
    with locked(database_url):
        assert await status(health) == SERVING


async def test_a_server_does_not_start_on_another_schema(config: Config, database_url: str) -> None:
    """What health would find, the start finds first: "SCHEMA_MISMATCH" for operators, with both revisions."""
    set_revision(database_url, "9999")

    with pytest.raises(SchemaMismatch) as raised:
        async with serving(config):
            pass

    assert (raised.value.expected, raised.value.actual) == (schema.HEAD, "9999")
