"""A running call: who makes it, what is told of it, and how it ends with an error."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
import structlog

from store_service.auth.authentication import peer_address
from store_service.auth.principal import Principal
from store_service.errors import ServiceError
from store_service.logs import CallLog
from store_service.observability.metrics import RpcMetrics
from store_service.rpc.decoding import RequestTooLarge
from store_service.rpc.delivered_bytes import Delivered
from store_service.rpc.status import ROWS, internal_status, status_from_error
from store_service.rpc.turns import LARGE_BYTES

if TYPE_CHECKING:
    # An extra, needed only where spans are wanted.
    from store_service.observability.tracing import CallSpan

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CALL_ID_KEY = "x-call-id"
"""Trailing metadata with the id under which the log tells of the call."""

TRAVEL_SECONDS = 0.01
"""How much earlier than here a deadline may pass for its caller, besides what gRPC rounds."""

_DETAILS_KEY = "grpc-status-details-bin"

_PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""RetryInfo for gRPC itself: a client whose service config retries waits as long (gRFC A6)."""

log = structlog.get_logger("store_service.rpc")


class Call:
    """A running call, as the log, counters and spans tell of it: never what was sent, only how it went."""

    __slots__ = (
        "_calls",
        "_context",
        "_delivered",
        "_measure",
        "_span",
        "_start",
        "caller",
        "id",
        "method",
        "request_bytes",
    )

    def __init__(
        self,
        method: str,
        call_id: str,
        context: Context,
        calls: CallLog,
        measure: RpcMetrics | None,
        span: "CallSpan | None",
        delivered: Delivered,
    ) -> None:
        """Begins now, a call of a method with an id for the log; counted and traced if there is where to.

        At its end it is counted in `delivered`, with `request_bytes`.
        """
        self._calls = calls
        self.method = method
        self.id = call_id
        self.caller: Principal | None = None  # who makes it, as soon as that is known
        self._context = context
        self._measure = measure
        self._span = span
        self._delivered = delivered
        self.request_bytes: int | None = None  # None: it is counted already
        self._start = time.perf_counter()

    @property
    def caller_name(self) -> str:
        """Who makes it; of a caller who is not known, from where."""
        return peer_address(self._context.peer()) if self.caller is None else self.caller.name

    def is_late(self) -> bool:
        """Whether the deadline has passed, as the caller sees it.

        The caller's clock runs ahead of ours by what the request travelled, and gRPC rounds up what it sends
        (by less than 1 %: three digits), so that it is often the caller who ends a late call.
        """
        left = self._context.time_remaining()
        if left is None:
            return False
        elapsed = time.perf_counter() - self._start
        return left <= TRAVEL_SECONDS + (elapsed + left) * 0.01

    def log(self, code: str, reason: str = "") -> None:
        """Tells the log, the counters and the span how the call has ended."""
        seconds = time.perf_counter() - self._start
        if self._measure is not None:
            self._measure.ended(code, reason, seconds)
        if self._span is not None:
            self._span.end(code, reason)
        caller = None if self.caller is None else self.caller.name
        peer = self._context.peer()
        # A call that was cancelled has perhaps been sent for nothing else.
        if code == "CANCELLED" or self.request_bytes is None:
            self._delivered[peer] += 0
        else:
            self._delivered.add_call(self._context, peer, self.request_bytes)
        self._calls.write(self.method, code, seconds, peer, self.id, caller, reason)

    def arrived(self, request_bytes: int) -> None:
        """Says that so much of its connection has become a request."""
        if request_bytes > LARGE_BYTES:
            # Now, for it may take long. The name of a peer is made anew each time, so small ones wait.
            self._delivered[self._context.peer()] += request_bytes
            self.request_bytes = 0
        else:
            self.request_bytes = request_bytes


Admit: TypeAlias = Callable[[Call, Context], None]
"""Recognises the caller of a call, and raises if they may not make it."""


async def fail(call: Call, context: Context, error: BaseException) -> NoReturn:
    """Ends a call with the status of what was raised."""
    if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
        # The caller went away or its deadline passed; nobody hears an answer.
        call.log("DEADLINE_EXCEEDED" if call.is_late() else "CANCELLED")
        raise error
    if isinstance(error, grpc.aio.AbortError):
        # The method has answered by itself, as the health service does.
        call.log(grpc.StatusCode(context.code()).name)
        raise error
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    if isinstance(error, RequestTooLarge):
        # As gRPC answers to one that is too large without being packed.
        call.log("RESOURCE_EXHAUSTED")
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), trailing_metadata=((CALL_ID_KEY, call.id),)
        )

    # The branches of the tree have no row; one that is raised is a bug like any other.
    if isinstance(error, ServiceError) and type(error) in ROWS:
        status = status_from_error(error)
        # The frames that it came through have the request, which may be large.
        error.with_traceback(None)
        if error.__cause__ is not None:
            log.warning("database error", call_id=call.id, cause=repr(error.__cause__))
        call.log(status.code.name, ROWS[type(error)].reason)
    else:
        # Includes a CancelledError of something inside, which would leave the caller waiting.
        status = internal_status(call.id)
        log.error("unhandled exception", call_id=call.id, method=call.method, exc_info=error)
        call.log(status.code.name, "INTERNAL")
    trailers: tuple[tuple[str, str | bytes], ...] = (
        (CALL_ID_KEY, call.id),
        (_DETAILS_KEY, status.details),
    )
    if status.retry_ms is not None:
        trailers += ((_PUSHBACK_KEY, str(status.retry_ms)),)
    await context.abort(status.code, status.message, trailing_metadata=trailers)


async def fail_overdue(call: Call, context: Context, task: "asyncio.Task[object]") -> NoReturn:
    """Ends a call that has taken as long as any may."""
    task.uncancel()
    call.log("DEADLINE_EXCEEDED")
    trailers = ((CALL_ID_KEY, call.id),)
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    await context.abort(code, "the call took as long as any may", trailing_metadata=trailers)


def _is_being_cancelled() -> bool:
    """Whether this RPC's own task is being cancelled, rather than something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
