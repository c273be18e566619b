"""What clients that are slow, or too many, can do to the address for metrics; over real sockets."""

import socket
from collections.abc import Iterator

import pytest

from store_service.observability import endpoint
from store_service.observability.collector import MetricsCollector
from store_service.observability.metrics import Metrics
from store_service.observability.scrape import NoMetrics, scrape
from tests.support.polling import wait_until


@pytest.fixture
def address() -> Iterator[str]:
    """Where metrics are served."""
    with endpoint.served(
        "127.0.0.1:0", MetricsCollector(Metrics(), database="sqlite", wal_file=None)
    ) as address:
        yield address


def connected(address: str) -> socket.socket:
    """A client that has sent nothing yet."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


def answers(address: str) -> bool:
    """Whether metrics are served there now."""
    try:
        return bool(scrape(address))
    except NoMetrics:
        return False


def test_endless_http_request_is_closed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "REQUEST_SECONDS", 1.0)
    with connected(address) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        client.settimeout(0.05)
        for _ in range(200):
            try:
                client.sendall(b"x")
                assert client.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            return
    pytest.fail("it was not cut off")


def test_http_requests_above_the_limit_are_closed(address: str) -> None:
    silent = [connected(address) for _ in range(endpoint.MAX_CONCURRENT_REQUESTS)]
    try:
        with pytest.raises(NoMetrics):
            scrape(address)
    finally:
        for client in silent:
            client.close()

    wait_until(lambda: answers(address))
