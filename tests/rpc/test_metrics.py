"""Metrics: each one moves when it should, over real HTTP; on every engine unless a test says otherwise."""

import asyncio
import http.client
import socket
import time
from pathlib import Path

import grpc
import psycopg
import pytest
from storeapi.v1 import posts_pb2 as pb

from store_service import config as settings
from store_service.config import Config
from store_service.measures import Histogram, Measures
from store_service.metrics.catalog import METRICS
from store_service.metrics.families import CODES, REASONS, Families
from store_service.metrics.figures import Between, Scraped
from store_service.observing import CannotServeMetrics
from store_service.server import RunningServer, serving
from tests.patience import patience
from tests.rpc.helpers import ONE_ENGINE, Side, Taken, become, locked, outcome_of, together
from tests.scraping import scraped
from tests.support import Stubs, failure
from tests.watching import begun

GET, CREATE = "storeapi.v1.PostService/GetPost", "storeapi.v1.PostService/CreatePost"
WATCH = "storeapi.v1.ChangeService/Watch"
OF_TLS = {"store_certificate_expiry_seconds"}
OF_THE_SUPERVISOR = {"store_worker_up", "store_worker_restarts_total"}


@pytest.fixture
def config(database_url: str) -> Config:
    """A server that serves metrics."""
    return settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", metrics_listen="127.0.0.1:0")


def families_in(samples: Scraped) -> set[str]:
    """The metrics that the names of samples belong to."""
    names = {name.removesuffix("_bucket") for name in samples.samples}
    return {
        name for name in names if not (name.endswith(("_sum", "_count")) and name.rpartition("_")[0] in names)
    }


def get(
    address: str, path: str = "/metrics", method: str = "GET", accept: str | None = None
) -> tuple[int, str, str]:
    """Status, content type and body of an answer."""
    connection = http.client.HTTPConnection(address, timeout=patience())
    try:
        connection.request(
            method, path, headers={"Host": address} | ({} if accept is None else {"Accept": accept})
        )
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read().decode()
    finally:
        connection.close()


def size(path: Path) -> int:
    """Of a file, in bytes."""
    return path.stat().st_size


# The endpoint


async def test_what_is_served_is_what_the_catalog_has(server: RunningServer, stubs: Stubs) -> None:
    """Every metric has its name, its labels and its help from one place; none is missing, none is made up."""
    await stubs.create_post()
    await failure(stubs.posts.GetPost(pb.GetPostRequest(id=404)))
    samples = scraped(server)
    _, _, text = get(server.metrics_address)

    is_sqlite = bool(samples.label("store_build_info", "database") == ["sqlite"])
    absent = OF_THE_SUPERVISOR | OF_TLS | (set() if is_sqlite else {"store_wal_bytes"})
    assert families_in(samples) == METRICS.keys() - absent
    for name in METRICS.keys() - absent:
        of, _ = next(samples.values(f"{name}_count" if METRICS[name].kind == "histogram" else name))
        assert set(of) == set(METRICS[name].labels), name
        # The old text format calls a counter by its whole name.
        assert f"# HELP {name} {METRICS[name].help}" in text
        assert f"# TYPE {name} {METRICS[name].kind}" in text


@ONE_ENGINE
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/x", 404),
        ("POST", "/metrics", 501),
        ("GET", "/metrics?x=1", 200),
        ("GET", "http://store/metrics", 200),
        ("GET", "http://[/metrics", 404),
    ],
)
async def test_there_is_nothing_but_metrics(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    """Other paths and other methods are refused."""
    assert get(server.metrics_address, path, method)[0] == status


PLAIN, OPEN = "text/plain; version=0.0.4", "application/openmetrics-text"


@ONE_ENGINE
@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, PLAIN),
        ("", PLAIN),
        ("image/png", PLAIN),
        (OPEN, f"{OPEN}; version=1.0.0"),
        (f"{OPEN}; version=1.0.0; escaping=allow-utf-8", f"{OPEN}; version=1.0.0"),
        (f"{OPEN}; version=1.0.0; escaping=foo", f"{OPEN}; version=1.0.0"),
        ("text/plain; version=1.0.0; escaping=foo", "text/plain; version=1.0.0"),
        (f"{OPEN}; version=zz; escaping=foo", PLAIN),
        (f"{OPEN}; version=1.x", PLAIN),
        (f"{OPEN}; version=\u00b2", PLAIN),
        (f"{OPEN}; version={'9' * 5000}", PLAIN),
        ("text/plain; version=zz", PLAIN),
    ],
)
async def test_whatever_a_client_accepts_it_is_answered(
    server: RunningServer, accept: str | None, content_type: str
) -> None:
    """In the plain format where nobody can know which one it means; escapings that are unknown are none."""
    status, found, text = get(server.metrics_address, accept=accept)

    assert status == 200
    assert found.startswith(content_type)
    assert "store_build_info{" in text


