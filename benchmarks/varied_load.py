"""Makes a load of different calls, which h2load cannot make.

    python -m benchmarks.varied_load HOST:PORT get|batch_get|mixed CONNECTIONS STREAMS CALLS [--http1]

prints the results as JSON. It is a separate program, so that it has its own core.
"""

import argparse
import asyncio
import random
import sys
import time

import uvloop
from google.protobuf.message import Message
from storeapi.v1 import posts_pb2 as pb

from benchmarks.connections import Connection, Http1Connection, Http2Connection, Work, grpc_call, http1_call
from benchmarks.loads import LOAD_SECONDS, Load, percentile
from benchmarks.workloads import BATCH_POSTS, CREATE, HTTP_CREATE, SEEDED_POSTS, Mix

DIFFERENT_CALLS = 10_000
READS_FOR_A_WRITE = 9


def calls_of(mix: Mix, address: str, *, http1: bool) -> list[tuple[bytes, ...]]:
    """Returns the bytes of each call, the same ones in every run."""
    # A fixed seed chooses the same posts in every run.
    choose = random.Random(1)  # noqa: S311
    calls = []
    for number in range(DIFFERENT_CALLS if mix != "batch_get" else DIFFERENT_CALLS // 10):
        writes = mix == "mixed" and number % (READS_FOR_A_WRITE + 1) == READS_FOR_A_WRITE
        id = choose.randint(1, SEEDED_POSTS)
        if http1:
            calls.append(
                http1_call(address, HTTP_CREATE.path, HTTP_CREATE.body)
                if writes
                else http1_call(address, f"/post/{id}", b"")
            )
            continue
        method: str
        request: Message
        if writes:
            method, request = "CreatePost", CREATE
        elif mix == "batch_get":
            ids = choose.sample(range(1, SEEDED_POSTS + 1), BATCH_POSTS)
            method, request = "BatchGetPosts", pb.BatchGetPostsRequest(ids=ids)
        else:
            method, request = "GetPost", pb.GetPostRequest(id=id)
        calls.append(grpc_call(address, f"/storeapi.v1.PostService/{method}", request))
    return calls


async def load(address: str, mix: Mix, connections: int, streams: int, total: int, *, http1: bool) -> Load:
    """Makes the calls."""
    loop = asyncio.get_running_loop()
    work = Work(calls=calls_of(mix, address, http1=http1), total=total, done=loop.create_future())
    # An exception in a connection ends the load, which would otherwise wait for it.
    loop.set_exception_handler(lambda _, problem: work.broken(str(problem)))
    kind: type[Connection] = Http1Connection if http1 else Http2Connection
    host, _, port = address.rpartition(":")
    started = time.perf_counter()
    async with asyncio.timeout(LOAD_SECONDS):
        for _ in range(connections):
            await loop.create_connection(lambda: kind(work, streams), host, int(port))
        await work.done
    seconds = time.perf_counter() - started
    times = sorted(work.seconds)
    return Load(
        calls=total,
        seconds=seconds,
        failed=work.failed,
        p50_ms=percentile(times, 0.50) * 1000,
        p99_ms=percentile(times, 0.99) * 1000,
    )


def main() -> None:
    """Makes the load of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.varied_load")
    parser.add_argument("address")
    parser.add_argument("mix", choices=("get", "batch_get", "mixed"))
    parser.add_argument("connections", type=int)
    parser.add_argument("streams", type=int)
    parser.add_argument("calls", type=int)
    parser.add_argument("--http1", action="store_true")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            result = runner.run(
                load(
                    arguments.address,
                    arguments.mix,
                    arguments.connections,
                    arguments.streams,
                    arguments.calls,
                    http1=arguments.http1,
                )
            )
        except (OSError, TimeoutError) as error:
            sys.exit(f"the load did not end: {error!r}")
    print(result.as_json())


if __name__ == "__main__":
    main()
