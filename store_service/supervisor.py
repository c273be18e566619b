"""The supervisor of several worker processes on one port: starts, restarts, replaces and stops them.

Each worker is a new process with its own event loop and connections, because gRPC does not support fork. With
SO_REUSEPORT, the kernel distributes connections (not calls) over the workers. On SQLite, one more process
writes for all workers (docs/decisions/0052).
"""

import asyncio
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import structlog

from store_service import config as settings
from store_service import startup
from store_service.address import Address
from store_service.config import Config
from store_service.database import connect, schema
from store_service.errors import BadSetting
from store_service.instrumentation import MetricsAddressUnavailable
from store_service.observability.all_workers import AllWorkersCollector
from store_service.observability.endpoint import served
from store_service.startup import CannotListen
from store_service.stopping import stop_on_signals
from store_service.worker_process import READY, Role, WorkerFailed, WorkerMetrics, WorkerProcess

LOCK_SECONDS = 15.0
"""Maximum time to wait for the processes of a supervisor that was killed. They finish their running calls."""

log = structlog.get_logger("store_service.supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What the processes have in common."""

    address: str
    """The address to serve on."""
    lock: int | None
    """The descriptor that holds the lock of a SQLite database; None on PostgreSQL."""
    writer_socket: str = ""
    """The socket of the writer process; empty on PostgreSQL."""
    writer_listener: socket.socket | None = None
    metrics: WorkerMetrics | None = None


def run(config: Config) -> None:
    """Serves with `config.workers` processes until SIGTERM or SIGINT. A second signal ends them at once.

    SIGHUP reads the settings again and replaces the workers one after the other.

    Raises:
        CannotListen: The address is in use, or is not an address of this machine.
        MetricsAddressUnavailable: The same for the metrics address.
        WorkerFailed: A worker could not start.
        ServiceError: The database cannot be opened, or has a schema that this program does not know.
    """
    with ExitStack() as stack:
        placeholder = stack.enter_context(reserved(config.listen))
        # The checks and the upgrade of a start, once for all workers.
        revision = asyncio.run(startup.prepare(config, is_reserved=True))
        lock = stack.enter_context(connect.sole_use(config.DATABASE_URL, wait_seconds=LOCK_SECONDS))
        if revision != schema.HEAD:
            schema.upgrade(config.upgrade_url, connect_timeout_seconds=config.connect_timeout_seconds)
        # Only this user has access to the folder. The path of a socket has at most 107 bytes.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="store-"))
        writer_socket, writer_listener = "", None
        if lock is not None:
            writer_socket = f"{folder}/writer"
            # It stays open while writer processes replace each other, so workers can connect at any time.
            writer_listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            try:
                writer_listener.bind(writer_socket)
            except OSError as error:
                raise CannotListen(f"unix:{writer_socket}", error) from None
            writer_listener.listen(config.workers)
        metrics = stack.enter_context(_served_metrics(config, folder))
        listen = Address.parse(config.listen)
        shared = _Shared(
            address=str(listen.with_port(placeholder.getsockname()[1])),
            lock=lock,
            writer_socket=writer_socket,
            writer_listener=writer_listener,
            metrics=metrics,
        )
        asyncio.run(_supervise(config, shared))


def reserved(listen: str) -> socket.socket:
    """Returns a bound socket that does not listen. It reserves the port, also while all workers restart.

    Raises:
        CannotListen: The address is in use, or is not an address of this machine.
    """
    try:
        family, address = Address.parse(listen).resolved()[0]
        placeholder = socket.socket(family)
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        placeholder.bind(address)
    except OSError as error:
        raise CannotListen(listen, error) from None
    return placeholder


@contextmanager
def _served_metrics(config: Config, folder: str) -> Iterator[WorkerMetrics | None]:
    """Serves the metrics of all processes on one address until the end of the block, if they are enabled."""
    if not config.metrics_listen:
        yield None
        return
    metrics = WorkerMetrics(folder)
    collector = AllWorkersCollector(metrics.addresses, metrics.restarts)
    with ExitStack() as stack:
        try:
            address = stack.enter_context(served(config.metrics_listen, collector))
        except OSError as error:
            raise MetricsAddressUnavailable(config.metrics_listen, error) from None
        log.info("serving metrics", address=address)
        yield metrics


def _worker(number: int, config: Config, shared: _Shared) -> WorkerProcess:
    arguments = ["--worker", f"--listen={shared.address}"]
    if shared.writer_socket:
        arguments.append(f"--writer-socket={shared.writer_socket}")
    descriptors = () if shared.lock is None else (shared.lock,)
    role = Role(label=str(number), arguments=tuple(arguments), descriptors=descriptors)
    return WorkerProcess(role, config, shared.metrics)


def _writers(config: Config, shared: _Shared) -> list[WorkerProcess]:
    """Returns the writer process of SQLite, and nothing for PostgreSQL."""
    if shared.lock is None or shared.writer_listener is None:
        return []
    listener = shared.writer_listener.fileno()
    role = Role(
        label="writer",
        arguments=(f"--writer-socket={shared.writer_socket}", f"--writer-listener={listener}"),
        descriptors=(shared.lock, listener),
        has_successor_at_once=True,
    )
    return [WorkerProcess(role, config, shared.metrics)]


async def _supervise(config: Config, shared: _Shared) -> None:
    stop = asyncio.Event()
    replace = asyncio.Event()
    if not sys.stdin.isatty():
        # With a terminal as stdin, SIGHUP means that the terminal has closed. Then it ends the process.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, replace.set)
    with stop_on_signals(stop):
        writers = _writers(config, shared)
        workers = [_worker(number, config, shared) for number in range(config.workers)]
        try:
            # The workers connect to the writer process before they open the database.
            if not await _all_started([*writers, *workers], stop):
                return
            print(f"{READY}{shared.address}", flush=True)  # noqa: T201  # for scripts that wait for the start
            log.info("serving", address=shared.address, workers=len(workers))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(it.keep_running()) for it in (*writers, *workers)]
                tasks.append(group.create_task(_replace_on_request(workers, writers, config, replace)))
                await stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await asyncio.gather(*(worker.stop() for worker in workers))
            await asyncio.gather(*(writer.stop() for writer in writers))
    log.info("stopped")


