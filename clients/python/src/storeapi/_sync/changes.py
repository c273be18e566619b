# Made from storeapi/_async/changes.py by tools/generate_sync.py: change that one, then `make protos`.
"""The changes of StoreClient."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

import grpc

from storeapi import _messages
from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._retries import Attempts
from storeapi._status import undecodable
from storeapi._streams import Stream
from storeapi._sync.calls import Calls
from storeapi._sync.steps import Steps
from storeapi.errors import StoreError
from storeapi.model import Change, ChangeBatch, Start
from storeapi.v1 import changes_pb2, changes_pb2_grpc

log = logging.getLogger("storeapi")


class Changes:
    """Tells what changed; `client.changes`."""

    def __init__(self, calls: Calls, stub: changes_pb2_grpc.ChangeServiceStub) -> None:
        """Clients make it."""
        self._calls = calls
        self._stub = stub

    def watch(
        self,
        *,
        resume_token: str | None = None,
        start: Start = "now",
        kinds: Iterable[Literal["post", "comment"]] = (),
        post_ids: Iterable[int] = (),
        heartbeat_seconds: float = 10.0,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Watch:
        """Iterates over every change, in the order of commits, for as long as the caller likes.

            with client.changes.watch(start="initial_state") as watch:
                for change in watch:
                    print(change.action, change.kind, change.id, change.resource)
                    break

        Nothing is sent before the first step. From the first response on, the watch lives through restarts
        of the server and lost connections: it connects again by itself, as often and for as long as it takes,
        and goes on behind the last change it gave.

        Args:
            resume_token: Where to go on: `resume_token` of a watch, a batch or the first page of a list.
                With None or "", `start` says where to begin.
            start: "now"; "earliest", the oldest change that is still kept; or "initial_state", everything
                that is stored as changes with the action "snapshot", then what changes from then on.
            kinds: "post" or "comment", to be told only of these; both if empty.
            post_ids: Tell only of these posts and their comments, at most 1000; of all if empty.
            heartbeat_seconds: How often the server says that it is there when nothing changes: 1 to 60. A
                watch that hears nothing for twice as long connects again.
            timeout: Seconds until the first response; after that there is no limit.

        Raises:
            ValueError: `start` or one of `kinds` is unknown.

        Its steps raise:
            ResumeTokenExpired: Changes behind the token are no longer kept; start again with "initial_state".
            ResumeTokenForeign: The token belongs to another store; start again with "initial_state".
            ResumeTokenInvalid: The token is damaged.
            FieldInvalid: `post_ids` or `heartbeat_seconds` is not allowed.
            WatchLimit: The server has had too many watches until the time was up.
        """
        request = _messages.watch_request(
            resume_token=resume_token,
            start=start,
            kinds=kinds,
            post_ids=post_ids,
            heartbeat_seconds=heartbeat_seconds,
        )
        return Watch(self._calls, self._stub, request, timeout)


class Watch:
    """Every change, one after the other, until it is closed; `client.changes.watch()` makes it.

    Closing it, or the client, also from elsewhere, ends the iteration.
    """

    resume_token: str | None
    """Where to go on behind everything that was given out; None before the first response.

    It moves with the last change of what was committed together, so that whoever stores it after each change
    sees some changes twice after a crash, and none never. For exactly once, use `batches`.
    """

    def __init__(
        self,
        calls: Calls,
        stub: changes_pb2_grpc.ChangeServiceStub,
        request: changes_pb2.WatchRequest,
        timeout: Timeout,
    ) -> None:
        """Clients make it."""
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
        """Iterates over what the server sends together, also when it is nothing but a new token.

            for batch in client.changes.watch(start="earliest").batches():
                for change in batch:
                    print(change.action, change.kind, change.id)
                print("so far:", batch.resume_token)
                break

        Its steps raise what the steps of the watch raise, and can be made again like them.
        """
        return Steps(self._next_whole)

    def close(self) -> None:
        """Ends the watch; closing it again does nothing."""
        self._is_closed = True
        self._pause.cancel()
        self._drop_stream()

    def __repr__(self) -> str:
        shown = _messages.shown_watch(self._request, self.resume_token)
        state = "closed" if self._is_over() else "open" if self._has_begun else "not begun"
        return f"<{type(self).__name__}({shown}), {state}>"

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Change:
        if self._is_over():
            # Nothing comes after the end, also not what was received before it; the token is before that.
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
        """What is left of the batch whose changes are being given out, or else the next one."""
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
        """The next response of this connection or another; None when the watch was closed."""
        if self._is_closed or (self._has_begun and self._is_over()):
            return None
        self._calls.check_open()
        if self._attempts is None:
            self._attempts = self._calls.attempts(self._timeout)
        try:
            return self._received(self._attempts)
        except BaseException:
            if not self._has_begun:
                # The next step is a beginning too, with a time of its own.
                self._attempts = None
            raise

    def _received(self, attempts: Attempts) -> ChangeBatch | None:
        """Reads until there is a response, and connects again as long as that may help."""
        while True:
            try:
                batch = _messages.change_batch(self._read(attempts))
            except StoreError as silence:
                error: StoreError = silence
                cause: Exception | None = None
            except Exception as failure:
                # Closed meanwhile: gRPC says it differently for each kind of channel, and interceptors too.
                if self._is_over():
                    return None
                if not isinstance(failure, grpc.RpcError):
                    raise
                error, cause = self._calls.error(failure, attempts), failure
            else:
                if self._is_over():
                    # It was closed while the response was read. The token stays before it.
                    self._drop_stream()
                    return None
                if attempts.count > 1:
                    log.info("watch goes on after %d tries", attempts.count)
                self._has_begun = self._calls.has_answered = True
                self._attempts = Attempts(None, is_endless=True)
                self._request.resume_token = batch.resume_token
                return batch
            if self._is_over():
                return None
            error.attempts = attempts.count
            pause = attempts.pause_after(error) if self._calls.retries else None
            if pause is None:
                raise error from cause
            # The 1st, 2nd, 4th, 8th ...: an outage may last for hours.
            if error.attempts & (error.attempts - 1) == 0:
                log.log(
                    logging.WARNING if self._has_begun else logging.INFO,
                    "watch interrupted (%d), trying again in %.2f s: %s",
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
            # Whoever closed the watch before the line above has not seen this stream.
            if self._is_closed:
                stream.cancel()
        try:
            response: changes_pb2.WatchResponse | None = stream.read()
        except BaseException:
            # Also one who gives up waiting has ended the call: the next step begins another behind the token.
            self._drop_stream()
            raise
        if response is None:
            self._drop_stream()
            raise undecodable()
        return response

    def _drop_stream(self) -> None:
        # Under a name of its own, for another thread may drop it at the same time.
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
