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
from storeapi.testing._replies import reply_message
from storeapi.testing._script import Step
from storeapi.testing._upstream import Upstream

_MAX_CALLS_AT_ONCE: Final = 100
"""A call that hangs and a watch hold a thread each."""

_OPTIONS: Final = (
    # A reused port would let two servers listen on one address without a word.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", -1),
    # The client asks often whether the connection lives, which gRPC takes for an attack.
    ("grpc.http2.max_ping_strikes", 0),
)


class ScriptedServer:
    """A server for tests, on a port of this machine that the system chooses.

    Each method has a script, which its calls work off in order. A call beyond the script goes to `upstream`
    as it is; without upstream it fails with UNIMPLEMENTED and a message that names the method.

        with ScriptedServer(upstream="localhost:50051") as server:
            server.fail("GetPost", storeapi.ShuttingDown(retry_after=0.1), times=2)
            with storeapi.StoreClient(server.target) as client:
                assert client.posts.get(1).id == 1
            assert len(server.calls_of("GetPost")) == 3

    It runs in threads, so tests with and without asyncio can use it. Up to 100 calls run at once.
    """

    def __init__(self, *, upstream: str | None = None) -> None:
        """Makes a server that `with` starts; its script can be written before and after that.

        Args:
            upstream: Address of a server that does what the script does not, without TLS.
        """
        self._upstream_target = upstream
        self._upstream: Upstream | None = None
        self._server: grpc.Server | None = None
        self._target = ""
        self._script: dict[str, deque[Step]] = defaultdict(deque)
        self._calls: list[Call] = []
        # Guards the script and the calls, and tells those who wait for a call.
        self._changed = threading.Condition()

    def __enter__(self) -> ScriptedServer:
        if self._server is not None:
            raise RuntimeError("this server is running already")
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
            # At once: calls that hang would never come to an end.
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

    # What was asked

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
        """Waits until a method has been called, and returns the call; one that came before counts too.

        It blocks its thread. In a coroutine: `await asyncio.to_thread(server.wait_for_call, "Watch")`.

        Args:
            method: The name of the RPC.
            count: Which of its calls to wait for: 1 for the first.
            timeout: How long to wait, in seconds.

        Raises:
            TimeoutError: There were fewer calls in this time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.calls_of(method)) >= count, timeout):
                asked = ", ".join(call.method for call in self._calls) or "nothing"
                raise TimeoutError(f"no call {count} of {method} in {timeout:g} seconds; called was {asked}")
            return self.calls_of(method)[count - 1]

    @property
    def unused(self) -> tuple[str, ...]:
        """What is left of the script, such as "CreatePost: hang"; a test may end with `not server.unused`."""
        with self._changed:
            return tuple(
                f"{method}: {step.title}" for method, steps in self._script.items() for step in steps
            )

    # The script

    def answer(self, method: str, *replies: object) -> None:
        """Answers calls: each with the next reply; a Watch with a stream of all of them, which then ends.

        Args:
            method: The name of the RPC.
            replies: What the client's method returns (`Post`, a `Page`, a list of posts, a dict of counts),
                or messages of `storeapi.v1`.

        Raises:
            TypeError: The method does not answer with such a thing.
        """
        messages = _messages(method, replies)
        streams = [messages] if _method(method).server_streaming else [(message,) for message in messages]
        self._add(method, *(_script.answer(stream) for stream in streams))

    def fail(self, method: str, error: StoreError | grpc.StatusCode, *, times: int = 1) -> None:
        """Fails calls.

        Args:
            method: The name of the RPC.
            error: An error of ours, such as `storeapi.PostNotFound(metadata={"post_id": "7"})`, which the
                caller's client then raises; or a bare status, as gRPC itself or a proxy sends it.
            times: How many calls fail.

        Raises:
            ValueError: `times` is less than 1.
        """
        name = error.name if isinstance(error, grpc.StatusCode) else type(error).__name__
        self._add(method, *[_script.fail(failure(error), name)] * _positive(times))

    def lose_answer(self, method: str, *, times: int = 1) -> None:
        """Lets calls be done, and cuts the connection before the answer: the caller sees UNAVAILABLE.

        Upstream does them. Without upstream nobody does, which looks the same to the caller: the next line
        of the script is then for its next try.
        """
        self._refuse_stream(method, "cut")
        self._add(method, *[_script.lose_answer()] * _positive(times))

    def hang(self, method: str, *, times: int = 1) -> None:
        """Leaves calls without an answer until the caller gives up; nothing reaches upstream."""
        self._add(method, *[_script.hang()] * _positive(times))

    def cut(self, method: str, *messages: object, after: int = 0) -> None:
        """Cuts the connection in the midst of a stream: the caller sees UNAVAILABLE.

        Args:
            method: The name of an RPC that answers with a stream: "Watch".
            messages: What the caller gets before.
            after: How many messages of upstream it gets then.
        """
        self._add(method, _script.cut(self._stream(method, messages, after), after))

    def stall(self, method: str, *messages: object, after: int = 0) -> None:
        """Lets a stream fall silent, without an end, until the caller gives up.

        Arguments are those of `cut`.
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
            raise ValueError("there is no upstream whose messages could be counted; give the messages")
        return _messages(method, messages)

    def _refuse_stream(self, method: str, instead: str) -> None:
        if _method(method).server_streaming:
            raise ValueError(f"{method} answers with a stream; use {instead}")

    def _begin(self, call: Call) -> Step | None:
        """Notes a call, and takes its line out of the script."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()
            steps = self._script[call.method]
            return steps.popleft() if steps else None


def _method(name: str) -> MethodDescriptor:
    """The method of a name; a misspelt one would never be called."""
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(sorted(METHODS))}")
    return METHODS[name]


def _positive(times: int) -> int:
    """How many calls; a script without one would be a test that tests nothing."""
    if times < 1:
        raise ValueError(f"times must be at least 1, not {times}")
    return times


def _messages(method: str, replies: tuple[object, ...]) -> tuple[Message, ...]:
    return tuple(reply_message(_method(method), reply) for reply in replies)
