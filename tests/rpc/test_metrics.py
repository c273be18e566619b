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
from store_service.instrumentation import MetricsAddressUnavailable
from store_service.observability.catalog import METRICS
from store_service.observability.collector import CODES, REASONS, MetricsCollector
from store_service.observability.metrics import Histogram, Metrics
from store_service.observability.samples import Between, Scraped
from store_service.server import RunningServer, serving
from tests.support.database import write_lock
from tests.support.engines import SQLITE_ONLY
from tests.support.errors import expect_error, result_or_error
from tests.support.metrics import scrape_metrics
from tests.support.polling import eventually
from tests.support.resource_api import ResourceApi
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.watches import watch_from_now
from tests.support.write_queue import WriteQueue, run_in_one_batch

GET = {"grpc_service": "storeapi.v1.PostService", "grpc_method": "GetPost"}
CREATE = {"grpc_service": "storeapi.v1.PostService", "grpc_method": "CreatePost"}
WATCH = {"grpc_service": "storeapi.v1.ChangeService", "grpc_method": "Watch"}
OF_TLS = {"store_certificate_expiry_seconds"}
OF_REPLICAS = {"store_replica_used", "store_replica_lag_seconds"}
OF_THE_SUPERVISOR = {"store_worker_up", "store_worker_restarts_total"}


@pytest.fixture
def config(config: Config) -> Config:
    """A server that serves metrics."""
    return config.model_copy(update={"metrics_listen": "127.0.0.1:0"})


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
    connection = http.client.HTTPConnection(address, timeout=scaled_timeout())
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


async def test_served_metrics_match_the_catalog(server: RunningServer, stubs: Stubs) -> None:
    """Names, labels and help texts."""
    await stubs.create_post()
    await expect_error(stubs.posts.GetPost(pb.GetPostRequest(id=404)))
    samples = scrape_metrics(server)
    _, _, text = get(server.metrics_address)

    is_sqlite = bool(samples.label_values("store_build_info", "database") == ["sqlite"])
    absent = OF_THE_SUPERVISOR | OF_TLS | OF_REPLICAS | (set() if is_sqlite else {"store_wal_bytes"})
    assert families_in(samples) == METRICS.keys() - absent
    for name in METRICS.keys() - absent:
        of, _ = next(samples.values(f"{name}_count" if METRICS[name].kind == "histogram" else name))
        assert set(of) == set(METRICS[name].labels), name
        # The old text format calls a counter by its whole name.
        assert f"# HELP {name} {METRICS[name].help}" in text
        assert f"# TYPE {name} {METRICS[name].kind}" in text


