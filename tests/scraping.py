"""Metrics as tests read them: over HTTP, from the address that a server says."""

import time

from store_service.metrics.figures import Scraped
from store_service.metrics.scrape import scrape
from store_service.server import RunningServer


def scraped(server: RunningServer | str) -> Scraped:
    """What a server, or an address, serves now. It blocks, also the event loop, which scrapes do not need."""
    address = server if isinstance(server, str) else server.metrics_address
    return Scraped.of(time.monotonic(), scrape(address))
