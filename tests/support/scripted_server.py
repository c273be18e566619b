"""A real gRPC server that follows a script, and the sync client with the surface of the async one."""

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import storeapi
from google.protobuf import any_pb2, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from storeapi.v1 import admin_pb2, changes_pb2, comments_pb2, posts_pb2, transfer_pb2

from tests.support.timeouts import scaled_timeout

SERVICES = {
    service.full_name: service
    for file in (it.DESCRIPTOR for it in (posts_pb2, comments_pb2, changes_pb2, admin_pb2, transfer_pb2))
    for service in file.services_by_name.values()
}


@dataclass
class ReceivedCall:
    """What the server was asked."""

    method: str
    request: Message
    seconds_left: float | None


@dataclass
class ScriptedError:
    """An answer that is an error."""

    code: grpc.StatusCode
    message: str
    trailers: list[tuple[str, str | bytes]] = field(default_factory=list)


class RpcScriptServer(grpc.GenericRpcHandler):
    """Answers each call, a stream too, with the next line of its script and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[ReceivedCall] = []
        self.script: deque[Message | ScriptedError | Callable[[grpc.ServicerContext], None]] = deque()
        self.asked = threading.Event()
        # A reused port would let two servers listen on one address without a word.
        options = [("grpc.so_reuseport", 0)]
        self._server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[self], options=options)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.local_port = self._server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
        self._server.start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def methods(self) -> list[str]:
        """The names of the RPCs called, in order."""
        return [call.method for call in self.calls]

    @property
    def requests(self) -> list[Message]:
        return [call.request for call in self.calls]

    def answer(self, *replies: Message) -> None:
        self.script.extend(replies)

    def refuse(
        self,
        code: grpc.StatusCode,
        reason: str = "",
        *details: Message,
        message: str = "it went wrong",
        metadata: dict[str, str] | None = None,
        domain: str = "storeapi",
        call_id: str = "",
    ) -> None:
        """Answers with an error as the service makes them; without a reason, as gRPC itself does."""
        refusal = ScriptedError(code, message)
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata or {})
            status = status_pb2.Status(code=code.value[0], message=message)
            for detail in (info, *details):
                packed = any_pb2.Any()
                packed.Pack(detail)
                status.details.append(packed)
            refusal.trailers.append(("grpc-status-details-bin", status.SerializeToString()))
        if call_id:
            refusal.trailers.append(("x-call-id", call_id))
        self.script.append(refusal)

    def hang(self) -> None:
        """Answers with nothing until the caller gives up."""

        def wait(context: grpc.ServicerContext) -> None:
            over = threading.Event()
            context.add_callback(over.set)
            over.wait(scaled_timeout())

        self.script.append(wait)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        _, service, name = details.method.split("/")
        method = SERVICES[service].methods_by_name[name]

        def handle(request: Message, context: grpc.ServicerContext) -> Message | None:
            self.calls.append(ReceivedCall(name, request, context.time_remaining()))
            self.asked.set()
            if not self.script:
                context.abort(grpc.StatusCode.UNKNOWN, f"the script has no answer to {name}")
            answer = self.script.popleft()
            if isinstance(answer, ScriptedError):
                context.set_trailing_metadata(answer.trailers)
                context.abort(answer.code, answer.message)
            if isinstance(answer, Message):
                return answer
            answer(context)
            return None

        def handle_stream(request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
            yield handle(request, context)

        coding = {
            "request_deserializer": message_factory.GetMessageClass(method.input_type).FromString,
            "response_serializer": lambda message: message.SerializeToString(),
        }
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(handle_stream, **coding)
        return grpc.unary_unary_rpc_method_handler(handle, **coding)

    def stop(self) -> None:
        self._server.stop(None).wait()


class AwaitableClient:
    """StoreClient with the surface of AsyncStoreClient, so that one test holds both to one rule.

    What blocks does so in a thread, so that tests can act meanwhile.
    """

    def __init__(self, subject: Any) -> None:
        self._subject = subject

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._subject, name)
        if not callable(attribute):
            is_ours = type(attribute).__module__.startswith("storeapi.") and not isinstance(
                attribute, Message
            )
            return AwaitableClient(attribute) if is_ours else attribute
        twin = getattr(storeapi, f"Async{type(self._subject).__name__}", None)
        if twin is not None and not inspect.iscoroutinefunction(getattr(twin, name)):
            return lambda *arguments, **keywords: AwaitableClient(attribute(*arguments, **keywords))

        async def call(*arguments: Any, **keywords: Any) -> Any:
            return await asyncio.to_thread(attribute, *arguments, **keywords)

        return call

    def __repr__(self) -> str:
        return repr(self._subject)

    def __aiter__(self) -> "AwaitableClient":
        return self

    async def __anext__(self) -> Any:
        item = await asyncio.to_thread(next, self._subject, self)
        if item is self:
            raise StopAsyncIteration
        return item

    async def __aenter__(self) -> "AwaitableClient":
        await asyncio.to_thread(self._subject.__enter__)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.to_thread(self._subject.__exit__, *exception)
