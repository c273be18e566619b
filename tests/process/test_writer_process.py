"""Several workers on SQLite: what one of them writes through the writer process, and what the others see."""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from storeapi.v1 import comments_pb2, posts_pb2, transfer_pb2

from tests.support.errors import expect_error, received_error, result_or_error
from tests.support.polling import eventually, wait_until
from tests.support.server_process import ServerProcess, run_command
from tests.support.stubs import Stubs
from tests.support.watches import CREATE, watch_from_now
from tests.support.worker_processes import (
    create_post_on_new_connection,
    kill_processes,
    worker_pids,
    writer_pids,
)

WORKERS = 3


@pytest.fixture
def service(database_file: Path) -> Iterator[ServerProcess]:
    """A supervisor of WORKERS workers on a SQLite file; not started yet."""
    process = ServerProcess(database_file.parent, {"STORE_WORKERS": str(WORKERS)})
    yield process
    process.kill()


@asynccontextmanager
async def channel_to_each_worker(service: ServerProcess) -> AsyncIterator[list[grpc.aio.Channel]]:
    """A channel to each worker. The kernel assigns connections; the id of a call begins with the process."""
    async with AsyncExitStack() as stack:
        found: dict[str, grpc.aio.Channel] = {}
        while len(found) < WORKERS:
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(service.address, [("grpc.use_local_subchannel_pool", 1)])
            )
            call = Stubs(channel).posts.CountPosts(posts_pb2.CountPostsRequest())
            await call
            process, _, _ = dict(await call.trailing_metadata())["x-call-id"].partition("-")
            found.setdefault(process, channel)
        yield list(found.values())


async def test_write_on_one_worker_is_read_on_each_other(service: ServerProcess) -> None:
    """As soon as it is acknowledged."""
    service.start()
    async with channel_to_each_worker(service) as channels:
        for number in range(30):
            for writing in channels:
                post = await Stubs(writing).create_post(f"{number}")
                for reading in channels:
                    read = await Stubs(reading).posts.GetPost(posts_pb2.GetPostRequest(id=post.id))
                    assert read == post
    assert service.stop() == 0
    assert "Traceback" not in service.stderr()


async def test_request_id_has_one_effect_on_all_workers(service: ServerProcess) -> None:
    """Also at the same time."""
    service.start()
    async with channel_to_each_worker(service) as channels:
        for _ in range(20):
            request = posts_pb2.CreatePostRequest(
                post=posts_pb2.Post(body="once"), request_id=str(uuid.uuid4())
            )
            first, *others = await asyncio.gather(*(Stubs(it).posts.CreatePost(request) for it in channels))
            assert others == [first] * (WORKERS - 1)
        count = await Stubs(channels[0]).posts.CountPosts(posts_pb2.CountPostsRequest())
    assert count.count == 20


async def test_watch_on_each_worker_sees_all_changes_in_order(service: ServerProcess) -> None:
    service.start()
    async with channel_to_each_worker(service) as channels, AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(watch_from_now(it)) for it in channels]

        async def write(stubs: Stubs) -> None:
            for number in range(40):
                await stubs.create_post(f"{number}")

        await asyncio.gather(*(write(Stubs(it)) for it in channels))
        seen = [[it.post.id for it in await watch.changes(40 * WORKERS)] for watch in watches]

    assert seen == [list(range(1, 40 * WORKERS + 1))] * WORKERS


async def test_watch_is_notified_by_another_worker(service: ServerProcess) -> None:
    """Polls of the feed would come too late."""
    program = "from store_service.service import feed; feed.POLL_SECONDS = 1e6"
    service.folder.joinpath("sitecustomize.py").write_text(program)
    service.settings["PYTHONPATH"] = str(service.folder)
    service.start()
    async with channel_to_each_worker(service) as channels, watch_from_now(channels[0]) as watch:
        for other in channels[1:]:
            post = await Stubs(other).create_post()
            (change,) = await watch.changes(1)
            assert (change.action, change.post.id) == (CREATE, post.id)


async def test_import_on_one_worker_is_read_on_each_other(service: ServerProcess) -> None:
    service.start()
    record = transfer_pb2.Record(post=posts_pb2.Post(id=7, body="imported"))
    async with channel_to_each_worker(service) as channels:
        request = transfer_pb2.ImportRecordsRequest(
            records=[record], on_conflict=transfer_pb2.CONFLICT_POLICY_FAIL
        )
        done = await Stubs(channels[0]).transfers.ImportRecords(request)
        for it in channels[1:]:
            post = await Stubs(it).posts.GetPost(posts_pb2.GetPostRequest(id=7))
            assert post.body == "imported"

    assert done.result.created == 1


