"""Retention when clocks jump, on a real database."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count

import psycopg
import pytest
from sqlalchemy.engine import make_url
from structlog.testing import capture_logs

from store_service.database import connect, schema
from store_service.database.connect import Database
from store_service.model import IdempotencyKey, PostDraft
from store_service.service import idempotency as request_rules
from store_service.service import posts as post_rules
from store_service.service import resource_operations as resource_rules
from store_service.service import retention as retention_module
from store_service.service.changes import Changes
from store_service.service.operations import now_microseconds
from store_service.service.posts import Posts
from store_service.service.retention import STEP_ROWS, Retention
from tests.support.database import execute, query
from tests.support.engines import POSTGRESQL_ONLY
from tests.support.postgresql import new_database

HOUR = 3_600_000_000
DAY = 24 * HOUR
YEAR = 366 * DAY
REQUEST = IdempotencyKey(id="3f2b8c1e-7a5d-4e6f-9b0a-1c2d3e4f5a6b", fingerprint="f")


class Clocks:
    """The wall clock and the monotonic clock of a process, set by a test."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self.ahead = 0
        """Error of the wall clock in seconds."""
        self.seconds = 1000.0
        """Time of the monotonic clock."""

    def wall(self) -> int:
        return now_microseconds() + self.ahead

    def monotonic(self) -> float:
        return self.seconds

    def jump(self, by: int) -> None:
        """Sets the wall clock, including that of PostgreSQL."""
        self.ahead += by
        if not connect.is_sqlite(self._database_url):
            execute(
                self._database_url, f"UPDATE fake.shift SET by = make_interval(secs => {self.ahead / 1e6})"
            )

    def run(self, microseconds: int) -> None:
        """Advances both clocks."""
        self.jump(microseconds)
        self.seconds += microseconds / 1e6


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database_url: str) -> Iterator[str]:
    """On PostgreSQL, a database in which the test sets clock_timestamp()."""
    if connect.is_sqlite(database_url):
        yield database_url
        return
    with new_database(request.getfixturevalue("postgres")) as url:
        schema.upgrade(url)
        name = make_url(url).database
        execute(
            url,
            "CREATE SCHEMA fake",
            "CREATE TABLE fake.shift (by INTERVAL)",
            "INSERT INTO fake.shift VALUES (INTERVAL '0')",
            "CREATE FUNCTION fake.clock_timestamp() RETURNS TIMESTAMPTZ LANGUAGE SQL VOLATILE AS"
            " 'SELECT pg_catalog.clock_timestamp() + by FROM fake.shift'",
            f"ALTER DATABASE {name} SET search_path = fake, pg_catalog, public",
        )
        yield url


@pytest.fixture
def clocks(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """The clocks, which also stamp rows."""
    clocks = Clocks(database_url)
    for module in (post_rules, resource_rules, request_rules):
        monkeypatch.setattr(module, "now_microseconds", clocks.wall)
    return clocks


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Database]:
    async with connect.open_database(database_url, readers=1) as store:
        yield store


def keeper(store: Database, clocks: Clocks) -> Retention:
    """Returns retention as in a process that has just started."""
    return Retention(
        store,
        change_retention_hours=168,
        max_change_rows=10**9,
        request_id_retention_hours=24,
        wall=clocks.wall,
        monotonic=clocks.monotonic,
    )


async def all_deleted(retention: Retention) -> None:
    while not await retention.step():
        pass


def kept(database_url: str) -> tuple[int, int]:
    """Returns the numbers of changes and requests."""
    ((changes,),) = query(database_url, "SELECT count(*) FROM changes")
    ((requests,),) = query(database_url, "SELECT count(*) FROM requests")
    assert isinstance(changes, int)
    assert isinstance(requests, int)
    return changes, requests


