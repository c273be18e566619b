"""Start and stop of a server as an operator sees them."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from storeapi.v1 import changes_pb2, changes_pb2_grpc, posts_pb2, posts_pb2_grpc

from store_service.database import connect, schema
from tests.support import legacy_database
from tests.support.database import query
from tests.support.errors import expect_error
from tests.support.health import health_stream, wait_for_not_serving
from tests.support.polling import eventually, wait_until
from tests.support.ports import free_port
from tests.support.postgresql import new_database
from tests.support.server_process import ServerProcess, run_command, run_without_privileges
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def server_process(database_file: Path) -> Iterator[ServerProcess]:
    """A server as a child process, not started yet, whose database needs no upgrade."""
    process = ServerProcess(database_file.parent)
    yield process
    process.kill()


def logged(server_process: ServerProcess) -> list[dict[str, object]]:
    """The log, in which every line is a JSON object: no traceback, nothing that a library printed."""
    return [json.loads(line) for line in server_process.stderr().splitlines()]


def events(server_process: ServerProcess) -> list[object]:
    """The log events in order, without calls and the search index."""
    all_events = [line["event"] for line in logged(server_process)]
    return [it for it in all_events if it != "rpc finished" and "search index" not in it]


# Starting


async def test_calls_succeed_after_the_serving_line(server_process: ServerProcess) -> None:
    """Without a retry."""
    for number in range(1, 4):
        server_process.start()
        async with grpc.aio.insecure_channel(server_process.address) as channel:
            post = await Stubs(channel).create_post()
        assert post.id == number
        assert server_process.stop() == 0


def test_stdout_has_only_the_serving_line(server_process: ServerProcess) -> None:
    """One line with the address."""
    server_process.start()
    assert server_process.process is not None
    assert server_process.process.stdout is not None
    server_process.signal()

    assert server_process.process.stdout.read() == b""
    assert server_process.wait() == 0


async def test_port_0_becomes_a_free_port(tmp_path: Path) -> None:
    """The line contains it, so several servers can run side by side."""
    servers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        servers.append(ServerProcess(tmp_path / name))
    try:
        for server in servers:
            server.start()
            assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d+", server.address)
            async with grpc.aio.insecure_channel(server.address) as channel:
                assert (await Stubs(channel).create_post()).id == 1
        assert servers[0].address != servers[1].address
    finally:
        for server in servers:
            server.kill()


async def test_unix_socket_is_an_address(server_process: ServerProcess) -> None:
    """For callers on the same machine."""
    server_process.settings["STORE_LISTEN"] = "unix:store.sock"
    server_process.start()

    assert server_process.address == "unix:store.sock"
    async with grpc.aio.insecure_channel(f"unix:{server_process.folder / 'store.sock'}") as channel:
        assert (await Stubs(channel).create_post()).id == 1


@pytest.fixture
def migrated_folder(database_file: Path) -> Path:
    """A folder with a database that needs no upgrade, so that nothing but the error is logged."""
    return database_file.parent


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Checks for exit code 1 and one readable line."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("store-service: ")
    for word in words:
        assert word in line


def test_port_in_use_is_one_line_and_exit_code_1(migrated_folder: Path) -> None:
    """Two servers never share a port by accident."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_command("serve", folder=migrated_folder, settings={"STORE_LISTEN": address})

    assert_one_line(done, address, "in use")
    assert done.stdout == ""


async def test_port_of_another_server_is_in_use(server_process: ServerProcess, migrated_folder: Path) -> None:
    """The system would allow two store-service processes to share it."""
    server_process.start()
    other = migrated_folder / "other"
    other.mkdir()
    schema.upgrade(f"sqlite:///{other / 'store.db'}")
    done = run_command("serve", folder=other, settings={"STORE_LISTEN": server_process.address})

    assert_one_line(done, server_process.address)


def test_foreign_address_is_one_line_and_exit_code_1(migrated_folder: Path) -> None:
    """192.0.2.1 belongs to no interface."""
    settings = {"STORE_LISTEN": "192.0.2.1:50051", "STORE_ALLOW_INSECURE": "true"}
    done = run_command("serve", folder=migrated_folder, settings=settings)

    assert_one_line(done, "192.0.2.1:50051")


