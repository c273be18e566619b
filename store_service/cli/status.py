"""`store-service status`."""

import click

from store_service.cli import progress
from store_service.cli.errors import fail, settings_or_exit
from store_service.cli.health import check_address
from store_service.cli.help import epilog


@click.command(epilog=epilog("store-service status 127.0.0.1:9464"))
@click.argument("address", metavar="[ADDRESS]", default="")
@click.option("--once", is_flag=True, help="Print one page and exit, for scripts.")
@click.option(
    "--every",
    "every_seconds",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Length of the intervals for which rates are calculated.",
)
def status(address: str, once: bool, every_seconds: float) -> None:
    """Show calls, latencies, batches and lag of a running service.

    ADDRESS is the metrics address of the service, HOST:PORT or unix:PATH; without it, STORE_METRICS_LISTEN is
    used. Stop with Ctrl-C.
    """
    address = address or settings_or_exit().metrics_listen
    if not address:
        fail("ADDRESS is required if STORE_METRICS_LISTEN is not set", exit_code=2)
    from store_service.observability import status_page
    from store_service.observability.scrape import NoMetrics

    check_address(address)
    try:
        with progress.waiting(f"{address} (no response yet)"):
            first = status_page.fetch(address)
        status_page.show(address, first, every_seconds=every_seconds, once=once)
    except NoMetrics as error:
        fail(str(error))
    except KeyboardInterrupt:
        # The last page stays on the screen.
        return
