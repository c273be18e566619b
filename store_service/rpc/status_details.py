"""The details of statuses: messages of google.rpc, and metadata."""

import json
import math
from collections.abc import Callable, Sequence
from itertools import islice, zip_longest

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from store_service import errors
from store_service.model import Comment, Post

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


def missing(error: errors.NotFound) -> list[Message]:
    """Returns the resources that do not exist."""
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


def missing_metadata(id_name: str) -> Callable[[errors.NotFound], dict[str, str]]:
    """Returns the function that returns the metadata of resources that do not exist."""

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


def comment_count(error: errors.PostHasComments) -> list[Message]:
    """Returns the posts that have comments."""
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


def existing(error: errors.EtagMismatch | errors.ExternalIdTaken | errors.NotDeleted) -> list[Message]:
    """Returns the resource that exists."""
    return [
        error_details_pb2.ResourceInfo(resource_type=_TYPES[error.resource_type], resource_name=str(error.id))
    ]


def retry(_: errors.ServiceError) -> list[Message]:
    """Returns the time after which to retry."""
    seconds = Duration(nanos=int(RETRY_SECONDS * 1_000_000_000))
    return [error_details_pb2.RetryInfo(retry_delay=seconds)]


def quota(error: errors.WatchLimit) -> list[Message]:
    """Returns the limit of watches."""
    return [
        error_details_pb2.QuotaFailure(
            violations=[
                error_details_pb2.QuotaFailure.Violation(
                    subject=f"{error.kind} of one {error.where}",
                    description=f"{error.limit} are open, which is the limit",
                )
            ]
        ),
        *retry(error),
    ]


def rate(error: errors.RateLimited) -> list[Message]:
    """Returns the limit of calls, and the time after which to retry."""
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


def listed(ids: Sequence[int]) -> str:
    """Returns ids as metadata, shortened to MAX_LISTED_IDS: 7,9,... and 950 more."""
    shown = ",".join(str(id) for id in ids[:MAX_LISTED_IDS])
    rest = len(ids) - MAX_LISTED_IDS
    return f"{shown},... and {rest} more" if rest > 0 else shown


def cut(text: str, limit: int) -> str:
    """Returns a text, shortened to a number of characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