@ONE_ENGINE
async def test_metrics_are_off_unless_an_address_is_set(database_url: str) -> None:
    """Then nobody listens and nothing is counted."""
    async with serving(settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0")) as server:
        assert server.metrics_address == ""
        assert server.guard._measures is None


@ONE_ENGINE
async def test_an_address_in_use_is_refused(server: RunningServer, tmp_path: Path) -> None:
    """The server does not start without the metrics that it was asked for."""
    other = settings.load(
        DATABASE_URL=f"sqlite:///{tmp_path}/other.db",
        listen="127.0.0.1:0",
        metrics_listen=server.metrics_address,
    )

    with pytest.raises(CannotServeMetrics, match=server.metrics_address):
        async with serving(other):
            pass


@ONE_ENGINE
async def test_metrics_can_be_served_on_a_unix_socket(database_url: str, tmp_path: Path) -> None:
    """Also where a process that was killed has left its socket behind; at the end it is gone."""
    path = tmp_path / "metrics"
    address = f"unix:{path}"
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", metrics_listen=address)
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    async with serving(config) as server:
        assert server.metrics_address == address
        assert scraped(address).total("store_build_info") == 1

    assert not path.exists()


@ONE_ENGINE
async def test_metrics_answer_while_the_event_loop_does_not(server: RunningServer) -> None:
    """A service that is stuck says so: the loop is late now, and later it is counted how late it was."""
    await become(lambda: scraped(server).total("store_event_loop_lag_seconds_count") > 0)
    before = scraped(server)
    time.sleep(0.4)  # noqa: ASYNC251  # the loop is to stand still
    stuck = scraped(server)

    assert stuck.total("store_event_loop_late_seconds") > 0.2
    assert Between(before, stuck).growth("store_event_loop_lag_seconds_count") == 0
    await become(lambda: Between(before, scraped(server)).growth("store_event_loop_lag_seconds_sum") > 0.2)
    await become(lambda: scraped(server).total("store_event_loop_late_seconds") < 0.2)


# Calls


@ONE_ENGINE
async def test_what_alerts_is_there_before_it_happens(server: RunningServer) -> None:
    """At zero, for every method: to Prometheus, what begins at 1 has not grown."""
    samples = scraped(server)

    assert CREATE in samples.label("store_calls_in_flight", "method")
    for method in samples.label("store_calls_in_flight", "method"):
        codes = {of["code"]: count for of, count in samples.values("store_calls_total", method=method)}
        reasons = {
            of["reason"]: count for of, count in samples.values("store_call_errors_total", method=method)
        }
        assert codes == dict.fromkeys(CODES, 0)
        assert reasons == dict.fromkeys(REASONS, 0)


@ONE_ENGINE
async def test_the_first_of_a_kind_is_growth(
    server: RunningServer, stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the zero that was there to 1, and there is one series of it."""
    of = {"method": CREATE, "reason": "INTERNAL"}
    before = scraped(server)
    monkeypatch.setattr("store_service.rpc.posts.post_to_message", None)
    await failure(stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a"))))
    now = scraped(server)

    assert [count for _, count in before.values("store_call_errors_total", **of)] == [0]
    assert [count for _, count in now.values("store_call_errors_total", **of)] == [1]


async def test_calls_are_counted_by_method_and_code(server: RunningServer, stubs: Stubs) -> None:
    """With how long they took; a method that nobody has called is there with nothing."""
    post = await stubs.create_post()
    for _ in range(3):
        await stubs.posts.GetPost(pb.GetPostRequest(id=post.id))
    await failure(stubs.posts.GetPost(pb.GetPostRequest(id=404)))
    await failure(stubs.posts.GetPost(pb.GetPostRequest(id=0)))
    samples = scraped(server)

    calls = {of["code"]: count for of, count in samples.values("store_calls_total", method=GET) if count}
    assert calls == {"OK": 3, "NOT_FOUND": 1, "INVALID_ARGUMENT": 1}
    assert samples.total("store_calls_total", method=CREATE, code="OK") == 1
    assert samples.total("store_call_duration_seconds_count", method=GET) == 5
    assert 0 < samples.total("store_call_duration_seconds_sum", method=GET) < 60
    assert samples.total("store_call_duration_seconds_bucket", method=GET, le="+Inf") == 5
    never = "storeapi.v1.PostService/DeletePost"
    assert samples.total("store_call_duration_seconds_count", method=never) == 0
    assert list(samples.values("store_call_duration_seconds_count", method=never))


async def test_errors_are_counted_by_reason(
    server: RunningServer, stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug has the reason INTERNAL, a call that went well has none."""
    await stubs.create_post()
    await failure(stubs.posts.GetPost(pb.GetPostRequest(id=404)))
    monkeypatch.setattr("store_service.rpc.posts.post_to_message", None)
    await failure(stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a"))))

    errors = {
        (of["method"], of["reason"]): count
        for of, count in scraped(server).values("store_call_errors_total")
        if count
    }
    assert errors == {(GET, "POST_NOT_FOUND"): 1, (CREATE, "INTERNAL"): 1}


async def test_calls_that_end_early_are_counted_as_they_end(
    server: RunningServer, stubs: Stubs, database_url: str
) -> None:
    """Whose deadline passes, and who goes away; neither stays in flight."""
    with locked(database_url):
        gone = stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="b")))
        await become(lambda: scraped(server).total("store_calls_in_flight", method=CREATE) == 1)
        gone.cancel()
        late = stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a")), timeout=1)
        assert (await failure(late)).code is grpc.StatusCode.DEADLINE_EXCEEDED
        await become(lambda: scraped(server).total("store_calls_in_flight") == 0)

    samples = scraped(server)
    assert samples.total("store_calls_total", method=CREATE, code="CANCELLED") == 1
    assert samples.total("store_calls_total", method=CREATE, code="DEADLINE_EXCEEDED") == 1


