"""The posts of AsyncStoreClient."""

# ruff: noqa: ASYNC109 - a deadline that gRPC knows also ends the work of the server.

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from inspect import isawaitable

from storeapi import _messages
from storeapi._async.calls import AsyncCalls
from storeapi._async.paging import AsyncPager
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi.errors import EtagMismatch, ResponseTooLarge, StoreError
from storeapi.model import Page, Post
from storeapi.v1 import posts_pb2, posts_pb2_grpc


class AsyncPosts:
    """Adds, reads, changes and deletes posts; `client.posts`.

    Every method takes `timeout`, the deadline in seconds of each call to the server: None for no deadline,
    CLIENT_DEFAULT for the client's. Besides the errors that are listed, every method can raise Unavailable,
    DeadlineExceeded and the other branches of StoreError.

    Every method that writes takes `request_id`, except `modify`, which may write something else each time.
    Without one the client makes one up, so that it can send the request again when it does not know whether
    it arrived. Give a UUID of your own, such as `uuid.uuid4()`, to be able to do the same after a crash: with
    the same id and arguments nothing is done twice, and the first answer comes again, for 24 hours unless the
    server is set otherwise. With other arguments it raises RequestIdReused. With "" the request has none, and
    is never repeated.
    """

    def __init__(self, calls: AsyncCalls, stub: posts_pb2_grpc.PostServiceAsyncStub) -> None:
        """Clients make it."""
        self._calls = calls
        self._stub = stub

    async def create(
        self,
        body: str,
        *,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Post:
        """Adds a post and returns it with its id; when this returns, it is on the server's disk.

            post = await client.posts.create("Hello")

        Args:
            body: The text: 1 to 65,536 bytes of UTF-8 unless the server is set otherwise, without NUL.
            request_id: A UUID with which this can be called again; None for a new one.
            validate_only: Check and answer, but store nothing; the post returned has no id, times or etag.
            timeout: Deadline in seconds.

        Raises:
            FieldInvalid: `body` is not allowed.
        """
        request = _messages.create_post_request(
            body=body,
            request_id=_messages.request_id(request_id, validate_only=validate_only),
            validate_only=validate_only,
        )
        return _messages.post(await self._calls.unary(self._stub.CreatePost, request, timeout))

    async def get(self, id: int, *, timeout: Timeout = CLIENT_DEFAULT) -> Post:
        """Returns one post.

            post = await client.posts.get(1)

        Raises:
            PostNotFound: There is no post with this id.
            FieldInvalid: `id` is not positive.
        """
        request = posts_pb2.GetPostRequest(id=_messages.id(id))
        return _messages.post(await self._calls.unary(self._stub.GetPost, request, timeout))

    def list(
        self,
        *,
        order_by: str = "id",
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> AsyncPager[Post]:
        """Iterates over all posts, asking for the next page when the one before is used up.

            async for post in client.posts.list(order_by="id desc"):
                print(post.body)

        Posts added or deleted meanwhile never make it give one twice or miss one that stayed. Nothing is
        sent before the first step, so that is where the errors are raised.

        Args:
            order_by: "id" for oldest first, "id desc" for newest first.
            limit: How many to give at most; None for all.
            page_size: How many to ask for at once, at most 1000; 0 leaves it to the server, or to `limit`.
            page_token: Where to start: a `next_page_token` from `pages` with the same `order_by`.
            timeout: Deadline in seconds of each page, not of the whole.

        Raises:
            FieldInvalid: `order_by` is unknown or `page_size` negative.
            ValueError: `limit` is negative; raised at once.
            PageTokenInvalid: `page_token` is damaged.
            PageTokenMismatch: `page_token` was made with another `order_by`.
        """
        request = posts_pb2.ListPostsRequest(order_by=order_by, page_size=page_size, page_token=page_token)
        return AsyncPager(self._calls, self._stub.ListPosts, request, _messages.post_page, timeout, limit)

    def pages(
        self,
        *,
        order_by: str = "id",
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> AsyncIterator[Page[Post]]:
        """Iterates over all posts page by page, for callers that hand the pages on.

            page = await anext(client.posts.pages(page_size=20, page_token=token))

        The same as `list(...).pages()`; arguments and errors are those of `list`.
        """
        return self.list(
            order_by=order_by, limit=limit, page_size=page_size, page_token=page_token, timeout=timeout
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
    ) -> Post:
        """Gives a post another text and returns it.

            post = await client.posts.get(1)
            post = await client.posts.update(post.id, body=post.body.upper(), etag=post.etag)

        Args:
            id: The post to change.
            body: The new text, with the limits of `create`.
            etag: Change it only if this is its etag; empty to change it in any case.
            request_id: A UUID with which this can be called again; None for a new one.
            validate_only: Check and answer, but store nothing; the post returned has no update_time or etag.
            timeout: Deadline in seconds.

        Raises:
            PostNotFound: There is no post with this id.
            EtagMismatch: The post was changed since `etag` was read.
            FieldInvalid: `body` is not allowed, or `id` is not positive.
        """
        request = _messages.update_post_request(
            id,
            body=body,
            etag=etag,
            request_id=_messages.request_id(request_id, validate_only=validate_only),
            validate_only=validate_only,
        )
        return _messages.post(await self._calls.unary(self._stub.UpdatePost, request, timeout))

    async def modify(
        self,
        id: int,
        change: Callable[[Post], str | Awaitable[str | None] | None],
        *,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Post:
        """Changes a post depending on what it says, also when others change it at the same moment.

            post = await client.posts.modify(1, lambda post: post.body + "!")

        Reads the post, and gives it the text that `change` makes of it unless somebody else was faster; then
        it reads and asks `change` again. So no change of anybody is overwritten unseen.

        Args:
            id: The post to change.
            change: Called with the post, once or more; returns the new text, or None to leave it as it
                is; it may be a coroutine function.
            timeout: Seconds for everything together.

        Raises:
            PostNotFound: There is no post with this id.
            EtagMismatch: Others were faster until the time was up.
            TypeError: `change` returned something else.
            FieldInvalid: The new text is not allowed, or `id` is not positive.
        """
        attempts = self._calls.attempts(timeout)
        while True:
            post = await self.get(id, timeout=attempts.remaining())
            returned = change(post)
            if isawaitable(returned):
                returned = await returned
            body = _messages.new_body(returned)
            if body is None or body == post.body:
                return post
            try:
                return await self.update(id, body=body, etag=post.etag, timeout=attempts.remaining())
            except EtagMismatch as error:
                pause = attempts.pause()
                if pause is None:
                    raise
                await self._calls.wait(pause, error)

    async def delete(
        self,
        id: int,
        *,
        etag: str = "",
        force: bool = False,
        allow_missing: bool = False,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Post:
        """Deletes a post and returns it as it last was.

            await client.posts.delete(1, force=True)

        Args:
            id: The post to delete.
            etag: Delete it only if this is its etag; empty to delete it in any case.
            force: Delete its comments too.
            allow_missing: If there is no such post, return one that has nothing but the id.
            request_id: A UUID with which this can be called again; None for a new one.
            validate_only: Check and answer, but delete nothing.
            timeout: Deadline in seconds.

        Raises:
            PostNotFound: There is no post with this id, unless `allow_missing`.
            PostHasComments: The post has comments, unless `force`.
            EtagMismatch: The post was changed since `etag` was read.
            FieldInvalid: `id` is not positive.
        """
        request = posts_pb2.DeletePostRequest(
            id=_messages.id(id),
            etag=etag,
            force=force,
            allow_missing=allow_missing,
            request_id=_messages.request_id(request_id, validate_only=validate_only),
            validate_only=validate_only,
        )
        return _messages.post(await self._calls.unary(self._stub.DeletePost, request, timeout))

    async def get_many(
        self, ids: Iterable[int], *, allow_missing: bool = False, timeout: Timeout = CLIENT_DEFAULT
    ) -> tuple[Post, ...]:
        """Returns several posts in the order asked for; an id named twice is answered twice.

            posts = await client.posts.get_many([1, 2, 3], allow_missing=True)

        Args:
            ids: The posts to return; they are asked for 1000 at a time, or as many as the server takes.
            allow_missing: Leave out ids that name no post.
            timeout: Deadline in seconds of each call.

        Raises:
            PostNotFound: Some posts are not there, unless `allow_missing`; `missing_ids` names them.
            FieldInvalid: An id is not positive.
        """
        found: list[Post] = []

        async def get(some: list[int]) -> None:
            found.extend(await self._get_some(some, allow_missing, timeout))

        await self._calls.in_pieces(_messages.pieces_of_ids(ids), get)
        return tuple(found)

    async def _get_some(self, ids: Sequence[int], allow_missing: bool, timeout: Timeout) -> tuple[Post, ...]:
        """What one call may ask for; where the answer is too large for one message, in halves."""
        request = posts_pb2.BatchGetPostsRequest(ids=ids, allow_missing=allow_missing)
        try:
            reply = await self._calls.unary(self._stub.BatchGetPosts, request, timeout)
        except ResponseTooLarge:
            if len(ids) == 1:
                raise
            half = len(ids) // 2
            first = await self._get_some(ids[:half], allow_missing, timeout)
            return first + await self._get_some(ids[half:], allow_missing, timeout)
        return _messages.posts(reply.posts)

    async def create_many(
        self,
        bodies: Iterable[str],
        *,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[Post, ...]:
        """Adds several posts and returns them in the order given.

            posts = await client.posts.create_many(["First", "Second"])

        They are sent in calls of up to 1000, and less where the texts are long or the server takes less. Each
        call adds all of its posts or, on any error, none. When a later call fails, the earlier ones are
        done: calling again with `request_id=error.request_id` and the same bodies goes on where it ended.

        Args:
            bodies: The texts of the posts, with the limits of `create`.
            request_id: A UUID with which this can be called again; None for a new one.
            validate_only: Check and answer, but store nothing; the posts returned have no id, times or etag.
            timeout: Deadline in seconds of each call.

        Raises:
            FieldInvalid: Some texts are not allowed; `violations` names them all.
            TypeError: `bodies` is a single text.
        """
        first_request_id = _messages.request_id(request_id, validate_only=validate_only)
        created: list[Post] = []
        number = 0

        async def create(some: list[str]) -> None:
            nonlocal number
            request = _messages.create_posts_request(
                some,
                request_id=_messages.request_id_of(first_request_id, number),
                validate_only=validate_only,
            )
            try:
                reply = await self._calls.unary(self._stub.BatchCreatePosts, request, timeout)
            except StoreError as error:
                # The id of the whole, with which the whole can be called again.
                error.request_id = first_request_id
                raise
            created.extend(_messages.posts(reply.posts))
            number += 1

        await self._calls.in_pieces(_messages.pieces_of_bodies(bodies), create)
        return tuple(created)

    async def delete_many(
        self,
        ids: Iterable[int],
        *,
        force: bool = False,
        allow_missing: bool = False,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[Post, ...]:
        """Deletes several posts, all of them or on any error none, and returns them as they last were.

            await client.posts.delete_many([1, 2, 3], force=True, allow_missing=True)

        Args:
            ids: The posts to delete, 1 to 1000, each named once.
            force: Delete their comments too.
            allow_missing: Leave out ids that name no post.
            request_id: A UUID with which this can be called again; None for a new one.
            validate_only: Check and answer, but delete nothing.
            timeout: Deadline in seconds.

        Raises:
            PostNotFound: Some posts are not there, unless `allow_missing`; `missing_ids` names them.
            PostHasComments: Some posts have comments, unless `force`.
            BatchEmpty: No ids.
            BatchTooLarge: More than 1000 ids.
            BatchDuplicate: The same id twice.
            FieldInvalid: An id is not positive.
            ResponseTooLarge: The posts do not fit in one message; delete fewer at once.
        """
        request = posts_pb2.BatchDeletePostsRequest(
            ids=ids,
            force=force,
            allow_missing=allow_missing,
            request_id=_messages.request_id(request_id, validate_only=validate_only),
            validate_only=validate_only,
        )
        reply = await self._calls.unary(self._stub.BatchDeletePosts, request, timeout)
        return _messages.posts(reply.posts)
