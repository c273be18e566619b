"""Metrics and tracing of a server.

A disabled part does not exist: the RPC pipeline and the batch queues get None instead of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import structlog

from store_service import address
from store_service.config import Config
from store_service.database import connect
from store_service.errors import OperatorError
from store_service.observability.batches import BatchObserver
from store_service.observability.collector import MetricsCollector
from store_service.observability.endpoint import served
from store_service.observability.event_loop import measure_event_loop_lag
from store_service.observability.metrics import Metrics

if TYPE_CHECKING:
    # gRPC, which the writer process does not need.
    from store_service.auth.certificates import Certificates
    from store_service.observability.tracing import Tracing

FLUSH_SECONDS = 2.0
"""Timeout for the export of the last spans at the end."""

log = structlog.get_logger("store_service.server")


class MetricsAddressUnavailable(OperatorError):
    """The address for metrics cannot be bound."""

    def __init__(self, listen: str, error: OSError) -> None:
        """Takes the address and the error of the system."""
        super().__init__(f"cannot serve metrics on {listen}: {address.problem(listen, error)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrumentation:
    """The enabled parts."""

    metrics: Metrics | None = None
    metrics_address: str = ""
    """Where the metrics are served, with the actual port."""
    tracing: "Tracing | None" = None

    def queue_observer(self, name: str) -> BatchObserver | None:
        """Returns the observer for a batch queue; None if metrics and tracing are disabled."""
        if self.metrics is None and self.tracing is None:
            return None
        # An observer always counts. With tracing only, nothing reads the numbers.
        metrics = self.metrics or Metrics()
        return BatchObserver(name, metrics.queue(name), self.tracing)


@asynccontextmanager
async def instrumented(
    config: Config, certificates: "Certificates | None", *, writes: bool = True
) -> AsyncIterator[Instrumentation]:
    """Serves metrics and exports spans until the end of the block, if the settings enable them.

    The metrics include the expiry time of the certificate, if there is one, and the size of SQLite's log, if
    this process `writes` to it.

    Raises:
        MetricsAddressUnavailable: The address is in use, or is not an address of this machine.
        BadSetting: A variable of OpenTelemetry has an invalid value.
    """
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(_tracing()) if config.tracing else None
        if not config.metrics_listen:
            yield Instrumentation(tracing=tracing)
            return
        metrics = Metrics()
        try:
            address = stack.enter_context(
                served(config.metrics_listen, _collector(config, metrics, certificates, writes=writes))
            )
        except OSError as error:
            raise MetricsAddressUnavailable(config.metrics_listen, error) from None
        log.info("serving metrics", address=address)
        lag = asyncio.create_task(measure_event_loop_lag(metrics.loop), name="loop-lag")
        stack.callback(lag.cancel)
        yield Instrumentation(metrics=metrics, metrics_address=address, tracing=tracing)


def _collector(
    config: Config, metrics: Metrics, certificates: "Certificates | None", *, writes: bool
) -> MetricsCollector:
    expires = (lambda: None) if certificates is None else certificates.expires
    is_sqlite = connect.is_sqlite(config.DATABASE_URL)
    if not (is_sqlite and writes):
        database = "sqlite" if is_sqlite else "postgresql"
        return MetricsCollector(metrics, database=database, wal_file=None, expires=expires)
    # If the database is a symbolic link, SQLite keeps the log beside its target.
    file = Path(connect.database_name(config.DATABASE_URL)).resolve()
    wal_file = file.with_name(f"{file.name}-wal")
    return MetricsCollector(metrics, database="sqlite", wal_file=wal_file, expires=expires)


@asynccontextmanager
async def _tracing() -> AsyncIterator["Tracing"]:
    from store_service.observability import span_export
    from store_service.observability.tracing import Tracing

    provider = span_export.tracer_provider()
    try:
        yield Tracing(provider)
    finally:
        await _flush(provider.shutdown)


async def _flush(shutdown: Callable[[], None]) -> None:
    """Exports the remaining spans, for at most FLUSH_SECONDS."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        shutdown()
        # After the timeout the loop may be closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(done.set)

    # In a thread, because exporters wait for the network; a daemon, so the process can exit before it ends.
    Thread(target=run, name="last-spans", daemon=True).start()
    try:
        async with asyncio.timeout(FLUSH_SECONDS):
            await done.wait()
    except TimeoutError:
        log.warning("spans not exported within the timeout")