async def _all_started(workers: list[WorkerProcess], stop: asyncio.Event) -> bool:
    """Starts all workers. Returns whether they serve; False if `stop` was set before."""
    starts = [asyncio.create_task(worker.start()) for worker in workers]
    all_starts = asyncio.gather(*starts)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((all_starts, stopping), return_when=asyncio.FIRST_COMPLETED)
        if all_starts.done():
            all_starts.result()
            return True
        log.info("stopped before serving")
        return False
    finally:
        stopping.cancel()
        # This kills the workers that do not serve yet.
        for start in starts:
            start.cancel()
        await asyncio.gather(all_starts, *starts, return_exceptions=True)


async def _replace_on_request(
    workers: list[WorkerProcess],
    writers: list[WorkerProcess],
    config: Config,
    requested: asyncio.Event,
) -> None:
    """Replaces all workers, one after the other, and then the writer, each time that `requested` is set."""
    while True:
        await requested.wait()
        requested.clear()
        try:
            new_config = settings.load(listen=config.listen)
        except BadSetting as error:
            log.error("not restarted: invalid setting", error=str(error))
            continue
        if new_config.workers != config.workers:
            log.warning("a new number of workers takes effect after a full restart", workers=len(workers))
        if new_config.metrics_listen != config.metrics_listen:
            log.warning(
                "a new metrics address takes effect after a full restart", address=config.metrics_listen
            )
        log.info("restarting workers", workers=len(workers))
        try:
            for process in (*workers, *writers):
                await process.replace(new_config)
        except WorkerFailed as error:
            log.error("not all workers restarted; the others keep running", error=str(error))
        else:
            log.info("restarted workers", workers=len(workers))
