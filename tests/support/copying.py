"""A store that is copied to another database: callers, and what both databases have."""

import asyncio
import itertools
import os
import random
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import storeapi
from sqlalchemy import Connection, text

from store_service.database import schema
from store_service.database.connect import is_sqlite
from store_service.database.former_stores import SHIFT
from store_service.database.tables import metadata
from tests.support.database import database_connection
from tests.support.erasure import ANONYMIZE, create_world
from tests.support.forked_process import start_module
from tests.support.postgresql import new_database
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

NOT_COPIED = {"feed", "search_index", "post_search", "comment_search"}

Rows = dict[str, list[tuple[Any, ...]]]


def stored_rows(database_url: str) -> Rows:
    """All rows of the tables of the service, ordered by all columns. Copied transactions have their former
    numbers."""
    found: Rows = {}
    with database_connection(database_url) as connection:
        for table in metadata.sorted_tables:
            if table.name in NOT_COPIED:
                continue
            names = ", ".join(it.name for it in table.columns)
            rows = [tuple(it) for it in connection.execute(text(f"SELECT {names} FROM {table.name}"))]
            if table.name == "changes":
                rows = [(seq, xid + SHIFT if xid < 0 else xid, *rest) for seq, xid, *rest in rows]
            found[table.name] = sorted(rows, key=repr)
    return found


def tables_in(database_url: str) -> set[str]:
    """The names of all tables and triggers of a copy, and of the service."""
    kind = "type IN ('table', 'trigger')"
    statement = (
        f"SELECT name FROM sqlite_master WHERE {kind}"
        if is_sqlite(database_url)
        else "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        " UNION SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"
    )
    with database_connection(database_url) as connection:
        return {name for (name,) in connection.exec_driver_sql(statement)}


def schema_in(database_url: str) -> set[tuple[str, str]]:
    """The names and definitions of all indexes, triggers and constraints, and of the tables of SQLite."""
    statement = (
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        if is_sqlite(database_url)
        else "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace"
        " UNION SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        " UNION SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal"
    )
    with database_connection(database_url) as connection:
        return {(name, sql) for name, sql in connection.exec_driver_sql(statement)}


@contextmanager
def empty_database(engine: str, folder: Path, server_url: str) -> Iterator[str]:
    """The URL of a database without tables, and for SQLite of a file that does not exist."""
    if engine == "sqlite":
        yield f"sqlite:///{folder / f'{uuid.uuid4().hex}.db'}"
        return
    with new_database(server_url) as url:
        yield url


@contextmanager
def served(database_url: str, folder: Path, **settings: str) -> Iterator[ServerProcess]:
    """A server process on a database."""
    folder.mkdir(exist_ok=True)
    process = ServerProcess(folder, {"DATABASE_URL": database_url, **settings})
    schema.upgrade(database_url)
    try:
        yield process.start()
    finally:
        process.kill()


def begin_copy(
    source: str, target: str, *options: str, folder: Path, program: str = ""
) -> "subprocess.Popen[str]":
    """Starts `store-service copy`. `program` changes constants before, and runs in a new process."""
    environment = os.environ | {"STORE_LISTEN": "127.0.0.1:0"}
    arguments = ("copy", source, target, *options)
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    if not program:
        del pipes["stdin"]
        return start_module(
            "store_service", *arguments, folder=folder, environment=environment, text=True, **pipes
        )
    code = f"{program}\nfrom store_service.cli import main\nmain()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)


