"""What callers see when the database cannot do its part, and that one caller's trouble is not another's."""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from storeapi.v1 import changes_pb2

from store_service import config as settings
from store_service.config import Config
from store_service.database import sqlite
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.sqlite_connection import SqliteConnection
from store_service.service import writer_health
from tests.support.database import database_contents, write_lock
from tests.support.errors import ReceivedError, expect_error, received_error, result_or_error
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.write_queue import WriteQueue, run_in_one_batch


@pytest.fixture
def database_url(database_file: Path) -> str:
    """SQLite alone: these tests lock, fill and break a file. test_postgresql.py is the other engine's."""
    return f"sqlite:///{database_file}"


def assert_retryable(error: ReceivedError, reason: str) -> None:
    """UNAVAILABLE with a time after which to try again, and nothing of the inside."""
    assert (error.code, error.reason, error.metadata) == (grpc.StatusCode.UNAVAILABLE, reason, {})
    assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo", "RetryInfo"]
    delay = error.detail(error_details_pb2.RetryInfo).retry_delay
    assert 0 < delay.ToTimedelta().total_seconds() <= 5
    assert_silent(error)


def assert_silent(error: ReceivedError) -> None:
    """Nothing that the driver says, and no file."""
    everything = (error.message + repr(error.details) + repr(sorted(error.trailing.items()))).lower()
    for word in ("sqlite", "write_lock", "operationalerror", "databaseerror", "store.db", "i/o", "insert"):
        assert word not in everything


def writes(api: ResourceApi, id: int) -> list[Any]:
    """Every way to write, and to try to."""
    return [
        api.create(api.draft()),
        api.batch_create([api.draft(), api.draft()]),
        api.update(api.resource(id=id, body="after")),
        api.delete(id),
        api.batch_delete([id]),
        api.create(api.draft(), validate_only=True),
    ]


class TestLocked:
    """Another process writes to the file for longer than a writer waits."""

    @pytest.fixture
    def config(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
        """A writer that does not wait long."""
        monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "busy_timeout", 20)
        return config

    async def test_locked_write_is_busy_and_changes_nothing(
        self, api: ResourceApi, database_file: Path
    ) -> None:
        """DATABASE_BUSY with a retry delay."""
        id = (await api.create_one()).id
        before = database_contents(f"sqlite:///{database_file}")

        with write_lock(f"sqlite:///{database_file}"):
            for write in writes(api, id):
                assert_retryable(await expect_error(write), "DATABASE_BUSY")

        assert database_contents(f"sqlite:///{database_file}") == before

    async def test_reads_succeed_during_a_write_lock(self, api: ResourceApi, database_file: Path) -> None:
        resource = await api.create_one()

        with write_lock(f"sqlite:///{database_file}"):
            assert await api.get(resource.id) == resource
            assert api.resources_in(await api.batch_get([resource.id])) == [resource]
            assert api.resources_in(await api.page()) == [resource]

    async def test_writes_succeed_after_the_lock(self, api: ResourceApi, database_file: Path) -> None:
        """Once the lock is gone, the next write succeeds."""
        with write_lock(f"sqlite:///{database_file}"):
            await expect_error(api.create(api.draft()))

        resource = await api.create_one()

        assert await api.get(resource.id) == resource

    async def test_whole_batch_is_busy(self, api: ResourceApi, database_file: Path) -> None:
        """Busy is the fate of the whole batch; each caller hears of it."""
        with write_lock(f"sqlite:///{database_file}"):
            errors = await asyncio.gather(*(expect_error(api.create(api.draft())) for _ in range(20)))

        for error in errors:
            assert_retryable(error, "DATABASE_BUSY")
        assert api.resources_in(await api.page()) == []

    async def test_health_ignores_locks(
        self,
        api: ResourceApi,
        database_file: Path,
        monkeypatch: pytest.MonkeyPatch,
        channel: grpc.aio.Channel,
    ) -> None:
        """Busy is not broken, for callers and for probes."""
        monkeypatch.setattr(writer_health, "PROBE_SECONDS", 0.01)
        monkeypatch.setattr(writer_health, "RETRY_SECONDS", 0.01)
        probed = asyncio.Semaphore(0)
        write = Database.write

        async def counted(store: Database, operation: Any, argument: Any, **options: Any) -> Any:
            try:
                return await write(store, operation, argument, **options)
            finally:
                if operation is writer_health.PROBE:
                    probed.release()

        monkeypatch.setattr(Database, "write", counted)
        with write_lock(f"sqlite:///{database_file}"):
            for _ in range(3):
                assert_retryable(await expect_error(api.create(api.draft())), "DATABASE_BUSY")
            for _ in range(3):
                await probed.acquire()
            assert await is_serving(channel)


async def is_serving(channel: grpc.aio.Channel) -> bool:
    """What a health check says."""
    check = health_pb2_grpc.HealthStub(channel).Check
    response = await check(health_pb2.HealthCheckRequest())
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


