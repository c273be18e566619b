"""A service, its migrations and `check` reach PostgreSQL over a Unix socket, and at one of several hosts."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from store_service.database import connect, schema
from store_service.database.sessions import CurrentServer, Hosts
from store_service.database_url import parse
from store_service.model import PostDraft
from store_service.service.posts import Posts
from tests.support.polling import wait_until
from tests.support.ports import free_port
from tests.support.postgresql import PostgresServer, postgres_server, standby_server
from tests.support.server_process import run_command
from tests.support.timeouts import scaled_timeout
from tests.support.unreliable_proxy import UnreliableProxy


@pytest.fixture(scope="module")
def primary() -> Iterator[PostgresServer]:
    """A server of the module's own, whose database has the schema."""
    with postgres_server() as server:
        schema.upgrade(server.url)
        yield server


@pytest.fixture
async def hanging(primary: PostgresServer) -> AsyncIterator[UnreliableProxy]:
    """A way to the primary that carries the login and stops at the question for the role."""
    network = UnreliableProxy(random.Random(1))
    network.server_address = f"127.0.0.1:{primary.port}"
    network.silent_from = b"pg_is_in_recovery"
    async with network.running():
        yield network


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://postgres@/postgres?host={folder}&port={port}",
        "postgresql://postgres@{quoted}:{port}/postgres",
    ],
)
async def test_unix_socket_connects(primary: PostgresServer, tmp_path: Path, form: str) -> None:
    """Both drivers find the socket in its directory."""
    folder = str(primary.socket_folder)
    url = form.format(folder=folder, quoted=folder.replace("/", "%2F"), port=primary.port)

    for command in ("migrate", "check"):
        done = run_command(
            command, folder=tmp_path, settings={"DATABASE_URL": url, "STORE_LISTEN": "127.0.0.1:0"}
        )
        assert (done.returncode, done.stderr) == (0, "")
    async with connect.open_database(url) as store:
        (post,) = await Posts(store).create([PostDraft(body="a")])
        assert await Posts(store).get(post.id) == post


async def test_writable_host_is_chosen(primary: PostgresServer, tmp_path: Path) -> None:
    """The others are down and a standby. A read-only service uses the first that responds."""
    with standby_server(primary.port) as standby:
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{standby.port},localhost:{primary.port}"
        url = f"postgresql://postgres@{hosts}/postgres"

        for command in ("migrate", "check"):
            done = run_command(
                command, folder=tmp_path, settings={"DATABASE_URL": url, "STORE_LISTEN": "127.0.0.1:0"}
            )
            assert (done.returncode, done.stderr) == (0, "")
        async with connect.open_database(url) as store:
            (post,) = await Posts(store).create([PostDraft(body="a")])
            assert await Posts(store).get(post.id) == post
        async with connect.open_database(url, read_only=True) as store:
            await schema.look(store)


async def test_silent_host_leaves_time_for_the_next(primary: PostgresServer) -> None:
    """Like a host without power: each host has its share of the connect timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{primary.port}"
        async with connect.open_database(
            f"postgresql://postgres@{hosts}/postgres", connect_timeout_seconds=2, readers=1
        ) as store:
            await schema.look(store)


async def test_host_that_hangs_after_login_leaves_time_for_the_next(
    primary: PostgresServer, hanging: UnreliableProxy
) -> None:
    """Like a pooler without its server. The next host serves, and no connection to the first stays
    open.
    """
    url = f"postgresql://postgres@{hanging.address},127.0.0.1:{primary.port}/postgres"

    async with connect.open_database(url, connect_timeout_seconds=2, readers=1) as store:
        await schema.look(store)

        assert hanging.dropped
        await asyncio.to_thread(wait_until, lambda: hanging.connections == 0)


async def test_cancelled_connection_attempt_is_closed(
    primary: PostgresServer, hanging: UnreliableProxy
) -> None:
    """A host that hangs after login keeps no connection after the timeout."""
    url = parse(f"postgresql://postgres@{hanging.address},127.0.0.1:{primary.port}/postgres")
    hosts = Hosts(url, CurrentServer(read_only=False, settings={}), seconds=scaled_timeout())
    attempt = asyncio.create_task(hosts.connect(**url.login, ssl=False))
    await asyncio.to_thread(wait_until, lambda: hanging.dropped)

    attempt.cancel()

    with pytest.raises(asyncio.CancelledError):
        await attempt
    await asyncio.to_thread(wait_until, lambda: hanging.connections == 0)
