"""Reports on a terminal the cause of waiting when the service does not respond."""

from __future__ import annotations

import re
import threading
from types import TracebackType
from typing import Any, Final

import click
import grpc

from storeapi._retries import may_help
from storeapi._status import store_error
from storeapi.cli.text import one_line
from storeapi.errors import StoreError

PATIENCE_SECONDS: Final = 1.0
"""How long a response may take before the cause is reported."""

BEFORE_CAUSE: Final = re.compile(
    r"^.*(last error: \w+: (\S+: )?|lookup failed for \S+: )(Failed to connect to remote host: )?", re.DOTALL
)
"""What gRPC puts before the cause of a connection that failed."""


class Waiting(
    grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor
):
    """Observes the calls of a channel with their retries, and reports each cause of waiting once."""

    def __init__(self, target: str) -> None:
        """Takes the name of the service for the messages."""
        self._target = re.sub("^ipv[46]:", "", target)
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._is_late = False
        self._cause = ""
        self._reported: set[str] = set()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Makes a call."""
        self._begin()
        call = continuation(client_call_details, request)
        if call.code() is grpc.StatusCode.OK:
            self.end()
        else:
            self.fail(store_error(call))
        return call

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Begins a watch or an export."""
        self._begin()
        return _Responses(continuation(client_call_details, request), self)

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Begins an import."""
        return self.intercept_unary_stream(continuation, client_call_details, request_iterator)

    def _begin(self) -> None:
        with self._lock:
            # Otherwise it is a retry of a failed call.
            if self._timer is None:
                self._cause, self._is_late = "no response yet", False
                self._timer = threading.Timer(PATIENCE_SECONDS, self._be_late)
                self._timer.daemon = True
                self._timer.start()

    def fail(self, error: StoreError) -> None:
        """An attempt has failed."""
        if not may_help(error):
            self.end()
            return
        with self._lock:
            self._cause = f"{_in_short(error)}, retrying"
            self._report()

    def end(self) -> None:
        """Records that the call has a response, or has failed."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._is_late = None, False

    def _be_late(self) -> None:
        with self._lock:
            self._is_late = self._timer is threading.current_thread()
            self._report()

    def _report(self) -> None:
        if self._is_late and self._cause not in self._reported:
            self._reported.add(self._cause)
            click.echo(one_line(f"waiting for {self._target} ({self._cause})"), err=True)


class _Responses:
    """The call of a watch, which ends the waiting with each response."""

    def __init__(self, call: Any, waiting: Waiting) -> None:
        self._call = call
        self._waiting = waiting

    def __iter__(self) -> _Responses:
        return self

    def __next__(self) -> Any:
        try:
            response = next(self._call)
        except grpc.RpcError as error:
            self._waiting.fail(store_error(error))
            raise
        self._waiting.end()
        return response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def _in_short(error: StoreError) -> str:
    """The cause alone."""
    cause = BEFORE_CAUSE.sub("", error.message).rstrip("]")
    return cause[:1].lower() + cause[1:]
