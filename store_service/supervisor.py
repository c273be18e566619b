"""Many processes on one port: starts them, restarts one that dies, replaces them one by one, stops them all.

Each worker is a fresh process with its own event loop and connections, for gRPC must not be forked. The
kernel spreads connections (not calls) over the workers, by SO_REUSEPORT.
"""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import structlog

from store_service import config as settings
from store_service import startup
from store_service.address import Address
from store_service.config import Config
from store_service.database import schema
from store_service.errors import BadSetting, OperatorError
from store_service.instrumentation import MetricsAddressUnavailable
from store_service.lifecycle import stop_on_signals
from store_service.observability.all_workers import AllWorkersCollector
from store_service.observability.endpoint import served
from store_service.repeated_failure import RepeatedFailure
from store_service.startup import CannotListen

READY = "store-service is serving on "
"""What a server prints when calls succeed, followed by its address."""

START_SECONDS = 60.0
"""How long a worker may take until it serves; then it is killed."""

RESTART_SECONDS = 1.0
"""Pause before a worker that died is started again, and before the next try if that fails."""

EXIT_SECONDS = 1.0
"""How long after the grace period a worker may take to exit."""

log = structlog.get_logger("store_service.supervisor")


class WorkerFailed(OperatorError):
    """A worker ended before it served, and has said why on stderr; or it took too long, or the system has
    no room for one more."""


def run(config: Config) -> None:
    """Serves with `config.workers` processes until SIGTERM or SIGINT; a second signal ends them at once.

    SIGHUP replaces the processes one by one, with settings that are read anew.

    Raises:
        CannotListen: The address is in use, or not of this machine.
        MetricsAddressUnavailable: That for metrics is.
        WorkerFailed: A worker could not start.
        ServiceError: The database cannot be opened, or has a schema that this program does not know.
    """
    with reserved(config.listen) as placeholder:
        # As one process does, once for all.
        if asyncio.run(startup.prepare(config, is_reserved=True)) != schema.HEAD:
            schema.upgrade(config.DATABASE_URL, connect_timeout_seconds=config.connect_timeout_seconds)
        listen = Address.parse(config.listen)
        with _one_address_for_metrics(config) as metrics:
            asyncio.run(_supervise(config, str(listen.with_port(placeholder.getsockname()[1])), metrics))


def reserved(listen: str) -> socket.socket:
    """A bound socket that takes no connections: it keeps the port ours, also while a worker restarts.

    Raises:
        CannotListen: The address is in use, or not of this machine.
    """
    try:
        family, address = Address.parse(listen).resolved()[0]
        placeholder = socket.socket(family)
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        placeholder.bind(address)
    except OSError as error:
        raise CannotListen(listen, error) from None
    return placeholder


class _Metrics:
    """Where the workers serve their metrics, and what the supervisor itself counts."""

    def __init__(self, config: Config, folder: str) -> None:
        # The folder is ours alone, so nobody else reaches the workers.
        self.folder = folder
        self.addresses = {number: f"unix:{folder}/{number}" for number in range(config.workers)}
        self.restarts = dict.fromkeys(range(config.workers), 0)


@contextmanager
def _one_address_for_metrics(config: Config) -> Iterator[_Metrics | None]:
    """Serves the metrics of all workers until the end of the block, if they are wanted."""
    if not config.metrics_listen:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="store-service-") as folder:
        metrics = _Metrics(config, folder)
        families = AllWorkersCollector(metrics.addresses, metrics.restarts)
        with ExitStack() as stack:
            try:
                address = stack.enter_context(served(config.metrics_listen, families))
            except OSError as error:
                raise MetricsAddressUnavailable(config.metrics_listen, error) from None
            log.info("serving metrics", address=address)
            yield metrics


async def _supervise(config: Config, address: str, metrics: _Metrics | None) -> None:
    stop = asyncio.Event()
    replace = asyncio.Event()
    if not sys.stdin.isatty():
        # At a terminal it means that the terminal has gone, and the service goes with it.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, replace.set)
    with stop_on_signals(stop):
        workers = [_Worker(number, config, address, metrics) for number in range(config.workers)]
        try:
            if not await _all_started(workers, stop):
                return
            print(f"{READY}{address}", flush=True)  # noqa: T201  # the one line for scripts that wait
            log.info("serving", address=address, workers=len(workers))
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(worker.keep_running()) for worker in workers]
                keepers.append(group.create_task(_replace_each(workers, config, replace)))
                await stop.wait()
                for keeper in keepers:
                    keeper.cancel()
        finally:
            await asyncio.gather(*(worker.stop() for worker in workers))
    log.info("stopped")


async def _all_started(workers: "list[_Worker]", stop: asyncio.Event) -> bool:
    """Starts all processes; False if that was to stop before they served."""
    starts = [asyncio.create_task(worker.start()) for worker in workers]
    starting = asyncio.gather(*starts)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            return True
        log.info("stopped before serving")
        return False
    finally:
        stopping.cancel()
        # Those that are starting still are killed.
        for start in starts:
            start.cancel()
        await asyncio.gather(starting, *starts, return_exceptions=True)