class TestBrieflyLocked:
    """Another process writes to the file for a moment."""

    async def test_write_waits_for_a_short_lock(
        self, api: ResourceApi, write_queue: WriteQueue, database_file: Path
    ) -> None:
        before = write_queue.arrived
        with write_lock(f"sqlite:///{database_file}"):
            call = asyncio.ensure_future(api.create(api.draft()))
            await write_queue.wait_for_arrivals(1, since=before)

        resource = await call

        assert await api.get(resource.id) == resource


class TestFull:
    """The disk is full: the file may not grow beyond some pages."""

    @pytest.fixture
    def config(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
        """A database that holds a few of the largest bodies and their changes."""
        monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "max_page_count", 300)
        return config

    @pytest.fixture
    def writer(self, monkeypatch: pytest.MonkeyPatch) -> list[SqliteConnection]:
        """The connection that has written last, to give it more room."""
        seen: list[SqliteConnection] = []
        run_in_connection_thread = SqliteConnection.run_in_connection_thread

        async def watched(connection: SqliteConnection, work: Any) -> Any:
            seen[:] = [connection]
            return await run_in_connection_thread(connection, work)

        monkeypatch.setattr(SqliteConnection, "run_in_connection_thread", watched)
        return seen

    async def fill(self, api: ResourceApi) -> ReceivedError:
        """Creates posts until the disk is full. Returns the first error."""
        refusals = []
        for length in (60_000, 4_000, 1):
            while True:
                outcome = await result_or_error(api.create(api.draft("x" * length)))
                if isinstance(outcome, grpc.RpcError):
                    refusals.append(received_error(outcome))
                    break
        assert len({it.reason for it in refusals}) == 1
        return refusals[0]

    async def test_write_on_a_full_disk_is_refused(self, api: ResourceApi, database_file: Path) -> None:
        """STORAGE_FULL is not retryable. A delete needs space for its change too."""
        error = await self.fill(api)
        before = database_contents(f"sqlite:///{database_file}")
        id = api.resources_in(await api.page())[0].id

        for call in (
            api.create(api.draft("x" * 60_000)),
            api.batch_create([api.draft("x" * 60_000)] * 3),
            api.update(api.resource(id=id, body="y" * 65_536)),
            api.delete(id),
            api.batch_delete([id]),
        ):
            again = await expect_error(call)
            assert (again.code, again.reason) == (error.code, error.reason)

        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo"]
        assert_silent(error)
        assert database_contents(f"sqlite:///{database_file}") == before

    async def test_reads_and_watches_succeed_on_a_full_disk(self, api: ResourceApi, stubs: Stubs) -> None:
        await self.fill(api)

        stored = api.resources_in(await api.page())
        assert await api.get(stored[0].id) == stored[0]
        assert api.resources_in(await api.batch_get([stored[0].id])) == [stored[0]]
        watch: Any = stubs.changes.Watch(changes_pb2.WatchRequest(earliest=True))
        await watch.read()
        assert (await watch.read()).changes
        watch.cancel()

    async def test_writes_succeed_after_space_is_freed(
        self, api: ResourceApi, writer: list[SqliteConnection]
    ) -> None:
        await self.fill(api)
        stored = api.resources_in(await api.page())
        assert (await expect_error(api.delete(stored[0].id))).reason == "STORAGE_FULL"

        await writer[0]._raw.execute_fetchall("PRAGMA max_page_count = 100000")

        assert await api.delete(stored[0].id) == stored[0]
        updated = await api.update(api.resource(id=stored[1].id, body="after"))
        created = await api.create_one("x" * 50_000)
        assert await api.get(updated.id) == updated
        assert await api.get(created.id) == created
        assert (await expect_error(api.get(stored[0].id))).reason == api.not_found

    async def test_batch_on_a_full_disk_is_not_stored_in_part(
        self, api: ResourceApi, channel: grpc.aio.Channel
    ) -> None:
        """A batch that is too large does not make the server unhealthy."""
        error = await expect_error(api.batch_create([api.draft("x" * 60_000)] * 40))

        assert error.reason == "STORAGE_FULL"
        assert api.resources_in(await api.page()) == []
        await api.create_one("there is room for this")
        assert await is_serving(channel)


class TestUnreadable:
    """The disk gives errors."""

    @pytest.fixture
    def config(self, database_file: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
        """Connections that keep hardly a page in memory, and so meet every error of the disk.

        A step of the search index would write to the log while it is away.
        """
        monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "cache_size", 10)
        return settings.load(
            DATABASE_URL=f"sqlite:///{database_file}",
            listen="127.0.0.1:0",
            read_connections=2,
            search=False,
        )

    @contextmanager
    def broken(self, file: Path) -> Iterator[None]:
        """Takes the log away under the server, whose reads then fail with I/O errors; puts it back."""
        log = Path(f"{file}-wal")
        content = log.read_bytes()
        os.truncate(log, 0)
        yield
        with log.open("r+b") as whole:
            whole.write(content)

    async def test_failed_read_is_unavailable_and_the_next_succeeds(
        self, api: ResourceApi, database_file: Path
    ) -> None:
        """The next one uses new connections."""
        created = [await api.create_one("x" * 60_000) for _ in range(10)]

        with self.broken(database_file):
            for resource in created[:4]:
                assert_retryable(await expect_error(api.get(resource.id)), "DATABASE_UNAVAILABLE")

        assert [await tried_again(lambda it=it: api.get(it.id)) for it in created] == created

    async def test_failed_write_is_unavailable_and_the_next_succeeds(
        self, api: ResourceApi, database_file: Path
    ) -> None:
        """The failed one was not done."""
        created = [await api.create_one("x" * 60_000) for _ in range(10)]

        with self.broken(database_file):
            error = await expect_error(api.update(api.resource(id=created[0].id, body="after")))
        assert_retryable(error, "DATABASE_UNAVAILABLE")

        updated = await tried_again(lambda: api.update(api.resource(id=created[1].id, body="after")))
        assert [await api.get(it.id) for it in created] == [created[0], updated, *created[2:]]


