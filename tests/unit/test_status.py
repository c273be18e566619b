"""Errors as statuses, without a server: those that no caller can bring about, and the limits of all."""

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from store_service import errors
from store_service.rpc.status import internal_status, status_from_error
from store_service.rpc.status_details import MAX_LISTED_IDS, listed

HUGE = 2**63 - 1


def unpacked(details: bytes) -> dict[str, Any]:
    """The details by the name of their type; of several of a type the last."""
    found = {}
    for packed in status_pb2.Status.FromString(details).details:
        kind = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])
        message = kind()
        assert packed.Unpack(message)
        found[kind.__name__] = message
    return found


def test_schema_mismatch_has_both_revisions() -> None:
    status = status_from_error(errors.SchemaMismatch(expected="0002", actual="0001"))

    assert status.code == grpc.StatusCode.FAILED_PRECONDITION
    info = unpacked(status.details)["ErrorInfo"]
    assert (info.reason, info.domain) == ("SCHEMA_MISMATCH", "storeapi")
    assert dict(info.metadata) == {"expected": "0002", "actual": "0001"}


UNAVAILABLE = [
    errors.Overloaded(),
    errors.ShuttingDown(),
    errors.ShuttingDown(resume_token="t"),
    errors.StreamStalled(seconds=30),
    errors.DatabaseBusy(),
    errors.DatabaseUnavailable(),
    errors.StandbyBehind(),
    errors.StoreMoving(),
    errors.SearchIndexNotReady(progress=0.5),
]


def test_every_unavailable_error_is_tested() -> None:
    """So that the test below speaks of all of them."""
    assert {type(error) for error in UNAVAILABLE} == set(errors.Unavailable.__subclasses__())


@pytest.mark.parametrize("error", [*UNAVAILABLE, errors.WatchLimit(limit=100)])
def test_retryable_error_has_a_retry_delay(error: errors.ServiceError) -> None:
    """Every UNAVAILABLE, and a limit, has a RetryInfo with a time that is neither nothing nor long."""
    status = status_from_error(error)

    is_limit = isinstance(error, errors.WatchLimit)
    assert status.code == (grpc.StatusCode.RESOURCE_EXHAUSTED if is_limit else grpc.StatusCode.UNAVAILABLE)
    delay = unpacked(status.details)["RetryInfo"].retry_delay.ToTimedelta().total_seconds()
    assert 0.1 <= delay <= 5


@pytest.mark.parametrize(
    ("error", "metadata"),
    [
        (errors.ShuttingDown(), {}),
        (errors.ShuttingDown(resume_token="t1"), {"resume_token": "t1"}),
        (errors.ResumeTokenExpired(earliest_resume_token="t2"), {"earliest_resume_token": "t2"}),
        (errors.WatchLimit(limit=100), {"limit": "100"}),
    ],
)
def test_ended_watch_has_its_token_in_metadata(error: errors.ServiceError, metadata: dict[str, str]) -> None:
    """Tokens and limits are for programs, so they are metadata and need no reading of texts."""
    assert dict(unpacked(status_from_error(error).details)["ErrorInfo"].metadata) == metadata


def test_status_is_consistent() -> None:
    """Code and message are in the details as they are in the trailers."""
    status = status_from_error(errors.PostNotFound(ids=[42]))

    inside = status_pb2.Status.FromString(status.details)
    assert (inside.code, inside.message) == (status.code.value[0], status.message)
    assert "42" in status.message


def test_unhandled_exception_has_only_its_call_id() -> None:
    """INTERNAL with the id that the log has."""
    status = internal_status("abcd-1")

    assert status.code == grpc.StatusCode.INTERNAL
    details = unpacked(status.details)
    assert details.keys() == {"ErrorInfo", "RequestInfo"}
    assert details["ErrorInfo"].reason == "INTERNAL"
    assert details["RequestInfo"].request_id == "abcd-1"
    assert "abcd-1" in status.message


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7], "7"),
        ([7, 9], "7,9"),
        (range(1, MAX_LISTED_IDS + 1), ",".join(str(n) for n in range(1, MAX_LISTED_IDS + 1))),
        (range(1, 1001), ",".join(str(n) for n in range(1, MAX_LISTED_IDS + 1)) + ",... and 950 more"),
    ],
)
def test_ids_are_listed_up_to_a_limit(ids: Sequence[int], expected: str) -> None:
    assert listed(list(ids)) == expected


def worst(leaf: type[errors.InvalidRequest], **more: Any) -> errors.InvalidRequest:
    """A request that is wrong in a thousand places, at length."""
    violation = errors.Violation(error=leaf, field="x" * 1000, description="y" * 1000)
    return leaf([violation] * 1000, **more)


WORST = [
    *(
        worst(leaf)
        for leaf in errors.InvalidRequest.__subclasses__()
        if leaf is not errors.BatchTooLarge and leaf.__module__ == errors.__name__
    ),
    worst(errors.BatchTooLarge, count=HUGE, max_count=1000),
    errors.PostNotFound(ids=[HUGE] * 1000),
    errors.PostNotFound(ids=[HUGE] * 1000, fields=["requests[999].comment.post_id"] * 1000),
    errors.CommentNotFound(ids=[HUGE] * 1000),
    errors.PostHasComments(comment_counts={HUGE - n: HUGE for n in range(1000)}),
    errors.EtagMismatch(resource_type="Comment", id=HUGE, current_etag="v" + "f" * 16),
    errors.SchemaMismatch(expected="0002", actual="x" * 32),
    errors.ResumeTokenExpired(earliest_resume_token="t" * 1000),
    errors.ShuttingDown(resume_token="t" * 1000),
    errors.WatchLimit(limit=HUGE),
    errors.RateLimited(calls_per_second=1e300, retry_seconds=1e6),
    errors.Overloaded(),
    errors.ReadOnly(),
    errors.StreamStalled(seconds=30),
    errors.CredentialsMissing(),
    errors.CredentialsInvalid("the metadata authorization is sent more than once"),
    errors.PermissionDenied(permission="watch"),
]


@pytest.mark.parametrize("error", WORST, ids=lambda error: type(error).__name__)
def test_largest_error_stays_below_4_kib(error: errors.ServiceError) -> None:
    """Details above 4 KiB would be refused on their way, and the caller would not see the error."""
    status = status_from_error(error)

    assert len(status.details) < 4096
    assert len(status.message) <= 500


def test_truncated_violations_are_counted() -> None:
    violations = [
        errors.Violation(error=errors.FieldInvalid, field=f"ids[{n}]", description="must be positive")
        for n in range(1000)
    ]

    told = unpacked(status_from_error(errors.FieldInvalid(violations)).details)["BadRequest"].field_violations

    assert [it.field for it in told] == [*(f"ids[{n}]" for n in range(12)), "..."]
    assert told[-1].description == "and 988 more"


def test_each_missing_post_is_named_with_its_field() -> None:
    error = errors.PostNotFound(
        ids=[7, 9], fields=["requests[0].comment.post_id", "requests[4].comment.post_id"]
    )

    resources = [
        error_details_pb2.ResourceInfo.FromString(packed.value)
        for packed in status_pb2.Status.FromString(status_from_error(error).details).details
        if packed.Is(error_details_pb2.ResourceInfo.DESCRIPTOR)
    ]

    assert [(it.resource_name, it.description) for it in resources] == [
        ("7", "named by requests[0].comment.post_id"),
        ("9", "named by requests[4].comment.post_id"),
    ]