# Batches


async def test_work_that_rides_together_is_one_batch(
    server: RunningServer, posts: Side, taken: Taken, database_url: str
) -> None:
    """Sizes, times and waits are those of the batch and of each of its members."""
    lane = {"lane": "writer"}
    before = scraped(server)
    await together(taken, posts, database_url, [lambda: posts.create(posts.draft())] * 5)
    between = Between(before, scraped(server))

    # The one that held up the writer, and then five together.
    assert between.growth("store_batch_size_count", **lane) == 2
    assert between.growth("store_batch_size_sum", **lane) == 6
    assert between.growth("store_batch_size_bucket", le="2.0", **lane) == 1
    assert between.growth("store_batch_size_bucket", le="5.0", **lane) == 2
    assert between.growth("store_batch_duration_seconds_count", **lane) == 2
    assert between.growth("store_batch_duration_seconds_sum", **lane) > 0
    assert between.growth("store_queue_wait_seconds_count", **lane) == 6
    assert between.growth("store_queue_wait_seconds_sum", **lane) > 0
    assert between.growth("store_batch_size_count", lane="reader") == 0


async def test_what_waits_is_counted_while_it_waits(
    server: RunningServer, posts: Side, taken: Taken, database_url: str
) -> None:
    """The queue is as long as the work that no batch has taken, and then empty again."""
    start = taken.arrived
    with locked(database_url):
        calls = [asyncio.ensure_future(posts.create(posts.draft(), validate_only=True))]
        await taken.arrive(1, since=start)
        await become(lambda: scraped(server).total("store_queue_length", lane="writer") == 0)
        calls += [asyncio.ensure_future(posts.create(posts.draft())) for _ in range(4)]
        await taken.arrive(5, since=start)

        assert scraped(server).total("store_queue_length", lane="writer") == 4
    await asyncio.gather(*calls)
    assert scraped(server).total("store_queue_length") == 0


