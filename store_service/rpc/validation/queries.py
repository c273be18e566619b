"""Requests that list or count: filters, orders and pages."""

import re
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from storeapi.v1 import comments_pb2, filters_pb2, posts_pb2

from store_service.errors import FieldInvalid
from store_service.model import (
    EMPTY_FILTER,
    ORDERS,
    SEARCH_ORDERS,
    THREAD_ORDERS,
    Order,
    PageRequest,
    Query,
    ResourceFilter,
    RevisionsRequest,
    SearchRequest,
)
from store_service.rpc.validation.identifiers import check_identifier, check_labels
from store_service.rpc.validation.violations import Violations
from store_service.search import QuerySyntaxError, SearchQuery, parse

DEFAULT_PAGE_SIZE = 50

MAX_SEARCH_PAGE_SIZE = 100
"""Maximum page size of a search: the text of each result is compared with the query."""

MAX_FILTER_LABELS = 8
"""Maximum number of labels of a filter: each is searched for each row that is read."""

_SPACES = re.compile(r"\s+")
_MIN_SECONDS, _MAX_SECONDS = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999, the range of a Timestamp."""


def query_of_posts(request: posts_pb2.ListPostsRequest, violations: Violations) -> Query:
    """Returns the query of a request that lists posts."""
    return Query(
        resource="posts",
        order=_order(request.order_by, ORDERS, violations),
        filter=resource_filter(request.filter, "filter", violations),
    )


def query_of_comments(request: comments_pb2.ListCommentsRequest, violations: Violations) -> Query:
    """Returns the query of a request that lists comments."""
    if request.post_id < 0:
        violations.add(FieldInvalid, "post_id", "must be positive, or 0 for the comments of all posts")
    order = _order(request.order_by, (*ORDERS, *THREAD_ORDERS), violations)
    if order in THREAD_ORDERS and not request.post_id:
        violations.add(FieldInvalid, "post_id", f'is required if order_by is "{order}"')
    return Query(
        resource="comments",
        order=order,
        post_id=request.post_id,
        filter=resource_filter(request.filter, "filter", violations),
    )


def page_request(
    request: posts_pb2.ListPostsRequest | comments_pb2.ListCommentsRequest,
    query: Query,
    violations: Violations,
    *,
    max_page_size: int,
) -> PageRequest:
    """Returns the page of a query that a request asks for."""
    page_size = _page_size(request.page_size, violations, max_page_size)
    violations.raise_if_any()
    return PageRequest(query=query, page_size=page_size, page_token=request.page_token)


def revisions_request(
    request: posts_pb2.ListPostRevisionsRequest | comments_pb2.ListCommentRevisionsRequest,
    violations: Violations,
    *,
    max_page_size: int,
) -> RevisionsRequest:
    """Returns the page of former versions that a request asks for."""
    violations.check_id(request.id, "id")
    page_size = _page_size(request.page_size, violations, max_page_size)
    violations.raise_if_any()
    return RevisionsRequest(
        resource="posts" if isinstance(request, posts_pb2.ListPostRevisionsRequest) else "comments",
        id=request.id,
        page_size=page_size,
        page_token=request.page_token,
        show_deleted=request.show_deleted,
    )


def search_request(
    request: posts_pb2.SearchPostsRequest | comments_pb2.SearchCommentsRequest, *, max_page_size: int
) -> SearchRequest:
    """Returns the page of a search that a request asks for."""
    violations = Violations(0)
    parsed = SearchQuery(())
    try:
        parsed = parse(request.query)
    except QuerySyntaxError as error:
        violations.add(FieldInvalid, "query", str(error))
    post_id = 0
    if isinstance(request, comments_pb2.SearchCommentsRequest):
        post_id = request.post_id
        if post_id < 0:
            violations.add(FieldInvalid, "post_id", "must be positive, or 0 for the comments of all posts")
    if request.filter.show_deleted:
        violations.add(FieldInvalid, "filter.show_deleted", "must be unset; deleted resources are not found")
    query = Query(
        resource="posts" if isinstance(request, posts_pb2.SearchPostsRequest) else "comments",
        order=_order(request.order_by, SEARCH_ORDERS, violations),
        post_id=post_id,
        filter=resource_filter(request.filter, "filter", violations),
        search=request.query,
    )
    page_size = _page_size(request.page_size, violations, min(max_page_size, MAX_SEARCH_PAGE_SIZE))
    violations.raise_if_any()
    return SearchRequest(query=query, parsed=parsed, page_size=page_size, page_token=request.page_token)


def _page_size(page_size: int, violations: Violations, max_page_size: int) -> int:
    if page_size < 0:
        violations.add(FieldInvalid, "page_size", f"must not be negative; 0 means {DEFAULT_PAGE_SIZE}")
    return min(page_size or DEFAULT_PAGE_SIZE, max_page_size)


def check_max_count(max_count: int, violations: Violations) -> None:
    """Reports a limit of a count that is not allowed."""
    if max_count < 0:
        violations.add(FieldInvalid, "max_count", "must not be negative; 0 means no limit")


def count_of_replies(
    request: comments_pb2.CountRepliesRequest, violations: Violations
) -> tuple[Sequence[int], ResourceFilter]:
    """Returns the comments whose replies a request counts, and the filter."""
    violations.check_batch_size("comment_ids", request.comment_ids)
    violations.check_ids("comment_ids", request.comment_ids)
    check_max_count(request.max_count, violations)
    if request.filter.HasField("reply_to_id"):
        violations.add(FieldInvalid, "filter.reply_to_id", "must be unset; comment_ids names the comments")
    filter = resource_filter(request.filter, "filter", violations)
    violations.raise_if_any()
    return tuple(request.comment_ids), filter


def resource_filter(
    message: filters_pb2.PostFilter | filters_pb2.CommentFilter, path: str, violations: Violations
) -> ResourceFilter:
    """Returns the filter in the field `path` of a request."""
    if not message.ByteSize():
        return EMPTY_FILTER
    for description in check_identifier(message.author):
        violations.add(FieldInvalid, f"{path}.author", description)
    if len(message.labels) > MAX_FILTER_LABELS:
        violations.add(FieldInvalid, f"{path}.labels", f"must not have more than {MAX_FILTER_LABELS} labels")
    for description in check_labels(message.labels):
        violations.add(FieldInvalid, f"{path}.labels", description)
    since = _time(message, "create_time_from", path, violations)
    before = _time(message, "create_time_before", path, violations)
    if since is not None and before is not None and before <= since:
        violations.add(FieldInvalid, f"{path}.create_time_before", "must be after create_time_from")
    reply_to_id = None
    if isinstance(message, filters_pb2.CommentFilter) and message.HasField("reply_to_id"):
        reply_to_id = message.reply_to_id
        if reply_to_id < 0:
            violations.add(
                FieldInvalid, f"{path}.reply_to_id", "must be positive, or 0 for top-level comments"
            )
    return ResourceFilter(
        author=message.author,
        labels=tuple(sorted(message.labels.items())),
        create_time_from=since,
        create_time_before=before,
        reply_to_id=reply_to_id,
        show_deleted=message.show_deleted,
    )


def _time(
    message: filters_pb2.PostFilter | filters_pb2.CommentFilter,
    field: str,
    path: str,
    violations: Violations,
) -> int | None:
    """Returns a time in microseconds, rounded up: stored times have whole microseconds."""
    if not message.HasField(field):  # type: ignore[arg-type]  # both messages have these fields
        return None
    time: Timestamp = getattr(message, field)
    if not (_MIN_SECONDS <= time.seconds <= _MAX_SECONDS and 0 <= time.nanos <= 999_999_999):
        violations.add(FieldInvalid, f"{path}.{field}", "must be a valid Timestamp of the years 1 to 9999")
        return None
    return time.seconds * 1_000_000 - -time.nanos // 1000


def _order(order_by: str, orders: Sequence[Order], violations: Violations) -> Order:
    """Returns the order that a request names, or the first one. Additional spaces are allowed."""
    words = _SPACES.sub(" ", order_by.strip()) or orders[0]
    for order in orders:
        if words == order:
            return order
    names = ", ".join([f'"{order}"' for order in orders])
    violations.add(FieldInvalid, "order_by", f"must be one of {names}")
    return orders[0]
