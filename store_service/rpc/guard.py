"""The one way into every method: decode, admit, run, and turn whatever comes out into a status.

Left alone, grpc.aio sends the text of an exception to the caller, answers bytes that it cannot decode
with UNKNOWN, and leaves a caller waiting for ever when something inside the handler is cancelled. Here
is the only place that handles exceptions of methods, so none of them needs a `try`.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from store_service.access.caller import Caller
from store_service.errors import PermissionDenied, RequestMalformed, ShuttingDown, StoreError, StreamStalled
from store_service.logs import CallLog
from store_service.measures import CallMeasure, Measures
from store_service.rpc.access import Access, Admission, address_of, right_of
from store_service.rpc.connections import Connections
from store_service.rpc.limits import LARGE_BYTES, Admitted, Limits
from store_service.rpc.status import ROWS, status_of, status_of_a_bug

if TYPE_CHECKING:
    # An extra, needed only where spans are wanted.
    from store_service.rpc.tracing import CallSpan, Tracing

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CALL_ID_KEY = "x-call-id"
"""Trailing metadata with the id under which the log tells of the call."""

STALL_SECONDS = 30.0
"""A stream whose caller reads nothing for so long is ended."""

SETTLE_SECONDS = 0.1
"""How long an answer may take to leave before its connection counts as one on which nothing runs."""

_DETAILS_KEY = "grpc-status-details-bin"

_PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""RetryInfo for gRPC itself: a client whose service config retries waits as long (gRFC A6)."""

log = structlog.get_logger("store_service.rpc")


