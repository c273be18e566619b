"""The processes that the supervisor starts: each is restarted when it ends, and replaced on request."""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass

import structlog

from store_service.config import Config
from store_service.errors import OperatorError
from store_service.repeated_failure import RepeatedFailure

READY = "store-service is serving on "
"""The text before the address in the line that a server prints when calls succeed."""

TAKES_OVER = "store-service takes over "
"""The text before the socket in the line that a writer process prints when it waits for the previous one."""

START_SECONDS = 60.0
"""Maximum time until a new process serves. After it, the process is killed."""

RESTART_SECONDS = 1.0
"""Pause before a process that died is restarted, and before each further attempt."""

EXIT_SECONDS = 1.0
"""Maximum time for a process to exit after the grace period."""

log = structlog.get_logger("store_service.supervisor")


class WorkerFailed(OperatorError):
    """A process ended before it served (its stderr has the cause), took too long, or could not be started."""


class WorkerMetrics:
    """The metrics addresses and the restart counts of the processes, by label."""

    def __init__(self, folder: str) -> None:
        """Takes a folder to which only this user has access."""
        self.folder = folder
        self.addresses: dict[str, str] = {}
        self.restarts: dict[str, int] = {}

    def add(self, label: str) -> None:
        """Adds a process that is not started yet."""
        self.addresses[label] = f"unix:{self.folder}/{label}"
        self.restarts[label] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a process does."""

    label: str
    """The number of a worker, or `writer`."""
    arguments: tuple[str, ...]
    """Arguments of `store-service serve`."""
    descriptors: tuple[int, ...] = ()
    """Descriptors that the process inherits."""
    has_successor_at_once: bool = False
    """Whether the first attempt to restart it comes without a pause, because all workers need it."""

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"worker {self.label}" if self.label.isdecimal() else f"the {self.label} process"


class WorkerProcess:
    """A worker or the writer, which is a sequence of processes."""

    def __init__(self, role: Role, config: Config, metrics: WorkerMetrics | None) -> None:
        """Takes what the processes do, the settings, and the metrics if they are enabled."""
        self._role = role
        self._metrics = metrics
        if metrics is not None:
            metrics.add(role.label)
        self._config = config
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
        log.info("worker replaced", worker=self._role.label)

    async def _start_process(self) -> asyncio.subprocess.Process:
        # Each process has its own address, because the process that it replaces still uses the previous one.
        self._generation += 1
        metrics_address = (
            f"unix:{self._metrics.folder}/{self._role.label}-{self._generation}" if self._metrics else ""
        )
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "store_service",
                "serve",
                *self._role.arguments,
                # Also if it is empty: the worker reads the settings again, which may have an address now, and
                # only one process could bind it.
                f"--metrics-listen={metrics_address}",
                # The worker stops when this pipe closes, so that it does not outlive a killed supervisor. If
                # it is already stopping, it exits at once, so that a second signal ends all workers.
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=self._role.descriptors,
                # Ctrl-C in a terminal then reaches only the supervisor, which stops the workers.
                start_new_session=True,
                env={**os.environ, "STORE_AUTO_MIGRATE": "false"},
            )
        except (OSError, RuntimeError) as error:
            # No memory, no descriptors, too many processes or threads. This may be temporary, and the other
            # workers keep running.
            raise WorkerFailed(
                f"{self._role.name} could not be started: {getattr(error, 'strerror', None) or error}"
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
            raise WorkerFailed(f"{self._role.name} did not serve within {START_SECONDS:g} s") from error
        if not line.decode().startswith((READY, TAKES_OVER)):
            code = await process.wait()
            raise WorkerFailed(f"{self._role.name} could not start (exit code {code})")
        if self._metrics is not None:
            self._metrics.addresses[self._role.label] = metrics_address
        return process

    async def keep_running(self) -> None:
        """Starts a new process whenever the current one ends, until it is cancelled."""
        while True:
            pause = 0.0 if self._role.has_successor_at_once else RESTART_SECONDS
            process = self._process
            assert process is not None
            code = await process.wait()
            async with self._process_lock:
                if process is not self._process:
                    continue  # It was replaced and ended as expected.
                self._deaths.failed(worker=self._role.label, exit_code=code)
                if self._metrics is not None:
                    self._metrics.restarts[self._role.label] += 1
            while not await self._try_restart(process, pause):
                pause = RESTART_SECONDS

    async def _try_restart(self, dead: asyncio.subprocess.Process, pause: float) -> bool:
        """Waits and tries once to start a process. Returns whether another process serves."""
        await asyncio.sleep(pause)
        async with self._process_lock:
            # SIGHUP may have replaced the process.
            if self._process is not dead:
                return True
            try:
                await self.start()
            except WorkerFailed as error:
                self._starts.failed(worker=self._role.label, error=str(error))
                return False
            self._starts.ended(worker=self._role.label)
            self._deaths.ended(worker=self._role.label)
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
            log.error("worker killed: it did not stop in time", worker=self._role.label)
            process.kill()
            await process.wait()
