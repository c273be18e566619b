"""Converts errors to gRPC statuses with details (google.rpc.Status). One table has the status of each error.

The details stay below 4 KiB. gRPC refuses larger trailing metadata, and the caller would get
RESOURCE_EXHAUSTED instead of the error.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

# Reflection can describe the details only when their types are loaded.
from google.rpc import error_details_pb2, status_pb2

from store_service import errors
from store_service.model import Comment, Post

DOMAIN = "storeapi"
"""google.rpc.ErrorInfo.domain of every error."""

MAX_MESSAGE_CHARACTERS = 500
MAX_VIOLATIONS = 12
MAX_FIELD_CHARACTERS = 64
MAX_DESCRIPTION_CHARACTERS = 160
MAX_LISTED_IDS = 50
MAX_EXTERNAL_IDS = 3
"""Maximum number of missing external ids in metadata, of up to 256 bytes each."""

MAX_RESOURCES = 5

RETRY_SECONDS = 0.5
"""Time after which a caller should retry a call that ended with UNAVAILABLE."""

_TYPES = {
    errors.PostNotFound: "storeapi.v1.Post",
    errors.CommentNotFound: "storeapi.v1.Comment",
    Post.__name__: "storeapi.v1.Post",
    Comment.__name__: "storeapi.v1.Comment",
}


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
                field=_cut(it.field, MAX_FIELD_CHARACTERS),
                description=_cut(it.description, MAX_DESCRIPTION_CHARACTERS),
                reason=ROWS[it.error].reason,
            )
            for it in shown
        ]
    )
    rest = len(error.violations) - len(shown) + error.more_count
    if rest:
        request.field_violations.add(field="...", description=f"and {rest} more")
    return [request] if shown else []


def _missing(error: errors.NotFound) -> list[Message]:
    return [
        error_details_pb2.ResourceInfo(
            resource_type=_TYPES[type(error)],
            resource_name=str(id),
            description=f"named by {field}" if field else "",
        )
        for id, field in islice(
            zip_longest((*error.ids, *error.external_ids[:MAX_EXTERNAL_IDS]), error.fields, fillvalue=""),
            MAX_RESOURCES,
        )
    ]


def _missing_metadata(id_name: str) -> Callable[[errors.NotFound], dict[str, str]]:
    def metadata(error: errors.NotFound) -> dict[str, str]:
        found: dict[str, str] = {}
        if error.ids or not error.external_ids:
            found["missing_ids"] = listed(error.ids)
        if error.external_ids:
            found["missing_external_ids"] = json.dumps(
                error.external_ids[:MAX_EXTERNAL_IDS], ensure_ascii=False
            )
        if len(error.ids) == 1:
            found[id_name] = str(error.ids[0])
        return found

    return metadata


def _comment_count(error: errors.PostHasComments) -> list[Message]:
    return [
        error_details_pb2.PreconditionFailure(
            violations=[
                error_details_pb2.PreconditionFailure.Violation(
                    type="POST_HAS_COMMENTS",
                    subject=f"storeapi.v1.Post/{post_id}",
                    description=f"has {errors.comments(count)}; set force to delete them too",
                )
                for post_id, count in list(error.comment_counts.items())[:MAX_RESOURCES]
            ]
        )
    ]


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


def _existing(error: errors.EtagMismatch | errors.ExternalIdTaken | errors.NotDeleted) -> list[Message]:
    return [
        error_details_pb2.ResourceInfo(resource_type=_TYPES[error.resource_type], resource_name=str(error.id))
    ]


def _retry(_: errors.ServiceError) -> list[Message]:
    seconds = Duration(nanos=int(RETRY_SECONDS * 1_000_000_000))
    return [error_details_pb2.RetryInfo(retry_delay=seconds)]


def _quota(error: errors.WatchLimit) -> list[Message]:
    return [
        error_details_pb2.QuotaFailure(
            violations=[
                error_details_pb2.QuotaFailure.Violation(
                    subject=f"{error.kind} of one {error.where}",
                    description=f"{error.limit} are open, which is the limit",
                )
            ]
        ),
        *_retry(error),
    ]


def _rate(error: errors.RateLimited) -> list[Message]:
    violation = error_details_pb2.QuotaFailure.Violation(
        subject="calls of one caller",
        description=f"{error.calls_per_second:g} a second are allowed",
    )
    seconds = Duration()
    seconds.FromMilliseconds(max(1, math.ceil(error.retry_seconds * 1000)))
    return [
        error_details_pb2.QuotaFailure(violations=[violation]),
        error_details_pb2.RetryInfo(retry_delay=seconds),
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
        metadata=_missing_metadata("post_id"),
        more=_missing,
    ),
    errors.CommentNotFound: _Row(
        code=grpc.StatusCode.NOT_FOUND,
        reason="COMMENT_NOT_FOUND",
        metadata=_missing_metadata("comment_id"),
        more=_missing,
    ),
    errors.PostHasComments: _Row(
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="POST_HAS_COMMENTS",
        metadata=lambda error: {
            "post_id": listed(list(error.comment_counts)),
            "comment_count": str(sum(error.comment_counts.values())),
        },
        more=_comment_count,
    ),
    errors.EtagMismatch: _Row(
        code=grpc.StatusCode.ABORTED,
        reason="ETAG_MISMATCH",
        metadata=lambda error: {"current_etag": error.current_etag},
        more=_existing,
    ),
    errors.ExternalIdTaken: _Row(
        code=grpc.StatusCode.ALREADY_EXISTS,
        reason="EXTERNAL_ID_TAKEN",
        metadata=lambda error: {"id": str(error.id), "external_id": error.external_id},
        more=_existing,
    ),
    errors.NotDeleted: _Row(code=grpc.StatusCode.FAILED_PRECONDITION, reason="NOT_DELETED", more=_existing),
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
        more=_quota,
    ),
    errors.RateLimited: _Row(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason="RATE_LIMITED",
        metadata=lambda error: {"calls_per_second": f"{error.calls_per_second:g}"},
        more=_rate,
    ),
    errors.Overloaded: _Row(code=grpc.StatusCode.UNAVAILABLE, reason="OVERLOADED", more=_retry),
    errors.ReadOnly: _Row(code=grpc.StatusCode.FAILED_PRECONDITION, reason="READ_ONLY"),
    errors.ShuttingDown: _Row(
        code=grpc.StatusCode.UNAVAILABLE,
        reason="SHUTTING_DOWN",
        metadata=lambda error: {"resume_token": error.resume_token} if error.resume_token else {},
        more=_retry,
    ),
    errors.StreamStalled: _Row(code=grpc.StatusCode.UNAVAILABLE, reason="STREAM_STALLED", more=_retry),
    errors.DatabaseBusy: _Row(code=grpc.StatusCode.UNAVAILABLE, reason="DATABASE_BUSY", more=_retry),
    errors.DatabaseUnavailable: _Row(
        code=grpc.StatusCode.UNAVAILABLE, reason="DATABASE_UNAVAILABLE", more=_retry
    ),
    errors.StandbyBehind: _Row(code=grpc.StatusCode.UNAVAILABLE, reason="STANDBY_BEHIND", more=_retry),
    errors.SearchIndexNotReady: _Row(
        code=grpc.StatusCode.UNAVAILABLE,
        reason="SEARCH_INDEX_NOT_READY",
        metadata=lambda error: {"progress": f"{error.progress:.3f}"},
        more=_retry,
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


def listed(ids: Sequence[int]) -> str:
    """Returns ids as metadata, shortened to MAX_LISTED_IDS: 7,9,... and 950 more."""
    shown = ",".join(str(id) for id in ids[:MAX_LISTED_IDS])
    rest = len(ids) - MAX_LISTED_IDS
    return f"{shown},... and {rest} more" if rest > 0 else shown


def _status(code: grpc.StatusCode, message: str, details: Iterable[Message]) -> Status:
    message = _cut(message, MAX_MESSAGE_CHARACTERS)
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


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