class Guard:
    """Wraps the methods of servicers; knows which calls are running and whether new ones are taken."""

    def __init__(
        self,
        limits: Limits,
        connections: Connections,
        access: Access | None = None,
        measures: Measures | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        """Takes every call that may be made and that the limits let in, until `drain`.

        Args:
            limits: How much may be asked for at once.
            connections: What `drain` closes.
            access: Who may make which call; None for everybody.
            measures: Where calls are counted; None for nowhere.
            tracing: What makes spans of calls; None for nothing.
        """
        self._limits = limits
        self._connections = connections
        self._access = access
        self._measures = measures
        self._tracing = tracing
        self._draining = False
        self._running = 0
        self._streams: set[asyncio.Task[Any]] = set()
        self._all_done = asyncio.Event()
        self._all_done.set()
        self._calls = CallLog()
        self._id_prefix = secrets.token_hex(4)
        self._id_count = 0

    def handlers(
        self,
        service: ServiceDescriptor,
        servicer: object,
        *,
        name: str = "",
        while_draining: bool = False,
        admission: Admission = Admission.RIGHT,
    ) -> grpc.GenericRpcHandler:
        """The guarded methods of a service, for `server.add_generic_rpc_handlers`.

        Args:
            service: Which methods there are and what they take.
            servicer: The object that has them.
            name: Serve them under another name than the service's own.
            while_draining: Take calls, and let streams run, also while the server stops or is overloaded.
            admission: Who may call, where the service asks who calls.
        """
        name = name or service.full_name
        return grpc.method_handlers_generic_handler(
            name,
            {
                method.name: self._handler(
                    f"{name}/{method.name}",
                    method,
                    getattr(servicer, method.name),
                    while_draining,
                    self._admit(method, admission),
                )
                for method in service.methods
            },
        )

    async def drain(self, seconds: float) -> None:
        """Refuses new calls and connections, ends streams, and waits for running calls, but no longer than
        `seconds`.

        A connection is closed as soon as nothing runs on it, so that its client goes on elsewhere.
        """
        self._draining = True
        self._connections.stop_listening()
        for stream in self._streams:
            stream.cancel()
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            busy = self._limits.peers()
            is_last = self._all_done.is_set()
            await asyncio.sleep(min(SETTLE_SECONDS, left))
            self._connections.finish(but=busy | self._limits.peers())
            if is_last and self._all_done.is_set():
                return
        if self._running:
            log.warning("calls are still running after the grace period", running=self._running)

    def close(self) -> None:
        """Writes the last lines of the log, after the last call has ended."""
        self._limits.close()
        self._calls.flush()

    def _handler(
        self,
        name: str,
        method: MethodDescriptor,
        behavior: Callable[..., Any],
        while_draining: bool,
        admit: "_Admit | None",
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        decode = _decoder(GetMessageClass(method.input_type))
        measure = None
        if self._measures is not None:
            measure = self._measures.of_method(name, is_stream=method.server_streaming)
        # Bytes go in and out of gRPC, so that decoding happens in here, where its errors are caught.
        if method.server_streaming:
            stream = self._stream(
                name, behavior, decode, method.client_streaming, while_draining, admit, measure
            )
            if method.client_streaming:
                return grpc.stream_stream_rpc_method_handler(stream)
            return grpc.unary_stream_rpc_method_handler(stream)
        assert not method.client_streaming, f"{name}: no service of ours takes a stream and answers once"
        is_read = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
        return grpc.unary_unary_rpc_method_handler(
            self._unary(name, behavior, decode, while_draining, is_read, admit, measure)
        )

    def _admit(self, method: MethodDescriptor, admission: Admission) -> "_Admit | None":
        """What recognises the caller of a method and refuses those who may not call; None: nothing does."""
        access = self._access
        if access is None or admission is Admission.ANYBODY:
            return None
        right = right_of(method) if admission is Admission.RIGHT else None

        def admit(call: "_Call", context: Context) -> None:
            call.caller = caller = access.caller_of(context)
            if right is not None and right not in caller.rights:
                raise PermissionDenied(right=right)

        return admit

    def _unary(
        self,
        name: str,
        behavior: Callable[[Any, Context], Awaitable[Message]],
        decode: Callable[[bytes], Message],
        while_draining: bool,
        is_read: bool,
        admit: "_Admit | None",
        measure: CallMeasure | None,
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(data: bytes, context: Context) -> bytes:
            call = self._begin(name, context, measure)
            admitted = None
            answer = b""
            failed = False
            try:
                request = decode(data)
                if admit is not None:
                    admit(call, context)
                if not while_draining:
                    if self._draining:
                        raise ShuttingDown
                    admitted = self._limits.admit(context, call)
                response = await behavior(request, context)
                answer = response.SerializeToString()
                if len(answer) > LARGE_BYTES and is_read and admitted is not None:
                    self._limits.check_answer(context, len(answer))
            except BaseException as error:
                failed = True
                if admitted is not None and admitted.is_overdue and not context.cancelled():
                    await self._fail_overdue(call, context, admitted)
                await self._fail(call, context, error)
            else:
                call.log("OK")
                return answer
            finally:
                if admitted is not None:
                    # Empty when the call failed, whatever had been made for it.
                    self._limits.end(admitted, 0 if failed else len(answer))
                self._end()

        return handle

    def _stream(
        self,
        name: str,
        behavior: Callable[[Any, Context], AsyncGenerator[Message | bytes, None]],
        decode: Callable[[bytes], Message],
        client_streaming: bool,
        while_draining: bool,
        admit: "_Admit | None",
        measure: CallMeasure | None,
    ) -> Callable[[Any, Context], Awaitable[None]]:
        async def handle(data: Any, context: Context) -> None:
            call = self._begin(name, context, measure, is_stream=True)
            task = asyncio.current_task()
            assert task is not None
            try:
                request = _decode_each(data, decode) if client_streaming else decode(data)
                if admit is not None:
                    admit(call, context)
                if self._draining and not while_draining:
                    raise ShuttingDown
                if not while_draining:
                    self._limits.check_stream(context, call, len(self._streams))
                    self._streams.add(task)
                # Closed before the caller is told, so that a caller that hears nothing holds nothing.
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        if admit is not None:
                            # A key may be deleted and a token expire while a stream is open.
                            admit(call, context)
                        await _send(context, response)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and self._draining and not context.cancelled():
                    task.uncancel()
                    error = ShuttingDown()
                await self._fail(call, context, error)
            else:
                call.log("OK")
            finally:
                self._streams.discard(task)
                self._end()

        return handle

    def _begin(
        self, name: str, context: Context, measure: CallMeasure | None, *, is_stream: bool = False
    ) -> "_Call":
        self._running += 1
        self._all_done.clear()
        self._id_count += 1
        call_id = f"{self._id_prefix}-{self._id_count:x}"
        context.set_trailing_metadata(((CALL_ID_KEY, call_id),))
        if measure is not None:
            measure.running += 1
        span = None
        if self._tracing is not None:
            span = self._tracing.begin(name, call_id, context, is_stream=is_stream)
        return _Call(name, call_id, context, self._calls, measure, span)

    def _end(self) -> None:
        self._running -= 1
        if not self._running:
            self._all_done.set()

    async def _fail_overdue(self, call: "_Call", context: Context, admitted: Admitted) -> NoReturn:
        """Ends a call that has taken as long as any may."""
        admitted.task.uncancel()
        call.log("DEADLINE_EXCEEDED")
        trailers = ((CALL_ID_KEY, call.id),)
        code = grpc.StatusCode.DEADLINE_EXCEEDED
        await context.abort(code, "the call took as long as any may", trailing_metadata=trailers)

    async def _fail(self, call: "_Call", context: Context, error: BaseException) -> NoReturn:
        """Ends a call with the status of what was raised."""
        if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
            # The caller went away or its deadline passed; nobody hears an answer.
            left = context.time_remaining()
            call.log("CANCELLED" if left is None or left > 0 else "DEADLINE_EXCEEDED")
            raise error
        if isinstance(error, grpc.aio.AbortError):
            # The method has answered by itself, as the health service does.
            call.log(grpc.StatusCode(context.code()).name)
            raise error
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise error

        # The branches of the tree have no row; one that is raised is a bug like any other.
        if isinstance(error, StoreError) and type(error) in ROWS:
            status = status_of(error)
            if error.__cause__ is not None:
                log.warning("database error", call_id=call.id, cause=repr(error.__cause__))
            call.log(status.code.name, ROWS[type(error)].reason)
        else:
            # Includes a CancelledError of something inside, which would leave the caller waiting.
            status = status_of_a_bug(call.id)
            log.error("bug", call_id=call.id, method=call.method, exc_info=error)
            call.log(status.code.name, "INTERNAL")
        trailers: tuple[tuple[str, str | bytes], ...] = (
            (CALL_ID_KEY, call.id),
            (_DETAILS_KEY, status.details),
        )
        if status.retry_ms is not None:
            trailers += ((_PUSHBACK_KEY, str(status.retry_ms)),)
        await context.abort(status.code, status.message, trailing_metadata=trailers)


class _Call:
    """A running call, as the log, counters and spans tell of it: never what was sent, only how it went."""

    __slots__ = ("_calls", "_context", "_measure", "_span", "_start", "caller", "id", "method")

    def __init__(
        self,
        method: str,
        call_id: str,
        context: Context,
        calls: CallLog,
        measure: CallMeasure | None,
        span: "CallSpan | None",
    ) -> None:
        self._calls = calls
        self.method = method
        self.id = call_id
        self.caller: Caller | None = None  # who makes it, as soon as that is known
        self._context = context
        self._measure = measure
        self._span = span
        self._start = time.perf_counter()

    @property
    def caller_name(self) -> str:
        """Who makes it; of a caller who is not known, from where."""
        return address_of(self._context.peer()) if self.caller is None else self.caller.name

    def log(self, code: str, reason: str = "") -> None:
        """Tells the log, the counters and the span how the call has ended."""
        seconds = time.perf_counter() - self._start
        if self._measure is not None:
            self._measure.ended(code, reason, seconds)
        if self._span is not None:
            self._span.end(code, reason)
        caller = None if self.caller is None else self.caller.name
        self._calls.write(self.method, code, seconds, self._context.peer(), self.id, caller)


_Admit: TypeAlias = Callable[[_Call, Context], None]


async def _send(context: Context, response: Message | bytes) -> None:
    """Sends one message of a stream, which may be encoded already because others get the same.

    Raises:
        StreamStalled: The caller reads nothing; what it has not read fills what gRPC sends ahead.
    """
    data = response if isinstance(response, bytes) else response.SerializeToString()
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await context.write(data)
    except TimeoutError:
        raise StreamStalled(seconds=STALL_SECONDS) from None


def _decoder(message_class: type[Message]) -> Callable[[bytes], Message]:
    parse = message_class.FromString

    def decode(data: bytes) -> Message:
        try:
            return parse(data)
        except DecodeError:
            raise RequestMalformed.at("", f"the request is no {message_class.DESCRIPTOR.full_name}") from None

    return decode


async def _decode_each(
    data: AsyncIterator[bytes], decode: Callable[[bytes], Message]
) -> AsyncIterator[Message]:
    async for one in data:
        yield decode(one)


def _is_being_cancelled() -> bool:
    """Whether this RPC's own task is being cancelled, rather than something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
