"""Connections that keep calls in flight: HTTP/2 for gRPC, and HTTP/1.1.

They support only a load on a healthy server over loopback, so that the load needs little CPU time compared
with the server: requests are prepared in advance, and responses are read only to find their end.
"""

import asyncio
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

from google.protobuf.message import Message

from benchmarks.workloads import framed

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEAD_BYTES = 9
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4
_DEFAULT_WINDOW, _MAX_WINDOW = 65_535, 2**31 - 1


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    """Returns a frame of the connection, which belongs to no stream."""
    return _before_stream(kind, flags, payload) + bytes(4) + payload


def _before_stream(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags))


def grpc_call(address: str, path: str, message: Message) -> tuple[bytes, ...]:
    """Returns a call as the frames of its stream, in three parts that the number of the stream separates."""
    # HPACK: `:method: POST` and `:scheme: http` are indexed fields. Other fields with an indexed name have
    # their value here, and `te` has a literal name. Nothing is added to the dynamic table.
    headers = b"".join(
        (
            b"\x83\x86",
            b"\x04" + _text(path),
            b"\x01" + _text(address),
            b"\x0f\x10" + _text("application/grpc"),
            b"\x00" + _text("te") + _text("trailers"),
        )
    )
    body = framed(message)
    return (
        _before_stream(_HEADERS, _END_HEADERS, headers),
        headers + _before_stream(_DATA, _END_STREAM, body),
        body,
    )


def _text(text: str) -> bytes:
    assert len(text) < 127
    return bytes((len(text),)) + text.encode("ascii")


def http1_call(address: str, path: str, body: bytes) -> tuple[bytes, ...]:
    """Returns an HTTP/1.1 request: GET without a body, otherwise POST."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", f"host: {address}"]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return ("\r\n".join([*lines, "", ""]).encode() + body,)


@dataclass(slots=True)
class Work:
    """The calls of a load, and their results."""

    calls: Sequence[tuple[bytes, ...]]
    """The bytes of each call; after the last one, the first follows."""
    total: int
    done: asyncio.Future[None]
    started: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)
    """Duration of each call."""

    def next_call(self) -> tuple[bytes, ...] | None:
        """Returns the next call; None after the last one."""
        if self.started == self.total:
            return None
        self.started += 1
        return self.calls[self.started % len(self.calls)]

    def ended(self, since: float, *, well: bool) -> None:
        """Records the end of a call."""
        self.seconds.append(time.perf_counter() - since)
        self.failed += not well
        if len(self.seconds) == self.total and not self.done.done():
            self.done.set_result(None)

    def broken(self, why: str) -> None:
        """Ends the load after a connection has failed."""
        if not self.done.done():
            self.done.set_exception(ConnectionError(why))


class Connection(asyncio.Protocol, ABC):
    """Keeps calls in flight until all have been made."""

    def __init__(self, work: Work, in_flight: int) -> None:
        """Takes the calls, which other connections share, and the number to keep in flight."""
        self._work = work
        self._in_flight = in_flight
        self._received = bytearray()
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Makes the first calls."""
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.write(self.hello() + b"".join(self.call() for _ in range(self._in_flight)))

    def data_received(self, data: bytes) -> None:
        """Makes another call for each that has ended."""
        self._received += data
        reply = self.replies()
        if reply:
            self._transport.write(reply)

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the load, if it has not ended."""
        self._work.broken(f"the server closed a connection: {error}")

    def hello(self) -> bytes:
        """Returns the bytes at the start of a connection."""
        return b""

    @abstractmethod
    def call(self) -> bytes:
        """Returns the bytes of the next call; empty after the last one."""

    @abstractmethod
    def replies(self) -> bytes:
        """Processes the complete frames or responses that were received, and returns the bytes to send."""


class Http2Connection(Connection):
    """gRPC calls on the streams of one connection."""

    # Requests are so small, and responses so fast, that the window of the server is never exhausted.
    HELLO: ClassVar[bytes] = (
        _PREFACE
        + _frame(_SETTINGS, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _MAX_WINDOW))
        + _frame(_WINDOW_UPDATE, 0, struct.pack(">I", _MAX_WINDOW - _DEFAULT_WINDOW))
    )

    def __init__(self, work: Work, in_flight: int) -> None:
        """Takes the calls and the number of concurrent streams."""
        super().__init__(work, in_flight)
        self._next_stream = 1
        self._since: dict[int, float] = {}
        self._with_body: set[int] = set()

    def hello(self) -> bytes:
        """Returns the start of a connection, with windows that responses never fill."""
        return self.HELLO

    def call(self) -> bytes:
        """Returns the frames of the next call, on a new stream."""
        parts = self._work.next_call()
        if parts is None:
            return b""
        stream = self._next_stream
        self._next_stream += 2
        self._since[stream] = time.perf_counter()
        return struct.pack(">I", stream).join(parts)

    def replies(self) -> bytes:
        """Reads frames."""
        received, at = self._received, 0
        replies: list[bytes] = []
        while len(received) >= at + _FRAME_HEAD_BYTES:
            length_and_kind, flags, stream = struct.unpack_from(">IBI", received, at)
            kind = length_and_kind & 0xFF
            payload_at = at + _FRAME_HEAD_BYTES
            end = payload_at + (length_and_kind >> 8)
            if len(received) < end:
                break
            if kind == _DATA:
                self._with_body.add(stream)
            if (kind in (_DATA, _HEADERS) and flags & _END_STREAM) or kind == _RST_STREAM:
                # An error has headers only.
                well = stream in self._with_body and kind != _RST_STREAM
                self._with_body.discard(stream)
                self._work.ended(self._since.pop(stream), well=well)
                replies.append(self.call())
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                payload = bytes(received[payload_at:end]) if kind == _PING else b""
                replies.append(_frame(kind, _ACK, payload))
            elif kind == _GOAWAY:
                self._work.broken("the server sent GOAWAY")
            at = end
        del received[:at]
        return b"".join(replies)


class Http1Connection(Connection):
    """Sequential calls of HTTP/1.1."""

    def call(self) -> bytes:
        """Returns the next request."""
        parts = self._work.next_call()
        self._since = time.perf_counter()
        return b"".join(parts or ())

    def replies(self) -> bytes:
        """Reads a response, whose headers have its length."""
        head, separator, body = bytes(self._received).partition(b"\r\n\r\n")
        if not separator:
            return b""
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if len(body) < int(length):
            return b""
        self._received.clear()
        self._work.ended(self._since, well=head.split()[1].startswith(b"2"))
        return self.call()
