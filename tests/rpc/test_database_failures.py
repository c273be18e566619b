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
from store_service.database.connect import Store
from store_service.database.connection import Connection
from store_service.database.sqlite import SqliteConnection
from store_service.store import writer_health
from tests.patience import patience
from tests.rpc.helpers import Side, Taken, contents, locked, outcome_of, together
from tests.support import ErrorSeen, Stubs, error_seen, failure


@pytest.fixture
def database_url(database_file: Path) -> str:
    """SQLite alone: these tests lock, fill and break a file. test_postgresql.py is the other engine's."""
    return f"sqlite:///{database_file}"


def assert_retryable(error: ErrorSeen, reason: str) -> None:
    """UNAVAILABLE with a time after which to try again, and nothing of the inside."""
    assert (error.code, error.reason, error.metadata) == (grpc.StatusCode.UNAVAILABLE, reason, {})
    assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo", "RetryInfo"]
    delay = error.detail(error_details_pb2.RetryInfo).retry_delay
    assert 0 < delay.ToTimedelta().total_seconds() <= 5
    assert_silent(error)


def assert_silent(error: ErrorSeen) -> None:
    """Nothing that the driver says, and no file."""
    everything = (error.message + repr(error.details) + repr(sorted(error.trailing.items()))).lower()
    for word in ("sqlite", "locked", "operationalerror", "databaseerror", "store.db", "i/o", "insert"):
        assert word not in everything


def writes(side: Side, id: int) -> list[Any]:
    """Every way to write, and to try to."""
    return [
        side.create(side.draft()),
        side.batch_create([side.draft(), side.draft()]),
        side.update(side.resource(id=id, body="after")),
        side.delete(id),
        side.batch_delete([id]),
        side.create(side.draft(), validate_only=True),
    ]


class TestLocked:
    """Another process writes to the file for longer than a writer waits."""

    @pytest.fixture
    def config(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
        """A writer that does not wait long."""
        monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "busy_timeout", 20)
        return config

    async def test_a_write_is_refused_as_busy_and_nothing_is_done(
        self, side: Side, database_file: Path
    ) -> None:
        """Every write says DATABASE_BUSY with a time to try again, and has changed nothing."""
        id = (await side.stored()).id
        before = contents(f"sqlite:///{database_file}")

        with locked(f"sqlite:///{database_file}"):
            for write in writes(side, id):
                assert_retryable(await failure(write), "DATABASE_BUSY")

        assert contents(f"sqlite:///{database_file}") == before

    async def test_reads_go_on(self, side: Side, database_file: Path) -> None:
        """Readers do not wait for whoever writes."""
        resource = await side.stored()

        with locked(f"sqlite:///{database_file}"):
            assert await side.get(resource.id) == resource
            assert side.of(await side.batch_get([resource.id])) == [resource]
            assert side.of(await side.page()) == [resource]

    async def test_writes_go_on_afterwards(self, side: Side, database_file: Path) -> None:
        """Once the lock is gone, the next write succeeds."""
        with locked(f"sqlite:///{database_file}"):
            await failure(side.create(side.draft()))

        resource = await side.stored()

        assert await side.get(resource.id) == resource

    async def test_all_that_ride_together_are_told(self, side: Side, database_file: Path) -> None:
        """Busy is the fate of the whole batch; each caller hears of it."""
        with locked(f"sqlite:///{database_file}"):
            errors = await asyncio.gather(*(failure(side.create(side.draft())) for _ in range(20)))

        for error in errors:
            assert_retryable(error, "DATABASE_BUSY")
        assert side.of(await side.page()) == []

    async def test_health_does_not_depend_on_locks_of_others(
        self, side: Side, database_file: Path, monkeypatch: pytest.MonkeyPatch, channel: grpc.aio.Channel
    ) -> None:
        """Busy is not broken, for callers and for probes."""
        monkeypatch.setattr(writer_health, "PROBE_SECONDS", 0.01)
        monkeypatch.setattr(writer_health, "RETRY_SECONDS", 0.01)
        probed = asyncio.Semaphore(0)
        write = Store.write

        async def counted(store: Store, operation: Any, argument: Any, **options: Any) -> Any:
            try:
                return await write(store, operation, argument, **options)
            finally:
                if operation is writer_health._PROBE:
                    probed.release()

        monkeypatch.setattr(Store, "write", counted)
        with locked(f"sqlite:///{database_file}"):
            for _ in range(3):
                assert_retryable(await failure(side.create(side.draft())), "DATABASE_BUSY")
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

    async def test_a_write_waits_for_its_turn(self, side: Side, taken: Taken, database_file: Path) -> None:
        """The server tries on by itself; the caller notices nothing but the time."""
        before = taken.arrived
        with locked(f"sqlite:///{database_file}"):
            call = asyncio.ensure_future(side.create(side.draft()))
            await taken.arrive(1, since=before)

        resource = await call

        assert await side.get(resource.id) == resource


