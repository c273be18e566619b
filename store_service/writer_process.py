"""Runs the writer process of a service with several workers on SQLite (docs/decisions/0052).

It has no gRPC. It executes the writes of all workers in one batch queue.
"""

import asyncio
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog
import uvloop

from store_service import interpreter, startup
from store_service.config import Config
from store_service.database import connect, schema, sqlite
from store_service.database.sqlite_file import database_path
from store_service.database.writer_server import CallerSpans, WriterServer
from store_service.errors import SchemaMismatch
from store_service.instrumentation import instrumented
from store_service.observability.batches import BatchObserver
from store_service.observability.metrics import QueueMetrics
from store_service.service.write_operations import write_operations, writer_process
from store_service.stopping import stop_on_signals, stop_with_supervisor
from store_service.worker_process import EXIT_SECONDS, READY, TAKES_OVER

log = structlog.get_logger("store_service.server")


def run(config: Config, *, path: str, listener: int) -> None:
    """Executes the writes of workers until SIGTERM, or until the supervisor and all workers have ended.

    Args:
        config: The settings.
        path: The path of the socket.
        listener: The descriptor of the socket, which listens.

    Raises:
        OperatorError: A preflight check has failed.
        ServiceError: The database cannot be opened, or has another schema than this program needs.
    """
    with _only_writer(path):
        # The file must exist: SQLite would create another one beside the readers of a deleted file.
        revision = startup.check_database(config)
        if revision != schema.HEAD:
            raise SchemaMismatch(expected=schema.HEAD, actual=revision)
        interpreter.switch_threads_often()
        uvloop.run(_serve(config, path, socket.socket(fileno=listener)))


@contextmanager
def _only_writer(path: str) -> Iterator[None]:
    """Waits until no other writer process of this service is running, and excludes others."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The supervisor now stops the previous one.
            print(f"{TAKES_OVER}{path}", flush=True)  # noqa: T201
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


async def _serve(config: Config, path: str, listener: socket.socket) -> None:
    stop, is_alone = asyncio.Event(), asyncio.Event()
    operations = write_operations(
        undelete_hours=config.undelete_hours,
        max_revisions=config.revisions,
        max_reply_depth=config.max_reply_depth,
    )
    database = database_path(config.DATABASE_URL).absolute()
    with stop_on_signals(stop):
        stop_with_supervisor(is_alone)
        # The workers export the spans.
        async with instrumented(config.model_copy(update={"tracing": False}), None) as instrumentation:
            metrics = instrumentation.metrics
            observer = BatchObserver(
                "writer", metrics.queue("writer") if metrics else QueueMetrics(), CallerSpans()
            )
            opening = sqlite.open_writer(
                config.DATABASE_URL,
                lock_timeout_seconds=config.lock_timeout_seconds,
                observer=observer,
                is_remote=True,
            )
            async with opening as queue:
                hello = writer_process(path).hello(database)
                server = WriterServer(list(operations.values()), hello)
                async with server.accepting(listener, queue):
                    interpreter.freeze_current_objects()
                    print(f"{READY}{path}", flush=True)  # noqa: T201  # for the supervisor
                    log.info("writer process serves", database=connect.database_name(config.DATABASE_URL))
                    await _wait_for_end(config, stop, is_alone, server)
                    log.info("writer process stops")
            # The database is closed, so the next writer process may open it.
            await server.finish()
    log.info("writer process stopped")


async def _wait_for_end(
    config: Config, stop: asyncio.Event, is_alone: asyncio.Event, server: WriterServer
) -> None:
    """Waits for a signal, or for the end of the supervisor. The workers then finish their running calls."""
    waits = [asyncio.ensure_future(it.wait()) for it in (stop, is_alone)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            seconds = config.shutdown_delay_seconds + config.shutdown_grace_seconds + EXIT_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await server.all_left.wait()
    finally:
        for it in waits:
            it.cancel()