ADDRESSES = pytest.mark.parametrize("variable", ["STORE_LISTEN", "STORE_METRICS_LISTEN"])


@ADDRESSES
def test_start_that_cannot_listen_changes_no_file(tmp_path: Path, variable: str) -> None:
    """The running program may need the current schema."""
    legacy_database.create_file(tmp_path / "store.db")
    before = (tmp_path / "store.db").read_bytes()
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = serve(tmp_path, **{variable: address})

    assert_one_line(done, address, "the port is in use")
    assert (tmp_path / "store.db").read_bytes() == before


@ADDRESSES
@pytest.mark.parametrize("workers", ["1", "2"])
def test_start_that_cannot_listen_creates_no_tables(
    tmp_path: Path, postgres: str, variable: str, workers: str
) -> None:
    """The same on PostgreSQL, with one process and with several."""
    with (
        new_database(postgres) as url,
        closing(socket.create_server(("127.0.0.1", 0))) as taken,
    ):
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = serve(tmp_path, **{"DATABASE_URL": url, "STORE_WORKERS": workers, variable: address})
        with psycopg.connect(url) as connection:
            tables = connection.execute("SELECT * FROM pg_tables WHERE schemaname = 'public'").fetchall()

    assert_one_line(done, address, "the port is in use")
    assert tables == []


@ADDRESSES
def test_socket_that_cannot_be_created_is_one_line(tmp_path: Path, variable: str) -> None:
    """The line describes the path and does not mention ports."""
    (tmp_path / "file").write_text("somebody's")
    for path, why in [
        ("nowhere/store.sock", "No such file or directory"),
        ("file", "File exists"),
        ("x" * 108, "File name too long"),
    ]:
        done = serve(tmp_path, **{variable: f"unix:{path}"})

        assert_one_line(done, f"unix:{path}: the socket cannot be created: {why}")
    assert not (tmp_path / "store.db").exists()


def test_failed_start_releases_the_database(migrated_folder: Path) -> None:
    """Everything is closed, including the log file."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run_command("serve", folder=migrated_folder, settings={"STORE_LISTEN": address})

    url = f"sqlite:///{migrated_folder / 'store.db'}"
    with connect.sole_use(url):
        schema.check(url)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_server_starts_without_standard_streams(
    tmp_path: Path, postgres_database: str, workers: str, closed: str
) -> None:
    """stdin, stdout and stderr may be closed; no other file gets their descriptors."""
    address = f"127.0.0.1:{free_port()}"
    settings = {"DATABASE_URL": postgres_database, "STORE_WORKERS": workers, "STORE_LISTEN": address}
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$0" -m store_service serve {closed}', sys.executable],
        cwd=tmp_path,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with grpc.insecure_channel(address, [("grpc.max_reconnect_backoff_ms", 200)]) as channel:
            posts = posts_pb2_grpc.PostServiceStub(channel)
            request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a"))
            assert posts.CreatePost(request, timeout=scaled_timeout(), wait_for_ready=True).id
        for name in ("0", "1", "2"):
            assert not Path(f"/proc/{process.pid}/fd/{name}").readlink().name.startswith("socket")
        process.terminate()
        output, _ = process.communicate(timeout=scaled_timeout())
        assert process.returncode == 0
        assert "Traceback" not in output
    finally:
        process.kill()
        process.communicate()


# Databases that cannot be served


def serve(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Starts a server that will not start."""
    return run_command("serve", folder=folder, settings={"STORE_LISTEN": "127.0.0.1:0", **settings})


def test_missing_directory_is_one_line(tmp_path: Path) -> None:
    """The line names the path."""
    done = serve(tmp_path, DATABASE_URL="sqlite:///not/there/store.db")

    assert_one_line(done, "not/there/store.db", "No such file or directory")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_directory_is_one_line(migrated_folder: Path) -> None:
    """SQLite needs files beside the database."""
    migrated_folder.chmod(0o555)
    done = run_without_privileges("serve", "--listen", "127.0.0.1:0", folder=migrated_folder)
    migrated_folder.chmod(0o755)

    assert_one_line(done, "store.db", "Permission denied")


