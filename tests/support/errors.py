"""Errors as a client receives them."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DETAIL_TYPES = {
    message.DESCRIPTOR.full_name: message
    for message in (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.ResourceInfo,
        error_details_pb2.PreconditionFailure,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RetryInfo,
        error_details_pb2.RequestInfo,
    )
}


@dataclass(frozen=True)
class ReceivedError:
    """An error as a client receives it."""

    code: grpc.StatusCode
    message: str
    details: list[Message]
    trailing: dict[str, Any]

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        return self.detail(error_details_pb2.ErrorInfo)

    @property
    def reason(self) -> str:
        return self.info.reason

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.info.metadata)

    @property
    def fields(self) -> list[str]:
        """The field paths in the BadRequest detail, in order."""
        return [it.field for it in self.detail(error_details_pb2.BadRequest).field_violations]

    def detail(self, kind: type[Any]) -> Any:
        """Returns the only detail of a type."""
        (found,) = [it for it in self.details if isinstance(it, kind)]
        return found


def received_error(error: grpc.RpcError) -> ReceivedError:
    """Decodes the error of a call and its details."""
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    details = []
    for packed in status.details:
        message = DETAIL_TYPES[packed.TypeName()]()
        assert packed.Unpack(message)
        details.append(message)
    if details:
        assert status.code == error.code().value[0]
        assert status.message == error.details()
    return ReceivedError(code=error.code(), message=error.details() or "", details=details, trailing=trailing)


async def expect_error(call: Any) -> ReceivedError:
    """Awaits a call that must fail and returns its error."""
    try:
        response = await call
    except grpc.RpcError as error:
        return received_error(error)
    raise AssertionError(f"the call succeeded with {response}")


async def result_or_error(call: Awaitable[Any]) -> Any:
    """Returns the response of a call, or its error."""
    try:
        return await call
    except grpc.RpcError as error:
        return error