class TestFull:
    """The disk is full: the file may not grow beyond some pages."""

    @pytest.fixture
    def config(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
        """Room for a handful of the largest bodies, each of which is stored and told of."""
        monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "max_page_count", 300)
        return config

    @pytest.fixture
    def writer(self, monkeypatch: pytest.MonkeyPatch) -> list[SqliteConnection]:
        """The connection that has written last, to give it more room."""
        seen: list[SqliteConnection] = []
        as_one = SqliteConnection.as_one

        async def watched(connection: SqliteConnection, work: Any) -> Any:
            seen[:] = [connection]
            return await as_one(connection, work)

        monkeypatch.setattr(SqliteConnection, "as_one", watched)
        return seen

    async def fill(self, side: Side) -> ErrorSeen:
        """Creates until there is no room even for the shortest; returns the first refusal."""
        refusals = []
        for length in (60_000, 4_000, 1):
            while True:
                outcome = await outcome_of(side.create(side.draft("x" * length)))
                if isinstance(outcome, grpc.RpcError):
                    refusals.append(error_seen(outcome))
                    break
        assert len({it.reason for it in refusals}) == 1
        return refusals[0]

    async def test_a_write_without_room_is_refused(self, side: Side, database_file: Path) -> None:
        """STORAGE_FULL is not for a retry: it needs an operator. A delete too has to leave its change."""
        error = await self.fill(side)
        before = contents(f"sqlite:///{database_file}")
        id = side.of(await side.page())[0].id

        for call in (
            side.create(side.draft("x" * 60_000)),
            side.batch_create([side.draft("x" * 60_000)] * 3),
            side.update(side.resource(id=id, body="y" * 65_536)),
            side.delete(id),
            side.batch_delete([id]),
        ):
            again = await failure(call)
            assert (again.code, again.reason) == (error.code, error.reason)

        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        assert [it.DESCRIPTOR.name for it in error.details] == ["ErrorInfo"]
        assert_silent(error)
        assert contents(f"sqlite:///{database_file}") == before

    async def test_reads_go_on(self, side: Side, stubs: Stubs) -> None:
        """A full disk is none for who only looks, and for who watches."""
        await self.fill(side)

        stored = side.of(await side.page())
        assert await side.get(stored[0].id) == stored[0]
        assert side.of(await side.batch_get([stored[0].id])) == [stored[0]]
        watch: Any = stubs.changes.Watch(changes_pb2.WatchRequest(earliest=True))
        await watch.read()
        assert (await watch.read()).changes
        watch.cancel()

    async def test_when_there_is_room_again_the_service_goes_on(
        self, side: Side, writer: list[SqliteConnection]
    ) -> None:
        """Nobody has to start it anew: the next write of each kind is done."""
        await self.fill(side)
        stored = side.of(await side.page())
        assert (await failure(side.delete(stored[0].id))).reason == "STORAGE_FULL"

        await writer[0]._raw.execute_fetchall("PRAGMA max_page_count = 100000")

        assert await side.delete(stored[0].id) == stored[0]
        updated = await side.update(side.resource(id=stored[1].id, body="after"))
        created = await side.stored("x" * 50_000)
        assert await side.get(updated.id) == updated
        assert await side.get(created.id) == created
        assert (await failure(side.get(stored[0].id))).reason == side.not_found

    async def test_a_batch_without_room_is_not_stored_in_part(
        self, side: Side, channel: grpc.aio.Channel
    ) -> None:
        """All or none holds on a full disk too; one that is too large for it does not make health fail."""
        error = await failure(side.batch_create([side.draft("x" * 60_000)] * 40))

        assert error.reason == "STORAGE_FULL"
        assert side.of(await side.page()) == []
        await side.stored("there is room for this")
        assert await is_serving(channel)