def test_unwritable_file_is_one_line(migrated_folder: Path, database_file: Path) -> None:
    """A service that could not store anything does not start."""
    database_file.chmod(0o444)
    done = run_without_privileges("serve", "--listen", "127.0.0.1:0", folder=migrated_folder)

    assert_one_line(done, "cannot write store.db: Permission denied")


def test_unreadable_file_is_one_line(migrated_folder: Path, database_file: Path) -> None:
    """With its owner and the system error."""
    database_file.chmod(0)
    done = run_without_privileges("serve", "--listen", "127.0.0.1:0", folder=migrated_folder)

    assert_one_line(done, "cannot write store.db: Permission denied")


@pytest.mark.parametrize("content", [b"short", b"Dear diary, today I was taken for a database. " * 1000])
def test_file_that_is_not_a_database_is_one_line_and_unchanged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    done = serve(tmp_path)

    assert_one_line(done, "store.db", "file is not a database")
    assert path.read_bytes() == content


def test_directory_in_place_of_the_database_is_one_line(tmp_path: Path) -> None:
    """It has the right name and is of the wrong kind."""
    (tmp_path / "store.db").mkdir()

    assert_one_line(serve(tmp_path), "cannot write store.db: Is a directory")


def test_damaged_database_is_one_line(migrated_folder: Path, database_file: Path) -> None:
    """Such as a partial copy."""
    data = database_file.read_bytes()
    database_file.write_bytes(data[: len(data) // 2])

    assert_one_line(serve(migrated_folder), "store.db", "malformed")


@pytest.mark.parametrize("settings", [{}, {"STORE_AUTO_MIGRATE": "false"}], ids=["auto", "manual"])
def test_database_of_another_application_is_one_line(tmp_path: Path, settings: dict[str, str]) -> None:
    """The line names the unexpected columns."""
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT)")
    before = (tmp_path / "store.db").read_bytes()

    assert_one_line(serve(tmp_path, **settings), "table posts has the columns id, title")
    assert (tmp_path / "store.db").read_bytes() == before


@pytest.mark.parametrize("command", ["serve", "migrate", "check"])
def test_legacy_database_that_cannot_be_upgraded_is_one_line(tmp_path: Path, command: str) -> None:
    """It names every obstacle, and no command that would refuse too."""
    path = tmp_path / "store.db"
    legacy_database.create_file(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("""
            CREATE TABLE likes (post_id INTEGER REFERENCES posts (id));
            CREATE TABLE requests (id INTEGER);
            CREATE TRIGGER shout AFTER INSERT ON posts BEGIN DELETE FROM likes; END;
        """)
    before = path.read_bytes()
    done = run_command(command, folder=tmp_path)

    assert_one_line(done, "table likes", "table requests", "trigger shout")
    assert "run `store-service migrate`" not in done.stderr
    assert path.read_bytes() == before


def test_revision_of_another_application_is_one_line(tmp_path: Path) -> None:
    """It may also be of a newer version; the line says both."""
    legacy_database.create_file(tmp_path / "store.db")
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('0001abc')")

    for command in ("serve", "migrate", "check"):
        assert_one_line(
            run_command(command, folder=tmp_path), "schema 0001abc", "does not know", "or another application"
        )


def test_database_of_a_newer_version_is_one_line(migrated_folder: Path, database_file: Path) -> None:
    """The way back is to run the newer version."""
    with closing(sqlite3.connect(database_file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    assert_one_line(
        serve(migrated_folder), "schema 9999", f"needs {schema.HEAD}", "a newer store-service made it"
    )


def test_older_schema_without_auto_migrate_is_one_line(tmp_path: Path) -> None:
    """The line names the command to run, and the file is unchanged."""
    path = tmp_path / "store.db"
    legacy_database.create_file(path)
    before = path.read_bytes()
    done = serve(tmp_path, STORE_AUTO_MIGRATE="false")

    assert_one_line(done, "schema 0001", f"needs {schema.HEAD}", "run `store-service migrate`")
    assert path.read_bytes() == before


def test_empty_database_without_auto_migrate_is_one_line(tmp_path: Path) -> None:
    """It stays empty, and the line names the command that creates the tables."""
    path = tmp_path / "store.db"
    path.touch()
    done = serve(tmp_path, STORE_AUTO_MIGRATE="false")

    assert_one_line(done, "store.db is empty", "`store-service migrate`")
    assert path.read_bytes() == b""


def test_database_locked_by_a_writer_is_one_line_at_the_upgrade(tmp_path: Path) -> None:
    """For example by the legacy application."""
    legacy_database.create_file(tmp_path / "store.db")
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = serve(tmp_path)

    assert_one_line(done, "store.db", "database is locked")


# Databases that do not answer

IS_SUPERVISED = pytest.mark.parametrize("workers", ["1", "2"])
IS_UPGRADED = pytest.mark.parametrize("auto_migrate", ["true", "false"])


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """What takes connections and says nothing, as a PostgreSQL whose machine is stuck."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(scaled_timeout())
        yield listener


def url_of(listener: socket.socket) -> str:
    """The database that would be there."""
    return f"postgresql://store:secret@127.0.0.1:{listener.getsockname()[1]}/store"


@IS_UPGRADED
def test_unresponsive_database_is_one_line(tmp_path: Path, silent: socket.socket, auto_migrate: str) -> None:
    """After the connect timeout, like an unreachable one."""
    done = serve(
        tmp_path,
        DATABASE_URL=url_of(silent),
        STORE_CONNECT_TIMEOUT_SECONDS="0.5",
        STORE_AUTO_MIGRATE=auto_migrate,
    )

    assert_one_line(done, "cannot use the database postgresql://store:***@127.0.0.1", "timeout")


@pytest.mark.parametrize("number", SIGNALS)
@IS_SUPERVISED
@IS_UPGRADED
def test_signal_ends_a_waiting_start(
    tmp_path: Path, silent: socket.socket, number: signal.Signals, workers: str, auto_migrate: str
) -> None:
    """The first signal, with exit code 0 and no process left."""
    settings = {"DATABASE_URL": url_of(silent), "STORE_CONNECT_TIMEOUT_SECONDS": "60"}
    settings |= {"STORE_WORKERS": workers, "STORE_AUTO_MIGRATE": auto_migrate}
    server_process = ServerProcess(tmp_path, settings)
    server_process.begin()
    connections: list[socket.socket] = []
    try:
        # The preflight check is the first that opens the database, once for all workers.
        connections.append(silent.accept()[0])
        server_process.signal(number)

        assert server_process.wait() == 0
        for connection in connections:
            connection.settimeout(scaled_timeout())
            while connection.recv(1024):
                pass
    finally:
        server_process.kill()
        for connection in connections:
            connection.close()
    assert {line["event"] for line in logged(server_process)} <= {"stopped before serving", "stopped"}


# Databases that go away


@pytest.mark.parametrize("is_replaced", [False, True], ids=["deleted", "replaced"])
async def test_deleted_file_is_not_written_to(server_process: ServerProcess, is_replaced: bool) -> None:
    """SQLite would succeed in the unlinked file. When the file is back, the service recovers."""
    path = server_process.folder / "store.db"
    other = server_process.folder / "other.db"
    other.write_bytes(path.read_bytes())
    server_process.start()
    async with (
        grpc.aio.insecure_channel(server_process.address) as channel,
        health_stream(channel) as statuses,
    ):
        post = await Stubs(channel).create_post("before")
        path.rename(server_process.folder / "moved.db")
        if is_replaced:
            other.rename(path)

        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        error = await expect_error(Stubs(channel).create_post("lost"))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        await eventually(lambda: "not healthy" in events(server_process))

        (server_process.folder / "moved.db").rename(path)
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
        assert (await Stubs(channel).create_post("after")).id == post.id + 1
    causes = {line.get("cause") for line in logged(server_process) if line["event"] == "not healthy"}
    what = "was replaced by another file" if is_replaced else "was deleted"
    assert causes == {f"{path} {what} while it was open; restart the service"}
    assert server_process.stop() == 0


async def test_deleted_file_is_detected_without_a_health_check(server_process: ServerProcess) -> None:
    """Writes are refused within seconds, and the log says why."""
    server_process.start()
    (server_process.folder / "store.db").unlink()
    await eventually(lambda: "writes are refused" in events(server_process))

    async with grpc.aio.insecure_channel(server_process.address) as channel:
        error = await expect_error(Stubs(channel).create_post("lost"))
    assert error.reason == "DATABASE_UNAVAILABLE"
    (line,) = [line for line in logged(server_process) if line["event"] == "writes are refused"]
    assert str(server_process.folder / "store.db") in str(line["cause"])


# Stopping


@contextmanager
def writes_held_up(server_process: ServerProcess) -> Iterator[sqlite3.Connection]:
    """Another process holds the write lock until ROLLBACK."""
    path = server_process.folder / "store.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def is_refused(address: str) -> bool:
    """Whether the port refuses connections."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=scaled_timeout()).close()
    except ConnectionRefusedError:
        return True
    return False


async def begun(channel: grpc.aio.Channel, body: str) -> asyncio.Task[posts_pb2.Post]:
    """A CreatePost that the server has begun, and that waits there."""
    call = asyncio.create_task(Stubs(channel).create_post(body))
    await asyncio.sleep(0)
    # A connection's calls are taken in their order, so when this one is answered the other has begun.
    for _ in range(3):
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert not call.done()
    return call


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_stops_an_idle_server(server_process: ServerProcess, number: signal.Signals) -> None:
    """Exit code 0, and the stop is logged."""
    server_process.start()
    server_process.signal(number)

    assert server_process.wait() == 0
    assert events(server_process) == ["serving", "stopping", "stopped"]
    assert not (server_process.folder / "store.db-journal").exists()


@pytest.mark.parametrize("number", SIGNALS)
async def test_running_call_finishes_and_new_calls_are_refused(
    server_process: ServerProcess, number: signal.Signals
) -> None:
    """New calls get an error that says that a retry may succeed."""
    server_process.settings["STORE_SHUTDOWN_GRACE_SECONDS"] = "60"
    server_process.start()
    async with (
        grpc.aio.insecure_channel(server_process.address) as channel,
        health_stream(channel) as statuses,
    ):
        with writes_held_up(server_process) as other:
            running = await begun(channel, "taken")
            server_process.signal(number)
            await wait_for_not_serving(statuses)
            refused = await expect_error(Stubs(channel).create_post("refused"))
            await eventually(partial(is_refused, server_process.address))
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert not running.done()
            other.execute("ROLLBACK")
        post = await running
        code = await asyncio.to_thread(server_process.wait)

    assert post.body == "taken"
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert refused.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert code == 0
    assert query(server_process.folder / "store.db", "SELECT body FROM posts") == [("taken",)]
    assert events(server_process) == ["serving", "stopping", "stopped"]


@pytest.mark.parametrize("number", SIGNALS)
async def test_connected_clients_and_open_streams_do_not_delay_the_stop(
    server_process: ServerProcess, number: signal.Signals
) -> None:
    """Without running calls the grace period is not used."""
    server_process.settings["STORE_SHUTDOWN_GRACE_SECONDS"] = "600"
    server_process.start()
    async with (
        grpc.aio.insecure_channel(server_process.address) as channel,
        grpc.aio.insecure_channel(server_process.address, [("grpc.use_local_subchannel_pool", 1)]) as another,
        health_stream(channel) as statuses,
        health_stream(another),
    ):
        await Stubs(channel).create_post()
        server_process.signal(number)
        await wait_for_not_serving(statuses)

        assert [status async for status in statuses] == []
        assert await asyncio.to_thread(server_process.wait) == 0
    assert events(server_process)[-2:] == ["stopping", "stopped"]


def watch(
    channel: grpc.aio.Channel, resume_token: str | None = None
) -> AsyncIterator[changes_pb2.WatchResponse]:
    """The responses of a watch that starts from a token, or now."""
    request = changes_pb2.WatchRequest(resume_token=resume_token)
    responses: AsyncIterator[changes_pb2.WatchResponse] = aiter(
        changes_pb2_grpc.ChangeServiceStub(channel).Watch(request)
    )
    return responses


async def bodies_of_next_posts(responses: AsyncIterator[changes_pb2.WatchResponse]) -> list[str]:
    """Waits for changes of posts and returns their bodies."""
    while not (changes := (await anext(responses)).changes):
        pass
    return [change.post.body for change in changes]


@pytest.mark.parametrize("number", SIGNALS)
async def test_watch_ended_by_a_stop_continues_in_the_next_process(
    server_process: ServerProcess, number: signal.Signals
) -> None:
    """Its error has a token after which nothing is lost or repeated."""
    server_process.settings["STORE_SHUTDOWN_GRACE_SECONDS"] = "600"
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        responses = watch(channel)
        await anext(responses)
        await Stubs(channel).create_post("before the stop")
        told_before = await bodies_of_next_posts(responses)
        server_process.signal(number)
        error = await expect_error(bodies_of_next_posts(responses))
        code = await asyncio.to_thread(server_process.wait)
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        await Stubs(channel).create_post("after the stop")
        told_after = await bodies_of_next_posts(watch(channel, error.metadata["resume_token"]))

    assert (told_before, told_after) == (["before the stop"], ["after the stop"])
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert code == 0


async def test_call_longer_than_the_grace_period_does_not_block_the_stop(
    server_process: ServerProcess,
) -> None:
    """The process ends a second later, whatever the database does."""
    server_process.settings |= {"STORE_SHUTDOWN_GRACE_SECONDS": "0.2", "STORE_LOCK_TIMEOUT_SECONDS": "60"}
    server_process.start()
    async with (
        grpc.aio.insecure_channel(server_process.address) as channel,
        health_stream(channel) as statuses,
    ):
        with writes_held_up(server_process):
            running = await begun(channel, "too slow")
            server_process.signal()
            await wait_for_not_serving(statuses)
            code = await asyncio.to_thread(server_process.wait, seconds=20)
        error = await expect_error(running)

    assert code == 0
    assert error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert "calls are still running after the grace period" in events(server_process)
    assert query(server_process.folder / "store.db", "SELECT count(*) FROM posts") == [(0,)]


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
)
async def test_second_signal_stops_at_once(
    server_process: ServerProcess, first: signal.Signals, second: signal.Signals
) -> None:
    """The exit code says that it was a signal."""
    server_process.settings["STORE_SHUTDOWN_GRACE_SECONDS"] = "600"
    server_process.start()
    async with (
        grpc.aio.insecure_channel(server_process.address) as channel,
        health_stream(channel) as statuses,
    ):
        with writes_held_up(server_process):
            running = await begun(channel, "dropped")
            server_process.signal(first)
            await wait_for_not_serving(statuses)
            server_process.signal(second)
            code = await asyncio.to_thread(server_process.wait)
        error = await expect_error(running)

    assert code == 128 + second
    assert error.code == grpc.StatusCode.UNAVAILABLE
    assert events(server_process) == ["serving", "stopping"]


async def test_stopped_server_leaves_a_single_database_file(server_process: ServerProcess) -> None:
    """It can be copied."""
    server_process.start()
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        for number in range(3):
            await Stubs(channel).create_post(str(number))
    server_process.stop()

    alone = server_process.folder / "copy.db"
    alone.write_bytes((server_process.folder / "store.db").read_bytes())
    assert query(alone, "SELECT body FROM posts") == [("0",), ("1",), ("2",)]


def test_single_process_ignores_sighup(server_process: ServerProcess) -> None:
    """It logs that there is no worker to replace."""
    server_process.start()

    server_process.signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP ignored" in server_process.stderr())

    with grpc.insecure_channel(server_process.address) as channel:
        posts = posts_pb2_grpc.PostServiceStub(channel)
        assert posts.CreatePost(
            posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a")), timeout=scaled_timeout()
        ).id
    assert server_process.stop() == 0
