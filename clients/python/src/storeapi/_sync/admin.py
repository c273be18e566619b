# Made from storeapi/_async/admin.py by tools/generate_sync.py: change that one, then `make protos`.
"""The operations for administrators of StoreClient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from storeapi._admin import (
    SILENCE_SECONDS,
    EraseProgress,
    Mode,
    RebuildProgress,
    erase_progress,
    erase_request,
    rebuild_progress,
)
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._status import undecodable
from storeapi._streams import Stream
from storeapi._sync.calls import Calls
from storeapi.v1 import admin_pb2, admin_pb2_grpc

Report = TypeVar("Report")
AnySteps = TypeVar("AnySteps", bound="ProgressSteps[Any]")


class Admin:
    """Operations for administrators, which need the permission admin; `client.admin`."""

    def __init__(self, calls: Calls, stub: admin_pb2_grpc.AdminServiceStub) -> None:
        """Called by the client."""
        self._calls = calls
        self._stub = stub

    def erase_author(
        self,
        author: str,
        *,
        mode: Mode,
        validate_only: bool = False,
        skip_rewrite: bool = False,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Erasure:
        """Erases everything that an author wrote, for good, and iterates over the progress.

            for progress in client.admin.erase_author("user-4711", mode="anonymize"):
                print(f"{progress.progress:.0%}", progress.posts, progress.comments)

        Nothing is sent before the first step, and the erasure ends early if the iteration does: the service
        has erased everything only after the progress with `complete`. A call that fails is not repeated. Call
        again to erase the rest.

        Args:
            author: The author, exactly as in posts and comments.
            mode: "anonymize": replies of others stay. "delete": they are removed too.
            validate_only: Whether to count only.
            skip_rewrite: Whether to leave out the rewrite of the SQLite file, during which writes wait.
            timeout: Deadline in seconds of the first progress; the others have a fixed limit of 120 seconds.

        Raises:
            ValueError: `mode` is unknown.

        Its steps raise:
            FieldInvalid: `author` is not valid, or the service cannot rewrite its database.
            PermissionDenied: The caller does not have the permission admin.
            ReadOnly: The service is read-only.
            StorageFull: The disk is full, or has no room for the rewrite.
            DatabaseBusy: A reader, such as a backup, prevents the rewrite, or the author keeps writing.
        """
        request = erase_request(author, mode=mode, validate_only=validate_only, skip_rewrite=skip_rewrite)
        return Erasure(self._calls, self._stub.EraseAuthor, request, erase_progress, timeout)

    def rebuild_search_index(self, *, timeout: Timeout = CLIENT_DEFAULT) -> Rebuild:
        """Builds the index of the search again, and iterates over the progress.

            for progress in client.admin.rebuild_search_index():
                print(f"{progress.progress:.0%}")

        Nothing is sent before the first step. The service continues if the iteration ends early. Searches
        raise SearchIndexNotReady meanwhile.

        Args:
            timeout: Deadline in seconds of the first progress; the others have a fixed limit of 120 seconds.

        Its steps raise:
            PermissionDenied: The caller does not have the permission admin.
            ReadOnly: The service is read-only.
            SearchDisabled: The service has no index.
        """
        request = admin_pb2.RebuildSearchIndexRequest()
        return Rebuild(self._calls, self._stub.RebuildSearchIndex, request, rebuild_progress, timeout)


class ProgressSteps(Generic[Report]):
    """An iterator over the progress of an operation."""

    def __init__(
        self,
        calls: Calls,
        method: Callable[[Any], Any],
        request: Message,
        to_progress: Callable[[Any], Report],
        timeout: Timeout,
    ) -> None:
        """Called by the client."""
        self._calls = calls
        self._method = method
        self._request = request
        self._to_progress = to_progress
        self._timeout = timeout
        self._stream: Stream | None = None
        self._is_over = False

    def close(self) -> None:
        """Ends the call early; closing it again has no effect."""
        self._is_over = True
        if self._stream is not None:
            self._stream.cancel()

    def __iter__(self: AnySteps) -> AnySteps:
        return self

    def __next__(self) -> Report:
        if self._is_over:
            raise StopIteration
        self._calls.check_open()
        attempts = self._calls.attempts(self._timeout)
        if self._stream is None:
            self._stream = self._calls.stream(
                self._method(self._request),
                first_seconds=attempts.remaining(),
                silence_seconds=SILENCE_SECONDS,
            )
        try:
            response: Any = self._stream.read()
        except grpc.RpcError as failure:
            self.close()
            raise self._calls.error(failure, attempts) from failure
        except BaseException:
            self.close()
            raise
        if response is None:
            self.close()
            raise undecodable()
        self._calls.has_answered = True
        if response.complete:
            self._is_over = True
        return self._to_progress(response)

    def __enter__(self: AnySteps) -> AnySteps:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Erasure(ProgressSteps[EraseProgress]):
    """An iterator over the progress of an erasure, returned by `client.admin.erase_author()`."""


class Rebuild(ProgressSteps[RebuildProgress]):
    """An iterator over the progress of a rebuild, returned by `client.admin.rebuild_search_index()`."""
