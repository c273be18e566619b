"""Serves metrics over HTTP, on a thread of its own, so that it answers also when the event loop does not."""

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
"""A client that takes longer to send its whole request, or to take the answer, is cut off."""

AT_ONCE = 16
"""Requests that are served at the same time; whoever connects beyond them is cut off at once."""

PAUSE_SECONDS = 0.1
"""Pause after a connection could not be taken."""

log = structlog.get_logger("store_service.observability")


@contextmanager
def served(listen: str, collector: Collector) -> Iterator[str]:
    """Answers GET /metrics, and nothing else, until the end of the block.

    Args:
        listen: HOST:PORT, or unix:PATH; port 0 lets the system choose.
        collector: What to serve; it is asked on threads of its own.

    Yields:
        The address, with the real port.

    Raises:
        OSError: The address is in use, or not of this machine.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    with _listening(listen) as listener:
        server = _Server(listener, registry)
        stopped, stop = socket.socketpair()
        thread = Thread(target=server.serve_until, args=[stopped], name="metrics", daemon=True)
        thread.start()
        try:
            wanted = Address.parse(listen)
            yield listen if wanted.path else str(wanted.with_port(listener.getsockname()[1]))
        finally:
            stop.close()
            thread.join()
            stopped.close()


@contextmanager
def _listening(listen: str) -> Iterator[socket.socket]:
    wanted = Address.parse(listen)
    if wanted.path is not None:
        path = wanted.path
        _remove_if_left_over(path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(path))
            listener.listen()
            try:
                yield listener
            finally:
                path.unlink(missing_ok=True)
        return
    family, address = wanted.resolved()[0]
    with socket.socket(family) as listener:
        # A server that has just ended does not keep the port from the next.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        yield listener


def _remove_if_left_over(path: Path) -> None:
    """Removes the socket of a process that was killed, and nothing that anybody answers on."""
    if not (path.exists() and stat.S_ISSOCK(path.stat().st_mode)):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)


class _Server(ThreadingMixIn, BaseServer):
    """Takes connections from a socket that listens already, each on a thread, and no more than `AT_ONCE`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, registry: CollectorRegistry) -> None:
        super().__init__(listener.getsockname(), _Handler)
        self._listener = listener
        self.registry = registry
        self._free = BoundedSemaphore(AT_ONCE)
        self.collecting = RepeatedFailure(
            log, "cannot collect metrics", end_event="metrics are collected again"
        )
        self._failure = RepeatedFailure(
            log,
            "cannot accept connections for metrics",
            end_event="connections for metrics are accepted again",
        )

    def serve_until(self, stopped: socket.socket) -> None:
        """Serves until the other end of a pair of sockets is closed; the base class would look for it twice a
        second."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(stopped, selectors.EVENT_READ)
            while not any(key.fileobj is stopped for key, _ in selector.select()):
                try:
                    request, address = self._listener.accept()
                except ConnectionError:
                    # The client has gone away already.
                    continue
                except OSError as error:
                    # No descriptors or no memory are left. The client waits; without a pause the thread would
                    # do nothing but try again.
                    self._failure.failed(cause=error.strerror)
                    time.sleep(PAUSE_SECONDS)
                    continue
                self._failure.ended()
                self.process_request(request, address)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves on a thread, if one is free."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            # The system has no room for a thread just now.
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves, and makes room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def shutdown_request(self, request: Any) -> None:
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that go away, as they may."""


class _UntilDeadline(RawIOBase):
    """What a client sends, as long as it has time; a timeout of the socket begins anew with each byte."""

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
    """The path of what a request asks for; None if it has none, as http://[/metrics."""
    try:
        return urlsplit(target).path
    except ValueError:
        return None


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """The format that a client asks for, with its content type; the plain one if nobody can know which."""
    try:
        return choose_encoder(accept)
    # Versions that are no numbers are compared with one.
    except (TypeError, ValueError):
        return choose_encoder("")


class _Handler(BaseHTTPRequestHandler):
    server_version = "store-service"
    sys_version = ""

    def setup(self) -> None:
        """Reads from the socket as the base class does, but for the time."""
        super().setup()
        self.rfile.close()
        self.rfile = BufferedReader(_UntilDeadline(self.connection))

    def do_GET(self) -> None:
        """Answers a GET; the base class looks for this name."""
        assert isinstance(self.server, _Server)
        if _request_path(self.path) != PATH:
            self.send_error(HTTPStatus.NOT_FOUND, explain=f"there is nothing but {PATH}")
            return
        encode, content_type = _encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception as error:
            self.server.collecting.failed(exc_info=error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, explain="the log of the service says why")
            return
        self.server.collecting.ended()
        self.connection.settimeout(REQUEST_SECONDS)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a line for each scrape helps nobody."""
