"""A call in flight: its identity, its log line, metrics and span, and its end with an error."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.message import Message

from store_service.auth.authentication import peer_address
from store_service.auth.principal import Principal
from store_service.errors import ServiceError, StoreMoving
from store_service.logs import CallLog
from store_service.observability.metrics import RpcMetrics
from store_service.rpc.decoding import RequestTooLarge
from store_service.rpc.delivered_bytes import Delivered
from store_service.rpc.status import ROWS, internal_status, status_from_error
from store_service.rpc.trusted_proxies import TrustedProxies
from store_service.rpc.turns import LARGE_BYTES
from store_service.service.idempotency import is_replay

if TYPE_CHECKING:
    # An extra, needed only where spans are wanted.
    from store_service.observability.tracing import CallSpan

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CALL_ID_KEY = "x-call-id"
"""Trailing metadata with the id of the call in the log."""

TRAVEL_SECONDS = 0.01
"""How much earlier a deadline may pass for the caller than here, in addition to the rounding of gRPC."""

_DETAILS_KEY = "grpc-status-details-bin"

_PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""RetryInfo for gRPC itself: a client that retries by its service config waits this long (gRFC A6)."""

log = structlog.get_logger("store_service.rpc")


class Call:
    """A call in flight, for the log, metrics and spans. It has no content of requests and responses."""

    __slots__ = (
        "_calls",
        "_context",
        "_delivered",
        "_metrics",
        "_proxies",
        "_span",
        "_start",
        "id",
        "method",
        "principal",
        "request_bytes",
    )

    def __init__(
        self,
        method: str,
        call_id: str,
        context: Context,
        calls: CallLog,
        metrics: RpcMetrics | None,
        span: "CallSpan | None",
        delivered: Delivered,
        proxies: TrustedProxies | None,
    ) -> None:
        """Starts a call of a method with an id for the log, and with metrics, a span and trusted proxies if
        they are enabled.

        The end of the call counts `request_bytes` in `delivered`.
        """
        self._calls = calls
        self.method = method
        self.id = call_id
        self.principal: Principal | None = None
        """The authenticated caller; None before authentication, and if the service requires none."""
        self._context = context
        self._metrics = metrics
        self._span = span
        self._delivered = delivered
        self._proxies = proxies
        self.request_bytes: int | None = None
        """Bytes of the request that are not counted yet; None if nothing remains to be counted."""
        self._start = time.perf_counter()

    @property
    def caller_name(self) -> str:
        """The name of the principal, or the address of the caller if there is none."""
        if self.principal is not None:
            return self.principal.name
        peer = self._context.peer()
        return self._forwarded_caller(peer) or peer_address(peer)

    def is_late(self) -> bool:
        """Whether the deadline has passed for the caller.

        For the caller it passes earlier than for the server: by the travel time of the request, and because
        gRPC rounds timeouts up (by less than 1 %, to three digits). So often the caller ends a late call.
        """
        left = self._context.time_remaining()
        if left is None:
            return False
        elapsed = time.perf_counter() - self._start
        return left <= TRAVEL_SECONDS + (elapsed + left) * 0.01

    def log(self, code: str, reason: str = "") -> None:
        """Writes the log line, counts the call, and ends the span."""
        seconds = time.perf_counter() - self._start
        if self._metrics is not None:
            self._metrics.ended(code, reason, seconds)
        if self._span is not None:
            self._span.end(code, reason)
        caller = None if self.principal is None else self.principal.name
        peer = self._context.peer()
        # A client may send calls only to cancel them. Their bytes are not counted as delivered.
        if code == "CANCELLED" or self.request_bytes is None:
            self._delivered[peer] += 0
        else:
            self._delivered.add_call(self._context, peer, self.request_bytes)
        if self._proxies is not None:
            peer = self._forwarded_caller(peer) or peer
        self._calls.write(self.method, code, seconds, peer, self.id, caller, reason)

    def _forwarded_caller(self, peer: str) -> str | None:
        return None if self._proxies is None else self._proxies.forwarded_caller(self._context, peer)

    def arrived(self, request_bytes: int) -> None:
        """Records the size of the request."""
        if request_bytes > LARGE_BYTES:
            # Counted now: a large request may take long. Small ones are counted at the end, where the name of
            # the peer, which gRPC builds each time, is needed anyway.
            self._delivered[self._context.peer()] += request_bytes
            self.request_bytes = 0
        else:
            self.request_bytes = request_bytes


Authorize: TypeAlias = Callable[[Call, Context], None]
"""Authenticates the caller of a call, and raises an error if it lacks the permission."""


def call_id_of(context: Context) -> str:
    """Returns the id of a call in the log."""
    return next((str(value) for key, value in context.trailing_metadata() if key == CALL_ID_KEY), "")


async def fail(
    call: Call, context: Context, error: BaseException, trailer: tuple[tuple[str, str], ...] = ()
) -> NoReturn:
    """Ends a call with the status of an exception, and with further trailing metadata."""
    if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
        # The caller has cancelled the call, or its deadline has passed. It receives no status.
        call.log("DEADLINE_EXCEEDED" if call.is_late() else "CANCELLED")
        raise error
    if isinstance(error, grpc.aio.AbortError):
        # The method has set the status itself, as the health service does.
        call.log(grpc.StatusCode(context.code()).name)
        raise error
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    if isinstance(error, RequestTooLarge):
        # The status of gRPC for an uncompressed request that is too large.
        call.log("RESOURCE_EXHAUSTED")
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), trailing_metadata=((CALL_ID_KEY, call.id),)
        )

    # Abstract errors have no row. If one is raised, it is unexpected like any other exception.
    if isinstance(error, ServiceError) and type(error) in ROWS:
        status = status_from_error(error)
        # The frames of the traceback refer to the request, which may be large.
        error.with_traceback(None)
        if error.__cause__ is not None and not isinstance(error, StoreMoving):
            log.warning("database error", call_id=call.id, cause=repr(error.__cause__))
        call.log(status.code.name, ROWS[type(error)].reason)
    else:
        # Includes a CancelledError of another task, with which gRPC would never end the call.
        status = internal_status(call.id)
        log.error("unhandled exception", call_id=call.id, method=call.method, exc_info=error)
        call.log(status.code.name, "INTERNAL")
    trailers: tuple[tuple[str, str | bytes], ...] = (
        (CALL_ID_KEY, call.id),
        *trailer,
        (_DETAILS_KEY, status.details),
    )
    if status.retry_ms is not None:
        trailers += ((_PUSHBACK_KEY, str(status.retry_ms)),)
    await context.abort(status.code, status.message, trailing_metadata=trailers)


async def fail_overdue(
    call: Call, context: Context, task: "asyncio.Task[object]", max_seconds: float
) -> NoReturn:
    """Ends a call that has exceeded the maximum duration."""
    task.uncancel()
    call.log("DEADLINE_EXCEEDED")
    trailers = ((CALL_ID_KEY, call.id),)
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    message = f"the call exceeded the server limit of {max_seconds:g} s"
    await context.abort(code, message, trailing_metadata=trailers)


def has_no_effect(request: Message) -> bool:
    """Whether a write was a dry run or a replay, so that its caller may repeat it."""
    return getattr(request, "validate_only", False) or is_replay()


def _is_being_cancelled() -> bool:
    """Whether the task of the call itself is being cancelled, not another task that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
