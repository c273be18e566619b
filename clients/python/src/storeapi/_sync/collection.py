# Made from storeapi/_async/collection.py by tools/generate_sync.py: change that one, then `make protos`.
"""The methods that posts and comments of StoreClient share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from storeapi import _arguments
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._resources import AnyResource, rpc_of
from storeapi._sync.batches import Batches, Draft, Update
from storeapi._sync.paging import Pager
from storeapi.errors import EtagMismatch
from storeapi.model import Page, SearchResult

Filter = TypeVar("Filter")


class Collection(Batches[AnyResource, Draft, Update], Generic[AnyResource, Draft, Update, Filter]):
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

    def get(
        self,
        id: int | None = None,
        *,
        external_id: str | None = None,
        show_deleted: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> AnyResource:
        """Returns one resource.

            post = client.posts.get(1)

        Args:
            id: The resource to return.
            external_id: Its external id, instead of the id.
            show_deleted: Also return a resource that is deleted and can be restored. Of several with this
                external id, the one that is not deleted is returned, or else the newest.
            timeout: Deadline in seconds.

        Raises:
            NotFound: No resource has this id or external id, or it is deleted.
            FieldInvalid: `id` is not positive, or `external_id` is not allowed.
            TypeError: Both are given, or none.
        """
        key: dict[str, Any]
        if id is not None and external_id is None:
            key = {"id": _arguments.id(id)}
        elif external_id is not None and id is None:
            key = {"external_id": _arguments.text(external_id, "external_id")}
        else:
            raise TypeError("get requires either an id or an external_id")
        return self._one(self._type.request("Get", **key, show_deleted=show_deleted), timeout)

    def list(
        self,
        *,
        order_by: str = "id",
        filter: Filter | None = None,
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
            order_by: "id" for oldest first, "id desc" for newest first; "create_time" and "create_time desc"
                for the same by the time of creation, then by id.
            filter: Only resources that match; None for all.
            limit: Maximum number of resources; None for all.
            page_size: Maximum number of resources in one page, at most 1000; 0 for the default of the server
                or, if it is set, `limit`.
            page_token: Where to start: a `next_page_token` from `pages` with the same other arguments.
            timeout: Deadline in seconds of each page, not of the whole iteration.

        Raises:
            FieldInvalid: `order_by` is unknown, `page_size` is negative, or `filter` is not allowed.
            ValueError: `limit` is negative, or a time of `filter` has no time zone; raised at once.
            PageTokenInvalid: `page_token` is damaged.
            PageTokenMismatch: `page_token` belongs to a list with other arguments.
        """
        return self._list(
            timeout, limit, order_by=order_by, filter=filter, page_size=page_size, page_token=page_token
        )

    def pages(
        self,
        *,
        order_by: str = "id",
        filter: Filter | None = None,
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
            timeout, limit, order_by=order_by, filter=filter, page_size=page_size, page_token=page_token
        ).pages()

    def update(
        self,
        id: int,
        body: str | None = None,
        *,
        author: str | None = None,
        labels: Mapping[str, str] | None = None,
        set_labels: Mapping[str, str] | None = None,
        remove_labels: Iterable[str] | None = None,
        etag: str = "",
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> AnyResource:
        """Updates the fields that are given and returns the resource.

            post = client.posts.get(1)
            post = client.posts.update(post.id, body=post.body.upper(), etag=post.etag)
            post = client.posts.update(post.id, set_labels={"status": "hidden"}, remove_labels=["new"])

        Args:
            id: The resource to update.
            body: The new text, with the limits of `create`.
            author: The new author, with the limits of `create`; "" for none.
            labels: Replaces all labels; {} removes them.
            set_labels: Labels to add or to change, while the others stay: concurrent changes of other labels
                are not overwritten.
            remove_labels: The keys of labels to remove, while the others stay; a label that does not exist is
                ignored.
            etag: Fail unless this is the current etag; empty to update any version.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but store nothing; the result has no
                update_time and etag.
            timeout: Deadline in seconds.

        Raises:
            NotFound: No resource has this id.
            EtagMismatch: The resource has changed since `etag` was read.
            FieldInvalid: A new value is not allowed, or `id` is not positive.
            FieldMaskInvalid: The key of a label to set or remove is not allowed.
            TypeError: Nothing is to be updated.
            ValueError: `labels` is given with `set_labels` or `remove_labels`, or a label is in both of them.
        """
        update = self._type.update(
            id=id,
            body=body,
            author=author,
            labels=labels,
            set_labels=set_labels,
            remove_labels=remove_labels,
            etag=etag,
        )
        options = _arguments.write_options(request_id, validate_only)
        return self._one(self._type.update_request(update, **options), timeout)

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
                update = self._type.update(id=id, etag=resource.etag, **changes)
                options = _arguments.write_options(None, False)
                return self._one(self._type.update_request(update, **options), attempts.remaining())
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
        force: bool = False,
        allow_missing: bool = False,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> AnyResource:
        """Deletes a resource and returns its last version.

            client.posts.delete(1, force=True)

        If the service keeps deleted resources for a time, the result has a `delete_time`, and a `purge_time`
        until which `undelete` restores it. A comment with replies leaves a tombstone in lists.

        Args:
            id: The resource to delete.
            etag: Fail unless this is the current etag; empty to delete any version.
            force: Delete the comments of the post too, or the replies to the comment at every depth.
            allow_missing: If no resource has this id, return one that has only the id.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but delete nothing.
            timeout: Deadline in seconds.

        Raises:
            NotFound: No resource has this id, or it is deleted, unless `allow_missing`.
            PostHasComments: The post has comments, unless `force`.
            EtagMismatch: The resource has changed since `etag` was read.
            FieldInvalid: `id` is not positive.
        """
        options = _arguments.write_options(request_id, validate_only)
        request = self._type.request(
            "Delete", id=_arguments.id(id), etag=etag, force=force, allow_missing=allow_missing, **options
        )
        return self._one(request, timeout)

    def undelete(
        self,
        id: int,
        *,
        request_id: str | uuid.UUID | None = None,
        validate_only: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> AnyResource:
        """Restores a deleted resource, with its id, and returns it.

            client.posts.delete(1, force=True)
            post = client.posts.undelete(1)

        The comments or replies that were deleted together with it, by `force`, are restored too; if there are
        many, the service restores them within the next seconds or minutes. Resources can be restored until
        their `purge_time`, if the service keeps deleted resources at all.

        Args:
            id: The resource to restore.
            request_id: A UUID to repeat this call with; None for a new one.
            validate_only: Check the request and return the result, but restore nothing; the result has no
                etag.
            timeout: Deadline in seconds.

        Raises:
            NotFound: No resource has this id, or it was removed for good; or PostNotFound: the post of the
                comment is deleted.
            NotDeleted: The resource is not deleted.
            ExternalIdTaken: Another resource has the external id by now.
            DatabaseBusy: The service still removes the comments or replies of the resource, after all tries.
            FieldInvalid: `id` is not positive.
        """
        options = _arguments.write_options(request_id, validate_only)
        return self._one(self._type.request("Undelete", id=_arguments.id(id), **options), timeout)

    def revisions(
        self,
        id: int,
        *,
        show_deleted: bool = False,
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Pager[AnyResource]:
        """Iterates over the former versions of a resource, newest first, without the current one.

            for version in client.posts.revisions(1):
                print(version.update_time, version.body)

        A version has the author, body, labels, update_time and etag of its time, and the other fields of the
        resource. The service keeps the last 10 versions unless it is configured otherwise. Nothing is sent
        before the first step, so the steps raise the errors.

        Args:
            id: The resource.
            show_deleted: Also return the versions of a resource that is deleted and can be restored.
            limit: Maximum number of versions; None for all.
            page_size: Maximum number of versions in one page, as for `list`.
            page_token: Where to start: a `next_page_token` from `revisions(...).pages()` with the same other
                arguments.
            timeout: Deadline in seconds of each page, not of the whole iteration.

        Raises:
            NotFound: No resource has this id, or it is deleted.
            FieldInvalid: `id` is not positive, or `page_size` is negative.
            ValueError: `limit` is negative; raised at once.
            PageTokenInvalid: `page_token` is damaged.
            PageTokenMismatch: `page_token` belongs to a list with other arguments.
        """
        request = self._type.revisions_request(
            id=_arguments.id(id), show_deleted=show_deleted, page_size=page_size, page_token=page_token
        )
        return self._pager(request, timeout, limit)

    def search(
        self,
        query: str,
        *,
        order_by: str = "id desc",
        filter: Filter | None = None,
        limit: int | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Pager[SearchResult[AnyResource]]:
        """Searches the bodies, and iterates over the results, newest first.

            for result in client.posts.search('coffee "free refill" -decaf'):
                print(result.resource.id, result.marked())

        A query has words, "phrases", prefixes* and -exclusions. A resource matches if it has every word,
        phrase and prefix, and none that is excluded. Case and accents do not matter. Texts in scripts without
        spaces, such as Chinese or Thai, are found by every part of them. A search finds everything that was
        stored before the call. Nothing is sent before the first step, so the steps raise the errors.

        Args:
            query: At most 1024 bytes of UTF-8, and 16 words and phrases.
            order_by: "id desc" for newest first, "relevance" for a ranking of the newest 500 matches,
                followed by one of the next 500, and so on.
            filter: Only resources that match, without `show_deleted`; None for all.
            limit: Maximum number of results; None for all.
            page_size: Maximum number of results in one page, at most 100; 0 for the default of the server or,
                if it is set, `limit`.
            page_token: Where to start: a `next_page_token` from `search(...).pages()` with the same other
                arguments.
            timeout: Deadline in seconds of each page, not of the whole iteration.

        Raises:
            FieldInvalid: `query` is not valid, with the position of the problem; `order_by` is unknown,
                `page_size` is negative, or `filter` is not allowed.
            SearchIndexNotReady: The service is building the index of the search.
            SearchDisabled: The service has no index.
            ValueError: `limit` is negative, or a time of `filter` has no time zone; raised at once.
            PageTokenInvalid: `page_token` is damaged.
            PageTokenMismatch: `page_token` belongs to a search with other arguments.
        """
        return self._search(
            timeout,
            limit,
            query=query,
            order_by=order_by,
            filter=filter,
            page_size=page_size,
            page_token=page_token,
        )

    def _search(
        self, timeout: Timeout, limit: int | None, *, query: str, filter: Filter | None, **values: Any
    ) -> Pager[SearchResult[AnyResource]]:
        request = self._type.search_request(
            query=_arguments.text(query, "query"), filter=self._type.filter_message(filter), **values
        )
        method = getattr(self._stub, rpc_of(request))
        return Pager(self._calls, method, request, self._type.search_page, timeout, limit)

    def _list(
        self, timeout: Timeout, limit: int | None, *, filter: Filter | None, **query: Any
    ) -> Pager[AnyResource]:
        request = self._type.request("List", filter=self._type.filter_message(filter), **query)
        return self._pager(request, timeout, limit)

    def _pager(self, request: Any, timeout: Timeout, limit: int | None) -> Pager[AnyResource]:
        method = getattr(self._stub, rpc_of(request))
        return Pager(self._calls, method, request, self._type.page, timeout, limit)
