"""Code that the contenders share: their messages, and the start of a server."""

import asyncio
import signal
import time
from collections.abc import Mapping
from typing import Any

import grpc
from storeapi.v1 import posts_pb2 as pb


def post_message(row: Mapping[str, Any]) -> pb.Post:
    """Returns a row of the table as the message of the service."""
    message = pb.Post(id=row["id"], body=row["body"], etag=f"v{row['version']:x}")
    for field, microseconds in (
        (message.create_time, row["create_time"]),
        (message.update_time, row["update_time"]),
    ):
        field.seconds, rest = divmod(microseconds, 1_000_000)
        field.nanos = rest * 1000
    return message


def new_row(body: str) -> dict[str, Any]:
    """Returns the columns of a new post."""
    now = time.time_ns() // 1000
    return {"body": body, "create_time": now, "update_time": now, "version": 1}


def announce(name: str, port: int) -> None:
    """Prints the line for which the benchmark waits."""
    print(f"{name} is serving on 127.0.0.1:{port}", flush=True)


async def serve_until_sigterm(name: str, server: grpc.aio.Server) -> None:
    """Serves on a free port until SIGTERM."""
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(name, port)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)
