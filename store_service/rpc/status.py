"""Converts errors to gRPC statuses with details (google.rpc.Status). One table has the status of each error.

The details stay below 4 KiB. gRPC refuses larger trailing metadata, and the caller would get
RESOURCE_EXHAUSTED instead of the error.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

# Reflection can describe the details only when their types are loaded.
from google.rpc import error_details_pb2, status_pb2

from store_service import errors
from store_service.rpc.status_details import (
    comment_count,
    cut,
    existing,
    listed,
    missing,
    missing_metadata,
    quota,
    rate,
    retry,
)

DOMAIN = "storeapi"
"""google.rpc.ErrorInfo.domain of every error."""

MAX_MESSAGE_CHARACTERS = 500
MAX_VIOLATIONS = 12
MAX_FIELD_CHARACTERS = 64
MAX_DESCRIPTION_CHARACTERS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An error as gRPC sends it."""

    code: grpc.StatusCode
    message: str
    details: bytes
    """A serialized google.rpc.Status, for the trailing metadata grpc-status-details-bin."""
    retry_ms: int | None = None
    """Pause before a retry by gRPC, for the trailing metadata grpc-retry-pushback-ms; None: not sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """The status of one type of error."""

    code: grpc.StatusCode
    reason: str
    """google.rpc.ErrorInfo.reason."""
    metadata: Callable[..., dict[str, str]] = lambda _: {}
    """Returns google.rpc.ErrorInfo.metadata for an error."""
    more: Callable[..., list[Message]] = lambda _: []
    """Returns the further details for an error."""


def _violations(error: errors.InvalidRequest) -> list[Message]:
    shown = list(error.violations[:MAX_VIOLATIONS])
    request = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=cut(it.field, MAX_FIELD_CHARACTERS),
                description=cut(it.description, MAX_DESCRIPTION_CHARACTERS),
                reason=ROWS[it.error].reason,
            )
            for it in shown
        ]
    )
    rest = len(error.violations) - len(shown) + error.more_count
    if rest:
        request.field_violations.add(field="...", description=f"and {rest} more")
    return [request] if shown else []


def _refused_reply(error: errors.ReplyTooDeep | errors.ReplyPostMismatch) -> list[Message]:
    return [
        error_details_pb2.PreconditionFailure(
            violations=[
                error_details_pb2.PreconditionFailure.Violation(
                    type=ROWS[type(error)].reason,
                    subject=f"storeapi.v1.Comment/{error.reply_to_id}",
                    description=f"named by {error.field}",
                )
            ]
        )
    ]


_INVALID = grpc.StatusCode.INVALID_ARGUMENT

ROWS: dict[type[errors.ServiceError], _Row] = {
    errors.RequestMalformed: _Row(code=_INVALID, reason="REQUEST_MALFORMED"),
    errors.FieldInvalid: _Row(code=_INVALID, reason="FIELD_INVALID", more=_violations),
    errors.FieldMaskInvalid: _Row(code=_INVALID, reason="FIELD_MASK_INVALID", more=_violations),
    errors.FieldImmutable: _Row(code=_INVALID, reason="FIELD_IMMUTABLE", more=_violations),
    errors.PageTokenInvalid: _Row(code=_INVALID, reason="PAGE_TOKEN_INVALID", more=_violations),
    errors.PageTokenMismatch: _Row(code=_INVALID, reason="PAGE_TOKEN_MISMATCH", more=_violations),
    errors.BatchEmpty: _Row(code=_INVALID, reason="BATCH_EMPTY", more=_violations),
    errors.BatchTooLarge: _Row(
        code=_INVALID,
        reason="BATCH_TOO_LARGE",
        metadata=lambda error: {"count": str(error.count), "max_count": str(error.max_count)},
        more=_violations,
    ),
    errors.BatchDuplicate: _Row(code=_INVALID, reason="BATCH_DUPLICATE", more=_violations),
    errors.RequestIdReused: _Row(code=_INVALID, reason="REQUEST_ID_REUSED", more=_violations),
    errors.ResumeTokenInvalid: _Row(code=_INVALID, reason="RESUME_TOKEN_INVALID", more=_violations),
    errors.ResumeTokenForeign: _Row(code=_INVALID, reason="RESUME_TOKEN_FOREIGN", more=_violations),
    errors.ConsistencyTokenInvalid: _Row(code=_INVALID, reason="CONSISTENCY_TOKEN_INVALID", more=_violations),
    errors.ConsistencyTokenForeign: _Row(code=_INVALID, reason="CONSISTENCY_TOKEN_FOREIGN", more=_violations),
    errors.CredentialsMissing: _Row(code=grpc.StatusCode.UNAUTHENTICATED, reason="CREDENTIALS_MISSING"),
    errors.CredentialsInvalid: _Row(code=grpc.StatusCode.UNAUTHENTICATED, reason="CREDENTIALS_INVALID"),
    errors.PermissionDenied: _Row(
        code=grpc.StatusCode.PERMISSION_DENIED,
        reason="PERMISSION_DENIED",
        metadata=lambda error: {"right": error.permission},
    ),
    errors.PostNotFound: _Row(
        code=grpc.StatusCode.NOT_FOUND,
        reason="POST_NOT_FOUND",
        metadata=missing_metadata("post_id"),
        more=missing,
    ),
    errors.CommentNotFound: _Row(
        code=grpc.StatusCode.NOT_FOUND,
        reason="COMMENT_NOT_FOUND",
        metadata=missing_metadata("comment_id"),
        more=missing,
    ),
    errors.PostHasComments: _Row(
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="POST_HAS_COMMENTS",
        metadata=lambda error: {
            "post_id": listed(list(error.comment_counts)),
            "comment_count": str(sum(error.comment_counts.values())),
        },
        more=comment_count,
    ),
    errors.EtagMismatch: _Row(
        code=grpc.StatusCode.ABORTED,
        reason="ETAG_MISMATCH",
        metadata=lambda error: {"current_etag": error.current_etag},
        more=existing,
    ),
    errors.ExternalIdTaken: _Row(
        code=grpc.StatusCode.ALREADY_EXISTS,
        reason="EXTERNAL_ID_TAKEN",
        metadata=lambda error: {"id": str(error.id), "external_id": error.external_id},
        more=existing,
    ),
    errors.NotDeleted: _Row(code=grpc.StatusCode.FAILED_PRECONDITION, reason="NOT_DELETED", more=existing),
    errors.ReplyTooDeep: _Row(
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="REPLY_TOO_DEEP",
        metadata=lambda error: {"reply_to_id": str(error.reply_to_id), "max_depth": str(error.max_depth)},
        more=_refused_reply,
    ),
    errors.ReplyPostMismatch: _Row(
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="REPLY_POST_MISMATCH",
        metadata=lambda error: {"reply_to_id": str(error.reply_to_id), "post_id": str(error.post_id)},
        more=_refused_reply,
    ),
    errors.ResponseTooLarge: _Row(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason="RESPONSE_TOO_LARGE",
        metadata=lambda error: {"max_bytes": str(error.max_bytes)},
    ),
    errors.ResumeTokenExpired: _Row(
        code=grpc.StatusCode.OUT_OF_RANGE,
        reason="RESUME_TOKEN_EXPIRED",
        metadata=lambda error: {"earliest_resume_token": error.earliest_resume_token},
    ),
    errors.WatchLimit: _Row(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason="WATCH_LIMIT",
        metadata=lambda error: {"limit": str(error.limit)},
        more=quota,
    ),
    errors.RateLimited: _Row(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason="RATE_LIMITED",
        metadata=lambda error: {"calls_per_second": f"{error.calls_per_second:g}"},
        more=rate,
    ),
    errors.Overloaded: _Row(code=grpc.StatusCode.UNAVAILABLE, reason="OVERLOADED", more=retry),
    errors.ReadOnly: _Row(code=grpc.StatusCode.FAILED_PRECONDITION, reason="READ_ONLY"),
    errors.ShuttingDown: _Row(
        code=grpc.StatusCode.UNAVAILABLE,
        reason="SHUTTING_DOWN",
        metadata=lambda error: {"resume_token": error.resume_token} if error.resume_token else {},
        more=retry,
    ),
    errors.StreamStalled: _Row(code=grpc.StatusCode.UNAVAILABLE, reason="STREAM_STALLED", more=retry),
    errors.DatabaseBusy: _Row(code=grpc.StatusCode.UNAVAILABLE, reason="DATABASE_BUSY", more=retry),
    errors.DatabaseUnavailable: _Row(
        code=grpc.StatusCode.UNAVAILABLE, reason="DATABASE_UNAVAILABLE", more=retry
    ),
    errors.StandbyBehind: _Row(code=grpc.StatusCode.UNAVAILABLE, reason="STANDBY_BEHIND", more=retry),
    errors.StoreMoving: _Row(code=grpc.StatusCode.UNAVAILABLE, reason="STORE_MOVING", more=retry),
    errors.SearchIndexNotReady: _Row(
        code=grpc.StatusCode.UNAVAILABLE,
        reason="SEARCH_INDEX_NOT_READY",
        metadata=lambda error: {"progress": f"{error.progress:.3f}"},
        more=retry,
    ),
    errors.SearchDisabled: _Row(code=grpc.StatusCode.FAILED_PRECONDITION, reason="SEARCH_DISABLED"),
    errors.SchemaMismatch: _Row(
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="SCHEMA_MISMATCH",
        metadata=lambda error: {"expected": error.expected, "actual": error.actual},
    ),
    errors.StorageFull: _Row(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="STORAGE_FULL"),
}
"""The status of every leaf of the error tree in `store_service.errors`."""


def status_from_error(error: errors.ServiceError) -> Status:
    """Returns the status of an error."""
    row = ROWS[type(error)]
    info = error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN, metadata=row.metadata(error))
    return _status(row.code, str(error), [info, *row.more(error)])


def internal_status(call_id: str) -> Status:
    """Returns the status of an unhandled exception. It has only the id of the call, which the log has too."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN)
    request = error_details_pb2.RequestInfo(request_id=call_id)
    return _status(
        grpc.StatusCode.INTERNAL, f"internal error; call id in the log: {call_id}", [info, request]
    )


def _status(code: grpc.StatusCode, message: str, details: Iterable[Message]) -> Status:
    message = cut(message, MAX_MESSAGE_CHARACTERS)
    packed = []
    retry_ms = None
    for detail in details:
        any_ = Any()
        any_.Pack(detail)
        packed.append(any_)
        if isinstance(detail, error_details_pb2.RetryInfo):
            retry_ms = detail.retry_delay.ToMilliseconds()
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    return Status(code=code, message=message, details=status.SerializeToString(), retry_ms=retry_ms)
