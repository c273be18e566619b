"""What the modules of this folder share: both services in the same words, raw calls, a look into the file."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Connection, text
from storeapi.v1 import comments_pb2, posts_pb2

from store_service.config import Config
from store_service.database import job_queue, workers
from store_service.database.connect import is_sqlite, sync_engine
from store_service.server import RunningServer, service_descriptors, serving
from tests.patience import patience
from tests.support import Stubs

ONE_ENGINE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For tests of what never reaches the database; all others run on each engine."""

ON_POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
"""For tests of what SQLite has not: several processes on one database, or transactions at once."""

METHODS: list[MethodDescriptor] = [method for service in service_descriptors() for method in service.methods]
"""Every method of the contract; each takes one request, and Watch answers more than once."""


def path_of(method: MethodDescriptor) -> str:
    """What a method is called on the wire."""
    return f"/{method.containing_service.full_name}/{method.name}"


_STREAMS = {path_of(method) for method in METHODS if method.server_streaming}


def request_class(method: MethodDescriptor) -> type[Message]:
    """What a method takes."""
    return GetMessageClass(method.input_type)


def response_class(method: MethodDescriptor) -> type[Message]:
    """What a method answers."""
    return GetMessageClass(method.output_type)


def send_bytes(channel: grpc.aio.Channel, path: str, data: bytes) -> Any:
    """Calls a method with bytes instead of a message; the answer, of a stream the first one, is bytes too."""
    # Without serializers bytes go as they are.
    multi_callable: Any = channel.unary_stream(path) if path in _STREAMS else channel.unary_unary(path)
    call = multi_callable(data)
    return _first_of(call) if path in _STREAMS else call


async def _first_of(stream: Any) -> Any:
    """The first answer of a stream, which is not listened to any longer."""
    try:
        return await stream.read()
    finally:
        stream.cancel()


class Side:
    """One of the two services. What is true of posts and of comments is said once, of a side."""

    def __init__(self, name: str, stubs: Stubs, *, post_id: int = 0) -> None:
        """Takes Post or Comment, and for comments the post that new ones belong to."""
        self.name = name
        self.field = name.lower()
        self.plural = f"{self.field}s"
        self.pb = posts_pb2 if name == "Post" else comments_pb2
        self.stub = stubs.posts if name == "Post" else stubs.comments
        self.post_id = post_id

    @property
    def not_found(self) -> str:
        return f"{self.field.upper()}_NOT_FOUND"

    def resource(self, **fields: Any) -> Any:
        return getattr(self.pb, self.name)(**fields)

    def draft(self, body: str = "a body", **fields: Any) -> Any:
        """What can be created."""
        return self.resource(body=body, **({"post_id": self.post_id} if self.post_id else {}) | fields)

    def call(self, method: str, **fields: Any) -> Any:
        """Calls the method with the request of its name."""
        return getattr(self.stub, method)(getattr(self.pb, f"{method}Request")(**fields))

    def create(self, resource: Any, **options: Any) -> Any:
        return self.call(f"Create{self.name}", **{self.field: resource}, **options)

    def get(self, id: int) -> Any:
        return self.call(f"Get{self.name}", id=id)

    def page(self, **options: Any) -> Any:
        return self.call(f"List{self.name}s", **options)

    def update(self, resource: Any, paths: Sequence[str] = (), **options: Any) -> Any:
        mask = {"update_mask": FieldMask(paths=paths)} if paths else {}
        return self.call(f"Update{self.name}", **{self.field: resource}, **mask, **options)

    def delete(self, id: int, **options: Any) -> Any:
        return self.call(f"Delete{self.name}", id=id, **options)

    def batch_get(self, ids: Sequence[int], **options: Any) -> Any:
        return self.call(f"BatchGet{self.name}s", ids=ids, **options)

    def batch_create(self, resources: Sequence[Any], **options: Any) -> Any:
        request = getattr(self.pb, f"Create{self.name}Request")
        requests = [request(**{self.field: resource}) for resource in resources]
        return self.call(f"BatchCreate{self.name}s", requests=requests, **options)

    def batch_delete(self, ids: Sequence[int], **options: Any) -> Any:
        return self.call(f"BatchDelete{self.name}s", ids=ids, **options)

    def of(self, answer: Any) -> list[Any]:
        """The posts or comments in an answer."""
        return list(getattr(answer, self.plural))

    async def stored(self, body: str = "a body") -> Any:
        """A new one."""
        return await self.create(self.draft(body))

    async def several(self, count: int, body: str = "a body") -> list[Any]:
        """Many new ones."""
        return self.of(await self.batch_create([self.draft(f"{body} {n}") for n in range(count)]))

    async def all_pages(self, **options: Any) -> list[list[Any]]:
        """Every page of a list."""
        return await self.all_pages_after("", **options)

    async def all_pages_after(self, token: str, **options: Any) -> list[list[Any]]:
        """Every page from a token on."""
        pages = []
        while True:
            answer = await self.page(page_token=token, **options)
            pages.append(self.of(answer))
            token = answer.next_page_token
            if not token:
                return pages


