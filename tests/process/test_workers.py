"""Many processes on one port, on each engine."""

import asyncio
import os
import re
import resource
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import storeapi
import trustme

from store_service import config as settings
from store_service import worker_process
from store_service.auth import api_keys
from store_service.auth.principal import ALL_PERMISSIONS
from store_service.supervisor import reserved
from store_service.worker_process import Role, WorkerProcess
from tests.support.certificates import TlsFiles
from tests.support.metrics import scrape_metrics
from tests.support.polling import eventually, wait_until
from tests.support.ports import free_port
from tests.support.postgresql import clear_database
from tests.support.server_process import ServerProcess, run_command
from tests.support.worker_processes import create_post_on_new_connection, kill_processes, worker_pids


@pytest.fixture
def supervisor(tmp_path: Path, database_url: str) -> ServerProcess:
    """A supervisor of two workers; not started yet."""
    return ServerProcess(tmp_path, {"DATABASE_URL": database_url, "STORE_WORKERS": "2"})


def servers_since(before: Collection[int] = ()) -> list[int]:
    """The servers that this process has started and that run, by id, without those of before."""
    found = []
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with suppress(FileNotFoundError):  # it has just ended
            if b"store_service" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return [pid for pid in found if pid not in before]


def all_ended(pids: list[int]) -> bool:
    """Whether none of these processes is there any more."""
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def times_told(process: ServerProcess, event: str) -> int:
    """How often the log of all processes contains an event."""
    return process.stderr().count(f'"event": "{event}"')


def test_both_workers_serve_one_port(supervisor: ServerProcess) -> None:
    """Every connection is served, and both processes get some."""
    supervisor.start()
    try:
        ids = {create_post_on_new_connection(supervisor.address, f"{n}").id for n in range(40)}
    finally:
        code = supervisor.stop()

    assert code == 0
    assert len(ids) == 40
    servers = set(re.findall(r'CreatePost.*"call_id": "([0-9a-f]+)-', supervisor.stderr()))
    assert len(servers) == 2
    assert "Traceback" not in supervisor.stderr()


def test_both_workers_use_tls_and_authentication(supervisor: ServerProcess) -> None:
    """Each reloads its files: a key is valid for all connections or for none."""
    folder = supervisor.folder
    files = TlsFiles(folder, trustme.CA())
    key = api_keys.new_key()
    api_keys.append(folder / "keys", name="a", key=key, permissions=ALL_PERMISSIONS)
    supervisor.settings |= {
        "STORE_TLS_CERT": files.cert.name,
        "STORE_TLS_KEY": files.key.name,
        "STORE_API_KEYS_FILE": "keys",
    }

    def create_over_tls() -> None:
        alone = [("grpc.use_local_subchannel_pool", 1)]
        with storeapi.connect(
            supervisor.address, tls_ca=files.client_ca, api_key=key, channel_options=alone
        ) as client:
            client.posts.create(body="a")

    supervisor.start()
    try:
        for _ in range(20):
            create_over_tls()
        (folder / "keys").write_text("")
        wait_until(lambda: supervisor.stderr().count("file reloaded") == 2)
        for _ in range(20):
            with pytest.raises(storeapi.CredentialsInvalid):
                create_over_tls()
    finally:
        code = supervisor.stop()

    assert code == 0
    assert len(set(re.findall(r'CreatePost.*"call_id": "([0-9a-f]+)-', supervisor.stderr()))) == 2


def test_invalid_file_is_reported_once_for_all_workers(supervisor: ServerProcess) -> None:
    """Before any of them starts."""
    (supervisor.folder / "keys").write_text("nonsense")
    settings = {**supervisor.settings, "STORE_API_KEYS_FILE": "keys", "STORE_LISTEN": "127.0.0.1:0"}

    done = run_command("serve", folder=supervisor.folder, settings=settings)

    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("store-service: STORE_API_KEYS_FILE: line 1: ")


def test_crashed_worker_is_restarted(supervisor: ServerProcess) -> None:
    """The others continue, and the port stays bound."""
    supervisor.start()
    before = worker_pids(supervisor)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: '"event": "worker restarted"' in supervisor.stderr())
    after = worker_pids(supervisor)

    assert len(before) == len(after) == 2
    assert before[1] in after
    assert create_post_on_new_connection(supervisor.address, "after").id > 0
    assert supervisor.stop() == 0


def test_failed_worker_start_is_repeated(supervisor: ServerProcess) -> None:
    """A supervisor without free descriptors keeps the other workers and recovers."""
    supervisor.start()
    before = worker_pids(supervisor)
    try:
        assert supervisor.process is not None
        pid = supervisor.process.pid
        was = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, was[1]))
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: times_told(supervisor, "worker does not start") > 0)
        supervisor.signal(signal.SIGHUP)
        wait_until(lambda: times_told(supervisor, "not all workers restarted; the others keep running"))
        assert before[1] in worker_pids(supervisor)
        assert create_post_on_new_connection(supervisor.address, "meanwhile").id > 0

        resource.prlimit(pid, resource.RLIMIT_NOFILE, was)
        wait_until(lambda: times_told(supervisor, "worker restarted"))
        assert before[1] in worker_pids(supervisor)
        assert supervisor.stop() == 0
    finally:
        supervisor.kill()
        kill_processes(before)


