"""The methods of AsyncStoreClient for several posts or comments at once."""

# ruff: noqa: ASYNC109 - a deadline that gRPC knows also ends the work of the server.

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from storeapi import _arguments
from storeapi._async.calls import AsyncCalls
from storeapi._batches import split_drafts, split_ids, split_texts
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._resources import AnyResource, ResourceType, rpc_of
from storeapi.errors import ResponseTooLarge, StoreError
from storeapi.model import Found

Draft = TypeVar("Draft")
Update = TypeVar("Update")


class AsyncBatches(Generic[AnyResource, Draft, Update]):
    """The methods of AsyncCollection for several resources at once."""

    _type: ResourceType[AnyResource]

    def __init__(self, calls: AsyncCalls, stub: Any) -> None:
        """Called by the client."""
        self._calls = calls
        self._stub = stub

    async def get_many(
        self,
        ids: Iterable[int] = (),
        *,
        external_ids: Iterable[str] = (),
        allow_missing: bool = False,
        show_deleted: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Found[AnyResource]:
        """Returns several resources in the order of `ids`, then of `external_ids`, with duplicates.

            posts = await client.posts.get_many([1, 2, 3], allow_missing=True)
            print(posts.missing_ids)

        Args:
            ids: The resources to return. They are requested in calls of up to 1000, or fewer if the server
                has a lower limit.
            external_ids: The external ids of more resources to return, which are requested in other calls.
            allow_missing: Omit resources that do not exist. The result then has their `missing_ids` and
                `missing_external_ids`.
            show_deleted: Also return resources that are deleted and can be restored, as for `get`.
            timeout: Deadline in seconds of each call.

        Raises:
            NotFound: Some resources do not exist, unless `allow_missing`; `missing_ids` has their ids.
            FieldInvalid: An id is not positive, or an external id is not allowed.
        """
        responses: list[Any] = []
        options = {"allow_missing": allow_missing, "show_deleted": show_deleted}

        async def get(some: list[int]) -> None:
            responses.extend(await self._get_some("ids", some, options, timeout))

        async def get_external(some: list[str]) -> None:
            responses.extend(await self._get_some("external_ids", some, options, timeout))

        await self._calls.send_batches(split_ids(ids), get)
        await self._calls.send_batches(split_texts(external_ids, "external_ids"), get_external)
        return self._type.found(responses)

    async def create_many(
        self,
        drafts: Iterable[Draft],
        *,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[AnyResource, ...]:
        """Creates several resources and returns them in the order of `drafts`.

            await client.posts.create_many([storeapi.PostDraft(body="First"), "Second"])
            await client.comments.create_many([storeapi.CommentDraft(post_id=1, body="First")])

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
            ExternalIdTaken: A resource with an external id exists, unless the draft has `return_existing`.
            BatchDuplicate: Two drafts of one call have the same external id.
            PostNotFound: Posts of comments do not exist; `missing_ids` has them.
            CommentNotFound: Comments to reply to do not exist; `missing_ids` has them.
            ReplyPostMismatch: A comment to reply to belongs to another post.
            ReplyTooDeep: A reply would be deeper in its thread than the server allows.
            TypeError: `drafts` is a single str, or an element is not a draft.
        """
        options = _arguments.write_options(request_id, validate_only)
        created: list[AnyResource] = []
        number = 0

        async def create(some: list[Any]) -> None:
            nonlocal number
            request = self._type.request(
                "BatchCreate", requests=[self._type.create_request(draft) for draft in some], **options
            )
            request.request_id = _arguments.request_id_of_call(request.request_id, number)
            try:
                created.extend(await self._many(request, timeout))
            except StoreError as error:
                # The id of the whole batch, which the caller can repeat.
                error.request_id = options["request_id"]
                raise
            number += 1

        await self._calls.send_batches(split_drafts(drafts, self._type.as_draft), create)
        return tuple(created)

    async def update_many(
        self,
        updates: Iterable[Update],
        *,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[AnyResource, ...]:
        """Updates several resources, all or none, and returns them in the order of `updates`.

            await client.posts.update_many([storeapi.PostUpdate(id=1, set_labels={"status": "hidden"})])
            await client.comments.update_many([storeapi.CommentUpdate(id=1, body="New text")])

        Args:
            updates: PostUpdate or CommentUpdate, 1 to 1000, each for another resource, with the limits of
                `update`.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but store nothing; the result has no
                update_times and etags.
            timeout: Deadline in seconds.

        Raises:
            NotFound: Some resources do not exist; `missing_ids` has their ids.
            EtagMismatch: A resource has changed since the etag of its update was read.
            BatchEmpty: `updates` is empty.
            BatchTooLarge: `updates` has more than 1000 elements.
            BatchDuplicate: `updates` has two updates of one resource.
            FieldInvalid: Some values are not allowed; `violations` lists all of them.
            FieldMaskInvalid: The key of a label to set or remove is not allowed.
            ResponseTooLarge: The resources do not fit in one message; update fewer at once.
            TypeError: An element is not an update, or updates nothing.
        """
        options = _arguments.write_options(request_id, validate_only)
        requests = [self._type.update_request(self._type.as_update(it)) for it in updates]
        return await self._many(self._type.request("BatchUpdate", requests=requests, **options), timeout)

    async def delete_many(
        self,
        ids: Iterable[int],
        *,
        force: bool = False,
        allow_missing: bool = False,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> tuple[AnyResource, ...]:
        """Deletes several resources, all or none, and returns their last states.

            await client.posts.delete_many([1, 2, 3], force=True, allow_missing=True)

        Args:
            ids: The resources to delete, 1 to 1000, without duplicates.
            force: Delete the comments of the posts too, or the replies to the comments at every depth.
            allow_missing: Ignore ids that do not exist.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but delete nothing.
            timeout: Deadline in seconds.

        Raises:
            NotFound: Some ids do not exist, unless `allow_missing`; `missing_ids` has them.
            PostHasComments: Some posts have comments, unless `force`.
            BatchEmpty: `ids` is empty.
            BatchTooLarge: `ids` has more than 1000 elements.
            BatchDuplicate: `ids` contains an id twice.
            FieldInvalid: An id is not positive.
            ResponseTooLarge: The resources do not fit in one message; delete fewer at once.
        """
        options = _arguments.write_options(request_id, validate_only)
        request = self._type.request(
            "BatchDelete", ids=ids, force=force, allow_missing=allow_missing, **options
        )
        return await self._many(request, timeout)

    async def _get_some(
        self, field: str, keys: Sequence[int | str], options: Mapping[str, bool], timeout: Timeout
    ) -> list[Any]:
        """The response of one call; those of two halves where it is too large for one message."""
        request = self._type.request("BatchGet", **{field: keys}, **options)
        try:
            return [await self._send(request, timeout)]
        except ResponseTooLarge:
            if len(keys) == 1:
                raise
            half = len(keys) // 2
            first = await self._get_some(field, keys[:half], options, timeout)
            return first + await self._get_some(field, keys[half:], options, timeout)

    async def _one(self, request: Any, timeout: Timeout) -> AnyResource:
        return self._type.from_message(await self._send(request, timeout))

    async def _many(self, request: Any, timeout: Timeout) -> tuple[AnyResource, ...]:
        return self._type.from_response(await self._send(request, timeout))

    async def _send(self, request: Any, timeout: Timeout) -> Any:
        return await self._calls.unary(getattr(self._stub, rpc_of(request)), request, timeout)
