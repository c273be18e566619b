"""The health service, and its check of the database."""

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
from tests.support.database import database_connection, write_lock
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import expect_error
from tests.support.polling import eventually

SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING
LIVE = "live"
NAMES = [
    "",
    "search",
    "storeapi.v1.AdminService",
    "storeapi.v1.TransferService",
    "storeapi.v1.ChangeService",
    "storeapi.v1.CommentService",
    "storeapi.v1.PostService",
]


@pytest.fixture
async def health(channel: grpc.aio.Channel) -> Any:
    """The stub, after the search index has been built."""
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(pb.HealthCheckRequest(service="search"))
    while (await watch.read()).status != SERVING:
        pass
    watch.cancel()
    return stub


@pytest.fixture(autouse=True)
def frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watched statuses are checked many times a second."""
    monkeypatch.setattr(health_module, "WATCH_INTERVAL_SECONDS", 0.02)


def set_revision(database_url: str, revision: str) -> None:
    """Makes the database say that it has another schema, as an upgrade by a newer program would."""
    with database_connection(database_url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


async def status(health: Any, name: str = "") -> int:
    answer = await health.Check(pb.HealthCheckRequest(service=name))
    return int(answer.status)


async def test_server_and_its_services_are_serving(health: Any) -> None:
    """The empty name is the server."""
    for name in NAMES:
        assert await status(health, name) == SERVING


@SQLITE_ONLY
async def test_unknown_service_is_not_found(health: Any) -> None:
    """As the health protocol says."""
    for name in ("x", "storeapi.v1", "PostService", "grpc.health.v1.Health", " ", "storeapi.v1.postservice"):
        error = await expect_error(health.Check(pb.HealthCheckRequest(service=name)))

        assert error.code == grpc.StatusCode.NOT_FOUND
        assert error.trailing["x-call-id"]


@SQLITE_ONLY
async def test_watch_of_an_unknown_service_stays_open(health: Any) -> None:
    """With SERVICE_UNKNOWN, as the health protocol says."""
    watch = health.Watch(pb.HealthCheckRequest(service="x"))

    assert (await watch.read()).status == pb.HealthCheckResponse.SERVICE_UNKNOWN
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch.read(), 0.1)


async def test_list_returns_all_services(health: Any) -> None:
    answer = await health.List(pb.HealthListRequest())

    assert {name: it.status for name, it in answer.statuses.items()} == dict.fromkeys([*NAMES, LIVE], SERVING)


async def test_health_follows_the_schema(health: Any, database_url: str) -> None:
    """Another schema is unhealthy until it is corrected."""
    assert await status(health) == SERVING

    set_revision(database_url, "9999")
    assert [await status(health, name) for name in NAMES] == [NOT_SERVING] * len(NAMES)
    answer = await health.List(pb.HealthListRequest())
    statuses = {name: it.status for name, it in answer.statuses.items()}
    assert statuses == {**dict.fromkeys(NAMES, NOT_SERVING), LIVE: SERVING}

    set_revision(database_url, schema.HEAD)
    assert [await status(health, name) for name in NAMES] == [SERVING] * len(NAMES)


async def test_database_without_a_revision_is_unhealthy(health: Any, database_url: str) -> None:
    with database_connection(database_url) as connection:
        connection.execute(text("DELETE FROM alembic_version"))

    assert await status(health) == NOT_SERVING


async def test_database_without_tables_is_unhealthy(health: Any, database_url: str) -> None:
    """The check responds whatever happens."""
    with database_connection(database_url) as connection:
        connection.execute(text("DROP TABLE alembic_version"))

    assert await status(health) == NOT_SERVING


async def test_process_is_live_without_its_database(
    health: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart would not help; the database is not asked."""
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


async def test_health_watch_reports_every_change_and_nothing_else(health: Any, database_url: str) -> None:
    """The status now, and then each time it is another one."""
    watch = health.Watch(pb.HealthCheckRequest(service="storeapi.v1.PostService"))
    assert (await watch.read()).status == SERVING

    for _ in range(3):
        set_revision(database_url, "9999")
        assert (await watch.read()).status == NOT_SERVING
        set_revision(database_url, schema.HEAD)
        assert (await watch.read()).status == SERVING


async def test_several_health_watches_get_each_change(health: Any, database_url: str) -> None:
    """Each gets each change."""
    watches = [health.Watch(pb.HealthCheckRequest(service=name)) for name in NAMES * 2]
    assert [(await watch.read()).status for watch in watches] == [SERVING] * len(watches)

    set_revision(database_url, "9999")

    assert [(await watch.read()).status for watch in watches] == [NOT_SERVING] * len(watches)


@SQLITE_ONLY
async def test_one_check_serves_all_health_watches(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """None runs without a watch."""
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
        monkeypatch.setattr(health_module, "CHECK_TIMEOUT_SECONDS", 20.0)
        stub = health_pb2_grpc.HealthStub(channel)
        names = [name for name in NAMES if name != "search"]
        watches = [stub.Watch(pb.HealthCheckRequest(service=name)) for name in names * 3]
        await eventually(lambda: server.pipeline._running == len(watches) and looks > 0)
        before = looks
        gate.set()
        told = [(await watch.read()).status for watch in watches]
        gate.clear()
        await eventually(lambda: looks > before)
        later = stub.Watch(pb.HealthCheckRequest())
        told.append((await later.read()).status)
        gate.set()

        assert before == 1
        assert told == [SERVING] * len(told)
        for watch in (*watches, later):
            watch.cancel()
        await eventually(lambda: all(task.get_name() != "health" for task in asyncio.all_tasks()))
        await eventually(lambda: server.pipeline._running == 0)
        before = looks
        again = stub.Watch(pb.HealthCheckRequest())
        assert (await again.read()).status == SERVING
        assert looks > before


async def test_unresponsive_database_is_unhealthy(health: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check times out before its caller."""
    monkeypatch.setattr(health_module, "CHECK_TIMEOUT_SECONDS", 0.01)

    async def for_ever(_: object) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(schema, "look", for_ever)
        assert await status(health) == NOT_SERVING
    monkeypatch.setattr(health_module, "CHECK_TIMEOUT_SECONDS", 20.0)
    assert await status(health) == SERVING


async def test_health_does_not_wait_for_the_writer(health: Any, database_url: str) -> None:
    with write_lock(database_url):
        assert await status(health) == SERVING


async def test_server_refuses_to_start_on_another_schema(config: Config, database_url: str) -> None:
    """ "SCHEMA_MISMATCH" with both revisions."""
    set_revision(database_url, "9999")

    with pytest.raises(SchemaMismatch) as raised:
        async with serving(config):
            pass

    assert (raised.value.expected, raised.value.actual) == (schema.HEAD, "9999")
