"""One address shows the metrics of all processes, on each engine."""

import os
import re
import signal
from pathlib import Path

import pytest

from store_service.database.connect import is_sqlite
from store_service.observability.scrape import NoMetrics, scrape
from tests.support.metrics import scrape_metrics
from tests.support.polling import wait_until
from tests.support.ports import free_port
from tests.support.server_process import ServerProcess, run_command
from tests.support.worker_processes import create_post_on_new_connection, worker_pids

CREATE = {"grpc_service": "storeapi.v1.PostService", "grpc_method": "CreatePost"}


@pytest.fixture
def supervisor(tmp_path: Path, database_url: str) -> ServerProcess:
    """A supervisor of two workers with metrics; not started yet."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    settings = {
        "DATABASE_URL": database_url,
        "STORE_WORKERS": "2",
        "STORE_METRICS_LISTEN": "127.0.0.1:0",
        "TMPDIR": str(temporary),
    }
    return ServerProcess(tmp_path, settings)


def metrics_address(process: ServerProcess) -> str:
    """The metrics address of the supervisor, from its log. Each worker has its own socket."""
    (address,) = re.findall(r'"address": "(127\.0\.0\.1:\d+)", "event": "serving metrics"', process.stderr())
    assert isinstance(address, str)
    return address


def test_one_address_serves_the_metrics_of_all_workers(supervisor: ServerProcess, tmp_path: Path) -> None:
    """With a worker label, each family once; counts add up to all calls, also after a restart."""
    supervisor.start()
    try:
        address = metrics_address(supervisor)
        for n in range(40):
            create_post_on_new_connection(supervisor.address, f"{n}")
        samples = scrape_metrics(address)
        names = [family.name for family in scrape(address)]

        processes = ["0", "1", *(["writer"] if is_sqlite(supervisor.settings["DATABASE_URL"]) else [])]
        workers = samples.label_values("grpc_server_handled_total", "worker")
        calls = {it: samples.total("grpc_server_handled_total", **CREATE, worker=it) for it in workers}
        assert workers == ["0", "1"]
        assert sum(calls.values()) == 40
        assert len(names) == len(set(names))
        assert samples.label_values("store_worker_up", "worker") == processes
        assert samples.total("store_worker_up") == len(processes)
        if "writer" in processes:
            assert samples.label_values("store_wal_bytes", "worker") == ["writer"]
        # The writer process counts the batches of writes. It has no calls.
        batches = samples.values("store_batch_size_sum", queue="writer")
        writing = sorted(it["worker"] for it, count in batches if count)
        assert writing == (["writer"] if "writer" in processes else processes)
        assert samples.total("store_worker_restarts_total") == 0

        # One dies; the other's counters stay, its own begin again.
        (victim, *_) = worker_pids(supervisor)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: scrape_metrics(address).total("store_worker_up") == len(processes) - 1)
        wait_until(lambda: scrape_metrics(address).total("store_worker_up") == len(processes))
        samples = scrape_metrics(address)

        assert samples.total("store_worker_restarts_total") == 1
        ((of, _),) = [it for it in samples.values("store_worker_restarts_total") if it[1]]
        dead = of["worker"]
        assert samples.total("grpc_server_handled_total", **CREATE, worker=dead) == 0
        (other,) = {"0", "1"} - {dead}
        assert samples.total("grpc_server_handled_total", **CREATE, worker=other) == calls[other]

        page = run_command("status", address, "--once", "--every", "0.2", folder=tmp_path)
        assert (page.returncode, page.stderr) == (0, "")
        assert f"{len(processes)} of {len(processes)} workers, 1 restarts" in page.stdout
    finally:
        code = supervisor.stop()

    assert code == 0
    assert "Traceback" not in supervisor.stderr()
    with pytest.raises(NoMetrics):
        scrape(address)
    # Nothing is left of the sockets.
    assert list((tmp_path / "tmp").iterdir()) == []


def test_metrics_address_in_use_is_one_line(supervisor: ServerProcess, tmp_path: Path) -> None:
    """With workers too, nothing is started then."""
    supervisor.start()
    try:
        taken = metrics_address(supervisor)
        settings = supervisor.settings | {"STORE_LISTEN": "127.0.0.1:0", "STORE_METRICS_LISTEN": taken}
        done = run_command("serve", folder=tmp_path, settings=settings)
    finally:
        supervisor.stop()

    assert done.returncode == 1
    assert done.stderr.startswith(f"store-service: cannot serve metrics on {taken}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)], ids=["off", "on"])
def test_worker_restart_keeps_the_metrics_setting(
    supervisor: ServerProcess, tmp_path: Path, first: bool, then: bool
) -> None:
    """Switching metrics on or off needs a new start, as the log says; the workers are replaced."""
    del supervisor.settings["STORE_METRICS_LISTEN"]
    wanted = f"127.0.0.1:{free_port()}"
    settings = tmp_path / ".env"
    settings.write_text(f"STORE_METRICS_LISTEN={wanted if first else ''}")
    supervisor.start()
    try:
        settings.write_text(f"STORE_METRICS_LISTEN={wanted if then else ''}")
        supervisor.signal(signal.SIGHUP)
        wait_until(lambda: re.search("restarted workers|not all workers", supervisor.stderr()))

        assert "not all workers" not in supervisor.stderr()
        assert supervisor.stderr().count("a new metrics address takes effect after a full restart") == 1
        if first:
            assert scrape_metrics(wanted).total("store_worker_up", worker="0") == 1
        else:
            with pytest.raises(NoMetrics):
                scrape(wanted)
    finally:
        supervisor.stop()