@SQLITE_ONLY
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
async def test_other_paths_and_methods_are_refused(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    """Other paths and other methods are refused."""
    assert get(server.metrics_address, path, method)[0] == status


PLAIN, OPEN = "text/plain; version=0.0.4", "application/openmetrics-text"


@SQLITE_ONLY
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
async def test_any_accept_header_is_answered(
    server: RunningServer, accept: str | None, content_type: str
) -> None:
    """With the plain format if it is ambiguous."""
    status, found, text = get(server.metrics_address, accept=accept)

    assert status == 200
    assert found.startswith(content_type)
    assert "store_build_info{" in text


@SQLITE_ONLY
async def test_metrics_are_disabled_without_an_address(database_url: str) -> None:
    async with serving(settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0")) as server:
        assert server.metrics_address == ""
        assert server.pipeline._metrics is None


@SQLITE_ONLY
async def test_metrics_address_in_use_is_refused(server: RunningServer, tmp_path: Path) -> None:
    """The server does not start without the metrics that it was asked for."""
    other = settings.load(
        DATABASE_URL=f"sqlite:///{tmp_path}/other.db",
        listen="127.0.0.1:0",
        metrics_listen=server.metrics_address,
    )

    with pytest.raises(MetricsAddressUnavailable, match=server.metrics_address):
        async with serving(other):
            pass


@SQLITE_ONLY
async def test_metrics_are_served_on_a_unix_socket(database_url: str, tmp_path: Path) -> None:
    """A stale socket is replaced; it is removed at the end."""
    path = tmp_path / "metrics"
    address = f"unix:{path}"
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", metrics_listen=address)
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    async with serving(config) as server:
        assert server.metrics_address == address
        assert scrape_metrics(address).total("store_build_info") == 1

    assert not path.exists()


@SQLITE_ONLY
async def test_metrics_respond_while_the_event_loop_is_blocked(server: RunningServer) -> None:
    """The lag is visible at once and is counted later."""
    await eventually(lambda: scrape_metrics(server).total("store_event_loop_lag_seconds_count") > 0)
    before = scrape_metrics(server)
    time.sleep(0.4)  # noqa: ASYNC251  # the loop is to stand still
    stuck = scrape_metrics(server)

    assert stuck.total("store_event_loop_late_seconds") > 0.2
    assert Between(before, stuck).growth("store_event_loop_lag_seconds_count") == 0
    await eventually(
        lambda: Between(before, scrape_metrics(server)).growth("store_event_loop_lag_seconds_sum") > 0.2
    )
    await eventually(lambda: scrape_metrics(server).total("store_event_loop_late_seconds") < 0.2)


# Calls


@SQLITE_ONLY
async def test_series_of_alerts_start_at_zero(server: RunningServer) -> None:
    """For every method."""
    samples = scrape_metrics(server)

    methods = [of for of, _ in samples.values("store_calls_in_flight")]
    assert CREATE | {"grpc_type": "unary"} in methods
    for method in methods:
        codes = {
            of["grpc_code"]: count for of, count in samples.values("grpc_server_handled_total", **method)
        }
        reasons = {of["reason"]: count for of, count in samples.values("store_errors_total", **method)}
        assert codes == dict.fromkeys(CODES, 0)
        assert reasons == dict.fromkeys(REASONS, 0)


@SQLITE_ONLY
async def test_first_event_increases_an_existing_series(
    server: RunningServer, stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = CREATE | {"reason": "INTERNAL"}
    before = scrape_metrics(server)
    monkeypatch.setattr("store_service.rpc.posts.post_to_message", None)
    await expect_error(stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a"))))
    now = scrape_metrics(server)

    assert [count for _, count in before.values("store_errors_total", **of)] == [0]
    assert [count for _, count in now.values("store_errors_total", **of)] == [1]


async def test_calls_are_counted_by_method_and_code(server: RunningServer, stubs: Stubs) -> None:
    """With durations; uncalled methods exist with 0."""
    post = await stubs.create_post()
    for _ in range(3):
        await stubs.posts.GetPost(pb.GetPostRequest(id=post.id))
    await expect_error(stubs.posts.GetPost(pb.GetPostRequest(id=404)))
    await expect_error(stubs.posts.GetPost(pb.GetPostRequest(id=0)))
    samples = scrape_metrics(server)

    calls = {
        of["grpc_code"]: count for of, count in samples.values("grpc_server_handled_total", **GET) if count
    }
    assert calls == {"OK": 3, "NOT_FOUND": 1, "INVALID_ARGUMENT": 1}
    assert samples.total("grpc_server_handled_total", **CREATE, grpc_code="OK") == 1
    assert samples.total("grpc_server_handling_seconds_count", **GET) == 5
    assert 0 < samples.total("grpc_server_handling_seconds_sum", **GET) < 60
    assert samples.total("grpc_server_handling_seconds_bucket", **GET, le="+Inf") == 5
    never = {"grpc_service": "storeapi.v1.PostService", "grpc_method": "DeletePost"}
    assert samples.total("grpc_server_handling_seconds_count", **never) == 0
    assert list(samples.values("grpc_server_handling_seconds_count", **never))


async def test_errors_are_counted_by_reason(
    server: RunningServer, stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unhandled exceptions have the reason INTERNAL; successful calls have none."""
    await stubs.create_post()
    await expect_error(stubs.posts.GetPost(pb.GetPostRequest(id=404)))
    monkeypatch.setattr("store_service.rpc.posts.post_to_message", None)
    await expect_error(stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a"))))

    errors = {
        (of["grpc_method"], of["reason"]): count
        for of, count in scrape_metrics(server).values("store_errors_total")
        if count
    }
    assert errors == {("GetPost", "POST_NOT_FOUND"): 1, ("CreatePost", "INTERNAL"): 1}


async def test_cancelled_and_expired_calls_are_counted(
    server: RunningServer, stubs: Stubs, database_url: str
) -> None:
    with write_lock(database_url):
        gone = stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="b")))
        await eventually(lambda: scrape_metrics(server).total("store_calls_in_flight", **CREATE) == 1)
        gone.cancel()
        late = stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a")), timeout=1)
        assert (await expect_error(late)).code is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: scrape_metrics(server).total("store_calls_in_flight") == 0)

    samples = scrape_metrics(server)
    assert samples.total("grpc_server_handled_total", **CREATE, grpc_code="CANCELLED") == 1
    assert samples.total("grpc_server_handled_total", **CREATE, grpc_code="DEADLINE_EXCEEDED") == 1


# Batches


async def test_jobs_of_one_batch_are_counted_as_one_batch(
    server: RunningServer, posts: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """With sizes, durations and waits."""
    writer = {"queue": "writer"}
    before = scrape_metrics(server)
    await run_in_one_batch(write_queue, posts, database_url, [lambda: posts.create(posts.draft())] * 5)
    between = Between(before, scrape_metrics(server))

    # The one that held up the writer, and then five together.
    assert between.growth("store_batch_size_count", **writer) == 2
    assert between.growth("store_batch_size_sum", **writer) == 6
    assert between.growth("store_batch_size_bucket", le="2.0", **writer) == 1
    assert between.growth("store_batch_size_bucket", le="5.0", **writer) == 2
    assert between.growth("store_batch_duration_seconds_count", **writer) == 2
    assert between.growth("store_batch_duration_seconds_sum", **writer) > 0
    assert between.growth("store_queue_wait_seconds_count", **writer) == 6
    assert between.growth("store_queue_wait_seconds_sum", **writer) > 0
    assert between.growth("store_batch_size_count", queue="reader") == 0


async def test_waiting_jobs_are_counted(
    server: RunningServer, posts: ResourceApi, write_queue: WriteQueue, database_url: str
) -> None:
    """The queue is as long as the work that no batch has write_queue, and then empty again."""
    start = write_queue.arrived
    with write_lock(database_url):
        calls = [asyncio.ensure_future(posts.create(posts.draft(), validate_only=True))]
        await write_queue.wait_for_arrivals(1, since=start)
        await eventually(lambda: scrape_metrics(server).total("store_queue_length", queue="writer") == 0)
        calls += [asyncio.ensure_future(posts.create(posts.draft())) for _ in range(4)]
        await write_queue.wait_for_arrivals(5, since=start)

        assert scrape_metrics(server).total("store_queue_length", queue="writer") == 4
    await asyncio.gather(*calls)
    assert scrape_metrics(server).total("store_queue_length") == 0


async def test_commits_are_timed(server: RunningServer, stubs: Stubs) -> None:
    """A write that takes several statements ends with one commit; a read with none."""
    post = await stubs.create_post()
    before = scrape_metrics(server)
    await stubs.posts.UpdatePost(pb.UpdatePostRequest(post=pb.Post(id=post.id, body="b")))
    await stubs.posts.GetPost(pb.GetPostRequest(id=post.id))
    between = Between(before, scrape_metrics(server))

    assert between.growth("store_commit_duration_seconds_count", queue="writer") >= 1
    assert between.growth("store_commit_duration_seconds_sum", queue="writer") > 0
    assert between.now.total("store_commit_duration_seconds_count", queue="reader") == 0


async def test_connections_are_counted(server: RunningServer) -> None:
    """One writer and the readers, each opened once."""
    samples = scrape_metrics(server)

    for queue, count in {"writer": 1, "reader": 2}.items():
        assert samples.total("store_connections", queue=queue) == count
        assert samples.total("store_connect_duration_seconds_count", queue=queue) == count
        assert samples.total("store_connect_duration_seconds_sum", queue=queue) > 0
    assert samples.total("store_connections_lost_total") == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_lost_connection_is_counted(server: RunningServer, stubs: Stubs, database_url: str) -> None:
    """With the time until the next one."""
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'store-service' AND datname = current_database()"
        )
    # Unless something else finds out first.
    await result_or_error(stubs.posts.CreatePost(pb.CreatePostRequest(post=pb.Post(body="a"))))
    await eventually(lambda: scrape_metrics(server).total("store_connections", queue="writer") == 1)

    samples = scrape_metrics(server)
    assert samples.total("store_connections_lost_total", queue="writer") == 1
    assert samples.total("store_connect_duration_seconds_count", queue="writer") == 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_wal_size_metric_is_the_file_size(
    server: RunningServer, stubs: Stubs, database_file: Path
) -> None:
    before = scrape_metrics(server).total("store_wal_bytes")
    await stubs.create_post("x" * 50_000)

    after = scrape_metrics(server).total("store_wal_bytes")
    assert after >= before + 50_000
    assert after == size(Path(f"{database_file}-wal"))


# The change feed


async def test_watches_and_feed_lag_are_counted(
    server: RunningServer, stubs: Stubs, channel: grpc.aio.Channel
) -> None:
    """A watch is in flight as long as it is open, and every change batch that it is sent has an age."""
    assert scrape_metrics(server).total("store_watches") == 0
    assert scrape_metrics(server).total("store_watches_limit") == 100
    async with watch_from_now(channel) as watch:
        await stubs.create_post()
        assert (await watch.response()).changes
        # The response can arrive before the server continues after sending it.
        await eventually(lambda: scrape_metrics(server).total("store_feed_lag_seconds_count") >= 1)
        samples = scrape_metrics(server)

        assert samples.total("store_watches") == 1
        assert samples.total("store_calls_in_flight", **WATCH) == 1
        assert 0 < samples.total("store_feed_lag_seconds_sum") < 60
        assert 0 < samples.total("store_feed_idle_seconds") < 60
    await eventually(lambda: scrape_metrics(server).total("store_watches") == 0)
    await eventually(lambda: scrape_metrics(server).total("store_feed_idle_seconds") == 0)
    await eventually(
        lambda: scrape_metrics(server).total("grpc_server_handled_total", **WATCH, grpc_code="CANCELLED") == 1
    )
    # The caller decides how long a watch lasts.
    assert not list(scrape_metrics(server).values("grpc_server_handling_seconds_count", **WATCH))


def test_unread_feed_grows_idle() -> None:
    """The metric increases without reads, for alerts."""
    metrics = Metrics()
    metrics.feed.read()
    assert metrics.feed.read_at is not None
    metrics.feed.read_at -= 60
    families = {it.name: it for it in MetricsCollector(metrics, database="sqlite", wal_file=None).collect()}

    assert 60 <= families["store_feed_idle_seconds"].samples[0].value < 120


# Histograms


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (1.0, 0), (1.1, 1), (2.0, 1), (2.1, 2), (9e9, 2)])
def test_histogram_bounds_are_inclusive(value: float, bucket: int) -> None:
    """As Prometheus has it: a bound belongs to the bucket below."""
    histogram = Histogram((1, 2))
    histogram.observe(value)

    assert histogram.counts == [int(index == bucket) for index in range(3)]
    assert histogram.sum == value