def test_failed_start_is_not_counted_as_another_crash(supervisor: ServerProcess) -> None:
    """A try that fails is not another death."""
    supervisor.settings["STORE_METRICS_LISTEN"] = f"127.0.0.1:{free_port()}"
    (supervisor.folder / ".env").write_text("")
    supervisor.start()
    before = worker_pids(supervisor)
    try:
        (supervisor.folder / ".env").write_text("STORE_READ_CONNECTIONS=none")
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: times_told(supervisor, "worker does not start"))
        # A try that fails is told of rarely; each says itself why it has failed.
        wait_until(lambda: supervisor.stderr().count("STORE_READ_CONNECTIONS") >= 2)
        assert times_told(supervisor, "worker does not start") == 1
        (supervisor.folder / ".env").write_text("")
        wait_until(lambda: times_told(supervisor, "worker restarted"))

        assert times_told(supervisor, "worker died") == 1
        samples = scrape_metrics(supervisor.settings["STORE_METRICS_LISTEN"])
        assert samples.total("store_worker_restarts_total") == 1

        # It is watched as it was before.
        (again,) = set(worker_pids(supervisor)) - set(before)
        os.kill(again, signal.SIGKILL)
        wait_until(lambda: times_told(supervisor, "worker restarted") == 2)
        assert times_told(supervisor, "worker died") == 2
        assert supervisor.stop() == 0
    finally:
        supervisor.kill()
        kill_processes(before)


async def test_worker_that_hangs_at_its_start_is_killed(
    tmp_path: Path, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that it was to replace continues and is supervised."""
    clear_database(postgres_database)
    before = servers_since()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", postgres_database)
    config = settings.load(workers=2)
    with reserved("127.0.0.1:0") as placeholder:
        address = f"127.0.0.1:{placeholder.getsockname()[1]}"
        role = Role(label="0", arguments=("--worker", f"--listen={address}"))
        worker = WorkerProcess(role, config, None)
        await worker.start()
        keeper = asyncio.create_task(worker.keep_running())
        try:
            (old,) = servers_since(before)
            with monkeypatch.context() as patch:
                # No worker starts within this time.
                patch.setattr(worker_process, "START_SECONDS", 0.01)
                with pytest.raises(worker_process.WorkerFailed, match=r"did not serve within 0\.01 s"):
                    await worker.replace(config)
            assert servers_since(before) == [old]
            assert (await asyncio.to_thread(create_post_on_new_connection, address, "by the old one")).id > 0

            os.kill(old, signal.SIGKILL)
            await eventually(lambda: servers_since(before) not in ([], [old]))
            assert (await asyncio.to_thread(create_post_on_new_connection, address, "by the next one")).id > 0
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await worker.stop()
    assert servers_since(before) == []


def test_workers_end_after_their_supervisor_is_killed(supervisor: ServerProcess) -> None:
    supervisor.start()
    workers = worker_pids(supervisor)
    supervisor.kill()

    wait_until(lambda: all_ended(workers))
    # With what they had begun.
    assert times_told(supervisor, "stopped") == 2


def test_second_signal_kills_the_workers(supervisor: ServerProcess) -> None:
    """At once."""
    supervisor.settings["STORE_SHUTDOWN_DELAY_SECONDS"] = "600"
    supervisor.start()
    workers = worker_pids(supervisor)
    try:
        supervisor.signal()
        wait_until(lambda: times_told(supervisor, "stopping") == 2)
        supervisor.signal()

        assert supervisor.wait() == 128 + signal.SIGTERM
        wait_until(lambda: all_ended(workers))
    finally:
        supervisor.kill()
        kill_processes(workers)


def test_port_in_use_is_one_line_with_workers(
    supervisor: ServerProcess, tmp_path: Path, database_file: Path
) -> None:
    """Workers share the port with each other only."""
    taken = ServerProcess(tmp_path).start()
    try:
        done = run_command(
            "serve", folder=tmp_path, settings={**supervisor.settings, "STORE_LISTEN": taken.address}
        )
    finally:
        taken.kill()

    assert done.returncode == 1
    assert done.stderr.startswith(f"store-service: cannot listen on {taken.address}")
    assert done.stderr.count("\n") == 1


def test_unreachable_database_is_one_line_with_workers(tmp_path: Path) -> None:
    """The line names the database without its password."""
    url = "postgresql://store:secret@127.0.0.1:1/store"
    done = run_command("serve", folder=tmp_path, settings={"DATABASE_URL": url, "STORE_WORKERS": "2"})

    assert done.returncode == 1
    assert done.stderr.startswith(
        "store-service: cannot use the database postgresql://store:***@127.0.0.1:1/store"
    )
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "migrate"])
def test_commands_accept_postgresql(postgres_database: str, tmp_path: Path, command: str) -> None:
    """As they accept a file."""
    clear_database(postgres_database)
    done = run_command(command, folder=tmp_path, settings={"DATABASE_URL": postgres_database})

    assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(postgres_database) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
