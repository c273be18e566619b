"""Metrics, read over HTTP from the metrics address of a server."""

import time

from store_service.observability.samples import Scraped
from store_service.observability.scrape import scrape
from store_service.server import RunningServer


def scrape_metrics(server: RunningServer | str) -> Scraped:
    """Scrapes a server or an address. Blocks the event loop, which the endpoint does not need."""
    address = server if isinstance(server, str) else server.metrics_address
    return Scraped.of(time.monotonic(), scrape(address))