async def test_errors_have_the_details_of_a_single_process(service: ServerProcess, tmp_path: Path) -> None:
    """Errors of the writer process arrive with everything that callers get."""
    alone = tmp_path / "alone"
    alone.mkdir()
    single = ServerProcess(alone).start()
    service.start()
    try:
        found = []
        for address in (service.address, single.address):
            async with grpc.aio.insecure_channel(address) as channel:
                found.append(await errors_of_writes(Stubs(channel)))
    finally:
        single.kill()

    assert found[0] == found[1]
    assert [it.reason for it in found[0]] == [
        "POST_NOT_FOUND",
        "ETAG_MISMATCH",
        "POST_HAS_COMMENTS",
        "EXTERNAL_ID_TAKEN",
        "REQUEST_ID_REUSED",
        "POST_NOT_FOUND",
    ]


async def errors_of_writes(stubs: Stubs) -> list[object]:
    """Errors that the writer finds, without the ids of the calls."""
    post = await stubs.create_post()
    await stubs.create_comment(post.id)
    id = str(uuid.uuid4())
    create = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a", external_id="x"))
    once = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="a"), request_id=id)
    other = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="b"), request_id=id)
    await stubs.posts.CreatePost(create)
    await stubs.posts.CreatePost(once)
    update = posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=post.id, body="b", etag="v9"))
    update.update_mask.paths.append("body")
    comment = comments_pb2.Comment(post_id=99, body="c")
    calls = [
        stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=99)),
        stubs.posts.UpdatePost(update),
        stubs.posts.DeletePost(posts_pb2.DeletePostRequest(id=post.id)),
        stubs.posts.CreatePost(create),
        stubs.posts.CreatePost(other),
        stubs.comments.CreateComment(comments_pb2.CreateCommentRequest(comment=comment)),
    ]
    errors = [await expect_error(call) for call in calls]
    for error in errors:
        error.trailing.clear()
    return errors


async def test_cancelled_calls_leave_the_writer_free(service: ServerProcess) -> None:
    """Many callers leave at once; the others get their responses."""
    service.start()
    async with channel_to_each_worker(service) as channels:
        stubs = [Stubs(it) for it in channels]
        calls = [asyncio.ensure_future(it.create_post(f"{n}")) for n in range(100) for it in stubs]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        for call in calls[::2]:
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert not [it for it in done[1::2] if isinstance(it, BaseException)]
        post = await stubs[0].create_post("after")
        count = await stubs[0].posts.CountPosts(posts_pb2.CountPostsRequest())
    assert service.stop() == 0
    assert len(done) // 2 < count.count <= post.id
    assert "Traceback" not in service.stderr()


async def test_large_batches_and_small_writes_share_the_writer(service: ServerProcess) -> None:
    """Batches near the maximum of a request, and small calls between them."""
    service.start()
    async with channel_to_each_worker(service) as channels:
        large = posts_pb2.BatchCreatePostsRequest(
            requests=[posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="x" * 60_000))] * 60
        )
        batches = [asyncio.ensure_future(Stubs(it).posts.BatchCreatePosts(large)) for it in channels * 3]
        small = 0
        while not all(it.done() for it in batches):
            for channel in channels:
                await Stubs(channel).create_post("small")
                small += 1
        created = await asyncio.gather(*batches)
        count = await Stubs(channels[0]).posts.CountPosts(posts_pb2.CountPostsRequest())
    assert [len(it.posts) for it in created] == [60] * len(batches)
    assert count.count == small + 60 * len(batches)


def test_killed_writer_process_is_replaced_at_once(service: ServerProcess) -> None:
    """Workers stay, and further writes succeed."""
    service.start()
    workers = worker_pids(service)
    for number in range(3):
        (writer,) = writer_pids(service)
        os.kill(writer, signal.SIGKILL)
        wait_until(lambda starts=number + 2: service.stderr().count("writer process serves") == starts)
        post = create_post_on_new_connection(service.address, f"{number}")
        assert post.id == number + 1
    assert worker_pids(service) == workers
    assert service.stop() == 0
    assert "Traceback" not in service.stderr()


