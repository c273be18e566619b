"""Serves metrics over HTTP. It runs in threads, so it also responds when the event loop is blocked."""

import os
import selectors
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BufferedReader, RawIOBase
from pathlib import Path
from socketserver import BaseServer, ThreadingMixIn
from threading import BoundedSemaphore, Thread
from typing import Any
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from store_service.address import Address
from store_service.repeated_failure import RepeatedFailure

PATH = "/metrics"

REQUEST_SECONDS = 5.0
"""Maximum time to receive a request, and to send its response. After it, the connection is closed."""

MAX_CONCURRENT_REQUESTS = 16
"""Maximum number of requests at the same time. Further connections are closed at once."""

PAUSE_SECONDS = 0.1
"""Pause after a connection could not be accepted."""

log = structlog.get_logger("store_service.observability")


@contextmanager
def served(listen: str, collector: Collector) -> Iterator[str]:
    """Serves GET /metrics, and nothing else, until the end of the block.

    Args:
        listen: HOST:PORT, or unix:PATH; port 0 lets the system choose.
        collector: Collects the metrics, in the threads of the requests.

    Yields:
        The address, with the actual port.

    Raises:
        OSError: The address is in use, or is not an address of this machine.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    with _listening(listen) as listener:
        server = _Server(listener, registry)
        stopped, stop = socket.socketpair()
        thread = Thread(target=server.serve_until, args=[stopped], name="metrics", daemon=True)
        thread.start()
        try:
            address = Address.parse(listen)
            yield listen if address.path else str(address.with_port(listener.getsockname()[1]))
        finally:
            stop.close()
            thread.join()
            stopped.close()


@contextmanager
def _listening(listen: str) -> Iterator[socket.socket]:
    address = Address.parse(listen)
    if address.path is not None:
        path = address.path
        _remove_stale_socket(path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(path))
            listener.listen()
            try:
                yield listener
            finally:
                path.unlink(missing_ok=True)
        return
    family, socket_address = address.resolved()[0]
    with socket.socket(family) as listener:
        # Otherwise the port could not be bound for a while after the previous server has ended.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(socket_address)
        listener.listen()
        yield listener


def _remove_stale_socket(path: Path) -> None:
    """Removes a socket that no process listens on, such as that of a killed process."""
    if not (path.exists() and stat.S_ISSOCK(path.stat().st_mode)):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)


class _Server(ThreadingMixIn, BaseServer):
    """Accepts connections on a listening socket. Each has a thread; at most MAX_CONCURRENT_REQUESTS."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, registry: CollectorRegistry) -> None:
        super().__init__(listener.getsockname(), _Handler)
        self._listener = listener
        self.registry = registry
        self._free = BoundedSemaphore(MAX_CONCURRENT_REQUESTS)
        self.collecting = RepeatedFailure(
            log, "cannot collect metrics", end_event="metrics are collected again"
        )
        self._failure = RepeatedFailure(
            log,
            "cannot accept connections for metrics",
            end_event="connections for metrics are accepted again",
        )

    def serve_until(self, stopped: socket.socket) -> None:
        """Serves until the other socket of the pair is closed. `serve_forever` would poll twice a second."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(stopped, selectors.EVENT_READ)
            while not any(key.fileobj is stopped for key, _ in selector.select()):
                try:
                    request, address = self._listener.accept()
                except ConnectionError:
                    # The client has already closed the connection.
                    continue
                except OSError as error:
                    # No descriptors or no memory are left. The connection stays in the backlog, so without a
                    # pause this loop would be a busy wait.
                    self._failure.failed(cause=error.strerror)
                    time.sleep(PAUSE_SECONDS)
                    continue
                self._failure.ended()
                self.process_request(request, address)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for the request, or closes the connection if too many are running."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # The system cannot start another thread.
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves the request in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def shutdown_request(self, request: Any) -> None:
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores errors of connections, which clients may close at any time."""


class _UntilDeadline(RawIOBase):
    """Reads from a connection until a deadline. The timeout of a socket would apply to each read instead."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self._deadline = time.monotonic() + REQUEST_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


def _request_path(target: str) -> str | None:
    """Returns the path of a request target; None if the target is invalid, such as http://[/metrics."""
    try:
        return urlsplit(target).path
    except ValueError:
        return None


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """Returns the encoder and the content type for a header Accept; the text format if it is invalid."""
    try:
        return choose_encoder(accept)
    # It fails for versions that are not numbers.
    except (TypeError, ValueError):
        return choose_encoder("")


class _Handler(BaseHTTPRequestHandler):
    server_version = "store-service"
    sys_version = ""

    def setup(self) -> None:
        """Replaces the reader of the base class by one with a deadline."""
        super().setup()
        self.rfile.close()
        self.rfile = BufferedReader(_UntilDeadline(self.connection))

    def do_GET(self) -> None:
        """Handles a GET request. The base class requires this name."""
        assert isinstance(self.server, _Server)
        if _request_path(self.path) != PATH:
            self.send_error(HTTPStatus.NOT_FOUND, explain=f"the only path is {PATH}")
            return
        encode, content_type = _encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception as error:
            self.server.collecting.failed(exc_info=error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, explain="the log of the service has the cause")
            return
        self.server.collecting.ended()
        self.connection.settimeout(REQUEST_SECONDS)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Disables the log lines of the base class, which writes one for each request."""
