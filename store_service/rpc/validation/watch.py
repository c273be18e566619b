"""The request of a watch."""

from collections.abc import Sequence

from storeapi.v1 import changes_pb2

from store_service.errors import FieldInvalid
from store_service.model import ResourceKind, WatchFilter, WatchStart
from store_service.rpc.validation.queries import resource_filter
from store_service.rpc.validation.violations import Violations

MAX_KINDS = 100
"""Maximum number of kinds. Only two exist, but a request may repeat them."""

MIN_HEARTBEAT_SECONDS = 1.0
MAX_HEARTBEAT_SECONDS = 60.0
DEFAULT_HEARTBEAT_SECONDS = 10.0


def check_kinds(kinds: Sequence[int], violations: Violations) -> None:
    """Checks the kinds of a watch or an export."""
    if len(kinds) > MAX_KINDS:
        violations.add(
            FieldInvalid, "kinds", f"must not have more than {MAX_KINDS} elements; empty means all kinds"
        )
        return
    for index, kind in enumerate(kinds):
        if int(kind) not in set(ResourceKind):
            violations.add(
                FieldInvalid, f"kinds[{index}]", "must be RESOURCE_KIND_POST or RESOURCE_KIND_COMMENT"
            )


def watch_request(
    request: changes_pb2.WatchRequest, *, max_batch_size: int
) -> tuple[WatchStart, WatchFilter, float]:
    """Returns the start and the filter of a watch, and the maximum seconds between two responses."""
    violations = Violations(max_batch_size)
    start = request.WhichOneof("start")
    if start in ("initial_state", "earliest") and not getattr(request, start):
        violations.add(FieldInvalid, start, "must be true if it is set; to start now, leave start unset")
    check_kinds(request.kinds, violations)
    if len(request.post_ids) > max_batch_size:
        violations.add(
            FieldInvalid,
            "post_ids",
            f"must not have more than {max_batch_size} elements; empty means all posts",
        )
    violations.check_ids("post_ids", request.post_ids)
    post_filter = resource_filter(request.post_filter, "post_filter", violations)
    comment_filter = resource_filter(request.comment_filter, "comment_filter", violations)
    heartbeat_seconds = DEFAULT_HEARTBEAT_SECONDS
    if request.HasField("heartbeat_interval"):
        interval = request.heartbeat_interval
        heartbeat_seconds = interval.seconds + interval.nanos / 1_000_000_000
        if not MIN_HEARTBEAT_SECONDS <= heartbeat_seconds <= MAX_HEARTBEAT_SECONDS:
            violations.add(
                FieldInvalid,
                "heartbeat_interval",
                f"must be between {MIN_HEARTBEAT_SECONDS:g} and {MAX_HEARTBEAT_SECONDS:g} seconds",
            )
    violations.raise_if_any()
    return (
        WatchStart(
            resume_token=request.resume_token if start == "resume_token" else None,
            initial_state=request.initial_state,
            earliest=request.earliest,
        ),
        WatchFilter(
            kinds=frozenset(ResourceKind(kind) for kind in request.kinds) or frozenset(ResourceKind),
            post_ids=frozenset(request.post_ids),
            post_filter=post_filter,
            comment_filter=comment_filter,
        ),
        heartbeat_seconds,
    )