async def test_write_without_a_writer_process_fails_after_a_while(service: ServerProcess) -> None:
    """Health follows the writer, and reads succeed meanwhile."""
    service.start()
    (writer,) = writer_pids(service)
    async with grpc.aio.insecure_channel(service.address) as channel:
        stubs = Stubs(channel)
        post = await stubs.create_post()
        # A writer process without a file does not start.
        database = service.folder / "store.db"
        database.rename(service.folder / "elsewhere.db")
        os.kill(writer, signal.SIGKILL)
        refused = await expect_error(stubs.create_post())
        read = await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id))

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert read == post
    assert not database.exists()


async def test_end_of_the_writer_process_fails_what_was_sent(service: ServerProcess) -> None:
    """With UNAVAILABLE; nothing that was acknowledged is lost."""
    service.start()
    async with channel_to_each_worker(service) as channels:
        calls = [
            asyncio.ensure_future(result_or_error(Stubs(it).create_post(f"{n}")))
            for n in range(100)
            for it in channels
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        kill_processes(writer_pids(service))
        done = await asyncio.gather(*calls)
        created = [it for it in done if isinstance(it, posts_pb2.Post)]
        failed = [received_error(it) for it in done if not isinstance(it, posts_pb2.Post)]
        for post in created:
            assert await Stubs(channels[0]).posts.GetPost(posts_pb2.GetPostRequest(id=post.id)) == post

    assert {(it.code, it.reason) for it in failed} <= {(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")}
    assert created


def test_service_starts_again_after_its_supervisor_is_killed(service: ServerProcess) -> None:
    """At once: it waits for the processes that still hold the lock."""
    for number in range(3):
        service.start()
        assert create_post_on_new_connection(service.address, "a").id == number + 1
        service.kill()
    service.start()
    assert service.stop() == 0


def test_second_service_does_not_start(service: ServerProcess) -> None:
    """Neither does one process; each of them would write."""
    service.start()
    done = run_command("serve", folder=service.folder, settings={"STORE_LISTEN": "127.0.0.1:0"})

    assert done.returncode == 1
    assert done.stderr.startswith("store-service: another store-service is using")
    assert run_command("check", folder=service.folder).stdout.count("database: in use") == 1


def test_lock_is_held_until_the_last_process_has_ended(service: ServerProcess) -> None:
    """A single process does not start beside a writer whose supervisor was killed."""
    service.settings["STORE_SHUTDOWN_DELAY_SECONDS"] = "600"
    service.start()
    pids = [*worker_pids(service), *writer_pids(service)]
    try:
        service.kill()
        done = run_command("serve", folder=service.folder, settings={"STORE_LISTEN": "127.0.0.1:0"})
        assert done.stderr.startswith("store-service: another store-service is using")
    finally:
        kill_processes(pids)


def test_backup_and_restore_work_with_workers(service: ServerProcess) -> None:
    service.start()
    post = create_post_on_new_connection(service.address, "kept")
    saved = run_command("backup", "saved.db", folder=service.folder)
    refused = run_command("restore", "saved.db", folder=service.folder)
    create_post_on_new_connection(service.address, "lost")
    assert service.stop() == 0
    restored = run_command("restore", "saved.db", folder=service.folder)
    service.start()

    assert (saved.returncode, restored.returncode) == (0, 0), (saved.stderr, restored.stderr)
    assert refused.returncode == 1
    assert "another store-service is using" in refused.stderr
    assert create_post_on_new_connection(service.address, "next").id == post.id + 1


async def test_erasure_rewrites_the_file_beside_the_readers_of_all_workers(service: ServerProcess) -> None:
    """VACUUM, and a checkpoint that no connection of another process prevents."""
    service.start()
    async with channel_to_each_worker(service) as channels:
        for channel in channels:
            request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body="personal words", author="ann"))
            await Stubs(channel).posts.CreatePost(request)
    command = ("erase", "ann", "--mode", "delete", "--yes", "--address", service.address)
    done = await asyncio.to_thread(run_command, *command, folder=service.folder)

    assert done.returncode == 0, done.stderr
    for name in ("store.db", "store.db-wal"):
        assert b"personal words" not in (service.folder / name).read_bytes()


async def test_reload_replaces_workers_and_writer(service: ServerProcess) -> None:
    service.start()
    before = [*worker_pids(service), *writer_pids(service)]
    service.signal(signal.SIGHUP)
    await eventually(lambda: "restarted workers" in service.stderr())
    after = [*worker_pids(service), *writer_pids(service)]

    assert len(after) == len(before) == WORKERS + 1
    assert not set(after) & set(before)
    assert create_post_on_new_connection(service.address, "a").id == 1
    assert service.stop() == 0
    assert "writer process lost" not in service.stderr()