class TestUnreadable:
    """The disk gives errors."""

    @pytest.fixture
    def config(self, database_file: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
        """Connections that keep hardly a page in memory, and so meet every error of the disk."""
        monkeypatch.setitem(sqlite._WRITER_PRAGMAS, "cache_size", 10)
        return settings.load(DATABASE_URL=f"sqlite:///{database_file}", listen="127.0.0.1:0", readers=2)

    @contextmanager
    def broken(self, file: Path) -> Iterator[None]:
        """Takes the log away under the server, whose reads then fail with I/O errors; puts it back."""
        log = Path(f"{file}-wal")
        content = log.read_bytes()
        os.truncate(log, 0)
        yield
        with log.open("r+b") as whole:
            whole.write(content)

    async def test_a_read_that_fails_says_so_and_the_next_works(
        self, side: Side, database_file: Path
    ) -> None:
        """DATABASE_UNAVAILABLE while the disk fails; who tries again afterwards meets new connections."""
        created = [await side.stored("x" * 60_000) for _ in range(10)]

        with self.broken(database_file):
            for resource in created[:4]:
                assert_retryable(await failure(side.get(resource.id)), "DATABASE_UNAVAILABLE")

        assert [await tried_again(lambda it=it: side.get(it.id)) for it in created] == created

    async def test_a_write_that_fails_says_so_and_the_next_works(
        self, side: Side, database_file: Path
    ) -> None:
        """The same for the writer; what failed was not done."""
        created = [await side.stored("x" * 60_000) for _ in range(10)]

        with self.broken(database_file):
            error = await failure(side.update(side.resource(id=created[0].id, body="after")))
        assert_retryable(error, "DATABASE_UNAVAILABLE")

        updated = await tried_again(lambda: side.update(side.resource(id=created[1].id, body="after")))
        assert [await side.get(it.id) for it in created] == [created[0], updated, *created[2:]]


async def tried_again(call: Callable[[], Any]) -> Any:
    """What a call comes to when it is made again, as RetryInfo says, until it is not UNAVAILABLE."""
    async with asyncio.timeout(patience()):
        while True:
            outcome = await outcome_of(call())
            if not isinstance(outcome, grpc.RpcError):
                return outcome
            assert_retryable(error_seen(outcome), "DATABASE_UNAVAILABLE")
            await asyncio.sleep(0.02)


# Whose fault it is


async def create_together(side: Side, taken: Taken, file: Path, drafts: list[Any]) -> list[Any]:
    """Creates that ride in one batch; their answers and errors."""
    return await together(taken, side, f"sqlite:///{file}", [partial(side.create, draft) for draft in drafts])


async def test_an_unforeseen_error_of_one_fails_that_one_alone(
    side: Side, taken: Taken, database_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that fails is tried again one by one; only its cause hears of it, and each is stored once."""
    fetch = Connection.fetch
    sizes = []

    async def chokes_on_poison(connection: Connection, statement: Any, **values: Any) -> Any:
        drafts = values.get("drafts", "")
        sizes.append(drafts.count("body"))
        if "poison" in drafts:
            raise RuntimeError("secret")
        return await fetch(connection, statement, **values)

    monkeypatch.setattr(Connection, "fetch", chokes_on_poison)
    bodies = ["body 0", "body 1", "body 2 is poison", "body 3", "body 4"]

    outcomes = await create_together(side, taken, database_file, [side.draft(body) for body in bodies])

    poisoned = error_seen(outcomes.pop(2))
    assert (poisoned.code, poisoned.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in poisoned.message
    assert [it.body for it in outcomes] == ["body 0", "body 1", "body 3", "body 4"]
    assert sorted(it.body for it in side.of(await side.page())) == ["body 0", "body 1", "body 3", "body 4"]
    assert max(sizes) > 1, "they did not ride together"


async def test_an_expected_error_of_one_fails_that_one_alone(
    comments: Side, taken: Taken, database_file: Path
) -> None:
    """A comment on a missing post does not stop those that ride with it."""
    posts = [comments.post_id, 404, comments.post_id, 405, comments.post_id]

    outcomes = await create_together(
        comments, taken, database_file, [comments.draft(f"on {id}", post_id=id) for id in posts]
    )

    reasons = [error_seen(it).metadata["post_id"] for it in outcomes if isinstance(it, grpc.RpcError)]
    assert reasons == ["404", "405"]
    stored = [it for it in outcomes if not isinstance(it, grpc.RpcError)]
    assert sorted(it.id for it in comments.of(await comments.page())) == sorted(it.id for it in stored)
    assert len(stored) == 3


async def test_a_try_among_writes_keeps_nothing_and_undoes_nothing(
    side: Side, taken: Taken, database_file: Path
) -> None:
    """validate_only rides with others, and neither is seen by them nor takes them back."""

    def create(n: int) -> Any:
        return side.create(side.draft(f"body {n}"), validate_only=n % 2 == 1)

    answers = await together(
        taken, side, f"sqlite:///{database_file}", [partial(create, n) for n in range(10)]
    )

    assert [bool(it.id) for it in answers] == [True, False] * 5
    assert sorted(it.body for it in side.of(await side.page())) == [f"body {n}" for n in range(0, 10, 2)]


async def test_each_rider_gets_its_own_answer(side: Side, taken: Taken, database_file: Path) -> None:
    """However many share a transaction, every caller has the id of what it sent."""
    outcomes = await create_together(
        side, taken, database_file, [side.draft(f"body {n}") for n in range(100)]
    )

    assert [it.body for it in outcomes] == [f"body {n}" for n in range(100)]
    assert len({it.id for it in outcomes}) == 100
    assert sorted(side.of(await side.page(page_size=1000)), key=lambda it: it.id) == sorted(
        outcomes, key=lambda it: it.id
    )


def test_the_lock_of_these_tests_is_one_that_writers_meet(database_file: Path) -> None:
    """Or they would prove nothing."""
    with locked(f"sqlite:///{database_file}"):
        other = sqlite3.connect(database_file, timeout=0)
        with pytest.raises(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
        other.close()
