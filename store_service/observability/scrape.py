"""Reads metrics over HTTP, as Prometheus does."""

import http.client
import socket

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from store_service.address import Address

SCRAPE_SECONDS = 3.0
"""Timeout to connect, and for each read of the response."""


class NoMetrics(Exception):
    """An address does not serve metrics. The text is one line."""


def scrape(address: str) -> list[Family]:
    """Returns the metric families that an endpoint serves.

    Args:
        address: HOST:PORT or unix:PATH.

    Raises:
        NoMetrics: The address does not respond, or not with metrics.
    """
    connection = _connection(address)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        text = response.read().decode()
        if response.status != http.client.OK:
            raise NoMetrics(f"{address} does not serve metrics: HTTP status {response.status}")
        return list(text_string_to_metric_families(text))
    except OSError as error:
        raise NoMetrics(f"cannot reach {address}: {error.strerror or 'timeout'}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise NoMetrics(f"{address} does not serve metrics: the response is in another format") from error
    finally:
        connection.close()


def _connection(address: str) -> http.client.HTTPConnection:
    target = Address.parse(address)
    if target.path is not None:
        return _UnixConnection(str(target.path))
    return http.client.HTTPConnection(target.host, target.port, timeout=SCRAPE_SECONDS)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SCRAPE_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SCRAPE_SECONDS)
        self.sock.connect(self._path)
