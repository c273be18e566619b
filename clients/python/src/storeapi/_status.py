"""Converts the error of a gRPC call to a StoreError; used by both clients."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from storeapi import errors
from storeapi.errors import StoreError
from storeapi.model import FieldViolation

DOMAIN: Final = "storeapi"


def _subclasses(kind: type[StoreError]) -> Iterator[type[StoreError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


BY_REASON: Final[Mapping[str, type[StoreError]]] = {
    it.reason: it for it in _subclasses(StoreError) if "reason" in vars(it)
}
"""The class of each reason."""

BY_CODE: Final[Mapping[grpc.StatusCode, type[StoreError]]] = {
    it.code: it for it in StoreError.__subclasses__()
}
"""The class of an error whose reason is unknown or missing; other codes are StoreError itself."""

DETAILS: Final = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
"""The types of details that are read."""

PLACE: Final = re.compile(r"\b(requests|(?:external_|post_|comment_)?ids)\[([0-9]+)\]")
"""An element of a batch in a field path."""

ENCODED_ADDRESS: Final = re.compile(r"%5B[^\s;,]*?%5D")
"""An IPv6 address as gRPC writes it, in a URL."""


def undecodable() -> StoreError:
    """The error for a response that cannot be decoded; grpc.aio returns None for it."""
    return errors.InternalError("Exception deserializing response!", reason="")


def store_error(failure: grpc.RpcError) -> StoreError:
    """The error to raise for a failed call."""
    code = _call_method(failure, "code") or grpc.StatusCode.UNKNOWN
    # A comprehension, because `keys` of older versions of grpc.aio.Metadata makes dict() fail.
    trailers = {key: value for key, value in trailers_of(failure)}  # noqa: C416
    call_id = trailers.get("x-call-id")
    details = _details(trailers.get("grpc-status-details-bin"))
    info = _error_info(details)

    message = _call_method(failure, "details") or ("" if hasattr(failure, "details") else str(failure))

    error = (BY_REASON.get(info.reason) or BY_CODE.get(code, StoreError))(
        message if info.reason else ENCODED_ADDRESS.sub(lambda found: unquote(found[0]), message),
        code=code,
        reason=info.reason,
        metadata=info.metadata,
        call_id=call_id if isinstance(call_id, str) else None,
        retry_after=_retry_after(details),
    )
    if isinstance(error, errors.InvalidRequest):
        error.violations = _violations(details)
    return error


def trailers_of(failure: grpc.RpcError) -> Iterable[tuple[str, str | bytes]]:
    """The trailing metadata of a failed call."""
    # Pairs of key and value on both kinds of channel, unlike the published types.
    pairs: Iterable[tuple[str, str | bytes]] = _call_method(failure, "trailing_metadata") or ()
    return pairs


def _call_method(failure: grpc.RpcError, name: str) -> Any:
    """The result of a method of an error; None for an error of an interceptor without this method."""
    method = getattr(failure, name, None)
    return method() if callable(method) else None


def count_from(first: int, error: errors.InvalidRequest) -> None:
    """Adds `first` to the indexes in an error: those of the call become those of the whole batch."""

    def place(found: re.Match[str]) -> str:
        return f"{found[1]}[{first + int(found[2])}]"

    error.message = PLACE.sub(place, error.message)
    error.args = (error.message,)
    error.violations = tuple(
        FieldViolation(field=PLACE.sub(place, it.field), description=PLACE.sub(place, it.description))
        for it in error.violations
    )


def _details(serialized: str | bytes | None) -> list[Message]:
    """The known details of a google.rpc.Status; none if it cannot be decoded."""
    if not isinstance(serialized, bytes):
        return []
    found: list[Message] = []
    try:
        for packed in status_pb2.Status.FromString(serialized).details:
            for kind in DETAILS:
                detail = kind()
                if packed.Unpack(detail):
                    found.append(detail)
    except DecodeError:
        return []
    return found


def _error_info(details: list[Message]) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of the service; empty if the error is from a proxy, for example."""
    for detail in details:
        if isinstance(detail, error_details_pb2.ErrorInfo) and detail.domain == DOMAIN:
            return detail
    return error_details_pb2.ErrorInfo()


def _violations(details: list[Message]) -> tuple[FieldViolation, ...]:
    return tuple(
        FieldViolation(field=violation.field, description=violation.description)
        for detail in details
        if isinstance(detail, error_details_pb2.BadRequest)
        for violation in detail.field_violations
    )


def _retry_after(details: list[Message]) -> float | None:
    for detail in details:
        if isinstance(detail, error_details_pb2.RetryInfo):
            return float(detail.retry_delay.ToNanoseconds() / 1e9)
    return None
