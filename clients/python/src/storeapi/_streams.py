"""A stream of responses that notices when it has become silent, and a pause that can be cut short.

There are two of each, by hand, because waiting with a limit is what asyncio and threads have least in common.
"""

import asyncio
import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from storeapi.errors import Cancelled, StoreError, Unavailable

Result = TypeVar("Result")


def _silent(silence_seconds: float) -> StoreError:
    return Unavailable(f"nothing was heard from the server for {silence_seconds:.3g} seconds")


def _ended() -> StoreError:
    return Unavailable("the server ended the stream without saying why")


def is_cancelled() -> bool:
    """Whether somebody has cancelled the running task; before Python 3.11 nobody knows."""
    task: Any = asyncio.current_task()
    return hasattr(task, "cancelling") and task.cancelling() > 0


async def _within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """What the work returns; asyncio.TimeoutError when that takes longer.

    asyncio.wait_for, before Python 3.12, returns it also to a task that was cancelled in the same moment: the
    task would go on as if nobody had cancelled it.
    """
    if sys.version_info >= (3, 11):
        async with asyncio.timeout(seconds):
            return await work
    else:
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
            if not done:
                raise asyncio.TimeoutError
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class AsyncStream:
    """A running call that is read one response at a time."""

    def __init__(self, call: Any, *, first_seconds: float | None, silence_seconds: float) -> None:
        """Takes a call that has just begun.

        Args:
            call: What a stub returned.
            first_seconds: How long the first response may take; None for as long as any other.
            silence_seconds: How long any other may take; a server that keeps its word is faster.
        """
        self._call: grpc.aio.UnaryStreamCall[Any, Any] = call
        self._limit = silence_seconds if first_seconds is None else first_seconds
        self._silence_seconds = silence_seconds
        self._is_over = False

    async def read(self) -> Any:
        """The next response.

        Raises:
            grpc.RpcError: The call failed.
            Unavailable: Nothing came for too long.
        """
        try:
            response = await _within(self._limit, self._call.read())
        except asyncio.TimeoutError:
            raise _silent(self._limit) from None
        except asyncio.CancelledError:
            # gRPC cancels whoever reads when the call is ended by somebody else.
            if not self._is_over or is_cancelled():
                raise
            raise Cancelled("the watch was closed") from None
        if response is grpc.aio.EOF:
            raise _ended()
        self._limit = self._silence_seconds
        return response

    def cancel(self) -> None:
        """Ends the call; ending it again does nothing."""
        self._is_over = True
        self._call.cancel()


class AsyncPause:
    """The waiting between two tries, which somebody else may end."""

    def __init__(self) -> None:
        """Nobody has ended it yet."""
        self._over = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Waits so long, or until somebody ends it."""
        with contextlib.suppress(asyncio.TimeoutError):
            await _within(seconds, self._over.wait())

    def cancel(self) -> None:
        """Ends the waiting, also any to come."""
        self._over.set()


class Stream:
    """A running call that is read one response at a time."""

    def __init__(self, call: Any, *, first_seconds: float | None, silence_seconds: float) -> None:
        """Takes a call that has just begun.

        Args:
            call: What a stub returned.
            first_seconds: How long the first response may take; None for as long as any other.
            silence_seconds: How long any other may take; a server that keeps its word is faster.
        """
        self._call = call
        self._limit = silence_seconds if first_seconds is None else first_seconds
        self._silence_seconds = silence_seconds
        self._reading_since: float | None = None
        self._is_silent = False
        self._over = threading.Event()
        # It knows the stream weakly, so that one that nobody has any more ends.
        guard = threading.Thread(
            target=_guard, args=(weakref.ref(self), self._over), name="storeapi-silence", daemon=True
        )
        guard.start()

    def read(self) -> Any:
        """The next response.

        Raises:
            grpc.RpcError: The call failed.
            Unavailable: Nothing came for too long.
        """
        self._reading_since = time.monotonic()
        try:
            response = next(self._call)
        except StopIteration:
            raise _ended() from None
        except grpc.RpcError:
            if self._is_silent:
                raise _silent(self._limit) from None
            raise
        finally:
            self._reading_since = None
        self._limit = self._silence_seconds
        return response

    def cancel(self) -> None:
        """Ends the call, also while another thread reads; ending it again does nothing."""
        self._over.set()
        self._call.cancel()

    def seconds_to_silence(self) -> float:
        """How long the server may still be silent; a caller that is not reading hears nothing by itself."""
        since = self._reading_since
        return self._limit if since is None else since + self._limit - time.monotonic()

    def end_for_silence(self) -> None:
        """Ends the call that somebody reads in vain."""
        self._is_silent = True
        self._call.cancel()

    def __del__(self) -> None:
        self.cancel()


class Pause:
    """The waiting between two tries, which another thread may end."""

    def __init__(self) -> None:
        """Nobody has ended it yet."""
        self._over = threading.Event()

    def wait(self, seconds: float) -> None:
        """Waits so long, or until somebody ends it."""
        self._over.wait(seconds)

    def cancel(self) -> None:
        """Ends the waiting, also any to come."""
        self._over.set()


def _guard(reference: weakref.ref[Stream], over: threading.Event) -> None:
    """Ends a stream that has been silent for too long, looking often enough to be late by a tenth at most."""
    while True:
        stream = reference()
        if stream is None:
            return
        left = stream.seconds_to_silence()
        if left <= 0:
            stream.end_for_silence()
            return
        del stream
        # Not the whole of it: the reading may begin meanwhile.
        if over.wait(max(min(left / 10, 1.0), 0.005)):
            return
