"""The one way into every method: decode, admit, run, and turn whatever comes out into a status.

Left alone, grpc.aio sends the text of an exception to the caller, answers bytes that it cannot decode
with UNKNOWN, and leaves a caller waiting for ever when something inside the handler is cancelled. Here
is the only place that handles exceptions of methods, so none of them needs a `try`.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from store_service.auth.authentication import Authenticator, AuthRequirement, required_permission
from store_service.errors import PermissionDenied, ShuttingDown, StreamStalled
from store_service.logs import CallLog
from store_service.observability.metrics import Metrics, RpcMetrics, RpcType
from store_service.pacing import paced
from store_service.rpc.call import CALL_ID_KEY, Admit, Call, Context, fail, fail_overdue
from store_service.rpc.connections import Connections
from store_service.rpc.decoding import PACKED, Decompressor, decode_each, decoder
from store_service.rpc.delivered_bytes import Delivered
from store_service.rpc.limits import LargeRequest, Limits
from store_service.rpc.pending import COUNTED_BYTES, Response
from store_service.rpc.responses import Encoder, LazyResponse
from store_service.rpc.turns import LARGE_BYTES, Turns
from store_service.service.idempotency import is_replay

if TYPE_CHECKING:
    # An extra, needed only where spans are wanted.
    from store_service.observability.tracing import Tracing

STALL_SECONDS = 30.0
"""A stream whose caller reads nothing for so long is ended."""

ROOM_SECONDS = 0.05
"""How often a stream checks whether its next message fits."""

GONE_SECONDS = 1.0
"""How long after a failed write gRPC may take to say that the caller has gone; it does so at once."""

LOOK_SECONDS = 0.005
"""How often a server that stops looks whether its connections have gone; less often when they are many."""

SETTLE_SECONDS = 0.1
"""How long an answer may take to leave before its connection counts as one on which nothing runs."""

_RPC_TYPES: dict[tuple[bool, bool], RpcType] = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}
"""By whether the client and the server stream."""

log = structlog.get_logger("store_service.rpc")


class RpcPipeline:
    """Wraps the methods of servicers; knows which calls are running and whether new ones are taken."""

    def __init__(
        self,
        limits: Limits,
        connections: Connections,
        delivered: Delivered,
        access: Authenticator | None = None,
        measures: Metrics | None = None,
        tracing: "Tracing | None" = None,
        *,
        max_request_bytes: int,
    ) -> None:
        """Takes every call that may be made and that the limits let in, until `drain`.

        Args:
            limits: How much may be asked for at once.
            connections: What `drain` closes.
            delivered: Where bytes of calls are counted by peer.
            access: Who may make which call; None for everybody.
            measures: Where calls are counted; None for nowhere.
            tracing: What makes spans of calls; None for nothing.
            max_request_bytes: How large a request may be when it is unpacked.
        """
        self._limits = limits
        self._connections = connections
        self._delivered = delivered
        self._access = access
        self._measures = measures
        self._tracing = tracing
        self._pending = limits.pending
        self._turns = Turns()
        self._decompressor = Decompressor(max_request_bytes, self._turns)
        self._encoder = Encoder(self._turns)
        self._draining = False
        self._running = 0
        self._streams: set[asyncio.Task[Any]] = set()
        self._counted: set[asyncio.Task[Any]] = set()
        self._all_done = asyncio.Event()
        self._all_done.set()
        self._calls = CallLog()
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_logged)
        self._id_prefix = secrets.token_hex(4)
        self._id_count = 0

    def handlers(
        self,
        service: ServiceDescriptor,
        servicer: object,
        *,
        name: str = "",
        while_draining: bool = False,
        admission: AuthRequirement = AuthRequirement.PERMISSION,
        count_streams: bool = True,
    ) -> grpc.GenericRpcHandler:
        """The guarded methods of a service, for `server.add_generic_rpc_handlers`.

        Args:
            service: Which methods there are and what they take.
            servicer: The object that has them.
            name: Serve them under another name than the service's own.
            while_draining: Take calls, and let streams run, also while the server stops or is overloaded.
            admission: Who may call, where the service asks who calls.
            count_streams: Its streams count against the limit of calls; False: it has a limit of its own.
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
                    count_streams,
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
        async for stream in paced(list(self._streams)):
            stream.cancel()
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            busy = self._limits.peers()
            is_last = self._all_done.is_set()
            await self._let_arrive(min(SETTLE_SECONDS, left))
            self._connections.finish(but=busy | self._limits.peers())
            if is_last and self._all_done.is_set():
                return
        if self._running:
            log.warning("calls are still running after the grace period", running=self._running)

    async def _let_arrive(self, seconds: float) -> None:
        """Waits for calls that are on their way, as long as there are connections that they could come by."""
        end = time.perf_counter() + seconds
        pause = LOOK_SECONDS
        while (left := end - time.perf_counter()) > 0:
            # Nobody tells of the end of a connection.
            await asyncio.sleep(min(pause, left))
            began = time.perf_counter()
            if not self._connections.count():
                return
            # A look at many takes long, and calls are still to finish.
            pause = max(LOOK_SECONDS, 10 * (time.perf_counter() - began))

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
        admit: Admit | None,
        count_streams: bool,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        decode = decoder(GetMessageClass(method.input_type))
        measure = None
        if self._measures is not None:
            measure = self._measures.method(
                name, _RPC_TYPES[method.client_streaming, method.server_streaming]
            )
        # Bytes go in and out of gRPC, so that decoding happens in here, where its errors are caught.
        if method.server_streaming:
            stream = self._stream(
                name,
                behavior,
                decode,
                method.client_streaming,
                while_draining,
                admit,
                measure,
                count_streams,
            )
            if method.client_streaming:
                return grpc.stream_stream_rpc_method_handler(stream)
            return grpc.unary_stream_rpc_method_handler(stream)
        assert not method.client_streaming, f"{name}: no service of ours takes a stream and answers once"
        is_read = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
        return grpc.unary_unary_rpc_method_handler(
            self._unary(name, behavior, decode, while_draining, is_read, admit, measure)
        )

    def _admit(self, method: MethodDescriptor, admission: AuthRequirement) -> Admit | None:
        """What recognises the caller of a method and refuses those who may not call; None: nothing does."""
        access = self._access
        if access is None or admission is AuthRequirement.NONE:
            return None
        permission = required_permission(method) if admission is AuthRequirement.PERMISSION else None

        def admit(call: Call, context: Context) -> None:
            call.caller = caller = access.authenticate(context)
            if permission is not None and permission not in caller.permissions:
                raise PermissionDenied(permission=permission)

        return admit

    def _unary(
        self,
        name: str,
        behavior: Callable[[Any, Context], Awaitable[Message | LazyResponse]],
        decode: Callable[[bytes], Message],
        while_draining: bool,
        is_read: bool,
        admit: Admit | None,
        measure: RpcMetrics | None,
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(data: bytes, context: Context) -> bytes:
            call = self._begin(name, context, measure)
            call.arrived(len(data))
            admitted = None
            request: Any = None
            response: Message | LazyResponse | None = None
            answer = b""
            held = 0
            large: LargeRequest | None = None
            room: Response | None = None
            try:
                if len(data) <= LARGE_BYTES and not data.startswith(PACKED):
                    if not while_draining:
                        held = len(data)
                        self._limits.hold_small(held)
                    request = decode(data)
                elif while_draining:
                    request = await self._decompressor.decoded(data, decode)
                else:
                    large = LargeRequest(self._limits)
                    request = await self._decompressor.decoded(data, decode, large.hold)
                if admit is not None:
                    admit(call, context)
                if not while_draining:
                    if self._draining:
                        raise ShuttingDown
                    admitted = self._limits.admit(context, call)
                response = await behavior(request, context)
                if isinstance(response, LazyResponse):
                    always = not is_read and not _is_validate_only(request)
                    answer, room = await self._encoded(response, context.peer(), always=always)
                else:
                    answer = response.SerializeToString()
                    if len(answer) > COUNTED_BYTES and admitted is not None:
                        always = not is_read and not _is_validate_only(request)
                        room = self._pending.reserve(context.peer(), len(answer), always=always)
            except BaseException as error:
                # Of many that are refused at once none keeps its request and answer while it waits to say so.
                data, request, response, answer = b"", None, None, b""
                self._limits.let_go(held)
                held = 0
                if large is not None:
                    large.let_go()
                if admitted is not None and admitted.is_overdue and not context.cancelled():
                    await fail_overdue(call, context, admitted.task)
                await fail(call, context, error)
            else:
                call.log("OK")
                if admitted is not None:
                    self._pending.watch(admitted.task, context)
                return answer
            finally:
                self._limits.let_go(held)
                if large is not None:
                    large.let_go()
                if admitted is not None:
                    self._limits.end(admitted)
                    if room is not None:
                        room.send()
                        # gRPC ends the task when the response has left.
                        admitted.task.add_done_callback(room.release)
                self._end()

        return handle

    def _stream(
        self,
        name: str,
        behavior: Callable[[Any, Context], AsyncGenerator[Message | LazyResponse, None]],
        decode: Callable[[bytes], Message],
        client_streaming: bool,
        while_draining: bool,
        admit: Admit | None,
        measure: RpcMetrics | None,
        count: bool,
    ) -> Callable[[Any, Context], Awaitable[None]]:
        async def handle(data: Any, context: Context) -> None:
            call = self._begin(name, context, measure, is_stream=True)
            task = asyncio.current_task()
            assert task is not None
            try:
                if client_streaming:
                    request: Any = decode_each(data, self._decompressor, decode)
                else:
                    request = await self._decompressor.decoded(data, decode)
                if admit is not None:
                    admit(call, context)
                if self._draining and not while_draining:
                    raise ShuttingDown
                if not while_draining:
                    self._limits.check_stream(context, call, len(self._counted) if count else 0)
                    self._streams.add(task)
                    if count:
                        self._counted.add(task)
                # Closed before the caller is told, so that a caller that hears nothing holds nothing.
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        if admit is not None:
                            # A key may be deleted and a token expire while a stream is open.
                            admit(call, context)
                        await self._send(context, response)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and self._draining and not context.cancelled():
                    task.uncancel()
                    error = ShuttingDown()
                await fail(call, context, error)
            else:
                call.log("OK")
            finally:
                self._streams.discard(task)
                self._counted.discard(task)
                self._end()

        return handle

    async def _encoded(
        self, response: LazyResponse, peer: str, *, always: bool
    ) -> tuple[bytes, Response | None]:
        """Encodes a response, and takes the room that it needs until it is read, if it is counted.

        Raises:
            Overloaded: There is no room, and the response need not be sent `always`.
        """
        if response.size <= COUNTED_BYTES:
            return await self._encoder.encode(response), None
        room = self._pending.reserve(peer, response.size, always=always)
        try:
            data = await self._encoder.encode(response)
            room.resize(len(data))
        except BaseException:
            room.release()
            raise
        return data, room

    async def _send(self, context: Context, response: Message | LazyResponse) -> None:
        """Sends one message of a stream.

        Raises:
            StreamStalled: The caller reads nothing; what it has not read fills what gRPC sends ahead.
            CancelledError: The caller has left.
        """
        room: Response | None = None
        try:
            if not isinstance(response, LazyResponse):
                data = response.SerializeToString()
            else:
                if response.size > COUNTED_BYTES:
                    await self._wait_for_room(context.peer(), response.size)
                data, room = await self._encoded(response, context.peer(), always=True)
            if room is not None:
                room.send()
            async with asyncio.timeout(STALL_SECONDS):
                await context.write(data)
        except TimeoutError:
            raise StreamStalled(seconds=STALL_SECONDS) from None
        except grpc.aio.InternalError:
            # What is on its way fails before gRPC cancels the call of a caller who has gone. If it does not
            # cancel it, this is a bug.
            await asyncio.sleep(GONE_SECONDS)
            raise
        finally:
            if room is not None:
                room.release()

    async def _wait_for_room(self, peer: str, size: int) -> None:
        """Waits until a message may be sent. A stream is not refused: its caller would retry at once."""
        async with asyncio.timeout(STALL_SECONDS):
            while not self._pending.has_room(peer, size):  # noqa: ASYNC110  # polled only while it is crowded
                await asyncio.sleep(ROOM_SECONDS)

    def _begin(
        self, name: str, context: Context, measure: RpcMetrics | None, *, is_stream: bool = False
    ) -> Call:
        self._running += 1
        self._all_done.clear()
        self._id_count += 1
        call_id = f"{self._id_prefix}-{self._id_count:x}"
        context.set_trailing_metadata(((CALL_ID_KEY, call_id),))
        if measure is not None:
            measure.started += 1
        span = None
        if self._tracing is not None:
            span = self._tracing.begin(
                name, call_id, context.invocation_metadata() or (), is_stream=is_stream
            )
        if is_stream:
            # It may be open for long.
            self._delivered.add_call(context, context.peer(), 0)
        return Call(name, call_id, context, self._calls, measure, span, self._delivered)

    def _end(self) -> None:
        self._running -= 1
        if not self._running:
            self._all_done.set()


def _is_validate_only(request: Message) -> bool:
    """Whether a write was only tried, or answered as it was before, so that its caller may come again."""
    return getattr(request, "validate_only", False) or is_replay()


def _is_logged(record: logging.LogRecord) -> bool:
    """Whether what gRPC logs is more than that an answer was not sent because its caller has gone.

    The answer of a unary call and the status of any are sent after the guard, so there it cannot be told
    apart otherwise. What gRPC does not even begin to send is another error, of another text.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, grpc.aio.InternalError) and str(error).startswith('Failed "execute_batch"'))
