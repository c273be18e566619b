"""Exports and imports as streams: callers that do not read or send much, and a server that stops."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from storeapi.v1 import posts_pb2
from storeapi.v1 import transfer_pb2 as pb

from store_service import config as settings
from store_service.config import Config
from store_service.rpc import decoding, sending
from store_service.server import serving
from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.polling import eventually
from tests.support.stoppable_server import StoppableServer, stoppable_server
from tests.support.stubs import NO_READ_AHEAD, Stubs
from tests.support.timeouts import scaled_timeout
from tests.support.transfer import FAIL, export, final_records

BODY_BYTES = 60_000
MANY = 120
"""Posts of that size are 7 MB, far more than gRPC sends ahead."""

IMPORT = "/storeapi.v1.TransferService/Import"

OPTIONS = pb.ImportRequest(options=pb.ImportOptions(on_conflict=FAIL))


@asynccontextmanager
async def stubs_of(config: Config, options: Sequence[tuple[str, Any]] = ()) -> AsyncIterator[Stubs]:
    """The stubs of a server with these settings."""
    async with serving(config) as server, grpc.aio.insecure_channel(server.address, options) as channel:
        yield Stubs(channel)


async def write_much(stubs: Stubs) -> None:
    """Creates posts that an export cannot send ahead."""
    request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="x" * BODY_BYTES))
    for _ in range(MANY // 30):
        await stubs.posts.BatchCreatePosts(posts_pb2.BatchCreatePostsRequest(requests=[request] * 30))


def post(id: int, body: str = "imported") -> Any:
    return pb.Record(post={"id": id, "body": body, "etag": "v1", "create_time": {"seconds": id}})


def batch(number: int, records: int = 1, body: str = "imported") -> Any:
    first = 1000 * number
    return pb.ImportRequest(batch=number, records=[post(first + n, body) for n in range(records)])


async def rest_of(call: Any) -> tuple[list[Any], Any]:
    """The responses that are left, and the error with which the call ends."""
    read: list[Any] = []

    async def read_on() -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            read.append(response)

    return read, await expect_error(read_on())


async def begin_import(stubs: Stubs, *requests: Any) -> Any:
    """An import that has sent these requests after the options."""
    call = stubs.transfers.Import()
    for request in (OPTIONS, *requests):
        await call.write(request)
    return call


async def accepted(begin: Callable[[], Any]) -> Any:
    """The first response of a stream, which is begun again until it is not OVERLOADED."""
    async with asyncio.timeout(scaled_timeout()):
        while isinstance(outcome := await result_or_error(first_of(begin())), grpc.RpcError):
            assert received_error(outcome).reason == "OVERLOADED"
            await asyncio.sleep(0.02)
        return outcome


async def first_of(call: Any) -> Any:
    response = await call.read()
    call.cancel()
    return response


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "STALL_SECONDS", 0.5)


# Callers that do not read


async def test_stalled_export_is_ended_and_frees_its_place(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After STALL_SECONDS. Other calls are served meanwhile, and it continues from the last cursor."""
    shorten(monkeypatch)
    one_stream = config.model_copy(update={"max_concurrent_calls": 1})
    async with stubs_of(one_stream, NO_READ_AHEAD) as stubs:
        await write_much(stubs)
        stalled = stubs.transfers.Export(pb.ExportRequest())
        first = await stalled.read()
        refused = await expect_error(first_of(stubs.transfers.Export(pb.ExportRequest())))
        assert refused.reason == "OVERLOADED"
        await stubs.create_post("meanwhile")
        await accepted(lambda: stubs.transfers.Export(pb.ExportRequest()))

        read, error = await rest_of(stalled)
        read.insert(0, first)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_STALLED")
        assert sum(len(it.records) for it in read) < MANY
        read += await export(stubs, cursor=read[-1].cursor)
        assert final_records(read) == final_records(await export(stubs))
        assert read[-1].totals.posts == MANY + 1


# A server that stops