async def _replace_each(workers: "list[_Worker]", config: Config, asked: asyncio.Event) -> None:
    """Replaces all processes, one after the other, whenever that is asked for."""
    while True:
        await asked.wait()
        asked.clear()
        try:
            now = settings.load(listen=config.listen)
        except BadSetting as error:
            log.error("not restarted: invalid setting", error=str(error))
            continue
        if now.workers != config.workers:
            log.warning("a new number of workers takes effect after a full restart", workers=len(workers))
        if now.metrics_listen != config.metrics_listen:
            log.warning(
                "a new metrics address takes effect after a full restart", address=config.metrics_listen
            )
        log.info("restarting workers", workers=len(workers))
        try:
            for worker in workers:
                await worker.replace(now)
        except WorkerFailed as error:
            log.error("not all workers restarted; the others keep running", error=str(error))
        else:
            log.info("restarted workers", workers=len(workers))


class _Worker:
    """One process of the server."""

    def __init__(self, number: int, config: Config, address: str, metrics: _Metrics | None) -> None:
        self._number = number
        self._metrics = metrics
        self._config = config
        self._address = address
        self._process: asyncio.subprocess.Process | None = None
        self._changing = asyncio.Lock()
        self._leaving: asyncio.Task[None] | None = None
        self._generation = 0
        self._deaths = RepeatedFailure(log, "worker died", end_event="worker restarted", level="error")
        self._starts = RepeatedFailure(
            log, "worker does not start", end_event="worker starts again", level="error"
        )

    async def start(self) -> None:
        """Starts the process and returns when it serves.

        Raises:
            WorkerFailed: It ended before, took too long, or there is no room for a process.
        """
        self._process = await self._started()

    async def replace(self, config: Config) -> None:
        """Starts another process beside this one, and stops this one when the other serves.

        Raises:
            WorkerFailed: The other ended before, took too long, or there is no room for it; this one goes on.
        """
        async with self._changing:
            new = await self._started()
            self._process, old = new, self._process
        # The one that leaves has its own settings, by which it may take longer than the new ones allow.
        self._leaving = asyncio.create_task(self._stop(old, self._config))
        self._config = config
        # Who stops everything meanwhile waits for it too; a second signal would end it at once.
        await asyncio.shield(self._leaving)
        log.info("worker replaced", worker=self._number)

    async def _started(self) -> asyncio.subprocess.Process:
        # Another one for each process: that which is replaced still has its own.
        self._generation += 1
        metrics_address = (
            f"unix:{self._metrics.folder}/{self._number}-{self._generation}" if self._metrics else ""
        )
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "store_service",
                "serve",
                "--worker",
                f"--listen={self._address}",
                # Also where there are none: the worker reads the settings anew, and they may name an address
                # now, which only one process could have.
                f"--metrics-listen={metrics_address}",
                # The worker stops when this pipe closes, so that none outlives a supervisor that was killed;
                # one that was told to stop ends at once, so that a second signal ends all.
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Ctrl-C in a terminal goes to us; we tell the workers.
                start_new_session=True,
                env={**os.environ, "STORE_AUTO_MIGRATE": "false"},
            )
        except (OSError, RuntimeError) as error:
            # No memory, no descriptors, too many processes or threads: it may pass, and the others serve on.
            raise WorkerFailed(
                f"worker {self._number} could not be started: {getattr(error, 'strerror', None) or error}"
            ) from error
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await process.stdout.readline()
        except (asyncio.CancelledError, TimeoutError) as error:
            process.kill()
            await process.wait()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise WorkerFailed(
                f"worker {self._number} did not serve within {START_SECONDS:g} seconds"
            ) from error
        if not line.decode().startswith(READY):
            code = await process.wait()
            raise WorkerFailed(f"worker {self._number} could not start (exit code {code})")
        if self._metrics is not None:
            self._metrics.addresses[self._number] = metrics_address
        return process

    async def keep_running(self) -> None:
        """Starts the process again whenever it ends."""
        while True:
            process = self._process
            assert process is not None
            code = await process.wait()
            async with self._changing:
                if process is not self._process:
                    continue  # It was replaced, and was to end.
                self._deaths.failed(worker=self._number, exit_code=code)
                if self._metrics is not None:
                    self._metrics.restarts[self._number] += 1
            while not await self._is_replaced(process):
                pass

    async def _is_replaced(self, dead: asyncio.subprocess.Process) -> bool:
        """Tries once to start the process again; whether another one serves now."""
        await asyncio.sleep(RESTART_SECONDS)
        async with self._changing:
            # SIGHUP may have been quicker.
            if self._process is not dead:
                return True
            try:
                await self.start()
            except WorkerFailed as error:
                self._starts.failed(worker=self._number, error=str(error))
                return False
            self._starts.ended(worker=self._number)
            self._deaths.ended(worker=self._number)
            return True

    async def stop(self) -> None:
        """Lets the process drain, and the one that it replaces, and kills those that take too long."""
        leaving = [] if self._leaving is None else [self._leaving]
        # At the same time, for each of them may take as long as a whole stop should.
        await asyncio.gather(*leaving, self._stop(self._process, self._config))

    async def _stop(self, process: asyncio.subprocess.Process | None, config: Config) -> None:
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        longest = config.shutdown_delay_seconds + config.shutdown_grace_seconds + EXIT_SECONDS
        try:
            await asyncio.wait_for(process.wait(), longest)
        except TimeoutError:
            log.error("worker killed: it did not stop in time", worker=self._number)
            process.kill()
            await process.wait()
