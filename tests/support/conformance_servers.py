"""The servers that fail in the conformance scenario."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2
from storeapi.testing import ScriptedServer, _script
from storeapi.testing._failures import Failure


class FaultyServer(ScriptedServer):
    """A scripted server that also sends the errors of other servers."""

    def fail_with(self, method: str, code: grpc.StatusCode, infos: Sequence[Mapping[str, str]]) -> None:
        """Fails a call with an ErrorInfo for each of `infos`, which have `domain` and `reason`."""
        status = status_pb2.Status(code=code.value[0])
        for it in infos:
            detail = Any()
            detail.Pack(error_details_pb2.ErrorInfo(**it))
            status.details.append(detail)
        trailers = (("grpc-status-details-bin", status.SerializeToString()),)
        failure = Failure(code=code, message="another server has failed", trailers=trailers)
        self._add(method, _script.fail(failure, "ErrorInfo"))


class UndecodableServer(grpc.GenericRpcHandler):
    """Responds to each call with bytes that no message begins with."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(4), handlers=[self], options=[("grpc.so_reuseport", 0)]
        )
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def respond(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.calls[details.method.rpartition("/")[2]] += 1
            yield b"\xff\xff\xff"

        # On the wire a single response is a stream of one message.
        return grpc.unary_stream_rpc_method_handler(respond)

    def __enter__(self) -> "UndecodableServer":
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop(None).wait()
