"""Validation of requests that read."""

from collections.abc import Sequence

from storeapi.v1 import changes_pb2, comments_pb2, posts_pb2

from store_service.errors import FieldInvalid
from store_service.model import (
    PageRequest,
    ResourceFilter,
    RevisionsRequest,
    SearchRequest,
    WatchFilter,
    WatchStart,
)
from store_service.rpc.validation.identifiers import check_identifier
from store_service.rpc.validation.queries import (
    check_max_count,
    count_of_replies,
    page_request,
    query_of_comments,
    query_of_posts,
    resource_filter,
    revisions_request,
    search_request,
)
from store_service.rpc.validation.violations import REQUIRED_ID, Violations
from store_service.rpc.validation.watch import watch_request


class ReadValidation:
    """Checks requests that read against the limits of this server."""

    def __init__(self, *, max_batch_size: int, max_page_size: int) -> None:
        """Takes the maximum size of a batch, and of a page."""
        self._max_batch_size = max_batch_size
        self._max_page_size = max_page_size

    # Get and list

    def id(self, request: posts_pb2.GetPostRequest | comments_pb2.GetCommentRequest) -> int:
        """Returns the id of the resource to get; 0 if the request has an external id."""
        if request.external_id:
            if request.id:
                raise FieldInvalid.at("external_id", "must be unset if id is set")
            for description in check_identifier(request.external_id):
                raise FieldInvalid.at("external_id", description)
        elif request.id <= 0:
            raise FieldInvalid.at("id", f"{REQUIRED_ID} unless external_id is set")
        return request.id

    def ids(
        self, request: posts_pb2.BatchGetPostsRequest | comments_pb2.BatchGetCommentsRequest
    ) -> tuple[Sequence[int], Sequence[str]]:
        """Returns the ids and the external ids of the resources to get."""
        violations = Violations(self._max_batch_size)
        fields = [name for name in ("ids", "external_ids") if getattr(request, name)] or ["ids"]
        count = range(len(request.ids) + len(request.external_ids))
        violations.check_batch_size(" and ".join(fields), count)
        violations.check_ids("ids", request.ids)
        if len(request.external_ids) <= self._max_batch_size:
            for index, external_id in enumerate(request.external_ids):
                path = f"external_ids[{index}]"
                for description in check_identifier(external_id) if external_id else ("must not be empty",):
                    violations.add(FieldInvalid, path, description)
        violations.raise_if_any()
        return tuple(request.ids), tuple(request.external_ids)

    def count_of_posts(self, request: posts_pb2.CountPostsRequest) -> ResourceFilter:
        """Returns the filter of the posts to count."""
        violations = Violations(self._max_batch_size)
        check_max_count(request.max_count, violations)
        filter = resource_filter(request.filter, "filter", violations)
        violations.raise_if_any()
        return filter

    def count_of_comments(
        self, request: comments_pb2.CountCommentsRequest
    ) -> tuple[Sequence[int] | None, ResourceFilter]:
        """Returns the posts whose comments are counted, or None for all posts, and the filter."""
        violations = Violations(self._max_batch_size)
        if not request.all_posts:
            violations.check_batch_size(
                "post_ids", request.post_ids, "must not be empty unless all_posts is set"
            )
        elif request.post_ids:
            violations.add(FieldInvalid, "post_ids", "must be empty if all_posts is set")
        violations.check_ids("post_ids", request.post_ids)
        check_max_count(request.max_count, violations)
        filter = resource_filter(request.filter, "filter", violations)
        violations.raise_if_any()
        return (None if request.all_posts else tuple(request.post_ids)), filter

    def count_of_replies(
        self, request: comments_pb2.CountRepliesRequest
    ) -> tuple[Sequence[int], ResourceFilter]:
        """Returns the comments whose replies are counted, and the filter."""
        return count_of_replies(request, Violations(self._max_batch_size))

    def page_of_posts(self, request: posts_pb2.ListPostsRequest) -> PageRequest:
        """Returns the page of posts to list."""
        violations = Violations(self._max_batch_size)
        query = query_of_posts(request, violations)
        return page_request(request, query, violations, max_page_size=self._max_page_size)

    def page_of_comments(self, request: comments_pb2.ListCommentsRequest) -> PageRequest:
        """Returns the page of comments to list."""
        violations = Violations(self._max_batch_size)
        query = query_of_comments(request, violations)
        return page_request(request, query, violations, max_page_size=self._max_page_size)

    def search_of_posts(self, request: posts_pb2.SearchPostsRequest) -> SearchRequest:
        """Returns the page of a search of posts."""
        return search_request(request, max_page_size=self._max_page_size)

    def search_of_comments(self, request: comments_pb2.SearchCommentsRequest) -> SearchRequest:
        """Returns the page of a search of comments."""
        return search_request(request, max_page_size=self._max_page_size)

    def revisions(
        self, request: posts_pb2.ListPostRevisionsRequest | comments_pb2.ListCommentRevisionsRequest
    ) -> RevisionsRequest:
        """Returns the page of former versions to list."""
        violations = Violations(self._max_batch_size)
        return revisions_request(request, violations, max_page_size=self._max_page_size)

    # Watch

    def watch(self, request: changes_pb2.WatchRequest) -> tuple[WatchStart, WatchFilter, float]:
        """Returns the start and the filter of a watch, and the maximum seconds between two responses."""
        return watch_request(request, max_batch_size=self._max_batch_size)