async def test_commits_are_timed(server: RunningServer, stubs: Stubs) -> None:
    """A write that takes several statements ends with one commit; a read with none."""
    post = await stubs.create_post()
    before = scraped(server)
    await stubs.posts.UpdatePost(pb.UpdatePostRequest(post=pb.Post(id=post.id, body="b")))
    await stubs.posts.GetPost(pb.GetPostRequest(id=post.id))
    between = Between(before, scraped(server))

    assert between.growth("store_commit_duration_seconds_count", lane="writer") >= 1
    assert between.growth("store_commit_duration_seconds_sum", lane="writer") > 0
    assert between.now.total("store_commit_duration_seconds_count", lane="reader") == 0


async def test_connections_are_counted(server: RunningServer) -> None:
    """One to write and STORE_READERS to read, each of which was waited for once."""
    samples = scraped(server)

    for lane, count in {"writer": 1, "reader": 2}.items():
        assert samples.total("store_connections", lane=lane) == count
        assert samples.total("store_pool_wait_seconds_count", lane=lane) == count
        assert samples.total("store_pool_wait_seconds_sum", lane=lane) > 0
    assert samples.total("store_connections_lost_total") == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_lost_connection_is_counted(server: RunningServer, stubs: Stubs, database_url: str) -> None:
    """And how long the worker waits for the next."""
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'store-service' AND datname = current_database()"
        )
    # Unless something else finds out first.
    await outcome_of(stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a"))))
    await become(lambda: scraped(server).total("store_connections", lane="writer") == 1)

    samples = scraped(server)
    assert samples.total("store_connections_lost_total", lane="writer") == 1
    assert samples.total("store_pool_wait_seconds_count", lane="writer") == 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_size_of_the_log_is_that_of_the_file(
    server: RunningServer, stubs: Stubs, database_file: Path
) -> None:
    """SQLite's write-ahead log grows with what is written."""
    before = scraped(server).total("store_wal_bytes")
    await stubs.create_post("x" * 50_000)

    after = scraped(server).total("store_wal_bytes")
    assert after >= before + 50_000
    assert after == size(Path(f"{database_file}-wal"))


# The change feed


async def test_watches_and_the_lag_of_the_feed_are_counted(
    server: RunningServer, stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    """A watch is in flight as long as it is open, and every piece that it is sent has an age."""
    assert scraped(server).total("store_watches") == 0
    assert scraped(server).total("store_watches_limit") == 100
    async with begun(channel) as watch:
        await stubs.create_post()
        assert (await watch.response()).changes
        samples = scraped(server)

        assert samples.total("store_watches") == 1
        assert samples.total("store_calls_in_flight", method=WATCH) == 1
        assert samples.total("store_feed_lag_seconds_count") >= 1
        assert 0 < samples.total("store_feed_lag_seconds_sum") < 60
        assert 0 < samples.total("store_feed_idle_seconds") < 60
    await become(lambda: scraped(server).total("store_watches") == 0)
    await become(lambda: scraped(server).total("store_feed_idle_seconds") == 0)
    await become(lambda: scraped(server).total("store_calls_total", method=WATCH, code="CANCELLED") == 1)
    # How long a watch lasts is up to who watches.
    assert not list(scraped(server).values("store_call_duration_seconds_count", method=WATCH))


def test_a_feed_that_is_not_read_grows_idle() -> None:
    """The time counts on when nothing is read, so that an alert can tell."""
    measures = Measures()
    measures.feed.read()
    assert measures.feed.read_at is not None
    measures.feed.read_at -= 60
    families = {it.name: it for it in Families(measures, database="sqlite", wal_file=None).collect()}

    assert 60 <= families["store_feed_idle_seconds"].samples[0].value < 120


# Histograms


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (1.0, 0), (1.1, 1), (2.0, 1), (2.1, 2), (9e9, 2)])
def test_a_value_is_counted_in_the_bucket_that_it_is_not_above(value: float, bucket: int) -> None:
    """As Prometheus has it: a bound belongs to the bucket below."""
    histogram = Histogram((1, 2))
    histogram.observe(value)

    assert histogram.counts == [int(index == bucket) for index in range(3)]
    assert histogram.sum == value
