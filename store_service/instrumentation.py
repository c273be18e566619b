"""What looks at the service while it works: metrics and spans, or nothing at all.

What is switched off is not there: the guard and the lanes are given None instead.
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
from store_service.auth.certificates import Certificates
from store_service.config import Config
from store_service.database import connect
from store_service.errors import OperatorError
from store_service.observability.batches import BatchObserver
from store_service.observability.collector import MetricsCollector
from store_service.observability.endpoint import served
from store_service.observability.event_loop import measure_event_loop_lag
from store_service.observability.metrics import Metrics

if TYPE_CHECKING:
    from store_service.observability.tracing import Tracing

FLUSH_SECONDS = 2.0
"""How long spans that have not been exported yet may take at the end."""

log = structlog.get_logger("store_service.server")


class MetricsAddressUnavailable(OperatorError):
    """The address for metrics cannot be bound."""

    def __init__(self, listen: str, error: OSError) -> None:
        """Takes the address, and what the system says."""
        super().__init__(f"cannot serve metrics on {listen}: {address.problem(listen, error)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrumentation:
    """What the pieces of a server are given."""

    measures: Metrics | None = None
    """Where to count, if metrics are served."""
    metrics_address: str = ""
    """Where they are served, with the real port."""
    tracing: "Tracing | None" = None

    def lane(self, name: str) -> BatchObserver | None:
        """Who looks at a lane."""
        if self.measures is None and self.tracing is None:
            return None
        # Spans alone need somewhere to count too; nobody reads it.
        measures = self.measures or Metrics()
        return BatchObserver(name, measures.queue(name), self.tracing)


@asynccontextmanager
async def instrumented(config: Config, certificates: Certificates | None) -> AsyncIterator[Instrumentation]:
    """Serves metrics and exports spans until the end of the block, as far as the settings want it.

    With TLS the metrics tell of its certificates too.

    Raises:
        MetricsAddressUnavailable: The address is in use, or not of this machine.
        BadSetting: A variable of OpenTelemetry has a value that is not allowed.
    """
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(_tracing()) if config.tracing else None
        if not config.metrics_listen:
            yield Instrumentation(tracing=tracing)
            return
        measures = Metrics()
        try:
            address = stack.enter_context(
                served(config.metrics_listen, _families(config, measures, certificates))
            )
        except OSError as error:
            raise MetricsAddressUnavailable(config.metrics_listen, error) from None
        log.info("serving metrics", address=address)
        lag = asyncio.create_task(measure_event_loop_lag(measures.loop), name="loop-lag")
        stack.callback(lag.cancel)
        yield Instrumentation(measures=measures, metrics_address=address, tracing=tracing)


def _families(config: Config, measures: Metrics, certificates: Certificates | None) -> MetricsCollector:
    expires = (lambda: None) if certificates is None else certificates.expires
    if not connect.is_sqlite(config.DATABASE_URL):
        return MetricsCollector(measures, database="postgresql", wal_file=None, expires=expires)
    # Where a link is the database, SQLite keeps the log beside what it leads to.
    file = Path(connect.database_name(config.DATABASE_URL)).resolve()
    wal_file = file.with_name(f"{file.name}-wal")
    return MetricsCollector(measures, database="sqlite", wal_file=wal_file, expires=expires)


@asynccontextmanager
async def _tracing() -> AsyncIterator["Tracing"]:
    from store_service.observability import span_export
    from store_service.observability.tracing import Tracing

    provider = span_export.tracer_provider()
    try:
        yield Tracing(provider)
    finally:
        await _flushed(provider.shutdown)


async def _flushed(shutdown: Callable[[], None]) -> None:
    """Exports what has not been exported, as far as it can be done in time."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def flush() -> None:
        shutdown()
        # Nobody may wait any more, and the loop be closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(done.set)

    # On a thread, for exporters wait for the network; on one that the process does not wait for at its end.
    Thread(target=flush, name="last-spans", daemon=True).start()
    try:
        async with asyncio.timeout(FLUSH_SECONDS):
            await done.wait()
    except TimeoutError:
        log.warning("spans not exported within the timeout")
