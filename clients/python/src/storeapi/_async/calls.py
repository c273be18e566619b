"""Makes the calls of AsyncStoreClient."""

# ruff: noqa: ASYNC109 - a deadline that gRPC knows also ends the work of the server.

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakSet

import grpc
import grpc.aio

from storeapi._batches import MAX_BATCH, BatchSplitter
from storeapi._connection import Timeout, seconds
from storeapi._consistency import REFUSED_TOKENS, Consistency, Metadata, Reads, received_async
from storeapi._diagnosis import AsyncDiagnosis, Goal
from storeapi._retries import Attempts, is_repeatable
from storeapi._status import count_from, store_error, trailers_of, undecodable
from storeapi._streams import AsyncPause, AsyncStream, is_cancelled
from storeapi.errors import BatchTooLarge, Cancelled, InvalidRequest, StoreError

Item = TypeVar("Item")
Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncCalls:
    """Makes the calls of all methods of a client: deadlines, retries and errors."""

    def __init__(
        self, *, timeout: float | None, retries: bool, goal: Goal | None, consistency: Consistency
    ) -> None:
        self._timeout = timeout
        self.reads: Reads = Reads(consistency)
        self.diagnosis: AsyncDiagnosis = AsyncDiagnosis(goal)
        self.has_answered: bool = False
        self.retries: bool = retries
        self.is_closed: bool = False
        self._max_batch = MAX_BATCH
        self._open: WeakSet[AsyncStream | AsyncPause] = WeakSet()
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

    async def unary(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout: Timeout
    ) -> Response:
        """The response to a request, which is repeated while that can help; an error is a StoreError."""
        self.check_open()
        attempts = self.attempts(timeout)
        while True:
            sent = self.reads.metadata(request)
            try:
                response = await self._response(method, request, attempts.remaining(), sent)
            except asyncio.CancelledError:
                # gRPC cancels waiting tasks when the client is closed.
                if not self.is_closed or is_cancelled():
                    raise
                raise Cancelled("the client was closed") from None
            except grpc.RpcError as failure:
                error = await self.error(failure, attempts)
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
            await self.wait(pause, error)

    async def _response(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
        sent: Metadata,
    ) -> Response:
        if not self.reads.has_tokens:
            options: Any = {"metadata": sent} if sent else {}
            return await method(request, timeout=timeout, **options)
        response: Response
        response, trailers = await received_async(method, request, timeout, sent)
        self.reads.answered(request, sent, trailers)
        return response

    async def error(self, failure: grpc.RpcError, attempts: Attempts) -> StoreError:
        """The error of a failed attempt, with the cause if no connection could be made."""
        error = store_error(failure)
        if error.reason or error.call_id:
            self.has_answered = True
        return await self.diagnosis.explain(
            error, has_answered=self.has_answered, seconds_left=attempts.remaining()
        )

    async def send_batches(
        self, batches: BatchSplitter[Item], send: Callable[[list[Item]], Awaitable[None]]
    ) -> None:
        """Sends a batch in several calls, and in smaller ones if the service has a lower limit."""
        sent = 0
        while batch := batches.next(self._max_batch):
            try:
                await send(batch)
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

    def stream(self, call: Any, *, first_seconds: float | None, silence_seconds: float) -> AsyncStream:
        """The stream of a new call, which is read until it ends or the client is closed."""
        stream = AsyncStream(call, first_seconds=first_seconds, silence_seconds=silence_seconds)
        self._keep(stream)
        return stream

    async def wait(self, pause_seconds: float, failure: StoreError) -> None:
        """Waits after a failed attempt; raises Cancelled when the client is closed."""
        await self.pause().wait(pause_seconds)
        if self.is_closed:
            raise Cancelled("the client was closed") from failure

    def pause(self) -> AsyncPause:
        """A pause between two attempts; it ends when the client is closed."""
        pause = AsyncPause()
        self._keep(pause)
        return pause

    def _keep(self, it: AsyncStream | AsyncPause) -> None:
        with self._lock:
            self._open.add(it)
            is_late = self.is_closed
        if is_late:
            it.cancel()