@asynccontextmanager
async def never_waiting(database_url: str) -> AsyncIterator[tuple[StoppableServer, Stubs]]:
    """A server whose stop lasts an hour if it waits for a stream."""
    config = settings.load(DATABASE_URL=database_url, listen="127.0.0.1:0", shutdown_grace_seconds=3600)
    async with (
        stoppable_server(config) as server,
        grpc.aio.insecure_channel(server.running.address, NO_READ_AHEAD) as channel,
    ):
        yield server, Stubs(channel)


async def stopped(server: StoppableServer) -> None:
    async with asyncio.timeout(scaled_timeout()):
        await server.stop()


async def test_stopping_server_ends_an_export(config: Config, database_url: str) -> None:
    """With SHUTTING_DOWN. Another server continues from the last cursor."""
    async with never_waiting(database_url) as (server, stubs):
        await write_much(stubs)
        call = stubs.transfers.Export(pb.ExportRequest())
        read = [await call.read(), await call.read()]
        stopping = asyncio.create_task(stopped(server))
        await eventually(lambda: server.running.pipeline._draining)
        # The status is behind what was sent before, so it arrives only at a reader that reads.
        more, error = await rest_of(call)
        await stopping
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    read += more
    assert sum(len(it.records) for it in read) < MANY

    async with stubs_of(config) as stubs:
        read += await export(stubs, cursor=read[-1].cursor)
        assert final_records(read) == final_records(await export(stubs))


@pytest.mark.parametrize("sent", [0, 1, 3])
async def test_stopping_server_ends_an_import(config: Config, database_url: str, sent: int) -> None:
    """With SHUTTING_DOWN. Each batch with a response is stored; the others can be repeated."""
    batches = [batch(number, 100) for number in range(1, sent + 1)]
    async with never_waiting(database_url) as (server, stubs):
        call = await begin_import(stubs, *batches)
        if sent:
            assert (await call.read()).batch == 1
        else:
            await stubs.create_post()
        await stopped(server)
        answered, error = await rest_of(call)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")

    async with stubs_of(config) as stubs:
        call = await begin_import(stubs, *batches)
        await call.done_writing()
        results = [it.result async for it in call]
        for number, result in enumerate(results):
            assert result.created + result.unchanged == 100
            if number < len(answered) + 1:
                assert result.unchanged == 100


# Callers that send much


@pytest.mark.parametrize("sent", [0, 1])
async def test_import_that_sends_nothing_is_ended(
    config: Config, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    """The batches before it are stored and answered."""
    monkeypatch.setattr(decoding, "RECEIVE_SECONDS", 2.0)
    async with stubs_of(config) as stubs:
        call = await begin_import(stubs, *[batch(number) for number in range(1, sent + 1)])
        read, error = await rest_of(call)
        await stubs.create_post()

    assert [it.batch for it in read] == list(range(1, sent + 1))
    assert error.reason == "STREAM_STALLED"
    assert "has sent nothing" in error.message


async def test_unfinished_imports_are_limited_together(config: Config) -> None:
    """By the bytes of their batches: others get OVERLOADED. An ended import frees its bytes."""
    large = batch(1, 20, "x" * BODY_BYTES)
    limited = config.model_copy(update={"max_concurrent_bytes": large.ByteSize() * 3 // 2})
    async with stubs_of(limited) as stubs:
        open_call = await begin_import(stubs, large)
        assert (await open_call.read()).result.created == 20

        refused = await begin_import(stubs, large)
        error = (await rest_of(refused))[1]
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        # Small requests are never refused.
        small = await begin_import(stubs, batch(2))
        assert (await small.read()).result.created == 1
        small.cancel()

        open_call.cancel()

        async def begin() -> Any:
            return await (await begin_import(stubs, large)).read()

        async with asyncio.timeout(scaled_timeout()):
            while isinstance(outcome := await result_or_error(begin()), grpc.RpcError):
                assert received_error(outcome).reason == "OVERLOADED"
        assert outcome.result.unchanged == 20
