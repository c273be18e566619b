# Made from storeapi/_async/changes.py by tools/generate_sync.py: change that one, then `make protos`.
"""The changes of StoreClient."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

import grpc

from storeapi import _changes
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._retries import Attempts
from storeapi._status import undecodable
from storeapi._streams import Stream
from storeapi._sync.calls import Calls
from storeapi._sync.steps import Steps
from storeapi.errors import StoreError
from storeapi.model import Change, ChangeBatch, CommentFilter, PostFilter, Start
from storeapi.v1 import changes_pb2, changes_pb2_grpc

log = logging.getLogger("storeapi")


class Changes:
    """The change feed; `client.changes`."""

    def __init__(self, calls: Calls, stub: changes_pb2_grpc.ChangeServiceStub) -> None:
        """Called by the client."""
        self._calls = calls
        self._stub = stub

    def watch(
        self,
        *,
        resume_token: str | None = None,
        start: Start = "now",
        kinds: Iterable[Literal["post", "comment"]] = (),
        post_ids: Iterable[int] = (),
        post_filter: PostFilter | None = None,
        comment_filter: CommentFilter | None = None,
        heartbeat_seconds: float = 10.0,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Watch:
        """Iterates over every change in the order of commits, until it is closed.

            with client.changes.watch(start="initial_state") as watch:
                for change in watch:
                    print(change.action, change.kind, change.id, change.resource)
                    break

        Nothing is sent before the first step. After the first response the watch survives restarts of the
        server and lost connections: it reconnects without a limit of attempts or time, and continues after
        the last change that it returned.

        Args:
            resume_token: The position to continue after: `resume_token` of a watch, a batch or the first page
                of a list. With None or "", the watch begins at `start`.
            start: "now"; "earliest", the oldest change that is still kept; or "initial_state", all existing
                resources as changes with the action "snapshot", and then all changes.
            kinds: "post" or "comment", to receive only changes of these; both if empty.
            post_ids: Only changes of these posts and their comments, at most 1000; of all if empty.
            post_filter: Only changes of posts that match before or after the change, so a post that no longer
                matches is received once more; of all posts if None. Comments are not affected.
            comment_filter: The same for changes of comments.
            heartbeat_seconds: The interval, 1 to 60 seconds, in which the server sends a response when
                nothing changes. A watch that receives nothing for twice this time reconnects.
            timeout: Deadline in seconds of the first response; later ones have no deadline.

        Raises:
            ValueError: `start` or one of `kinds` is unknown, or a time of a filter has no time zone.

        Its steps raise:
            ResumeTokenExpired: Changes after the token are no longer kept; restart with "initial_state".
            ResumeTokenForeign: The token belongs to another store; restart with "initial_state".
            ResumeTokenInvalid: The token is damaged.
            FieldInvalid: `post_ids`, a filter or `heartbeat_seconds` is not allowed.
            WatchLimit: The server had too many watches until the deadline.
        """
        request = _changes.watch_request(
            resume_token=resume_token,
            start=start,
            kinds=kinds,
            post_ids=post_ids,
            post_filter=post_filter,
            comment_filter=comment_filter,
            heartbeat_seconds=heartbeat_seconds,
        )
        return Watch(self._calls, self._stub, request, timeout)


class Watch:
    """An iterator over changes, returned by `client.changes.watch()`.

    Closing the watch or the client, also from another thread or task, ends the iteration.
    """

    resume_token: str | None
    """The position after all changes that were returned; None before the first response.

    It moves with the last change of a batch. A program that stores it after each change receives some changes
    twice after a crash, and skips none. For exactly-once processing, use `batches`.
    """

    def __init__(
        self,
        calls: Calls,
        stub: changes_pb2_grpc.ChangeServiceStub,
        request: changes_pb2.WatchRequest,
        timeout: Timeout,
    ) -> None:
        """Called by the client."""
        self.resume_token = request.resume_token or None
        self._calls = calls
        self._stub = stub
        self._request = request
        self._timeout = timeout
        self._silence_seconds = 2 * request.heartbeat_interval.ToMicroseconds() / 1e6 + 1
        self._stream: Stream | None = None
        self._pause = calls.pause()
        self._attempts: Attempts | None = None
        self._has_begun = False
        self._is_closed = False
        self._batch: ChangeBatch | None = None
        self._left: deque[Change] = deque()

    def batches(self) -> Iterator[ChangeBatch]:
        """Iterates over the batches that the server sends, including those with only a new token.

            for batch in client.changes.watch(start="earliest").batches():
                for change in batch:
                    print(change.action, change.kind, change.id)
                print("so far:", batch.resume_token)
                break

        Its steps raise the errors of the watch, and can be repeated like them.
        """
        return Steps(self._next_whole)

    def close(self) -> None:
        """Closes the watch; closing it again has no effect."""
        self._is_closed = True
        self._pause.cancel()
        self._drop_stream()

    def __repr__(self) -> str:
        shown = _changes.shown_watch(self._request, self.resume_token)
        state = "closed" if self._is_over() else "open" if self._has_begun else "not begun"
        return f"<{type(self).__name__}({shown}), {state}>"

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Change:
        if self._is_over():
            # A closed watch returns nothing more, not even received changes. The token is before them.
            self._left.clear()
        while not self._left:
            batch = self._next_batch()
            if batch is None:
                raise StopIteration
            self._batch = batch
            self._left.extend(batch.changes)
            if not batch.changes:
                self.resume_token = batch.resume_token
        change = self._left.popleft()
        if not self._left and self._batch is not None:
            self.resume_token = self._batch.resume_token
        return change

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _next_whole(self) -> ChangeBatch | None:
        """The rest of the current batch, or the next one."""
        batch = self._batch
        if batch is not None and self._left and not self._is_over():
            batch = replace(batch, changes=tuple(self._left))
            self._left.clear()
        else:
            batch = self._next_batch()
        if batch is not None:
            self.resume_token = batch.resume_token
        return batch

    def _next_batch(self) -> ChangeBatch | None:
        """The next response, from this connection or a new one; None after the watch was closed."""
        if self._is_closed or (self._has_begun and self._is_over()):
            return None
        self._calls.check_open()
        if self._attempts is None:
            self._attempts = self._calls.attempts(self._timeout)
        try:
            return self._received(self._attempts)
        except BaseException:
            if not self._has_begun:
                # The next step starts again, with its own deadline.
                self._attempts = None
            raise

    def _received(self, attempts: Attempts) -> ChangeBatch | None:
        """Reads one response, and reconnects while that can help."""
        while True:
            try:
                batch = _changes.change_batch(self._read(attempts))
            except StoreError as silence:
                error: StoreError = silence
                cause: Exception | None = None
            except Exception as failure:
                # Closed meanwhile: the exception depends on the kind of channel and on interceptors.
                if self._is_over():
                    return None
                if not isinstance(failure, grpc.RpcError):
                    raise
                error, cause = self._calls.error(failure, attempts), failure
            else:
                if self._is_over():
                    # Closed while the response was read. The token stays before the response.
                    self._drop_stream()
                    return None
                if attempts.count > 1:
                    log.info("watch continues after %d attempts", attempts.count)
                self._has_begun = self._calls.has_answered = True
                self._attempts = Attempts(None, is_endless=True)
                self._request.resume_token = batch.resume_token
                self._calls.reads.watched(batch.resume_token)
                return batch
            if self._is_over():
                return None
            error.attempts = attempts.count
            pause = attempts.pause_after(error) if self._calls.retries else None
            if pause is None:
                raise error from cause
            # Only attempts 1, 2, 4, 8, ... are logged: an outage may last for hours.
            if error.attempts & (error.attempts - 1) == 0:
                log.log(
                    logging.WARNING if self._has_begun else logging.INFO,
                    "watch interrupted (attempt %d), retry in %.2f s: %s",
                    error.attempts,
                    pause,
                    error,
                )
            self._pause.wait(pause)
            if self._is_over():
                return None

    def _is_over(self) -> bool:
        return self._is_closed or self._calls.is_closed

    def _read(self, attempts: Attempts) -> changes_pb2.WatchResponse:
        stream = self._stream
        if stream is None:
            stream = self._stream = self._calls.stream(
                self._stub.Watch(self._request),
                first_seconds=None if self._has_begun else attempts.remaining(),
                silence_seconds=self._silence_seconds,
            )
            # A concurrent close() before the line above has not cancelled this stream.
            if self._is_closed:
                stream.cancel()
        try:
            response: changes_pb2.WatchResponse | None = stream.read()
        except BaseException:
            # A timeout of the caller has ended the call too. The next step starts a new one after the token.
            self._drop_stream()
            raise
        if response is None:
            self._drop_stream()
            raise undecodable()
        return response

    def _drop_stream(self) -> None:
        # A local variable, because another thread may drop the stream at the same time.
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
