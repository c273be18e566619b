"""A stream of responses with a timeout for each, and a pause that can be cancelled.

Both are written twice, because waiting with a timeout differs between asyncio and threads.

A call is only used as an iterator. An interceptor may replace the call object of gRPC by a generator, which
has no `cancel()` and cannot be closed while its next item is awaited.
"""

import asyncio
import contextlib
import contextvars
import queue
import threading
from typing import Any, TypeAlias, TypeVar

from storeapi.errors import Cancelled, StoreError, Unavailable

Result = TypeVar("Result")


def _silent(silence_seconds: float) -> StoreError:
    return Unavailable(f"no response from the server for {silence_seconds:.3g} seconds")


def _ended() -> StoreError:
    return Unavailable("the server ended the stream without a status")


def _closed() -> StoreError:
    return Cancelled("the watch was closed")


def is_cancelled() -> bool:
    """Whether the running task was cancelled; unknown before Python 3.11."""
    task: Any = asyncio.current_task()
    return hasattr(task, "cancelling") and task.cancelling() > 0


def _cancel(call: Any) -> None:
    """Cancels a call if possible; an exception here must not replace the original error."""
    with contextlib.suppress(Exception):
        call.cancel()


async def _within(seconds: float, task: "asyncio.Future[Result]") -> Result:
    """The result of the task; asyncio.TimeoutError if it takes longer. The task has ended afterwards.

    Before Python 3.12, asyncio.wait_for also returns the result if the caller is cancelled in the same
    moment, and the cancellation is lost.
    """
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class AsyncStream:
    """A call with a stream of responses."""

    def __init__(self, call: Any, *, first_seconds: float | None, silence_seconds: float) -> None:
        """Takes a new call.

        Args:
            call: The result of the stub.
            first_seconds: Timeout of the first response; None for that of the others.
            silence_seconds: Timeout of each other response.
        """
        self._call = call
        self._responses = aiter(call)
        self._limit = silence_seconds if first_seconds is None else first_seconds
        self._silence_seconds = silence_seconds
        self._step: asyncio.Future[Any] | None = None
        self._is_over = False

    async def read(self) -> Any:
        """The next response.

        Raises:
            grpc.RpcError: The call failed.
            Unavailable: No response arrived before the timeout.
        """
        # A task, because it can be cancelled where the call itself cannot.
        self._step = asyncio.ensure_future(anext(self._responses))
        try:
            response = await _within(self._limit, self._step)
        except StopAsyncIteration:
            raise _ended() from None
        except asyncio.TimeoutError:
            raise _silent(self._limit) from None
        except asyncio.CancelledError:
            # gRPC cancels the reading task when the call is cancelled from elsewhere.
            if not self._is_over or is_cancelled():
                raise
            raise _closed() from None
        finally:
            self._step = None
        self._limit = self._silence_seconds
        return response

    def cancel(self) -> None:
        """Cancels the call; cancelling it again has no effect."""
        self._is_over = True
        _cancel(self._call)
        if self._step is not None:
            self._step.cancel()


class AsyncPause:
    """The pause between two attempts, which can be cancelled."""

    def __init__(self) -> None:
        """Not cancelled yet."""
        self._over = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Waits this time, or until the pause is cancelled."""
        with contextlib.suppress(asyncio.TimeoutError):
            await _within(seconds, asyncio.ensure_future(self._over.wait()))

    def cancel(self) -> None:
        """Cancels the pause, also a later one."""
        self._over.set()


Outcome: TypeAlias = tuple[Any, BaseException | None]
"""A response, or the exception instead."""


class Stream:
    """A call with a stream of responses.

    A separate thread reads, because the reading of a generator cannot be interrupted, and a thread can be
    abandoned. It stops at the next response or at the end of the call.
    """

    def __init__(self, call: Any, *, first_seconds: float | None, silence_seconds: float) -> None:
        """Takes a new call.

        Args:
            call: The result of the stub.
            first_seconds: Timeout of the first response; None for that of the others.
            silence_seconds: Timeout of each other response.
        """
        self._call = call
        self._limit = silence_seconds if first_seconds is None else first_seconds
        self._silence_seconds = silence_seconds
        self._over = threading.Event()
        self._wanted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        # One response ahead: the next one is received while the caller processes this one.
        self._wanted.put(None)
        # In the context of the caller, from which interceptors take the current span. The thread has no
        # reference to the stream, so that an unreferenced stream is collected and ends the thread.
        reader = threading.Thread(
            target=contextvars.copy_context().run,
            args=(_read, call, self._over, self._wanted, self._outcomes),
            name="storeapi-watch",
            daemon=True,
        )
        reader.start()

    def read(self) -> Any:
        """The next response.

        Raises:
            grpc.RpcError: The call failed.
            Unavailable: No response arrived before the timeout.
        """
        self._wanted.put(None)
        try:
            response, failure = self._outcomes.get(timeout=self._limit)
        except queue.Empty:
            raise _silent(self._limit) from None
        if failure is not None:
            try:
                raise failure
            finally:
                # Its traceback references this frame: the cycle would keep the call alive.
                del failure
        self._limit = self._silence_seconds
        return response

    def cancel(self) -> None:
        """Cancels the call, also while another thread reads; cancelling it again has no effect."""
        self._over.set()
        self._wanted.put(None)
        self._outcomes.put((None, _closed()))
        _cancel(self._call)

    def __del__(self) -> None:
        self.cancel()


class Pause:
    """The pause between two attempts, which another thread can cancel."""

    def __init__(self) -> None:
        """Not cancelled yet."""
        self._over = threading.Event()

    def wait(self, seconds: float) -> None:
        """Waits this time, or until the pause is cancelled."""
        self._over.wait(seconds)

    def cancel(self) -> None:
        """Cancels the pause, also a later one."""
        self._over.set()


def _read(
    call: Any,
    over: threading.Event,
    wanted: "queue.SimpleQueue[None]",
    outcomes: "queue.SimpleQueue[Outcome]",
) -> None:
    """Reads a response for each request for one, until the stream is cancelled or the call ends."""
    try:
        responses = iter(call)
        wanted.get()
        while not over.is_set():
            outcomes.put((next(responses), None))
            wanted.get()
    except StopIteration:
        outcomes.put((None, _ended()))
    except BaseException as failure:
        outcomes.put((None, failure))
    # Only the thread that reads a generator can close it and the call inside.
    with contextlib.suppress(Exception):
        call.close()