async def test_clock_jump_deletes_nothing(store: Database, database_url: str, clocks: Clocks) -> None:
    """Idempotency keys and changes stay until real time has passed."""
    posts, retention = Posts(store), keeper(store, clocks)
    first = await posts.create([PostDraft(body="a")], key=REQUEST)
    await all_deleted(retention)
    with capture_logs() as lines:
        clocks.jump(YEAR)
        for _ in range(3):
            clocks.run(HOUR)
            await all_deleted(retention)
        assert kept(database_url) == (1, 1)
        assert await posts.create([PostDraft(body="a")], key=REQUEST) == first
        await posts.create([PostDraft(body="b")])
        clocks.run(22 * HOUR)
        await all_deleted(retention)
        assert kept(database_url) == (2, 0)
        clocks.run(6 * DAY)
        await all_deleted(retention)
        # The first change is at the trimmed position and is not read any more.
        assert kept(database_url) == (2, 0)
        assert (await Changes(store).state()).trimmed.seq == 1
        clocks.run(DAY)
        await all_deleted(retention)
        assert (await Changes(store).state()).trimmed.seq == 2

    assert [(line["event"], line.get("of")) for line in lines] == [
        ("clock jumped", None),
        ("retention is extended: the clock is not confirmed", "changes"),
        ("retention is extended: the clock is not confirmed", "requests"),
        ("retention is extended: the clock is not confirmed", "deleted resources"),
        ("clock confirmed", "requests"),
        ("clock confirmed", "deleted resources"),
        ("clock confirmed", "changes"),
    ]


@pytest.mark.parametrize("is_told", [True, False], ids=["the jump was seen", "it was not"])
async def test_restart_after_a_clock_jump_deletes_nothing(
    store: Database, database_url: str, clocks: Clocks, is_told: bool
) -> None:
    posts = Posts(store)
    await posts.create([PostDraft(body="a")], key=REQUEST)
    before = keeper(store, clocks)
    await all_deleted(before)
    clocks.jump(YEAR)
    if is_told:
        await all_deleted(before)
    await posts.create([PostDraft(body="b")])

    for _ in range(3):
        await all_deleted(keeper(store, clocks))

    assert kept(database_url) == (2, 1)


async def test_first_start_trusts_the_newest_row(store: Database, database_url: str, clocks: Clocks) -> None:
    """Without a saved clock state, the time since the newest row may be a jump."""
    posts = Posts(store)
    for body in ("a", "b"):
        await posts.create([PostDraft(body=body)], key=REQUEST if body == "a" else None)
        clocks.run(10 * DAY)

    await all_deleted(keeper(store, clocks))

    assert kept(database_url) == (2, 0)
    assert (await Changes(store).state()).trimmed.seq == 1


async def test_clock_set_back_deletes_nothing(store: Database, database_url: str, clocks: Clocks) -> None:
    """The correction of the clock deletes nothing either."""
    posts, retention = Posts(store), keeper(store, clocks)
    await posts.create([PostDraft(body="a")])
    await all_deleted(retention)
    clocks.jump(-YEAR)
    await all_deleted(retention)
    await posts.create([PostDraft(body="b")], key=REQUEST)
    await all_deleted(retention)
    clocks.jump(YEAR)
    await all_deleted(retention)

    assert kept(database_url) == (2, 1)


@pytest.mark.parametrize(("wrong", "old"), [(1, 50), (3, 50), (3000, 2000)])
async def test_changes_with_future_times_do_not_prevent_trimming(
    store: Database, database_url: str, clocks: Clocks, wrong: int, old: int
) -> None:
    posts, retention = Posts(store), keeper(store, clocks)
    for number in (wrong, old, 1):
        for start in range(0, number, 1000):
            await posts.create([PostDraft(body="x")] * min(1000, number - start))
    execute(
        database_url,
        f"UPDATE changes SET commit_time = commit_time + {DAY} WHERE seq <= {wrong}",
        f"UPDATE changes SET commit_time = commit_time - {8 * DAY}"
        f" WHERE seq > {wrong} AND seq <= {wrong + old}",
    )

    await all_deleted(retention)

    assert kept(database_url)[0] == 2
    assert (await Changes(store).state()).trimmed.seq == wrong + old


