# Made from storeapi/_async/comments.py by tools/generate_sync.py: change that one, then `make protos`.
"""The comments of StoreClient."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping

from storeapi import _arguments
from storeapi._batches import split_ids
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._resources import COMMENTS
from storeapi._sync.collection import Collection
from storeapi._sync.paging import Pager
from storeapi.model import Comment, CommentDraft, CommentFilter, CommentUpdate, Page, SearchResult
from storeapi.v1 import comments_pb2


class Comments(Collection[Comment, CommentDraft, CommentUpdate, CommentFilter]):
    """Creates, reads, updates, counts and deletes comments; `client.comments`."""

    _type = COMMENTS

    def create(
        self,
        *,
        post_id: int,
        body: str,
        author: str = "",
        labels: Mapping[str, str] | None = None,
        external_id: str = "",
        reply_to_id: int = 0,
        return_existing: bool = False,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Comment:
        """Creates a comment on a post and returns it with its id, after it is on the disk of the server.

            comment = client.comments.create(post_id=1, body="Well said", author="ann")
            reply = client.comments.create(post_id=1, body="Thank you", reply_to_id=comment.id)

        Args:
            post_id: The post to comment on.
            body: The text: 1 to 65,536 bytes of UTF-8 unless the server is configured otherwise, without NUL.
            author: The author, in your words, such as the id of a user: at most 256 bytes of UTF-8 without
                control characters.
            labels: At most 64. A key has 1 to 63 characters (lower-case letters, digits, ".", "/" and "-",
                beginning with a letter), a value at most 256 bytes of UTF-8 without control characters.
            external_id: The key of the comment in your system, at most 256 bytes of UTF-8 without control
                characters. No two comments have the same one.
            reply_to_id: The comment of the same post to reply to; 0 for a comment at the top level.
            return_existing: If a comment with this external id exists, return it unchanged. If several
                callers do this at once, one comment is created and all of them get it.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but store nothing; the result has no id,
                times and etag.
            timeout: Deadline in seconds.

        Raises:
            PostNotFound: No post has the id `post_id`.
            CommentNotFound: No comment has the id `reply_to_id`.
            ReplyPostMismatch: The comment `reply_to_id` belongs to another post.
            ReplyTooDeep: The reply would be deeper in its thread than the server allows, 64 by default.
            ExternalIdTaken: A comment with this external id exists, unless `return_existing`.
            FieldInvalid: A value is not allowed, or `return_existing` is set without `external_id`.
        """
        draft = CommentDraft(
            post_id=post_id,
            body=body,
            author=author,
            labels={} if labels is None else labels,
            external_id=external_id,
            reply_to_id=reply_to_id,
            return_existing=return_existing,
        )
        options = _arguments.write_options(request_id, validate_only)
        return self._one(self._type.create_request(draft, **options), timeout)

    def list(
        self,
        *,
        post_id: int | None = None,
        order_by: str = "id",
        filter: CommentFilter | None = None,
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Pager[Comment]:
        """Iterates over the comments of one post, or over all, and requests each page when it is needed.

            for comment in client.comments.list(post_id=1):
                print(comment.body)

        Comments that are created or deleted during the iteration never cause another one to be returned
        twice or to be skipped. Nothing is sent before the first step, so the steps raise the errors.

        Args:
            post_id: Only the comments of this post; None for all comments.
            order_by: "id" for oldest first, "id desc" for newest first; "create_time" and "create_time desc"
                for the same by the time of creation, then by id; "thread" and "thread desc" for the orders of
                `thread`, which require `post_id`.
            filter: Only comments that match; None for all.
            limit: Maximum number of comments; None for all.
            page_size: Maximum number of comments in one page, at most 1000; 0 for the default of the server
                or, if it is set, `limit`.
            page_token: Where to start: a `next_page_token` from `pages` with the same other arguments.
            timeout: Deadline in seconds of each page, not of the whole iteration.

        Raises:
            PostNotFound: No post has the id `post_id`.
            FieldInvalid: `order_by` is unknown or requires `post_id`, `page_size` is negative, or `filter` is
                not allowed.
            ValueError: `post_id` is not positive, `limit` is negative, or a time of `filter` has no time
                zone; raised at once.
            PageTokenInvalid: `page_token` is damaged.
            PageTokenMismatch: `page_token` belongs to a list with other arguments.
        """
        return self._list(
            timeout,
            limit,
            post_id=_arguments.post_id_or_all(post_id),
            order_by=order_by,
            filter=filter,
            page_size=page_size,
            page_token=page_token,
        )

    def pages(
        self,
        *,
        post_id: int | None = None,
        order_by: str = "id",
        filter: CommentFilter | None = None,
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Iterator[Page[Comment]]:
        """Iterates over the pages of a list.

            page = next(client.comments.pages(post_id=1, page_size=20, page_token=token))

        The same as `list(...).pages()`, with the arguments and errors of `list`.
        """
        return self.list(
            post_id=post_id,
            order_by=order_by,
            filter=filter,
            limit=limit,
            page_size=page_size,
            page_token=page_token,
            timeout=timeout,
        ).pages()

    def thread(
        self,
        post_id: int,
        *,
        newest_first: bool = False,
        filter: CommentFilter | None = None,
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Pager[Comment]:
        """Iterates over the comments of a post in the order of a thread: each is followed by its replies.

            for comment in client.comments.thread(1):
                print("  " * comment.depth + comment.body)

        Replies to the same comment are in the order in which they were created. A deleted comment with
        replies keeps its place as a tombstone: `comment.is_tombstone`. `storeapi.comment_tree` makes a tree
        of the comments.

        Args:
            post_id: The post.
            newest_first: Whether the newest comment at the top level comes first; replies have the same order
                in both cases.
            filter: Only comments that match; None for all.
            limit: Maximum number of comments; None for all.
            page_size: Maximum number of comments in one page, as for `list`.
            page_token: Where to start: a `next_page_token` from `pages` with the same other arguments.
            timeout: Deadline in seconds of each page, not of the whole iteration.

        Raises:
            PostNotFound: No post has the id `post_id`.
            FieldInvalid: `page_size` is negative, or `filter` is not allowed.
            ValueError: `post_id` is not positive, `limit` is negative, or a time of `filter` has no time
                zone; raised at once.
            PageTokenInvalid: `page_token` is damaged.
            PageTokenMismatch: `page_token` belongs to a list with other arguments.
        """
        return self.list(
            post_id=_arguments.id(post_id, "post_id"),
            order_by="thread desc" if newest_first else "thread",
            filter=filter,
            limit=limit,
            page_size=page_size,
            page_token=page_token,
            timeout=timeout,
        )

    def search(
        self,
        query: str,
        *,
        post_id: int | None = None,
        order_by: str = "id desc",
        filter: CommentFilter | None = None,
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Pager[SearchResult[Comment]]:
        """Searches the bodies of comments, and iterates over the results, newest first.

            for result in client.comments.search("coffee", post_id=1):
                print(result.resource.id, result.marked())

        The same as `posts.search`, with its arguments and errors.

        Args:
            query: Words, "phrases", prefixes* and -exclusions, as for `posts.search`.
            post_id: Only the comments of this post; None for all comments.
            order_by: "id desc" for newest first, "relevance" for a ranking, as for `posts.search`.
            filter: Only comments that match, without `show_deleted`; None for all.
            limit: Maximum number of results; None for all.
            page_size: Maximum number of results in one page, at most 100; 0 for the default of the server or,
                if it is set, `limit`.
            page_token: Where to start: a `next_page_token` from `search(...).pages()` with the same other
                arguments.
            timeout: Deadline in seconds of each page, not of the whole iteration.

        Raises:
            PostNotFound: No post has the id `post_id`.
            ValueError: `post_id` is not positive; raised at once.
        """
        return self._search(
            timeout,
            limit,
            query=query,
            post_id=_arguments.post_id_or_all(post_id),
            order_by=order_by,
            filter=filter,
            page_size=page_size,
            page_token=page_token,
        )

    def count(
        self,
        post_ids: Iterable[int],
        filter: CommentFilter | None = None,
        *,
        max_count: int = 0,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> dict[int, int]:
        """Counts the comments of several posts. The result has an entry for each of the post ids.

            counts = client.comments.count([42, 43])

        The count of a post without comments, or of an id that does not exist, is 0. Tombstones are not
        counted. A comment that is
        created, changed or deleted during the call may or may not be counted.

        Args:
            post_ids: The posts; duplicates are counted once.
            filter: Only comments that match; None for all.
            max_count: If not 0, counting the comments of a post stops at this number, which takes a
                bounded time; a count that equals it means "at least max_count".
            timeout: Deadline in seconds of each call, which counts for up to 1000 posts.

        Raises:
            FieldInvalid: An id is not positive, or `filter` or `max_count` is not allowed.
        """
        return self._counts("CountComments", "post_ids", post_ids, filter, max_count, timeout)

    def count_all(
        self,
        filter: CommentFilter | None = None,
        *,
        max_count: int = 0,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> int:
        """Counts the comments of all posts together.

            hidden = client.comments.count_all(storeapi.CommentFilter(labels={"status": "hidden"}))

        A comment that is created, changed or deleted during the call may or may not be counted.

        Args:
            filter: Only comments that match; None for all.
            max_count: If not 0, counting stops at this number, which takes a bounded time; the result then
                means "at least max_count".
            timeout: Deadline in seconds.

        Raises:
            FieldInvalid: `filter` or `max_count` is not allowed.
        """
        condition = self._type.filter_message(filter)
        request = self._type.request("Count", all_posts=True, filter=condition, max_count=max_count)
        return int((self._send(request, timeout)).total)

    def count_replies(
        self,
        comment_ids: Iterable[int],
        filter: CommentFilter | None = None,
        *,
        max_count: int = 0,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> dict[int, int]:
        """Counts the direct replies to several comments. The result has an entry for each of the comment ids.

            counts = client.comments.count_replies([1, 2])

        Replies to a comment that was deleted are counted too. A reply that is created, changed or deleted
        during the call may or may not be counted.

        Args:
            comment_ids: The comments; duplicates are counted once.
            filter: Only replies that match, without `reply_to_id`; None for all.
            max_count: If not 0, counting the replies to a comment stops at this number; a count that equals
                it means "at least max_count".
            timeout: Deadline in seconds of each call, which counts for up to 1000 comments.

        Raises:
            FieldInvalid: An id is not positive, or `filter` or `max_count` is not allowed.
        """
        return self._counts("CountReplies", "comment_ids", comment_ids, filter, max_count, timeout)

    def _counts(
        self,
        rpc: str,
        field: str,
        ids: Iterable[int],
        filter: CommentFilter | None,
        max_count: int,
        timeout: Timeout,
    ) -> dict[int, int]:
        counts: dict[int, int] = {}
        condition = self._type.filter_message(filter)

        def count(some: list[int]) -> None:
            request = getattr(comments_pb2, f"{rpc}Request")(
                **{field: some}, filter=condition, max_count=max_count
            )
            counts.update((self._send(request, timeout)).counts)

        self._calls.send_batches(split_ids(ids, field), count)
        return counts
