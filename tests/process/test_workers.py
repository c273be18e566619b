"""Many processes on one port, over PostgreSQL."""

import asyncio
import os
import re
import resource
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import grpc
import psycopg
import pytest
import storeapi
import trustme
from storeapi.v1 import posts_pb2, posts_pb2_grpc

from store_service import config as settings
from store_service import supervisor as supervising
from store_service.access import keys as api_keys
from store_service.access.caller import ALL_RIGHTS
from store_service.supervisor import reserved
from tests.certificates import Files
from tests.patience import patience
from tests.postgres import empty
from tests.rpc.helpers import become
from tests.scraping import scraped
from tests.support import ServerProcess, free_port, run_command, wait_until


@pytest.fixture
def supervisor(tmp_path: Path, postgres_database: str) -> ServerProcess:
    """A supervisor of two workers; not started yet."""
    empty(postgres_database)
    return ServerProcess(tmp_path, {"DATABASE_URL": postgres_database, "STORE_WORKERS": "2"})


def workers_of(process: ServerProcess) -> list[int]:
    """The processes that serve, by id."""
    assert process.process is not None
    children = Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


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


def end(pids: list[int]) -> None:
    """Kills those that are there still."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def times_told(process: ServerProcess, event: str) -> int:
    """How often the log of all processes has told of something."""
    return process.stderr().count(f'"event": "{event}"')


def create(address: str, body: str) -> posts_pb2.Post:
    """Creates a post over a connection of its own, which the kernel gives to one worker or the other."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body))
        post: posts_pb2.Post = posts_pb2_grpc.PostServiceStub(channel).CreatePost(
            request, wait_for_ready=True, timeout=patience()
        )
        return post


def test_both_workers_serve_one_port(supervisor: ServerProcess) -> None:
    """Every connection is served, and both processes get some."""
    supervisor.start()
    try:
        ids = {create(supervisor.address, f"{n}").id for n in range(40)}
    finally:
        code = supervisor.stop()

    assert code == 0
    assert len(ids) == 40
    servers = set(re.findall(r'CreatePost.*"call_id": "([0-9a-f]+)-', supervisor.stderr()))
    assert len(servers) == 2
    assert "Traceback" not in supervisor.stderr()


def test_both_workers_speak_tls_and_ask_who_calls(supervisor: ServerProcess) -> None:
    """And take what changes, each by itself: a key counts for all connections or for none."""
    folder = supervisor.folder
    files = Files(folder, trustme.CA())
    key = api_keys.new_key()
    api_keys.append(folder / "keys", name="a", key=key, rights=ALL_RIGHTS)
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
        wait_until(lambda: supervisor.stderr().count("file read again") == 2)
        for _ in range(20):
            with pytest.raises(storeapi.CredentialsInvalid):
                create_over_tls()
    finally:
        code = supervisor.stop()

    assert code == 0
    assert len(set(re.findall(r'CreatePost.*"call_id": "([0-9a-f]+)-', supervisor.stderr()))) == 2


def test_a_bad_file_is_told_once_and_not_by_every_worker(supervisor: ServerProcess) -> None:
    """Before any of them starts, as of one process."""
    (supervisor.folder / "keys").write_text("nonsense")
    settings = {**supervisor.settings, "STORE_API_KEYS_FILE": "keys", "STORE_LISTEN": "127.0.0.1:0"}

    done = run_command("serve", folder=supervisor.folder, settings=settings)

    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("store-service: STORE_API_KEYS_FILE: line 1: ")


def test_a_worker_that_dies_is_started_again(supervisor: ServerProcess) -> None:
    """The others go on meanwhile, and the port stays ours."""
    supervisor.start()
    before = workers_of(supervisor)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: '"event": "worker restarted"' in supervisor.stderr())
    after = workers_of(supervisor)

    assert len(before) == len(after) == 2
    assert before[1] in after
    assert create(supervisor.address, "after").id > 0
    assert supervisor.stop() == 0


def test_a_worker_that_cannot_be_made_is_tried_again(supervisor: ServerProcess) -> None:
    """A supervisor without descriptors keeps the others, and goes on when it has some."""
    supervisor.start()
    before = workers_of(supervisor)
    try:
        assert supervisor.process is not None
        pid = supervisor.process.pid
        was = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, was[1]))
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: times_told(supervisor, "worker does not start") > 0)
        supervisor.signal(signal.SIGHUP)
        wait_until(lambda: times_told(supervisor, "not all workers restarted; the others go on as they were"))
        assert before[1] in workers_of(supervisor)
        assert create(supervisor.address, "meanwhile").id > 0

        resource.prlimit(pid, resource.RLIMIT_NOFILE, was)
        wait_until(lambda: times_told(supervisor, "worker restarted"))
        assert before[1] in workers_of(supervisor)
        assert supervisor.stop() == 0
    finally:
        supervisor.kill()
        end(before)