def run_copy(source: str, target: str, *options: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Runs `store-service copy` to its end."""
    with begin_copy(source, target, *options, folder=folder) as process:
        try:
            stdout, stderr = process.communicate(timeout=scaled_timeout(240))
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@dataclass
class Load:
    """Callers that write at a fixed rate, through a client that retries."""

    client: Any
    per_second: float
    chance: random.Random = field(default_factory=lambda: random.Random(18))
    bodies: dict[int, str] = field(default_factory=dict)
    """The bodies of posts that were acknowledged and not deleted, by id."""
    requests: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    """The ids of posts that were created, and the arguments, by request id."""
    writes: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    callers: "list[asyncio.Task[None]]" = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Writes until the end of the block. A call that fails is raised there."""
        numbers = itertools.count()
        self.callers = [asyncio.create_task(self._call(numbers)) for _ in range(8)]
        try:
            yield self
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Returns when the running calls have ended."""
        self.stopping.set()
        await asyncio.gather(*self.callers)

    async def _call(self, numbers: Iterator[int]) -> None:
        loop = asyncio.get_running_loop()
        due_at = loop.time()
        while not self.stopping.is_set():
            await self._write(next(numbers))
            self.writes += 1
            due_at = max(due_at + 8 / self.per_second, loop.time() - 1)
            await asyncio.sleep(due_at - loop.time())

    async def _write(self, number: int) -> None:
        posts = self.client.posts
        own = [*self.bodies]
        action = self.chance.random()
        if action < 0.6 or not own:
            request_id = str(uuid.uuid4())
            body = f"load {number}"
            labels = {"n": str(number % 7)} if number % 3 == 0 else {}
            arguments = {"body": body, "external_id": f"load {uuid.uuid4()}", "labels": labels}
            post = await posts.create(**arguments, request_id=request_id)
            self.bodies[post.id] = body
            self.requests[request_id] = (post.id, arguments)
        elif action < 0.8:
            id = self.chance.choice(own)
            body = self.bodies.pop(id)  # No other caller changes it meanwhile.
            await posts.update(id, body=f"{body} again")
            self.bodies[id] = f"{body} again"
        elif action < 0.9:
            id = self.chance.choice(own)
            del self.bodies[id]
            await posts.delete(id, force=True)
        else:
            id = self.chance.choice(own)
            body = self.bodies.pop(id)
            await self.client.comments.create(post_id=id, body=f"to {body}", author="bob")
            self.bodies[id] = body


@dataclass
class Watcher:
    """A consumer that continues where it was interrupted."""

    client: Any
    seen: list[tuple[Any, ...]] = field(default_factory=list)
    task: "asyncio.Task[None]" = field(init=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Watcher"]:
        """Receives changes until the end of the block. An error of the watch is raised there."""
        watch = self.client.changes.watch(start="earliest", heartbeat_seconds=1)
        self.task = asyncio.create_task(self._follow(watch))
        try:
            yield self
        finally:
            await watch.close()
            await self.task

    async def _follow(self, watch: Any) -> None:
        async for change in watch:
            self.seen.append(summary(change))


def summary(change: storeapi.Change) -> tuple[Any, ...]:
    """What identifies a change."""
    assert change.resource is not None
    return change.kind, change.id, change.action, change.resource.etag, change.request_id, change.commit_time


async def all_changes(client: Any, count: int) -> list[tuple[Any, ...]]:
    """The first `count` changes that are kept."""
    async with client.changes.watch(start="earliest") as watch:
        return [summary(await anext(watch)) for _ in range(count)]


def add_many_rows(connection: Connection, count: int) -> None:
    """Stores posts and comments with bodies of 200 characters, half of each, with their changes."""
    numbers = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)"
    times = "1700000000000000, 1700000000000000"
    body = "'row ' || n || ' ' || :text"
    values = {"count": count // 2, "text": "a text of some words " * 9}
    for statement in (
        f"INSERT INTO posts (body, create_time, update_time, author) {numbers}"
        f" SELECT {body}, {times}, 'user-' || n % 1000 FROM numbers",
        f"INSERT INTO comments (body, create_time, update_time, author, post_id) {numbers}"
        f" SELECT {body}, {times}, 'user-' || n % 1000, n FROM numbers",
    ):
        connection.execute(text(statement), values)


async def fill(address: str) -> None:
    """Creates posts, comments, deleted ones, tombstones and revisions."""
    async with grpc.aio.insecure_channel(address) as channel:
        await create_world(Stubs(channel), mode=ANONYMIZE)