async def test_request_ids_with_future_times_expire(
    store: Database, database_url: str, clocks: Clocks
) -> None:
    """Their age counts from the correction of the clock."""
    posts, retention = Posts(store), keeper(store, clocks)
    await posts.create([PostDraft(body="a")], key=REQUEST)
    more = STEP_ROWS + 10
    execute(
        database_url,
        f"UPDATE requests SET create_time = create_time + {YEAR}",
        "INSERT INTO requests (id, fingerprint, answer, create_time)"
        f" SELECT 'r' || seq, 'f', '{{}}', {clocks.wall() + YEAR} FROM changes",
        *[
            "INSERT INTO requests (id, fingerprint, answer, create_time)"
            f" VALUES ('x{n}', 'f', '{{}}', {clocks.wall() + YEAR})"
            for n in range(more)
        ],
    )
    await all_deleted(retention)
    clocks.run(23 * HOUR)
    await all_deleted(retention)
    assert kept(database_url)[1] == more + 2

    clocks.run(2 * HOUR)
    await all_deleted(retention)
    assert kept(database_url)[1] == 0


async def test_changes_are_trimmed_as_fast_as_they_are_written(
    store: Database, database_url: str, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch of callers includes a deletion, so the number of changes stays bounded under load."""
    monkeypatch.setattr(retention_module, "STEP_ROWS", 100)
    monkeypatch.setattr(retention_module, "PAUSE_SECONDS", 0.05)
    callers, writes = 64, 12_000
    retention = Retention(
        store,
        change_retention_hours=168,
        max_change_rows=100,
        request_id_retention_hours=24,
        wall=clocks.wall,
        monotonic=clocks.monotonic,
    )
    posts, numbers = Posts(store), iter(range(writes))

    async def caller() -> None:
        for _ in numbers:
            await posts.create([PostDraft(body="a")])

    trimming = asyncio.create_task(retention.run())
    await asyncio.gather(*(caller() for _ in range(callers)))
    trimming.cancel()
    # The first deletion comes after a pause, and those of other tables take a few batches in between.
    assert kept(database_url)[0] < writes / 2


@POSTGRESQL_ONLY
async def test_process_with_a_late_clock_writes_no_old_times(
    store: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a process would delete them at once."""
    for module in (post_rules, resource_rules, request_rules):
        monkeypatch.setattr(module, "now_microseconds", lambda: now_microseconds() - YEAR)
    right = Clocks(database_url)
    posts = Posts(store)
    await posts.create([PostDraft(body="a")], key=REQUEST)
    await posts.create([PostDraft(body="b")])

    await all_deleted(keeper(store, right))

    assert kept(database_url) == (2, 1)
    assert (await Changes(store).state()).trimmed.seq == 0


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[Database]:
    async with connect.open_database(database_url, readers=1) as store:
        yield store


@POSTGRESQL_ONLY
async def test_process_with_an_early_clock_deletes_nothing_of_others(
    database_url: str, clocks: Clocks
) -> None:
    """The clock of the database is used."""
    wrong = Clocks("sqlite:///")
    wrong.ahead = YEAR
    async with opened(database_url) as store:
        retention = keeper(store, wrong)
        await all_deleted(retention)
        for it in (clocks, wrong):
            it.run(25 * HOUR)
        await Posts(store).create([PostDraft(body="a")], key=REQUEST)
        await all_deleted(retention)

    assert kept(database_url) == (1, 1)


async def test_delayed_time_is_not_used(store: Database, database_url: str, clocks: Clocks) -> None:
    await Posts(store).create([PostDraft(body="a"), PostDraft(body="b")])
    calls = count(step=2)
    slow = Retention(
        store,
        change_retention_hours=-1,
        max_change_rows=1,
        request_id_retention_hours=24,
        monotonic=lambda: float(next(calls)),
    )

    assert await slow.step()

    assert (await Changes(store).state()).trimmed.seq == 0


@POSTGRESQL_ONLY
async def test_trimming_is_left_to_the_process_that_trims(
    store: Database, database_url: str, clocks: Clocks
) -> None:
    """It neither waits nor fails."""
    retention = Retention(
        store,
        change_retention_hours=168,
        max_change_rows=1,
        request_id_retention_hours=24,
        wall=clocks.wall,
        monotonic=clocks.monotonic,
    )
    # The first step also saves the clock, in the same row.
    assert await retention.step()
    for _ in range(3):
        await Posts(store).create([PostDraft(body="a")])
    kept = "SELECT count(*) FROM changes"
    with psycopg.connect(database_url) as other:
        other.execute("SELECT 1 FROM feed FOR UPDATE")

        assert await retention.step()
        assert query(database_url, kept) == [(3,)]

    assert await retention.step()
    assert query(database_url, kept) == [(2,)]
