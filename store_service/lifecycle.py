"""Runs a server in this process: signals, the line on stdout, and the exit."""

import asyncio
import signal
import sys

import structlog

from store_service import interpreter
from store_service.config import Config
from store_service.server import serving
from store_service.stopping import exit_at_once, stop_on_signals, stop_with_supervisor

CLEANUP_SECONDS = 0.8
"""Maximum time to close everything after the grace period. Then the process exits."""

log = structlog.get_logger("store_service.server")


def run(config: Config, *, is_worker: bool = False, writer_socket: str = "") -> None:
    """Serves until SIGTERM or SIGINT, then stops as `serving` does. A second signal ends the process at once.

    `writer_socket` is the socket of the writer process, for a worker on SQLite.

    Raises:
        OperatorError: A preflight check has failed; see `startup.prepare`.
        BadSetting: A variable of OpenTelemetry has an invalid value.
        connect.DatabaseInUse: Another service uses the database.
        WrongWriter: The writer process does not belong to this worker.
        BadFile: A file that a setting names cannot be used.
        ServiceError: The database cannot be opened, or has a schema that this program does not know.
    """
    import uvloop

    interpreter.switch_threads_often()
    uvloop.run(_serve_until_signal(config, is_worker, writer_socket))


async def _serve_until_signal(config: Config, is_worker: bool, writer_socket: str) -> None:
    stop = asyncio.Event()
    with stop_on_signals(stop):
        if is_worker:
            stop_with_supervisor(stop)
        elif not sys.stdin.isatty():
            # With a terminal as stdin, SIGHUP means that the terminal has closed. Then it ends the process.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _cannot_restart)
        exit_before_serving = asyncio.create_task(_exit_when_set(stop), name="exit-before-serving")
        async with serving(config, reuse_port=is_worker, writer_socket=writer_socket) as server:
            exit_before_serving.cancel()
            interpreter.freeze_current_objects()
            # The only line on stdout, for scripts that wait for the start.
            print(f"store-service is serving on {server.address}", flush=True)  # noqa: T201
            log.info("serving", address=server.address)
            await stop.wait()
            log.info(
                "stopping",
                shutdown_delay_seconds=config.shutdown_delay_seconds,
                shutdown_grace_seconds=config.shutdown_grace_seconds,
            )
            # A write that waits for a lock of another process cannot be cancelled.
            timeout = config.shutdown_delay_seconds + config.shutdown_grace_seconds + CLEANUP_SECONDS
            asyncio.get_running_loop().call_later(timeout, _exit_after_timeout)
    log.info("stopped")


async def _exit_when_set(stop: asyncio.Event) -> None:
    """Exits when `stop` is set before the server serves, whatever the start waits for."""
    await stop.wait()
    log.info("stopped before serving")
    # A schema upgrade is one transaction, so it is either complete or not started.
    exit_at_once(0)


def _cannot_restart() -> None:
    log.warning("SIGHUP ignored: it restarts workers, which exist only if STORE_WORKERS is more than 1")


def _exit_after_timeout() -> None:
    log.warning("stopped without closing the database: shutdown timeout")
    exit_at_once(0)
