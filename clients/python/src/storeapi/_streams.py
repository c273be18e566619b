"""A stream of responses that notices when it has become silent, and a pause that can be cut short.

There are two of each, by hand: waiting with a limit is what asyncio and threads have least in common.

A call is known as something to iterate over and nothing else. An interceptor may replace gRPC's call object
by a generator, which has no `cancel()` and cannot be closed while somebody waits for its next item.
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
    return Unavailable(f"nothing was heard from the server for {silence_seconds:.3g} seconds")


def _ended() -> StoreError:
    return Unavailable("the server ended the stream without saying why")


def _closed() -> StoreError:
    return Cancelled("the watch was closed")


def is_cancelled() -> bool:
    """Whether somebody has cancelled the running task; before Python 3.11 nobody knows."""
    task: Any = asyncio.current_task()
    return hasattr(task, "cancelling") and task.cancelling() > 0


def _cancel(call: Any) -> None:
    """Ends a call if it can be ended; a failure here must not replace the error that led here."""
    with contextlib.suppress(Exception):
        call.cancel()


async def _within(seconds: float, task: "asyncio.Future[Result]") -> Result:
    """What the task returns; asyncio.TimeoutError when that takes longer. The task has ended afterwards.

    asyncio.wait_for, before Python 3.12, returns it also to a caller that was cancelled in the same moment,
    which would go on as if nobody had cancelled it.
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
    """A running call that is read one response at a time."""

    def __init__(self, call: Any, *, first_seconds: float | None, silence_seconds: float) -> None:
        """Takes a call that has just begun.

        Args:
            call: What a stub returned.
            first_seconds: How long the first response may take; None for as long as any other.
            silence_seconds: How long any other may take; a server that keeps its word is faster.
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
            Unavailable: Nothing came for too long.
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
            # gRPC cancels whoever reads when the call is ended by somebody else.
            if not self._is_over or is_cancelled():
                raise
            raise _closed() from None
        finally:
            self._step = None
        self._limit = self._silence_seconds
        return response

    def cancel(self) -> None:
        """Ends the call; ending it again does nothing."""
        self._is_over = True
        _cancel(self._call)
        if self._step is not None:
            self._step.cancel()


class AsyncPause:
    """The waiting between two tries, which somebody else may end."""

    def __init__(self) -> None:
        """Nobody has ended it yet."""
        self._over = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Waits so long, or until somebody ends it."""
        with contextlib.suppress(asyncio.TimeoutError):
            await _within(seconds, asyncio.ensure_future(self._over.wait()))

    def cancel(self) -> None:
        """Ends the waiting, also any to come."""
        self._over.set()


Outcome: TypeAlias = tuple[Any, BaseException | None]
"""A response, or why there is none."""


class Stream:
    """A running call that is read one response at a time.

    A thread of its own reads, because only a thread can be left behind: nothing else ends the reading of a
    generator. It stops when the call answers once more or ends.
    """

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
        self._over = threading.Event()
        self._wanted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        # One response ahead: the next one is received while the caller deals with this one.
        self._wanted.put(None)
        # In the caller's context, from which interceptors take the current span. It does not know the stream,
        # so that one that nobody has any more ends.
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
            Unavailable: Nothing came for too long.
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
                # Its traceback has this frame: a cycle would keep the call alive.
                del failure
        self._limit = self._silence_seconds
        return response

    def cancel(self) -> None:
        """Ends the call, also while another thread reads; ending it again does nothing."""
        self._over.set()
        self._wanted.put(None)
        self._outcomes.put((None, _closed()))
        _cancel(self._call)

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


def _read(
    call: Any,
    over: threading.Event,
    wanted: "queue.SimpleQueue[None]",
    outcomes: "queue.SimpleQueue[Outcome]",
) -> None:
    """Reads a response each time one is wanted, until it is over or the call ends."""
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
    # Only the thread that reads a generator can close it, and with it the call inside.
    with contextlib.suppress(Exception):
        call.close()