async def tried_again(call: Callable[[], Any]) -> Any:
    """The result of a call that is retried as RetryInfo says while it is UNAVAILABLE."""
    async with asyncio.timeout(scaled_timeout()):
        while True:
            outcome = await result_or_error(call())
            if not isinstance(outcome, grpc.RpcError):
                return outcome
            assert_retryable(received_error(outcome), "DATABASE_UNAVAILABLE")
            await asyncio.sleep(0.02)


# Whose fault it is


async def create_together(
    api: ResourceApi, write_queue: WriteQueue, file: Path, drafts: list[Any]
) -> list[Any]:
    """Returns the responses and errors of creates that share one batch."""
    return await run_in_one_batch(
        write_queue, api, f"sqlite:///{file}", [partial(api.create, draft) for draft in drafts]
    )


async def test_unhandled_exception_fails_only_its_own_job(
    api: ResourceApi, write_queue: WriteQueue, database_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed batch is repeated job by job, and each is stored once."""
    fetch = Connection.fetch
    sizes = []

    async def chokes_on_poison(connection: Connection, statement: Any, **values: Any) -> Any:
        # The drafts of a batch, or the fields of a single one.
        texts = " ".join(map(str, values.values()))
        sizes.append(texts.count("body"))
        if "poison" in texts:
            raise RuntimeError("secret")
        return await fetch(connection, statement, **values)

    monkeypatch.setattr(Connection, "fetch", chokes_on_poison)
    bodies = ["body 0", "body 1", "body 2 is poison", "body 3", "body 4"]

    outcomes = await create_together(api, write_queue, database_file, [api.draft(body) for body in bodies])

    poisoned = received_error(outcomes.pop(2))
    assert (poisoned.code, poisoned.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in poisoned.message
    assert [it.body for it in outcomes] == ["body 0", "body 1", "body 3", "body 4"]
    assert sorted(it.body for it in api.resources_in(await api.page())) == [
        "body 0",
        "body 1",
        "body 3",
        "body 4",
    ]
    assert max(sizes) > 1, "they did not ride together"


async def test_expected_error_fails_only_its_own_job(
    comments: ResourceApi, write_queue: WriteQueue, database_file: Path
) -> None:
    """A comment on a missing post does not stop those that ride with it."""
    posts = [comments.post_id, 404, comments.post_id, 405, comments.post_id]

    outcomes = await create_together(
        comments, write_queue, database_file, [comments.draft(f"on {id}", post_id=id) for id in posts]
    )

    reasons = [received_error(it).metadata["post_id"] for it in outcomes if isinstance(it, grpc.RpcError)]
    assert reasons == ["404", "405"]
    stored = [it for it in outcomes if not isinstance(it, grpc.RpcError)]
    assert sorted(it.id for it in comments.resources_in(await comments.page())) == sorted(
        it.id for it in stored
    )
    assert len(stored) == 3


async def test_dry_run_in_a_batch_affects_no_other_job(
    api: ResourceApi, write_queue: WriteQueue, database_file: Path
) -> None:
    """validate_only rides with others, and neither is seen by them nor takes them back."""

    def create(n: int) -> Any:
        return api.create(api.draft(f"body {n}"), validate_only=n % 2 == 1)

    answers = await run_in_one_batch(
        write_queue, api, f"sqlite:///{database_file}", [partial(create, n) for n in range(10)]
    )

    assert [bool(it.id) for it in answers] == [True, False] * 5
    assert sorted(it.body for it in api.resources_in(await api.page())) == [
        f"body {n}" for n in range(0, 10, 2)
    ]


async def test_each_job_of_a_batch_gets_its_own_result(
    api: ResourceApi, write_queue: WriteQueue, database_file: Path
) -> None:
    outcomes = await create_together(
        api, write_queue, database_file, [api.draft(f"body {n}") for n in range(100)]
    )

    assert [it.body for it in outcomes] == [f"body {n}" for n in range(100)]
    assert len({it.id for it in outcomes}) == 100
    assert sorted(api.resources_in(await api.page(page_size=1000)), key=lambda it: it.id) == sorted(
        outcomes, key=lambda it: it.id
    )


def test_lock_blocks_writers(database_file: Path) -> None:
    """Or they would prove nothing."""
    with write_lock(f"sqlite:///{database_file}"):
        other = sqlite3.connect(database_file, timeout=0)
        with pytest.raises(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
        other.close()
