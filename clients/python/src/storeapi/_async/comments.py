"""The comments of AsyncStoreClient."""

# ruff: noqa: ASYNC109 - a deadline that gRPC knows also ends the work of the server.

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable

from storeapi import _arguments
from storeapi._async.collection import AsyncCollection
from storeapi._async.paging import AsyncPager
from storeapi._batches import split_ids
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._resources import COMMENTS
from storeapi.model import Comment, CommentDraft, Page
from storeapi.v1 import comments_pb2


class AsyncComments(AsyncCollection[Comment, CommentDraft]):
    """Creates, reads, updates, counts and deletes comments; `client.comments`."""

    _type = COMMENTS

    async def create(
        self,
        *,
        post_id: int,
        body: str,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Comment:
        """Creates a comment on a post and returns it with its id, after it is on the disk of the server.

            comment = await client.comments.create(post_id=1, body="Well said")

        Args:
            post_id: The post to comment on.
            body: The text: 1 to 65,536 bytes of UTF-8 unless the server is configured otherwise, without NUL.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but store nothing; the result has no id,
                times and etag.
            timeout: Deadline in seconds.

        Raises:
            PostNotFound: No post has this id.
            FieldInvalid: `body` is not allowed, or `post_id` is not positive.
        """
        options = _arguments.write_options(request_id, validate_only)
        request = self._type.create_request(CommentDraft(post_id=post_id, body=body), **options)
        return await self._one(request, timeout)

    def list(
        self,
        *,
        post_id: int | None = None,
        order_by: str = "id",
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> AsyncPager[Comment]:
        """Iterates over the comments of one post, or over all, and requests each page when it is needed.

            async for comment in client.comments.list(post_id=1):
                print(comment.body)

        Comments that are created or deleted during the iteration never cause another one to be returned
        twice or to be skipped. Nothing is sent before the first step, so the steps raise the errors.

        Args:
            post_id: Only the comments of this post; None for all comments.
            order_by: "id" for oldest first, "id desc" for newest first.
            limit: Maximum number of comments; None for all.
            page_size: Maximum number of comments in one page, at most 1000; 0 for the default of the server
                or, if it is set, `limit`.
            page_token: Where to start: a `next_page_token` from `pages` with the same other arguments.
            timeout: Deadline in seconds of each page, not of the whole iteration.

        Raises:
            PostNotFound: No post has the id `post_id`.
            FieldInvalid: `order_by` is unknown or `page_size` is negative.
            ValueError: `post_id` is not positive, or `limit` is negative; raised at once.
            PageTokenInvalid: `page_token` is damaged.
            PageTokenMismatch: `page_token` belongs to a list with other arguments.
        """
        return self._list(
            timeout,
            limit,
            post_id=_arguments.post_id_or_all(post_id),
            order_by=order_by,
            page_size=page_size,
            page_token=page_token,
        )

    def pages(
        self,
        *,
        post_id: int | None = None,
        order_by: str = "id",
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> AsyncIterator[Page[Comment]]:
        """Iterates over the pages of a list.

            page = await anext(client.comments.pages(post_id=1, page_size=20, page_token=token))

        The same as `list(...).pages()`, with the arguments and errors of `list`.
        """
        return self.list(
            post_id=post_id,
            order_by=order_by,
            limit=limit,
            page_size=page_size,
            page_token=page_token,
            timeout=timeout,
        ).pages()

    async def update(
        self,
        id: int,
        *,
        body: str,
        etag: str = "",
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Comment:
        """Updates a comment and returns it.

            comment = await client.comments.get(1)
            comment = await client.comments.update(comment.id, body="On second thought", etag=comment.etag)

        Args:
            id: The comment to update.
            body: The new text, with the limits of `create`.
            etag: Fail unless this is the current etag; empty to update any version.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but store nothing; the result has no
                update_time and etag.
            timeout: Deadline in seconds.

        Raises:
            CommentNotFound: No comment has this id.
            EtagMismatch: The comment has changed since `etag` was read.
            FieldInvalid: `body` is not allowed, or `id` is not positive.
        """
        options = _arguments.write_options(request_id, validate_only)
        request = self._type.update_request(id, {"body": body}, etag=etag, **options)
        return await self._one(request, timeout)

    async def count(self, post_ids: Iterable[int], *, timeout: Timeout = CLIENT_DEFAULT) -> dict[int, int]:
        """Counts the comments of several posts. The result has an entry for each of the post ids.

            counts = await client.comments.count([42, 43])

        The count of a post without comments, or of an id that does not exist, is 0.

        Args:
            post_ids: The posts; duplicates are counted once.
            timeout: Deadline in seconds of each call, which counts for up to 1000 posts.

        Raises:
            FieldInvalid: An id is not positive.
        """
        counts: dict[int, int] = {}

        async def count(some: list[int]) -> None:
            request = comments_pb2.CountCommentsRequest(post_ids=some)
            counts.update((await self._send(request, timeout)).counts)

        await self._calls.send_batches(split_ids(post_ids, "post_ids"), count)
        return counts