def test_a_worker_that_cannot_start_died_once(supervisor: ServerProcess) -> None:
    """A try that fails is not another death."""
    supervisor.settings["STORE_METRICS_LISTEN"] = f"127.0.0.1:{free_port()}"
    (supervisor.folder / ".env").write_text("")
    supervisor.start()
    before = workers_of(supervisor)
    try:
        (supervisor.folder / ".env").write_text("STORE_READERS=none")
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: times_told(supervisor, "worker does not start"))
        # A try that fails is told of rarely; each says itself why it has failed.
        wait_until(lambda: supervisor.stderr().count("STORE_READERS") >= 2)
        assert times_told(supervisor, "worker does not start") == 1
        (supervisor.folder / ".env").write_text("")
        wait_until(lambda: times_told(supervisor, "worker restarted"))

        assert times_told(supervisor, "worker died") == 1
        samples = scraped(supervisor.settings["STORE_METRICS_LISTEN"])
        assert samples.total("store_worker_restarts_total") == 1

        # It is watched as it was before.
        (again,) = set(workers_of(supervisor)) - set(before)
        os.kill(again, signal.SIGKILL)
        wait_until(lambda: times_told(supervisor, "worker restarted") == 2)
        assert times_told(supervisor, "worker died") == 2
        assert supervisor.stop() == 0
    finally:
        supervisor.kill()
        end(before)


async def test_a_worker_that_hangs_at_its_start_takes_nobodys_place(
    tmp_path: Path, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed when its time is up; the one that it was to replace goes on, and is watched."""
    empty(postgres_database)
    before = servers_since()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", postgres_database)
    config = settings.load(workers=2)
    with reserved("127.0.0.1:0") as placeholder:
        address = f"127.0.0.1:{placeholder.getsockname()[1]}"
        worker = supervising._Worker(0, config, address, None)
        await worker.start()
        keeper = asyncio.create_task(worker.keep_running())
        try:
            (old,) = servers_since(before)
            with monkeypatch.context() as patch:
                # Nobody is so quick.
                patch.setattr(supervising, "START_SECONDS", 0.01)
                with pytest.raises(supervising.WorkerFailed, match=r"did not serve within 0\.01 seconds"):
                    await worker.replace(config)
            assert servers_since(before) == [old]
            assert (await asyncio.to_thread(create, address, "by the old one")).id > 0

            os.kill(old, signal.SIGKILL)
            await become(lambda: servers_since(before) not in ([], [old]))
            assert (await asyncio.to_thread(create, address, "by the next one")).id > 0
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            await worker.stop()
    assert servers_since(before) == []


def test_workers_do_not_outlive_a_supervisor_that_was_killed(supervisor: ServerProcess) -> None:
    """Nobody serves on in secret."""
    supervisor.start()
    workers = workers_of(supervisor)
    supervisor.kill()

    wait_until(lambda: all_ended(workers))
    # With what they had begun.
    assert times_told(supervisor, "stopped") == 2


def test_a_second_signal_ends_the_workers_too(supervisor: ServerProcess) -> None:
    """At once, however long they would have gone on."""
    supervisor.settings["STORE_DRAIN_SECONDS"] = "600"
    supervisor.start()
    workers = workers_of(supervisor)
    try:
        supervisor.signal()
        wait_until(lambda: times_told(supervisor, "stopping") == 2)
        supervisor.signal()

        assert supervisor.wait() == 128 + signal.SIGTERM
        wait_until(lambda: all_ended(workers))
    finally:
        supervisor.kill()
        end(workers)


def test_a_port_in_use_is_one_line(supervisor: ServerProcess, tmp_path: Path, database_file: Path) -> None:
    """Also with workers, which could share the port with each other but not with anybody else."""
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


def test_a_database_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """The line names the database, without its password."""
    url = "postgresql://store:secret@127.0.0.1:1/store"
    done = run_command("serve", folder=tmp_path, settings={"DATABASE_URL": url, "STORE_WORKERS": "2"})

    assert done.returncode == 1
    assert done.stderr.startswith(
        "store-service: cannot use the database postgresql://store:***@127.0.0.1:1/store"
    )
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "migrate"])
def test_the_commands_know_postgresql(postgres_database: str, tmp_path: Path, command: str) -> None:
    """As they know a file."""
    empty(postgres_database)
    done = run_command(command, folder=tmp_path, settings={"DATABASE_URL": postgres_database})

    assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(postgres_database) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
