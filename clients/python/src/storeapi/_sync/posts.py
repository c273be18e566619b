# Made from storeapi/_async/posts.py by tools/generate_sync.py: change that one, then `make protos`.
"""The posts of StoreClient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from storeapi import _messages
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._sync.calls import Calls
from storeapi.model import Page, Post
from storeapi.v1 import posts_pb2, posts_pb2_grpc


class Posts:
    """Adds, reads, changes and deletes posts; `client.posts`.

    Every method takes `timeout`, the deadline in seconds of each call to the server: None for no deadline,
    CLIENT_DEFAULT for the client's. Besides the errors that are listed, every method can raise Unavailable,
    DeadlineExceeded and the other branches of StoreError.

    Every method that writes takes `request_id`, a UUID such as `str(uuid.uuid4())`. Who does not know whether
    a call arrived calls again with the same id and arguments: nothing is done twice, and the first answer
    comes again, for 24 hours unless the server is set otherwise. With other arguments it raises
    RequestIdReused.
    """

    def __init__(self, calls: Calls, stub: posts_pb2_grpc.PostServiceStub) -> None:
        self._calls = calls
        self._stub = stub

    def create(
        self,
        *,
        body: str,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Post:
        """Adds a post and returns it with its id; when this returns, it is on the server's disk.

            post = client.posts.create(body="Hello")

        Args:
            body: The text: 1 to 65,536 bytes of UTF-8 unless the server is set otherwise, without NUL.
            request_id: A UUID with which this can be called again; None for no protection.
            validate_only: Check and answer, but store nothing; the post returned has no id, times or etag.
            timeout: Deadline in seconds.

        Raises:
            FieldInvalid: `body` is not allowed.
        """
        request = _messages.create_post_request(
            body=body, request_id=request_id or "", validate_only=validate_only
        )
        return _messages.post(self._calls.unary(self._stub.CreatePost, request, timeout))

    def get(self, id: int, *, timeout: Timeout = CLIENT_DEFAULT) -> Post:
        """Returns one post.

        Raises:
            PostNotFound: There is no post with this id.
            FieldInvalid: `id` is not positive.
        """
        request = posts_pb2.GetPostRequest(id=id)
        return _messages.post(self._calls.unary(self._stub.GetPost, request, timeout))

    def list(
        self,
        *,
        order_by: str = "id",
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Iterator[Post]:
        """Iterates over all posts, asking for the next page when the one before is used up.

            for post in client.posts.list(order_by="id desc"):
                print(post.body)

        Posts added or deleted meanwhile never make it give one twice or miss one that stayed. Nothing is
        sent before the first step, so that is where the errors are raised.

        Args:
            order_by: "id" for oldest first, "id desc" for newest first.
            page_size: How many to ask for at once, at most 1000; 0 leaves it to the server.
            page_token: Where to start: a `next_page_token` from `pages` with the same `order_by`.
            timeout: Deadline in seconds of each page, not of the whole.

        Raises:
            FieldInvalid: `order_by` is unknown or `page_size` negative.
            PageTokenInvalid: `page_token` is damaged.
            PageTokenMismatch: `page_token` was made with another `order_by`.
        """
        pages = self.pages(order_by=order_by, page_size=page_size, page_token=page_token, timeout=timeout)
        for page in pages:
            for post in page.items:
                yield post

    def pages(
        self,
        *,
        order_by: str = "id",
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Iterator[Page[Post]]:
        """Iterates over all posts page by page, for callers that hand the pages on.

            page = next(client.posts.pages(page_size=20, page_token=token))

        Arguments and errors are those of `list`.
        """
        while True:
            request = posts_pb2.ListPostsRequest(
                order_by=order_by, page_size=page_size, page_token=page_token
            )
            page = _messages.post_page(self._calls.unary(self._stub.ListPosts, request, timeout))
            yield page
            if not page.next_page_token:
                return
            page_token = page.next_page_token

    def update(
        self,
        id: int,
        *,
        body: str,
        etag: str = "",
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Post:
        """Gives a post another text and returns it.

            post = client.posts.get(42)
            post = client.posts.update(post.id, body=post.body.upper(), etag=post.etag)

        Args:
            id: The post to change.
            body: The new text, with the limits of `create`.
            etag: Change it only if this is its etag; empty to change it in any case.
            request_id: A UUID with which this can be called again; None for no protection.
            validate_only: Check and answer, but store nothing; the post returned has no update_time or etag.
            timeout: Deadline in seconds.

        Raises:
            PostNotFound: There is no post with this id.
            EtagMismatch: The post was changed since `etag` was read.
            FieldInvalid: `body` is not allowed, or `id` is not positive.
        """
        request = _messages.update_post_request(
            id, body=body, etag=etag, request_id=request_id or "", validate_only=validate_only
        )
        return _messages.post(self._calls.unary(self._stub.UpdatePost, request, timeout))

    def delete(
        self,
        id: int,
        *,
        etag: str = "",
        force: bool = False,
        allow_missing: bool = False,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Post:
        """Deletes a post and returns it as it last was.

        Args:
            id: The post to delete.
            etag: Delete it only if this is its etag; empty to delete it in any case.
            force: Delete its comments too.
            allow_missing: If there is no such post, return one that has nothing but the id.
            request_id: A UUID with which this can be called again; None for no protection.
            validate_only: Check and answer, but delete nothing.
            timeout: Deadline in seconds.

        Raises:
            PostNotFound: There is no post with this id, unless `allow_missing`.
            PostHasComments: The post has comments, unless `force`.
            EtagMismatch: The post was changed since `etag` was read.
            FieldInvalid: `id` is not positive.
        """
        request = posts_pb2.DeletePostRequest(
            id=id,
            etag=etag,
            force=force,
            allow_missing=allow_missing,
            request_id=request_id or "",
            validate_only=validate_only,
        )
        return _messages.post(self._calls.unary(self._stub.DeletePost, request, timeout))

    def get_many(
        self, ids: Iterable[int], *, allow_missing: bool = False, timeout: Timeout = CLIENT_DEFAULT
    ) -> tuple[Post, ...]:
        """Returns several posts in the order asked for; an id named twice is answered twice.

        Args:
            ids: The posts to return, 1 to 1000.
            allow_missing: Leave out ids that name no post.
            timeout: Deadline in seconds.

        Raises:
            PostNotFound: Some posts are not there, unless `allow_missing`; `missing_ids` names them.
            BatchEmpty: No ids.
            BatchTooLarge: More than 1000 ids.
            FieldInvalid: An id is not positive.
            ResponseTooLarge: The posts do not fit in one message; ask for fewer at once.
        """
        request = posts_pb2.BatchGetPostsRequest(ids=ids, allow_missing=allow_missing)
        reply = self._calls.unary(self._stub.BatchGetPosts, request, timeout)
        return _messages.posts(reply.posts)

    def create_many(
        self,
        bodies: Iterable[str],
        *,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[Post, ...]:
        """Adds several posts, all of them or on any error none, and returns them in the order given.

        Args:
            bodies: The texts of the posts, 1 to 1000, with the limits of `create`.
            request_id: A UUID with which this can be called again; None for no protection.
            validate_only: Check and answer, but store nothing; the posts returned have no id, times or etag.
            timeout: Deadline in seconds.

        Raises:
            FieldInvalid: Some texts are not allowed; `violations` names them all.
            BatchEmpty: No bodies.
            BatchTooLarge: More than 1000 bodies.
            ResponseTooLarge: The posts do not fit in one message; add fewer at once.
            TypeError: `bodies` is a single text.
        """
        request = _messages.create_posts_request(
            bodies, request_id=request_id or "", validate_only=validate_only
        )
        reply = self._calls.unary(self._stub.BatchCreatePosts, request, timeout)
        return _messages.posts(reply.posts)

    def delete_many(
        self,
        ids: Iterable[int],
        *,
        force: bool = False,
        allow_missing: bool = False,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[Post, ...]:
        """Deletes several posts, all of them or on any error none, and returns them as they last were.

        Args:
            ids: The posts to delete, 1 to 1000, each named once.
            force: Delete their comments too.
            allow_missing: Leave out ids that name no post.
            request_id: A UUID with which this can be called again; None for no protection.
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
            request_id=request_id or "",
            validate_only=validate_only,
        )
        reply = self._calls.unary(self._stub.BatchDeletePosts, request, timeout)
        return _messages.posts(reply.posts)
