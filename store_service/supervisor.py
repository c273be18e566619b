"""The supervisor of several worker processes on one port: starts, restarts, replaces and stops them.

Each worker is a new process with its own event loop and connections, because gRPC does not support fork. With
SO_REUSEPORT, the kernel distributes connections (not calls) over the workers.
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
"""The text before the address in the line that a server prints when calls succeed."""

START_SECONDS = 60.0
"""Maximum time until a new worker serves. After it, the worker is killed."""

RESTART_SECONDS = 1.0
"""Pause before a worker that died is restarted, and before each further attempt."""

EXIT_SECONDS = 1.0
"""Maximum time for a worker to exit after the grace period."""

log = structlog.get_logger("store_service.supervisor")


class WorkerFailed(OperatorError):
    """A worker ended before it served (its stderr has the cause), took too long, or could not be started."""


def run(config: Config) -> None:
    """Serves with `config.workers` processes until SIGTERM or SIGINT. A second signal ends them at once.

    SIGHUP reads the settings again and replaces the workers one after the other.

    Raises:
        CannotListen: The address is in use, or is not an address of this machine.
        MetricsAddressUnavailable: The same for the metrics address.
        WorkerFailed: A worker could not start.
        ServiceError: The database cannot be opened, or has a schema that this program does not know.
    """
    with reserved(config.listen) as placeholder:
        # The checks and the upgrade of a start, once for all workers.
        if asyncio.run(startup.prepare(config, is_reserved=True)) != schema.HEAD:
            schema.upgrade(config.upgrade_url, connect_timeout_seconds=config.connect_timeout_seconds)
        listen = Address.parse(config.listen)
        with _served_metrics(config) as metrics:
            asyncio.run(_supervise(config, str(listen.with_port(placeholder.getsockname()[1])), metrics))


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


class _WorkerMetrics:
    """The metrics addresses and the restart counts of the workers."""

    def __init__(self, config: Config, folder: str) -> None:
        # Only this user has access to the folder.
        self.folder = folder
        self.addresses = {number: f"unix:{folder}/{number}" for number in range(config.workers)}
        self.restarts = dict.fromkeys(range(config.workers), 0)


@contextmanager
def _served_metrics(config: Config) -> Iterator[_WorkerMetrics | None]:
    """Serves the metrics of all workers on one address until the end of the block, if they are enabled."""
    if not config.metrics_listen:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="store-service-") as folder:
        metrics = _WorkerMetrics(config, folder)
        collector = AllWorkersCollector(metrics.addresses, metrics.restarts)
        with ExitStack() as stack:
            try:
                address = stack.enter_context(served(config.metrics_listen, collector))
            except OSError as error:
                raise MetricsAddressUnavailable(config.metrics_listen, error) from None
            log.info("serving metrics", address=address)
            yield metrics


async def _supervise(config: Config, address: str, metrics: _WorkerMetrics | None) -> None:
    stop = asyncio.Event()
    replace = asyncio.Event()
    if not sys.stdin.isatty():
        # With a terminal as stdin, SIGHUP means that the terminal has closed. Then it ends the process.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, replace.set)
    with stop_on_signals(stop):
        workers = [_Worker(number, config, address, metrics) for number in range(config.workers)]
        try:
            if not await _all_started(workers, stop):
                return
            print(f"{READY}{address}", flush=True)  # noqa: T201  # for scripts that wait for the start
            log.info("serving", address=address, workers=len(workers))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(worker.keep_running()) for worker in workers]
                tasks.append(group.create_task(_replace_on_request(workers, config, replace)))
                await stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await asyncio.gather(*(worker.stop() for worker in workers))
    log.info("stopped")


async def _all_started(workers: "list[_Worker]", stop: asyncio.Event) -> bool:
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


async def _replace_on_request(workers: "list[_Worker]", config: Config, requested: asyncio.Event) -> None:
    """Replaces all workers, one after the other, each time that `requested` is set."""
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
            for worker in workers:
                await worker.replace(new_config)
        except WorkerFailed as error:
            log.error("not all workers restarted; the others keep running", error=str(error))
        else:
            log.info("restarted workers", workers=len(workers))


class _Worker:
    """One worker, which is a sequence of processes."""

    def __init__(self, number: int, config: Config, address: str, metrics: _WorkerMetrics | None) -> None:
        self._number = number
        self._metrics = metrics
        self._config = config
        self._address = address
        self._process: asyncio.subprocess.Process | None = None
        self._process_lock = asyncio.Lock()
        self._stop_task: asyncio.Task[None] | None = None
        """Stops the process that was replaced last."""
        self._generation = 0
        self._deaths = RepeatedFailure(log, "worker died", end_event="worker restarted", level="error")
        self._starts = RepeatedFailure(
            log, "worker does not start", end_event="worker starts again", level="error"
        )

    async def start(self) -> None:
        """Starts a process and returns when it serves.

        Raises:
            WorkerFailed: The process ended before it served, took too long, or could not be started.
        """
        self._process = await self._start_process()

    async def replace(self, config: Config) -> None:
        """Starts a new process, and stops the current one when the new one serves.

        Raises:
            WorkerFailed: The new process ended before it served, took too long, or could not be started. The
                current one keeps running.
        """
        async with self._process_lock:
            new = await self._start_process()
            self._process, old = new, self._process
        # The old process stops by its own settings, which may allow more time than the new ones.
        self._stop_task = asyncio.create_task(self._stop(old, self._config))
        self._config = config
        # `stop` waits for this task too, so it is not cancelled with the caller.
        await asyncio.shield(self._stop_task)
        log.info("worker replaced", worker=self._number)

    async def _start_process(self) -> asyncio.subprocess.Process:
        # Each process has its own address, because the process that it replaces still uses the previous one.
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
                # Also if it is empty: the worker reads the settings again, which may have an address now, and
                # only one process could bind it.
                f"--metrics-listen={metrics_address}",
                # The worker stops when this pipe closes, so that it does not outlive a killed supervisor. If
                # it is already stopping, it exits at once, so that a second signal ends all workers.
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Ctrl-C in a terminal then reaches only the supervisor, which stops the workers.
                start_new_session=True,
                env={**os.environ, "STORE_AUTO_MIGRATE": "false"},
            )
        except (OSError, RuntimeError) as error:
            # No memory, no descriptors, too many processes or threads. This may be temporary, and the other
            # workers keep running.
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
            raise WorkerFailed(f"worker {self._number} did not serve within {START_SECONDS:g} s") from error
        if not line.decode().startswith(READY):
            code = await process.wait()
            raise WorkerFailed(f"worker {self._number} could not start (exit code {code})")
        if self._metrics is not None:
            self._metrics.addresses[self._number] = metrics_address
        return process

    async def keep_running(self) -> None:
        """Starts a new process whenever the current one ends, until it is cancelled."""
        while True:
            process = self._process
            assert process is not None
            code = await process.wait()
            async with self._process_lock:
                if process is not self._process:
                    continue  # It was replaced and ended as expected.
                self._deaths.failed(worker=self._number, exit_code=code)
                if self._metrics is not None:
                    self._metrics.restarts[self._number] += 1
            while not await self._try_restart(process):
                pass

    async def _try_restart(self, dead: asyncio.subprocess.Process) -> bool:
        """Waits RESTART_SECONDS and tries once to start a process. Returns whether another process serves."""
        await asyncio.sleep(RESTART_SECONDS)
        async with self._process_lock:
            # SIGHUP may have replaced the process.
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
        """Stops the current process and one that is being replaced. Kills a process that takes too long."""
        replaced = [] if self._stop_task is None else [self._stop_task]
        # In parallel, because each may take the whole time of a stop.
        await asyncio.gather(*replaced, self._stop(self._process, self._config))

    async def _stop(self, process: asyncio.subprocess.Process | None, config: Config) -> None:
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        timeout = config.shutdown_delay_seconds + config.shutdown_grace_seconds + EXIT_SECONDS
        try:
            await asyncio.wait_for(process.wait(), timeout)
        except TimeoutError:
            log.error("worker killed: it did not stop in time", worker=self._number)
            process.kill()
            await process.wait()
