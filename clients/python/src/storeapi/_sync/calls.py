# Made from storeapi/_async/calls.py by tools/generate_sync.py: change that one, then `make protos`.
"""Makes the calls of StoreClient."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakSet

import grpc

from storeapi._batches import MAX_BATCH, BatchSplitter
from storeapi._connection import Timeout, seconds
from storeapi._consistency import REFUSED_TOKENS, Consistency, Metadata, Reads, received
from storeapi._diagnosis import Diagnosis, Goal
from storeapi._retries import Attempts, is_repeatable
from storeapi._status import count_from, store_error, trailers_of, undecodable
from storeapi._streams import Pause, Stream
from storeapi.errors import BatchTooLarge, Cancelled, InvalidRequest, StoreError

Item = TypeVar("Item")
Request = TypeVar("Request")
Response = TypeVar("Response")


class Calls:
    """Makes the calls of all methods of a client: deadlines, retries and errors."""

    def __init__(
        self, *, timeout: float | None, retries: bool, goal: Goal | None, consistency: Consistency
    ) -> None:
        self._timeout = timeout
        self.reads: Reads = Reads(consistency)
        self.diagnosis: Diagnosis = Diagnosis(goal)
        self.has_answered: bool = False
        self.retries: bool = retries
        self.is_closed: bool = False
        self._max_batch = MAX_BATCH
        self._open: WeakSet[Stream | Pause] = WeakSet()
        # One thread may start a call while another, or a signal handler, closes the client.
        self._lock = threading.RLock()

    def close(self) -> None:
        """Ends all streams and pauses. Later calls fail."""
        with self._lock:
            self.is_closed = True
            still_open = list(self._open)
        for it in still_open:
            it.cancel()

    def check_open(self) -> None:
        """Raises RuntimeError if the client is closed."""
        # Checked here: the error of gRPC depends on the kind of channel, and a borrowed channel stays open.
        if self.is_closed:
            raise RuntimeError("this client is closed; make a new one")

    def attempts(self, timeout: Timeout) -> Attempts:
        """The attempts of a new call with this timeout."""
        return Attempts(seconds(timeout, self._timeout))

    def unary(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout: Timeout
    ) -> Response:
        """The response to a request, which is repeated while that can help; an error is a StoreError."""
        self.check_open()
        attempts = self.attempts(timeout)
        while True:
            sent = self.reads.metadata(request)
            try:
                response = self._response(method, request, attempts.remaining(), sent)
            except grpc.RpcError as failure:
                error = self.error(failure, attempts)
                error.request_id = getattr(request, "request_id", "")
                error.attempts = attempts.count
                self.reads.answered(request, sent, trailers_of(failure), has_failed=True)
                if isinstance(error, REFUSED_TOKENS) and self.reads.forget(sent):
                    continue
                may_repeat = self.retries and not self.is_closed and is_repeatable(request)
                pause = attempts.pause_after(error) if may_repeat else None
                if pause is None:
                    raise error from failure
            except Exception as failure:
                # The exception of gRPC, or of an interceptor, for a channel that another thread has closed.
                if not self.is_closed:
                    raise
                raise Cancelled("the client was closed") from failure
            else:
                if response is None:
                    raise undecodable()
                self.has_answered = True
                return response
            self.wait(pause, error)

    def _response(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
        sent: Metadata,
    ) -> Response:
        if not self.reads.has_tokens:
            options: Any = {"metadata": sent} if sent else {}
            return method(request, timeout=timeout, **options)
        response: Response
        response, trailers = received(method, request, timeout, sent)
        self.reads.answered(request, sent, trailers)
        return response

    def error(self, failure: grpc.RpcError, attempts: Attempts) -> StoreError:
        """The error of a failed attempt, with the cause if no connection could be made."""
        error = store_error(failure)
        if error.reason or error.call_id:
            self.has_answered = True
        return self.diagnosis.explain(
            error, has_answered=self.has_answered, seconds_left=attempts.remaining()
        )

    def send_batches(self, batches: BatchSplitter[Item], send: Callable[[list[Item]], None]) -> None:
        """Sends a batch in several calls, and in smaller ones if the service has a lower limit."""
        sent = 0
        while batch := batches.next(self._max_batch):
            try:
                send(batch)
            except BatchTooLarge as error:
                # The service has done nothing, so the request id is not used yet.
                if error.max_count is None or not 0 < error.max_count < len(batch):
                    raise
                self._max_batch = min(self._max_batch, error.max_count)
                batches.put_back(batch)
            except InvalidRequest as error:
                # Callers count from the start of the whole batch.
                count_from(sent, error)
                raise
            else:
                sent += len(batch)

    def stream(self, call: Any, *, first_seconds: float | None, silence_seconds: float) -> Stream:
        """The stream of a new call, which is read until it ends or the client is closed."""
        stream = Stream(call, first_seconds=first_seconds, silence_seconds=silence_seconds)
        self._keep(stream)
        return stream

    def wait(self, pause_seconds: float, failure: StoreError) -> None:
        """Waits after a failed attempt; raises Cancelled when the client is closed."""
        self.pause().wait(pause_seconds)
        if self.is_closed:
            raise Cancelled("the client was closed") from failure

    def pause(self) -> Pause:
        """A pause between two attempts; it ends when the client is closed."""
        pause = Pause()
        self._keep(pause)
        return pause

    def _keep(self, it: Stream | Pause) -> None:
        with self._lock:
            self._open.add(it)
            is_late = self.is_closed
        if is_late:
            it.cancel()