@dataclass(frozen=True)
class Contents:
    """Every row of the file."""

    posts: tuple[tuple[Any, ...], ...]
    comments: tuple[tuple[Any, ...], ...]
    changes: tuple[tuple[Any, ...], ...]
    """What the feed tells of them."""


def contents(database_url: str) -> Contents:
    """What is in the database now, read past the server."""
    with connected(database_url) as connection:
        posts = connection.execute(text("SELECT * FROM posts ORDER BY id"))
        comments = connection.execute(text("SELECT * FROM comments ORDER BY id"))
        changes = connection.execute(text("SELECT * FROM changes ORDER BY seq"))
        return Contents(
            posts=tuple(map(tuple, posts)),
            comments=tuple(map(tuple, comments)),
            changes=tuple(map(tuple, changes)),
        )


@contextmanager
def connected(database_url: str) -> Iterator[Connection]:
    """A connection past the server; what is done on it is committed at the end of the block."""
    engine = sync_engine(database_url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def locked(database_url: str) -> Iterator[None]:
    """Keeps the server from writing, as another process would that holds the lock; reads go on."""
    lock = "BEGIN IMMEDIATE" if is_sqlite(database_url) else "LOCK TABLE posts, comments IN EXCLUSIVE MODE"
    engine = sync_engine(database_url)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(lock)
            yield
            connection.rollback()
    finally:
        engine.dispose()


class Taken:
    """Watches the lanes of writers: which work they have taken, and what still waits. It changes nothing.

    Not those that read, where the service has work of its own: watches and health look by the clock.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Looks over the shoulder of every such lane from now on."""
        self.arguments: list[Any] = []
        self._lanes: set[workers.Lane] = set()
        do, take = workers.Lane.do, job_queue.JobQueue.take

        def watched_do(lane: workers.Lane, *arguments: Any, **options: Any) -> Any:
            if lane._writes:
                self._lanes.add(lane)
            return do(lane, *arguments, **options)

        def watched_take(queue: job_queue.JobQueue) -> list[job_queue.Job]:
            batch = take(queue)
            if any(queue is lane._waiting for lane in self._lanes):
                self.arguments += [job.argument for job in batch]
            return batch

        monkeypatch.setattr(workers.Lane, "do", watched_do)
        monkeypatch.setattr(job_queue.JobQueue, "take", watched_take)

    @property
    def arrived(self) -> int:
        """How much work has come in so far, taken or not."""
        return len(self.arguments) + sum(len(lane._waiting) for lane in self._lanes)

    async def arrive(self, count: int, *, since: int) -> None:
        """Waits until so much work has come in since `arrived` was `since`."""
        await become(lambda: self.arrived >= since + count)


async def become(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Lets everything else run until the condition holds; for what no event tells of."""
    async with asyncio.timeout(patience(seconds)):
        while not condition():  # noqa: ASYNC110  # there is no event; see above
            await asyncio.sleep(0.002)


@dataclass
class StoppableServer:
    """A server that is stopped in the middle of a test."""

    running: RunningServer
    stop_now: asyncio.Event
    task: "asyncio.Task[None]"

    def stop(self) -> "asyncio.Task[None]":
        """Begins to stop; the task ends when the server has."""
        self.stop_now.set()
        return self.task


@asynccontextmanager
async def stoppable(config: Config) -> AsyncIterator[StoppableServer]:
    """A server that serves until `stop`, or until the end of the block."""
    ready: asyncio.Future[RunningServer] = asyncio.get_running_loop().create_future()
    stop_now = asyncio.Event()

    async def serve() -> None:
        async with serving(config) as running:
            ready.set_result(running)
            await stop_now.wait()

    task = asyncio.create_task(serve())
    await asyncio.wait([ready, task], return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        await task
    try:
        yield StoppableServer(ready.result(), stop_now, task)
    finally:
        stop_now.set()
        await task


async def outcome_of(call: Awaitable[Any]) -> Any:
    """The answer of a call, or its error."""
    try:
        return await call
    except grpc.RpcError as error:
        return error


async def together(
    taken: Taken, side: Side, database_url: str, calls: Sequence[Callable[[], Awaitable[Any]]]
) -> list[Any]:
    """Makes calls that ride in one batch of the writer, in this order; returns their answers and errors."""
    before = taken.arrived
    with locked(database_url):
        # Holds up the writer with nothing but itself, so that all that comes next waits for one batch.
        first = asyncio.ensure_future(side.create(side.draft(), validate_only=True))
        await taken.arrive(1, since=before)
        riding = []
        for call in calls:
            riding.append(asyncio.ensure_future(outcome_of(call())))
            await taken.arrive(1 + len(riding), since=before)
    await first
    return await asyncio.gather(*riding)
