"""The pipeline of every RPC: decode, authenticate, apply limits, run the method, encode, and log.

Without it, grpc.aio sends the text of an exception to the caller, answers bytes that cannot be decoded with
UNKNOWN, and never ends a call in which something else than the call was cancelled. The pipeline is the only
place that handles exceptions of methods, so no method has a `try`.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from store_service.auth.authentication import Authenticator, AuthRequirement
from store_service.errors import ShuttingDown
from store_service.logs import CallLog
from store_service.observability.metrics import Metrics
from store_service.pacing import paced
from store_service.rpc.call import CALL_ID_KEY, Call, Context, fail, fail_overdue, has_no_effect
from store_service.rpc.connections import Connections
from store_service.rpc.consistency import Consistency
from store_service.rpc.decoding import COMPRESSED, Decompressor, decode_each
from store_service.rpc.delivered_bytes import Delivered
from store_service.rpc.limits import InFlightCall, LargeRequest, Limits, StreamRequests
from store_service.rpc.method import Method, authorize_with
from store_service.rpc.pending import COUNTED_BYTES, PendingResponse
from store_service.rpc.responses import LazyResponse
from store_service.rpc.sending import ResponseSender
from store_service.rpc.trusted_proxies import TrustedProxies
from store_service.rpc.turns import LARGE_BYTES, Turns

if TYPE_CHECKING:
    # OpenTelemetry is an extra, which is imported only if tracing is enabled.
    from store_service.observability.tracing import Tracing

POLL_SECONDS = 0.005
"""Minimum interval at which a drain checks whether connections are open."""

SETTLE_SECONDS = 0.1
"""Time for the last response of a connection to be sent before the connection counts as idle."""

log = structlog.get_logger("store_service.rpc")


class RpcPipeline:
    """Wraps the methods of servicers, and knows the calls in flight."""

    def __init__(
        self,
        limits: Limits,
        connections: Connections,
        delivered: Delivered,
        authenticator: Authenticator | None = None,
        metrics: Metrics | None = None,
        tracing: "Tracing | None" = None,
        proxies: TrustedProxies | None = None,
        *,
        max_request_bytes: int,
    ) -> None:
        """Accepts calls until `drain`.

        Args:
            limits: The limits of calls.
            connections: The connections that `drain` closes.
            delivered: Counts the bytes of calls by peer.
            authenticator: Authenticates callers; None if the service requires no credentials.
            metrics: Counts calls; None if metrics are disabled.
            tracing: Creates spans of calls; None if tracing is disabled.
            proxies: Finds the callers behind proxies; None if no proxy is trusted.
            max_request_bytes: Maximum size of a request after decompression.
        """
        self._limits = limits
        self._connections = connections
        self._delivered = delivered
        self._authenticator = authenticator
        self._metrics = metrics
        self._tracing = tracing
        self._proxies = proxies
        self._pending = limits.pending
        turns = Turns()
        self._decompressor = Decompressor(max_request_bytes, turns)
        self._sender = ResponseSender(self._pending, turns)
        self._draining = False
        self._running = 0
        self._streams: set[asyncio.Task[Any]] = set()
        self._counted_streams: set[asyncio.Task[Any]] = set()
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
        ignores_limits: bool = False,
        requirement: AuthRequirement = AuthRequirement.PERMISSION,
        counts_streams: bool = True,
        consistency: Consistency | None = None,
    ) -> grpc.GenericRpcHandler:
        """Returns the handlers of a service, for `server.add_generic_rpc_handlers`.

        Args:
            service: The descriptor of the service.
            servicer: The object that has its methods.
            name: The name under which the service is served; its own name by default.
            ignores_limits: Accept calls, and let streams run, while the server drains or is overloaded.
            requirement: What callers need if the service requires credentials.
            counts_streams: Count streams against the limit of calls. False if the service has its own limit.
            consistency: Reads how new answers have to be; None if the service does not read resources.
        """
        name = name or service.full_name
        handlers = {}
        for descriptor in service.methods:
            method = Method.of(
                descriptor,
                servicer,
                service_name=name,
                ignores_limits=ignores_limits,
                counts_streams=counts_streams,
                authorize=authorize_with(self._authenticator, descriptor, requirement),
                metrics=self._metrics,
            )
            # gRPC passes bytes in both directions, so that the pipeline sees the errors of decoding.
            handler: grpc.RpcMethodHandler[Any, Any]
            if not descriptor.server_streaming:
                assert not descriptor.client_streaming, f"{method.name}: client streams are not supported"
                handler = grpc.unary_unary_rpc_method_handler(self._unary(method, consistency))
            elif descriptor.client_streaming:
                handler = grpc.stream_stream_rpc_method_handler(self._stream(method, client_streams=True))
            else:
                handler = grpc.unary_stream_rpc_method_handler(self._stream(method, client_streams=False))
            handlers[descriptor.name] = handler
        return grpc.method_handlers_generic_handler(name, handlers)

    async def drain(self, seconds: float) -> None:
        """Refuses new calls and connections, ends streams, and waits at most `seconds` for running calls.

        Each connection is closed when it is idle, so that its client opens another one elsewhere.
        """
        self._draining = True
        self._connections.stop_listening()
        async for stream in paced(list(self._streams)):
            stream.cancel()
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            busy = self._limits.peers()
            is_last = self._all_done.is_set()
            await self._wait_for_arriving_calls(min(SETTLE_SECONDS, left))
            self._connections.finish(but=busy | self._limits.peers())
            if is_last and self._all_done.is_set():
                return
        if self._running:
            log.warning("calls are still running after the grace period", running=self._running)

    async def _wait_for_arriving_calls(self, seconds: float) -> None:
        """Waits for calls that have been sent but have not arrived. Returns when no connection is open."""
        end = time.perf_counter() + seconds
        pause = POLL_SECONDS
        while (left := end - time.perf_counter()) > 0:
            # gRPC has no callback for the end of a connection.
            await asyncio.sleep(min(pause, left))
            began = time.perf_counter()
            if not self._connections.count():
                return
            # Counting many connections takes long, and the event loop still has calls to finish.
            pause = max(POLL_SECONDS, 10 * (time.perf_counter() - began))

    def close(self) -> None:
        """Writes the last log lines. Call it after the last call has ended."""
        self._limits.close()
        self._calls.flush()

    def _unary(
        self, method: Method, consistency: Consistency | None
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        # Locals of the closure: they are faster than attributes, and every call reads them.
        run, decode, authorize = method.run, method.decode, method.authorize
        is_read, ignores_limits = method.is_read, method.ignores_limits

        async def handle(data: bytes, context: Context) -> bytes:
            call = self._begin(method, context)
            call.arrived(len(data))
            in_flight: InFlightCall | None = None
            request: Any = None
            response: Message | LazyResponse | None = None
            encoded = b""
            reserved = 0
            large: LargeRequest | None = None
            unread: PendingResponse | None = None
            has_requirements = False
            try:
                if len(data) <= LARGE_BYTES and not data.startswith(COMPRESSED):
                    if not ignores_limits:
                        reserved = len(data)
                        self._limits.reserve_small(reserved)
                    request = decode(data)
                elif ignores_limits:
                    request = await self._decompressor.decoded(data, decode)
                else:
                    large = LargeRequest(self._limits)
                    request = await self._decompressor.decoded(data, decode, large.reserve)
                if authorize is not None:
                    authorize(call, context)
                if not ignores_limits:
                    if self._draining:
                        raise ShuttingDown
                    in_flight = self._limits.admit(context, call)
                if consistency is not None:
                    requirements = consistency.requirements(context, is_read=is_read)
                    if requirements is not None:
                        has_requirements = True
                        await consistency.begin(requirements, is_read=is_read)
                response = await run(request, context)
                if isinstance(response, LazyResponse):
                    always = not is_read and not has_no_effect(request)
                    encoded, unread = await self._sender.encode(response, context.peer(), always=always)
                else:
                    encoded = response.SerializeToString()
                    if len(encoded) > COUNTED_BYTES and in_flight is not None:
                        always = not is_read and not has_no_effect(request)
                        unread = self._pending.reserve(context.peer(), len(encoded), always=always)
            except BaseException as error:
                # Releases memory: many refused calls at once wait here until their status has been sent.
                data, request, response, encoded = b"", None, None, b""
                self._limits.release(reserved)
                reserved = 0
                if large is not None:
                    large.release()
                if in_flight is not None and in_flight.is_overdue and not context.cancelled():
                    await fail_overdue(call, context, in_flight.task, self._limits.max_seconds)
                trailer = consistency.trailer() if has_requirements and consistency is not None else ()
                await fail(call, context, error, trailer)
            else:
                if has_requirements and consistency is not None:
                    context.set_trailing_metadata(((CALL_ID_KEY, call.id), *consistency.trailer()))
                call.log("OK")
                if in_flight is not None:
                    self._pending.watch(in_flight.task, context)
                return encoded
            finally:
                self._limits.release(reserved)
                if large is not None:
                    large.release()
                if in_flight is not None:
                    self._limits.end(in_flight)
                    if unread is not None:
                        unread.send()
                        # gRPC ends the task when the response has been sent.
                        in_flight.task.add_done_callback(unread.release)
                self._end()

        return handle

    def _stream(self, method: Method, *, client_streams: bool) -> Callable[[Any, Context], Awaitable[None]]:
        authorize = method.authorize

        async def handle(data: Any, context: Context) -> None:
            call = self._begin(method, context, is_stream=True)
            requests = StreamRequests(self._limits)
            task = asyncio.current_task()
            assert task is not None
            try:
                if client_streams:
                    request: Any = decode_each(data, self._decompressor, method.decode, requests.reserve)
                else:
                    request = await self._decompressor.decoded(data, method.decode)
                if authorize is not None:
                    authorize(call, context)
                if not method.ignores_limits:
                    if self._draining:
                        raise ShuttingDown
                    count = len(self._counted_streams) if method.counts_streams else 0
                    self._limits.check_stream(context, call, count)
                    self._streams.add(task)
                    if method.counts_streams:
                        self._counted_streams.add(task)
                # The method is closed before the status is sent: its resources do not depend on the caller.
                async with aclosing(method.run(request, context)) as responses:
                    async for response in responses:
                        if authorize is not None:
                            # A key may be removed, and a token may expire, while the stream is open.
                            authorize(call, context)
                        await self._sender.send(context, response)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and self._draining and not context.cancelled():
                    task.uncancel()
                    error = ShuttingDown()
                # The status of a stream that its caller does not read is sent only when the connection ends.
                self._counted_streams.discard(task)
                requests.release()
                await fail(call, context, error)
            else:
                call.log("OK")
            finally:
                requests.release()
                self._streams.discard(task)
                self._counted_streams.discard(task)
                self._end()

        return handle

    def _begin(self, method: Method, context: Context, *, is_stream: bool = False) -> Call:
        self._running += 1
        self._all_done.clear()
        self._id_count += 1
        call_id = f"{self._id_prefix}-{self._id_count:x}"
        context.set_trailing_metadata(((CALL_ID_KEY, call_id),))
        if method.metrics is not None:
            method.metrics.started += 1
        span = None
        if self._tracing is not None:
            span = self._tracing.begin(
                method.name, call_id, context.invocation_metadata() or (), is_stream=is_stream
            )
        if is_stream:
            # Counted now: a stream may be open for days.
            self._delivered.add_call(context, context.peer(), 0)
        metrics, proxies = method.metrics, self._proxies
        return Call(method.name, call_id, context, self._calls, metrics, span, self._delivered, proxies)

    def _end(self) -> None:
        self._running -= 1
        if not self._running:
            self._all_done.set()


def _is_logged(record: logging.LogRecord) -> bool:
    """Whether a log record of gRPC says more than that a response was not sent because the caller has left.

    gRPC sends the response of a unary call, and the status of every call, after the handler has returned, so
    the pipeline cannot catch these errors. Operations that gRPC cannot even start have another text.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, grpc.aio.InternalError) and str(error).startswith('Failed "execute_batch"'))
