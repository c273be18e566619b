"""A real gRPC server that fails on demand."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from concurrent import futures
from typing import Final

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from storeapi.errors import StoreError
from storeapi.testing import _script
from storeapi.testing._calls import METHODS, Call, Handlers
from storeapi.testing._failures import failure
from storeapi.testing._responses import response_message
from storeapi.testing._script import Step
from storeapi.testing._upstream import Upstream

_MAX_CALLS_AT_ONCE: Final = 100
"""A call that hangs and a watch hold a thread each."""

_OPTIONS: Final = (
    # With a reused port two servers could listen on one address.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", -1),
    # The client sends more keepalive pings than gRPC allows by default.
    ("grpc.http2.max_ping_strikes", 0),
)


class ScriptedServer:
    """A server for tests, on a free local port.

    Each method has a script, whose steps are used by its calls in order. A call without a step is forwarded
    to `upstream`; without upstream it fails with UNIMPLEMENTED and a message that names the method.

        with ScriptedServer(upstream="localhost:50051") as server:
            server.fail("GetPost", storeapi.ShuttingDown(retry_after=0.1), times=2)
            with storeapi.StoreClient(server.target) as client:
                assert client.posts.get(1).id == 1
            assert len(server.calls_of("GetPost")) == 3

    It runs in threads, for tests with and without asyncio. Up to 100 calls run at the same time.
    """

    def __init__(self, *, upstream: str | None = None) -> None:
        """Creates a server that `with` starts; its script can be written before and after that.

        Args:
            upstream: Address of a server for calls without a step, without TLS.
        """
        self._upstream_target = upstream
        self._upstream: Upstream | None = None
        self._server: grpc.Server | None = None
        self._target = ""
        self._script: dict[str, deque[Step]] = defaultdict(deque)
        self._calls: list[Call] = []
        # Guards the script and the calls, and notifies threads that wait for a call.
        self._changed = threading.Condition()

    def __enter__(self) -> ScriptedServer:
        if self._server is not None:
            raise RuntimeError("this server is already running")
        threads = futures.ThreadPoolExecutor(_MAX_CALLS_AT_ONCE, thread_name_prefix="scripted-server")
        if self._upstream_target is not None:
            self._upstream = Upstream(self._upstream_target)
        handlers = Handlers(self._begin, self._upstream)
        self._server = grpc.server(threads, handlers=[handlers], options=_OPTIONS)
        self._target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._server is not None:
            # Without a grace period: calls that hang never end.
            self._server.stop(None).wait()
        if self._upstream is not None:
            self._upstream.close()
        self._server = self._upstream = None

    @property
    def target(self) -> str:
        """The address, for a client.

        Raises:
            RuntimeError: The server is not running.
        """
        if self._server is None:
            raise RuntimeError("this server is not running; use it in `with ScriptedServer() as server:`")
        return self._target

    # Calls

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call so far, in the order of their arrival."""
        with self._changed:
            return tuple(self._calls)

    def calls_of(self, method: str) -> tuple[Call, ...]:
        """Every call of one method so far."""
        _method(method)
        return tuple(call for call in self.calls if call.method == method)

    def wait_for_call(self, method: str, *, count: int = 1, timeout: float = 10) -> Call:
        """Waits for a call of a method and returns it; earlier calls count too.

        Blocks the thread. In a coroutine: `await asyncio.to_thread(server.wait_for_call, "Watch")`.

        Args:
            method: The name of the RPC.
            count: Number of the call to wait for, from 1.
            timeout: Seconds to wait.

        Raises:
            TimeoutError: Fewer calls arrived.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.calls_of(method)) >= count, timeout):
                asked = ", ".join(call.method for call in self._calls) or "nothing"
                raise TimeoutError(f"no call {count} of {method} in {timeout:g} seconds; called was {asked}")
            return self.calls_of(method)[count - 1]

    @property
    def unused(self) -> tuple[str, ...]:
        """The remaining steps, such as "CreatePost: hang"; a test may end with `assert not server.unused`."""
        with self._changed:
            return tuple(
                f"{method}: {step.title}" for method, steps in self._script.items() for step in steps
            )

    # The script

    def answer(self, method: str, *responses: object) -> None:
        """Gives each call the next response; a Watch gets a stream of all responses, which then ends.

        Args:
            method: The name of the RPC.
            responses: Results of the client (`Post`, a `Page`, a list of posts, a dict of counts), or
                messages of `storeapi.v1`.

        Raises:
            TypeError: The method has another result.
        """
        messages = _messages(method, responses)
        streams = [messages] if _method(method).server_streaming else [(message,) for message in messages]
        self._add(method, *(_script.answer(stream) for stream in streams))

    def fail(self, method: str, error: StoreError | grpc.StatusCode, *, times: int = 1) -> None:
        """Fails calls.

        Args:
            method: The name of the RPC.
            error: A StoreError, such as `storeapi.PostNotFound(metadata={"post_id": "7"})`, which the client
                then raises; or only a status, as gRPC itself or a proxy sends it.
            times: Number of calls that fail.

        Raises:
            ValueError: `times` is less than 1.
        """
        name = error.name if isinstance(error, grpc.StatusCode) else type(error).__name__
        self._add(method, *[_script.fail(failure(error), name)] * _positive(times))

    def lose_answer(self, method: str, *, times: int = 1) -> None:
        """Executes calls, and closes the connection before the response: the caller gets UNAVAILABLE.

        Upstream executes them. Without upstream they are not executed, which is the same for the caller; the
        next step is then for its next attempt.
        """
        self._refuse_stream(method, "cut")
        self._add(method, *[_script.lose_answer()] * _positive(times))

    def hang(self, method: str, *, times: int = 1) -> None:
        """Does not respond to calls until the deadline of the caller; they are not forwarded."""
        self._add(method, *[_script.hang()] * _positive(times))

    def cut(self, method: str, *messages: object, after: int = 0) -> None:
        """Closes the connection during a stream: the caller gets UNAVAILABLE.

        Args:
            method: The name of an RPC with a stream of responses: "Watch".
            messages: Responses before that.
            after: Number of responses of upstream after these.
        """
        self._add(method, _script.cut(self._stream(method, messages, after), after))

    def stall(self, method: str, *messages: object, after: int = 0) -> None:
        """Sends no more responses on a stream, and does not end it.

        The arguments are those of `cut`.
        """
        self._add(method, _script.stall(self._stream(method, messages, after), after))

    def _add(self, method: str, *steps: Step) -> None:
        _method(method)
        with self._changed:
            self._script[method].extend(steps)

    def _stream(self, method: str, messages: tuple[object, ...], after: int) -> tuple[Message, ...]:
        if not _method(method).server_streaming:
            raise ValueError(f"{method} answers with one message; use lose_answer or hang")
        if after and self._upstream_target is None:
            raise ValueError("`after` counts messages of upstream, and upstream is not set; give messages")
        return _messages(method, messages)

    def _refuse_stream(self, method: str, instead: str) -> None:
        if _method(method).server_streaming:
            raise ValueError(f"{method} answers with a stream; use {instead}")

    def _begin(self, call: Call) -> Step | None:
        """Records a call, and takes its step out of the script."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()
            steps = self._script[call.method]
            return steps.popleft() if steps else None


def _method(name: str) -> MethodDescriptor:
    """The method with this name; a misspelt one would never be called."""
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(sorted(METHODS))}")
    return METHODS[name]


def _positive(times: int) -> int:
    """Checks a number of calls; a test with none would test nothing."""
    if times < 1:
        raise ValueError(f"times must be at least 1, not {times}")
    return times


def _messages(method: str, responses: tuple[object, ...]) -> tuple[Message, ...]:
    return tuple(response_message(_method(method), response) for response in responses)
