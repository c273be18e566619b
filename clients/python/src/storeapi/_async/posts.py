"""The posts of AsyncStoreClient."""

# ruff: noqa: ASYNC109 - a deadline that gRPC knows also ends the work of the server.

from __future__ import annotations

import uuid
from collections.abc import Mapping

from storeapi import _arguments
from storeapi._async.collection import AsyncCollection
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._resources import POSTS
from storeapi.model import Post, PostDraft, PostFilter, PostUpdate


class AsyncPosts(AsyncCollection[Post, PostDraft | str, PostUpdate, PostFilter]):
    """Creates, reads, updates, counts and deletes posts; `client.posts`."""

    _type = POSTS

    async def create(
        self,
        body: str,
        *,
        author: str = "",
        labels: Mapping[str, str] | None = None,
        external_id: str = "",
        return_existing: bool = False,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Post:
        """Creates a post and returns it with its id, after it is on the disk of the server.

            post = await client.posts.create("Hello", author="ann", labels={"status": "new"})
            post = await client.posts.create("Article 42", external_id="article:42", return_existing=True)

        Args:
            body: The text: 1 to 65,536 bytes of UTF-8 unless the server is configured otherwise, without NUL.
            author: The author, in your words, such as the id of a user: at most 256 bytes of UTF-8 without
                control characters.
            labels: At most 64. A key has 1 to 63 characters (lower-case letters, digits, ".", "/" and "-",
                beginning with a letter), a value at most 256 bytes of UTF-8 without control characters.
            external_id: The key of the post in your system, at most 256 bytes of UTF-8 without control
                characters. No two posts have the same one.
            return_existing: If a post with this external id exists, return it unchanged. If several callers
                do this at once, one post is created and all of them get it.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but store nothing; the result has no id,
                times and etag.
            timeout: Deadline in seconds.

        Raises:
            ExternalIdTaken: A post with this external id exists, unless `return_existing`.
            FieldInvalid: A value is not allowed, or `return_existing` is set without `external_id`.
        """
        draft = PostDraft(
            body=body,
            author=author,
            labels={} if labels is None else labels,
            external_id=external_id,
            return_existing=return_existing,
        )
        options = _arguments.write_options(request_id, validate_only)
        return await self._one(self._type.create_request(draft, **options), timeout)

    async def count(
        self,
        filter: PostFilter | None = None,
        *,
        max_count: int = 0,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> int:
        """Counts posts.

            count = await client.posts.count(storeapi.PostFilter(author="ann"))

        A post that is created, changed or deleted during the call may or may not be counted.

        Args:
            filter: Only posts that match; None for all.
            max_count: If not 0, counting stops at this number, which takes a bounded time; the result then
                means "at least max_count".
            timeout: Deadline in seconds.

        Raises:
            FieldInvalid: `filter` or `max_count` is not allowed.
        """
        condition = self._type.filter_message(filter)
        request = self._type.request("Count", filter=condition, max_count=max_count)
        return int((await self._send(request, timeout)).count)
