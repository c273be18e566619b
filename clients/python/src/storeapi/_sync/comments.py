# Made from storeapi/_async/comments.py by tools/generate_sync.py: change that one, then `make protos`.
"""The comments of StoreClient."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

from storeapi import _messages
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._sync.calls import Calls
from storeapi._sync.paging import Pager
from storeapi.errors import EtagMismatch, ResponseTooLarge, StoreError
from storeapi.model import Comment, CommentDraft, Page
from storeapi.v1 import comments_pb2, comments_pb2_grpc


class Comments:
    """Adds, reads, changes, counts and deletes comments; `client.comments`.

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

    def __init__(self, calls: Calls, stub: comments_pb2_grpc.CommentServiceStub) -> None:
        """Clients make it."""
        self._calls = calls
        self._stub = stub

    def create(
        self,
        *,
        post_id: int,
        body: str,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Comment:
        """Adds a comment to a post and returns it with its id; when this returns, it is on the server's disk.

            comment = client.comments.create(post_id=1, body="Well said")

        Args:
            post_id: The post to comment on.
            body: The text: 1 to 65,536 bytes of UTF-8 unless the server is set otherwise, without NUL.
            request_id: A UUID with which this can be called again; None for a new one.
            validate_only: Check and answer, but store nothing; the comment returned has no id, times or etag.
            timeout: Deadline in seconds.

        Raises:
            PostNotFound: There is no post with this id.
            FieldInvalid: `body` is not allowed, or `post_id` is not positive.
        """
        request = _messages.create_comment_request(
            post_id=post_id,
            body=body,
            request_id=_messages.request_id(request_id, validate_only=validate_only),
            validate_only=validate_only,
        )
        return _messages.comment(self._calls.unary(self._stub.CreateComment, request, timeout))

    def get(self, id: int, *, timeout: Timeout = CLIENT_DEFAULT) -> Comment:
        """Returns one comment.

            comment = client.comments.get(1)

        Raises:
            CommentNotFound: There is no comment with this id.
            FieldInvalid: `id` is not positive.
        """
        request = comments_pb2.GetCommentRequest(id=_messages.id(id))
        return _messages.comment(self._calls.unary(self._stub.GetComment, request, timeout))

    def list(
        self,
        *,
        post_id: int | None = None,
        order_by: str = "id",
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Pager[Comment]:
        """Iterates over the comments of one post, or over all, page by page as they are needed.

            for comment in client.comments.list(post_id=1):
                print(comment.body)

        Comments added or deleted meanwhile never make it give one twice or miss one that stayed. Nothing is
        sent before the first step, so that is where the errors are raised.

        Args:
            post_id: Only the comments of this post; None for those of all posts.
            order_by: "id" for oldest first, "id desc" for newest first.
            limit: How many to give at most; None for all.
            page_size: How many to ask for at once, at most 1000; 0 leaves it to the server, or to `limit`.
            page_token: Where to start: a `next_page_token` from `pages` with the same `post_id` and
                `order_by`.
            timeout: Deadline in seconds of each page, not of the whole.

        Raises:
            PostNotFound: There is no post with the id `post_id`.
            FieldInvalid: `order_by` is unknown or `page_size` negative.
            ValueError: `post_id` is not positive, or `limit` is negative; raised at once.
            PageTokenInvalid: `page_token` is damaged.
            PageTokenMismatch: `page_token` was made with another `post_id` or `order_by`.
        """
        request = comments_pb2.ListCommentsRequest(
            post_id=_messages.post_id_or_all(post_id),
            order_by=order_by,
            page_size=page_size,
            page_token=page_token,
        )
        return Pager(self._calls, self._stub.ListComments, request, _messages.comment_page, timeout, limit)

    def pages(
        self,
        *,
        post_id: int | None = None,
        order_by: str = "id",
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Iterator[Page[Comment]]:
        """Iterates over the comments of one post, or over all, page by page, for callers that hand pages on.

            page = next(client.comments.pages(post_id=1, page_size=20, page_token=token))

        The same as `list(...).pages()`; arguments and errors are those of `list`.
        """
        return self.list(
            post_id=post_id,
            order_by=order_by,
            limit=limit,
            page_size=page_size,
            page_token=page_token,
            timeout=timeout,
        ).pages()

    def update(
        self,
        id: int,
        *,
        body: str,
        etag: str = "",
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Comment:
        """Gives a comment another text and returns it.

            comment = client.comments.get(1)
            comment = client.comments.update(comment.id, body="On second thought", etag=comment.etag)

        Args:
            id: The comment to change.
            body: The new text, with the limits of `create`.
            etag: Change it only if this is its etag; empty to change it in any case.
            request_id: A UUID with which this can be called again; None for a new one.
            validate_only: Check and answer, but store nothing; the comment returned has no update_time or
                etag.
            timeout: Deadline in seconds.

        Raises:
            CommentNotFound: There is no comment with this id.
            EtagMismatch: The comment was changed since `etag` was read.
            FieldInvalid: `body` is not allowed, or `id` is not positive.
        """
        request = _messages.update_comment_request(
            id,
            body=body,
            etag=etag,
            request_id=_messages.request_id(request_id, validate_only=validate_only),
            validate_only=validate_only,
        )
        return _messages.comment(self._calls.unary(self._stub.UpdateComment, request, timeout))

    def modify(
        self,
        id: int,
        change: Callable[[Comment], str | None],
        *,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Comment:
        """Changes a comment depending on what it says, also when others change it at the same moment.

            comment = client.comments.modify(1, lambda comment: comment.body + "!")

        Reads the comment, and gives it the text that `change` makes of it unless somebody else was faster;
        then it reads and asks `change` again. So no change of anybody is overwritten unseen.

        Args:
            id: The comment to change.
            change: Called with the comment, once or more; returns the new text, or None to leave it as it
                is.
            timeout: Seconds for everything together.

        Raises:
            CommentNotFound: There is no comment with this id.
            EtagMismatch: Others were faster until the time was up.
            TypeError: `change` returned something else.
            FieldInvalid: The new text is not allowed, or `id` is not positive.
        """
        attempts = self._calls.attempts(timeout)
        while True:
            comment = self.get(id, timeout=attempts.remaining())
            returned = change(comment)
            body = _messages.new_body(returned)
            if body is None or body == comment.body:
                return comment
            try:
                return self.update(id, body=body, etag=comment.etag, timeout=attempts.remaining())
            except EtagMismatch as error:
                pause = attempts.pause()
                if pause is None:
                    raise
                self._calls.wait(pause, error)

    def delete(
        self,
        id: int,
        *,
        etag: str = "",
        allow_missing: bool = False,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Comment:
        """Deletes a comment and returns it as it last was.

            client.comments.delete(1)

        Args:
            id: The comment to delete.
            etag: Delete it only if this is its etag; empty to delete it in any case.
            allow_missing: If there is no such comment, return one that has nothing but the id.
            request_id: A UUID with which this can be called again; None for a new one.
            validate_only: Check and answer, but delete nothing.
            timeout: Deadline in seconds.

        Raises:
            CommentNotFound: There is no comment with this id, unless `allow_missing`.
            EtagMismatch: The comment was changed since `etag` was read.
            FieldInvalid: `id` is not positive.
        """
        request = comments_pb2.DeleteCommentRequest(
            id=_messages.id(id),
            etag=etag,
            allow_missing=allow_missing,
            request_id=_messages.request_id(request_id, validate_only=validate_only),
            validate_only=validate_only,
        )
        return _messages.comment(self._calls.unary(self._stub.DeleteComment, request, timeout))

    def get_many(
        self, ids: Iterable[int], *, allow_missing: bool = False, timeout: Timeout = CLIENT_DEFAULT
    ) -> tuple[Comment, ...]:
        """Returns several comments in the order asked for; an id named twice is answered twice.

            comments = client.comments.get_many([1, 2, 3], allow_missing=True)

        Args:
            ids: The comments to return; they are asked for 1000 at a time, or as many as the server takes.
            allow_missing: Leave out ids that name no comment.
            timeout: Deadline in seconds of each call.

        Raises:
            CommentNotFound: Some comments are not there, unless `allow_missing`; `missing_ids` names them.
            FieldInvalid: An id is not positive.
        """
        found: list[Comment] = []

        def get(some: list[int]) -> None:
            found.extend(self._get_some(some, allow_missing, timeout))

        self._calls.in_pieces(_messages.pieces_of_ids(ids), get)
        return tuple(found)

    def _get_some(self, ids: Sequence[int], allow_missing: bool, timeout: Timeout) -> tuple[Comment, ...]:
        """What one call may ask for; where the answer is too large for one message, in halves."""
        request = comments_pb2.BatchGetCommentsRequest(ids=ids, allow_missing=allow_missing)
        try:
            reply = self._calls.unary(self._stub.BatchGetComments, request, timeout)
        except ResponseTooLarge:
            if len(ids) == 1:
                raise
            half = len(ids) // 2
            first = self._get_some(ids[:half], allow_missing, timeout)
            return first + self._get_some(ids[half:], allow_missing, timeout)
        return _messages.comments(reply.comments)

    def create_many(
        self,
        drafts: Iterable[CommentDraft],
        *,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[Comment, ...]:
        """Adds several comments, also to different posts, and returns them in the order given.

            drafts = [storeapi.CommentDraft(post_id=1, body=body) for body in ("First", "Second")]
            comments = client.comments.create_many(drafts)

        They are sent in calls of up to 1000, and less where the texts are long or the server takes less. Each
        call adds all of its comments or, on any error, none. When a later call fails, the earlier ones are
        done: calling again with `request_id=error.request_id` and the same drafts goes on where it ended.

        Args:
            drafts: The comments to add, with the limits of `create`.
            request_id: A UUID with which this can be called again; None for a new one.
            validate_only: Check and answer, but store nothing; the comments returned have no id, times or
                etag.
            timeout: Deadline in seconds of each call.

        Raises:
            PostNotFound: Some posts are not there; `missing_ids` names them.
            FieldInvalid: Some drafts are not allowed; `violations` names them all.
        """
        first_request_id = _messages.request_id(request_id, validate_only=validate_only)
        created: list[Comment] = []
        number = 0

        def create(some: list[CommentDraft]) -> None:
            nonlocal number
            request = _messages.create_comments_request(
                some,
                request_id=_messages.request_id_of(first_request_id, number),
                validate_only=validate_only,
            )
            try:
                reply = self._calls.unary(self._stub.BatchCreateComments, request, timeout)
            except StoreError as error:
                # The id of the whole, with which the whole can be called again.
                error.request_id = first_request_id
                raise
            created.extend(_messages.comments(reply.comments))
            number += 1

        self._calls.in_pieces(_messages.pieces_of_drafts(drafts), create)
        return tuple(created)

    def delete_many(
        self,
        ids: Iterable[int],
        *,
        allow_missing: bool = False,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[Comment, ...]:
        """Deletes several comments, all of them or on any error none, and returns them as they last were.

            client.comments.delete_many([1, 2, 3], allow_missing=True)

        Args:
            ids: The comments to delete, 1 to 1000, each named once.
            allow_missing: Leave out ids that name no comment.
            request_id: A UUID with which this can be called again; None for a new one.
            validate_only: Check and answer, but delete nothing.
            timeout: Deadline in seconds.

        Raises:
            CommentNotFound: Some comments are not there, unless `allow_missing`; `missing_ids` names them.
            BatchEmpty: No ids.
            BatchTooLarge: More than 1000 ids.
            BatchDuplicate: The same id twice.
            FieldInvalid: An id is not positive.
            ResponseTooLarge: The comments do not fit in one message; delete fewer at once.
        """
        request = comments_pb2.BatchDeleteCommentsRequest(
            ids=ids,
            allow_missing=allow_missing,
            request_id=_messages.request_id(request_id, validate_only=validate_only),
            validate_only=validate_only,
        )
        reply = self._calls.unary(self._stub.BatchDeleteComments, request, timeout)
        return _messages.comments(reply.comments)

    def count(self, post_ids: Iterable[int], *, timeout: Timeout = CLIENT_DEFAULT) -> dict[int, int]:
        """Counts the comments of several posts, by post id; every id asked for is there.

            counts = client.comments.count([42, 43])

        A post without comments counts 0, and so does an id that names no post.

        Args:
            post_ids: The posts; an id named twice is answered once.
            timeout: Deadline in seconds of each call, which counts for 1000 posts.

        Raises:
            FieldInvalid: An id is not positive.
        """
        counts: dict[int, int] = {}

        def count(some: list[int]) -> None:
            request = comments_pb2.CountCommentsRequest(post_ids=some)
            reply = self._calls.unary(self._stub.CountComments, request, timeout)
            counts.update(reply.counts)

        self._calls.in_pieces(_messages.pieces_of_ids(post_ids, "post_ids"), count)
        return counts
