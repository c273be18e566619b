# Made from storeapi/_async/collection.py by tools/generate_sync.py: change that one, then `make protos`.
"""The methods that posts and comments of StoreClient share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from storeapi import _arguments
from storeapi._batches import split_drafts, split_ids
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._resources import AnyResource, ResourceType, rpc_of
from storeapi._sync.calls import Calls
from storeapi._sync.paging import Pager
from storeapi.errors import EtagMismatch, ResponseTooLarge, StoreError
from storeapi.model import Page

Draft = TypeVar("Draft")


class Collection(Generic[AnyResource, Draft]):
    """All resources of one type: the methods that `client.posts` and `client.comments` share.

    Every method takes `timeout`, the deadline in seconds of each call to the server: None for no deadline,
    CLIENT_DEFAULT for that of the client. Besides the errors that are listed, every method can raise
    Unavailable, DeadlineExceeded and the other branches of StoreError. Where NotFound is listed it is
    PostNotFound or CommentNotFound.

    Every method that writes takes `request_id`, except `modify`, which may write another value each time.
    Without it the client generates one, so that it can repeat the request when it does not know whether the
    request arrived. Pass your own UUID, such as `uuid.uuid4()`, to be able to repeat it after a crash: a
    request with the same id and arguments has one effect, and returns the first response, for 24 hours
    unless the server is configured otherwise. With other arguments it raises RequestIdReused. With "" the
    request has no id and is never repeated.
    """

    _type: ResourceType[AnyResource]

    def __init__(self, calls: Calls, stub: Any) -> None:
        """Called by the client."""
        self._calls = calls
        self._stub = stub

    def get(self, id: int, *, timeout: Timeout = CLIENT_DEFAULT) -> AnyResource:
        """Returns one resource.

            post = client.posts.get(1)

        Raises:
            NotFound: No resource has this id.
            FieldInvalid: `id` is not positive.
        """
        return self._one(self._type.request("Get", id=_arguments.id(id)), timeout)

    def list(
        self,
        *,
        order_by: str = "id",
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Pager[AnyResource]:
        """Iterates over all resources, and requests each page when it is needed.

            for post in client.posts.list(order_by="id desc"):
                print(post.body)

        Resources that are created or deleted during the iteration never cause another one to be returned
        twice or to be skipped. Nothing is sent before the first step, so the steps raise the errors.

        Args:
            order_by: "id" for oldest first, "id desc" for newest first.
            limit: Maximum number of resources; None for all.
            page_size: Maximum number of resources in one page, at most 1000; 0 for the default of the server
                or, if it is set, `limit`.
            page_token: Where to start: a `next_page_token` from `pages` with the same other arguments.
            timeout: Deadline in seconds of each page, not of the whole iteration.

        Raises:
            FieldInvalid: `order_by` is unknown or `page_size` is negative.
            ValueError: `limit` is negative; raised at once.
            PageTokenInvalid: `page_token` is damaged.
            PageTokenMismatch: `page_token` belongs to a list with other arguments.
        """
        return self._list(timeout, limit, order_by=order_by, page_size=page_size, page_token=page_token)

    def pages(
        self,
        *,
        order_by: str = "id",
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Iterator[Page[AnyResource]]:
        """Iterates over the pages of a list.

            page = next(client.posts.pages(page_size=20, page_token=token))

        The same as `list(...).pages()`, with the arguments and errors of `list`.
        """
        return self._list(
            timeout, limit, order_by=order_by, page_size=page_size, page_token=page_token
        ).pages()

    def modify(
        self,
        id: int,
        change: Callable[[AnyResource], AnyResource | str | None],
        *,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> AnyResource:
        """Changes a resource depending on its current value, without overwriting concurrent changes.

            post = client.posts.modify(1, lambda post: post.body + "!")

        Reads the resource, calls `change`, and updates the resource with its etag. If the resource was
        changed in between, all of this is repeated.

        Args:
            id: The resource to change.
            change: Called with the resource, once or more. Returns the new body; or a copy of the resource
                with other values, made with `dataclasses.replace`; or None to change nothing.
            timeout: Deadline in seconds of all calls together.

        Raises:
            NotFound: No resource has this id.
            EtagMismatch: The resource was changed concurrently until the deadline.
            TypeError: `change` returned a value of another type.
            ValueError: `change` returned a resource with another value in a field that cannot be updated.
            FieldInvalid: A new value is not allowed, or `id` is not positive.
        """
        attempts = self._calls.attempts(timeout)
        while True:
            resource = self.get(id, timeout=attempts.remaining())
            returned = change(resource)
            changes = self._type.changes(resource, returned)
            if not changes:
                return resource
            try:
                options = _arguments.write_options(None, False)
                request = self._type.update_request(id, changes, etag=resource.etag, **options)
                return self._one(request, attempts.remaining())
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
    ) -> AnyResource:
        """Deletes a resource and returns its last version.

            client.comments.delete(1)

        Args:
            id: The resource to delete.
            etag: Fail unless this is the current etag; empty to delete any version.
            allow_missing: If no resource has this id, return one that has only the id.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but delete nothing.
            timeout: Deadline in seconds.

        Raises:
            NotFound: No resource has this id, unless `allow_missing`.
            EtagMismatch: The resource has changed since `etag` was read.
            FieldInvalid: `id` is not positive.
        """
        options = _arguments.write_options(request_id, validate_only)
        request = self._type.request(
            "Delete", id=_arguments.id(id), etag=etag, allow_missing=allow_missing, **options
        )
        return self._one(request, timeout)

    def get_many(
        self, ids: Iterable[int], *, allow_missing: bool = False, timeout: Timeout = CLIENT_DEFAULT
    ) -> tuple[AnyResource, ...]:
        """Returns several resources in the order of `ids`; a duplicate id is returned twice.

            posts = client.posts.get_many([1, 2, 3], allow_missing=True)

        Args:
            ids: The resources to return. They are requested in calls of up to 1000, or fewer if the server
                has a lower limit.
            allow_missing: Omit ids that do not exist.
            timeout: Deadline in seconds of each call.

        Raises:
            NotFound: Some ids do not exist, unless `allow_missing`; `missing_ids` has them.
            FieldInvalid: An id is not positive.
        """
        found: list[AnyResource] = []

        def get(some: list[int]) -> None:
            found.extend(self._get_some(some, allow_missing, timeout))

        self._calls.send_batches(split_ids(ids), get)
        return tuple(found)

    def create_many(
        self,
        drafts: Iterable[Draft],
        *,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[AnyResource, ...]:
        """Creates several resources and returns them in the order of `drafts`.

            client.posts.create_many([storeapi.PostDraft(body="First"), "Second"])
            client.comments.create_many([storeapi.CommentDraft(post_id=1, body="First")])

        They are sent in calls of up to 1000, or fewer if the texts are long or the server has a lower limit.
        Each call creates all of its resources or, on any error, none. When a later call fails, the earlier
        ones are done: call again with `request_id=error.request_id` and the same drafts to continue.

        Args:
            drafts: The resources to create, with the limits of `create`: PostDraft, or str for posts that
                have only a body; CommentDraft, also for several posts.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but store nothing; the result has no ids,
                times and etags.
            timeout: Deadline in seconds of each call.

        Raises:
            FieldInvalid: Some values are not allowed; `violations` lists all of them.
            PostNotFound: Posts of comments do not exist; `missing_ids` has them.
            TypeError: `drafts` is a single str, or an element is not a draft.
        """
        options = _arguments.write_options(request_id, validate_only)
        created: list[AnyResource] = []
        number = 0

        def create(some: list[Any]) -> None:
            nonlocal number
            request = self._type.request(
                "BatchCreate", requests=[self._type.create_request(draft) for draft in some], **options
            )
            request.request_id = _arguments.request_id_of_call(request.request_id, number)
            try:
                created.extend(self._many(request, timeout))
            except StoreError as error:
                # The id of the whole batch, which the caller can repeat.
                error.request_id = options["request_id"]
                raise
            number += 1

        self._calls.send_batches(split_drafts(drafts, self._type.as_draft), create)
        return tuple(created)

    def delete_many(
        self,
        ids: Iterable[int],
        *,
        allow_missing: bool = False,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[AnyResource, ...]:
        """Deletes several resources, all or none, and returns their last states.

            client.comments.delete_many([1, 2, 3], allow_missing=True)

        Args:
            ids: The resources to delete, 1 to 1000, without duplicates.
            allow_missing: Ignore ids that do not exist.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but delete nothing.
            timeout: Deadline in seconds.

        Raises:
            NotFound: Some ids do not exist, unless `allow_missing`; `missing_ids` has them.
            BatchEmpty: `ids` is empty.
            BatchTooLarge: `ids` has more than 1000 elements.
            BatchDuplicate: `ids` contains an id twice.
            FieldInvalid: An id is not positive.
            ResponseTooLarge: The resources do not fit in one message; delete fewer at once.
        """
        options = _arguments.write_options(request_id, validate_only)
        request = self._type.request("BatchDelete", ids=ids, allow_missing=allow_missing, **options)
        return self._many(request, timeout)

    def _list(self, timeout: Timeout, limit: int | None, **query: Any) -> Pager[AnyResource]:
        request = self._type.request("List", **query)
        method = getattr(self._stub, rpc_of(request))
        return Pager(self._calls, method, request, self._type.page, timeout, limit)

    def _get_some(self, ids: Sequence[int], allow_missing: bool, timeout: Timeout) -> tuple[AnyResource, ...]:
        """The resources of one call; two halves where the response is too large for one message."""
        request = self._type.request("BatchGet", ids=ids, allow_missing=allow_missing)
        try:
            return self._many(request, timeout)
        except ResponseTooLarge:
            if len(ids) == 1:
                raise
            half = len(ids) // 2
            first = self._get_some(ids[:half], allow_missing, timeout)
            return first + self._get_some(ids[half:], allow_missing, timeout)

    def _one(self, request: Any, timeout: Timeout) -> AnyResource:
        return self._type.from_message(self._send(request, timeout))

    def _many(self, request: Any, timeout: Timeout) -> tuple[AnyResource, ...]:
        return self._type.from_response(self._send(request, timeout))

    def _send(self, request: Any, timeout: Timeout) -> Any:
        return self._calls.unary(getattr(self._stub, rpc_of(request)), request, timeout)
