"""Turns the error of a gRPC call into ours; shared by both clients."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from storeapi import errors
from storeapi.errors import StoreError
from storeapi.model import FieldViolation

DOMAIN: Final = "storeapi"

BY_REASON: Final[Mapping[str, type[StoreError]]] = {
    error.reason: error
    for error in (
        errors.RequestMalformed,
        errors.FieldInvalid,
        errors.FieldMaskInvalid,
        errors.FieldImmutable,
        errors.PageTokenInvalid,
        errors.PageTokenMismatch,
        errors.BatchEmpty,
        errors.BatchTooLarge,
        errors.BatchDuplicate,
        errors.RequestIdReused,
        errors.ResumeTokenInvalid,
        errors.ResumeTokenForeign,
        errors.CredentialsMissing,
        errors.CredentialsInvalid,
        errors.PermissionDenied,
        errors.PostNotFound,
        errors.CommentNotFound,
        errors.PostHasComments,
        errors.ReadOnly,
        errors.SchemaMismatch,
        errors.EtagMismatch,
        errors.ResponseTooLarge,
        errors.WatchLimit,
        errors.RateLimited,
        errors.StorageFull,
        errors.ResumeTokenExpired,
        errors.Overloaded,
        errors.ShuttingDown,
        errors.StreamStalled,
        errors.DatabaseBusy,
        errors.DatabaseUnavailable,
        errors.InternalError,
    )
}
"""The class of each reason."""

BY_CODE: Final[Mapping[grpc.StatusCode, type[StoreError]]] = {
    error.code: error
    for error in (
        errors.InvalidRequest,
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.NotFound,
        errors.PreconditionFailed,
        errors.Conflict,
        errors.ResourceExhausted,
        errors.OutOfRange,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.Cancelled,
        errors.InternalError,
    )
}
"""The class of an error whose reason is unknown or missing; other codes are StoreError itself."""


DETAILS: Final = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
"""The details that are looked at."""

PLACE: Final = re.compile(r"\b(requests|ids|post_ids)\[([0-9]+)\]")
"""An item of a batch, in a field path."""

ENCODED_ADDRESS: Final = re.compile(r"%5B[^\s;,]*?%5D")
"""An IPv6 address as gRPC writes it, in a URL."""


def undecodable() -> StoreError:
    """The error for an answer that is not what was asked for; grpc.aio returns None for it."""
    return errors.InternalError("Exception deserializing response!", reason="")


def store_error(failure: grpc.RpcError) -> StoreError:
    """The error to raise for a failed call, whatever the other side sent."""
    code = _said_by(failure, "code") or grpc.StatusCode.UNKNOWN
    # Pairs of key and value on both kinds of channel, whatever the published types say.
    # A comprehension, for older versions of grpc.aio's Metadata have `keys` that make dict() fail.
    trailers = {key: value for key, value in _said_by(failure, "trailing_metadata") or ()}  # noqa: C416
    call_id = trailers.get("x-call-id")
    details = _details(trailers.get("grpc-status-details-bin"))
    info = _error_info(details)

    message = _said_by(failure, "details") or ("" if hasattr(failure, "details") else str(failure))

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


def _said_by(failure: grpc.RpcError, name: str) -> Any:
    """What a method of gRPC's own errors returns; None if an interceptor raised one that lacks it."""
    method = getattr(failure, name, None)
    return method() if callable(method) else None


def count_from(first: int, error: errors.InvalidRequest) -> None:
    """Names the items of a batch by their places in a whole, of which the call had those from `first` on."""

    def place(found: re.Match[str]) -> str:
        return f"{found[1]}[{first + int(found[2])}]"

    error.message = PLACE.sub(place, error.message)
    error.args = (error.message,)
    error.violations = tuple(
        FieldViolation(field=PLACE.sub(place, it.field), description=PLACE.sub(place, it.description))
        for it in error.violations
    )


def _details(serialized: str | bytes | None) -> list[Message]:
    """The known details of a google.rpc.Status; one that cannot be read has none."""
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
    """What the service says for programs; empty if a proxy, for example, was the one to answer."""
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
