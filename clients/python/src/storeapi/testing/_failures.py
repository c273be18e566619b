"""Errors as the service and the network send them."""

from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from storeapi._status import DOMAIN
from storeapi.errors import InvalidRequest, StoreError


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error as gRPC sends it."""

    code: grpc.StatusCode
    """The status; never OK."""
    message: str
    """The message, for people."""
    trailers: tuple[tuple[str, str | bytes], ...] = ()
    """Trailing metadata."""

    def end(self, context: grpc.ServicerContext) -> None:
        """Ends a call with this error; does not return."""
        context.set_trailing_metadata(self.trailers)
        context.abort(self.code, self.message)


CONNECTION_LOST: Final = Failure(code=grpc.StatusCode.UNAVAILABLE, message="Socket closed")
"""The error of gRPC for a lost connection."""


def failure(error: StoreError | grpc.StatusCode) -> Failure:
    """The error that a caller gets.

    A StoreError is sent as the service sends it, so that the client raises an equal one; a status code as
    gRPC itself or a proxy sends it, without details.

    Raises:
        TypeError: `error` is something else, such as a class instead of an error.
        ValueError: Its code is OK.
    """
    if isinstance(error, grpc.StatusCode):
        found = Failure(code=error, message=f"the script says {error.name}")
    elif isinstance(error, StoreError):
        found = _failure_of_the_service(error)
    else:
        raise TypeError(
            f"a failure is an error such as storeapi.PostNotFound() or a grpc.StatusCode, not {error!r}"
        )
    if found.code is grpc.StatusCode.OK:
        raise ValueError("OK is not a failure")
    return found


def _failure_of_the_service(error: StoreError) -> Failure:
    details: list[Message] = []
    if error.reason or error.metadata:
        details.append(
            error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
        )
    if isinstance(error, InvalidRequest) and error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=it.field, description=it.description)
                    for it in error.violations
                ]
            )
        )
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))

    trailers: list[tuple[str, str | bytes]] = []
    if error.call_id is not None:
        trailers.append(("x-call-id", error.call_id))
    if details:
        status = status_pb2.Status(code=error.code.value[0], message=error.message)
        for detail in details:
            packed = Any()
            packed.Pack(detail)
            status.details.append(packed)
        trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    return Failure(code=error.code, message=error.message, trailers=tuple(trailers))
