"""Raw HTTP/2 frames, for behavior that no gRPC client has."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
INITIAL_WINDOW_SIZE = 4
"""The HTTP/2 setting SETTINGS_INITIAL_WINDOW_SIZE."""
ACK = END_STREAM = 1
END_HEADERS = 4
CANCEL = 8
MAX_FRAME = 16_384
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encodes one frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(path: str, *, encoding: str = "identity") -> bytes:
    """The header block of a gRPC call, without HPACK compression. `encoding` is that of the messages."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-encoding": encoding,
    }
    return b"".join(
        b"\0" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode()
        for key, value in fields.items()
    )


@dataclass
class RawClient:
    """A connection that sends and reads only on request."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    last_stream: int = -1

    def call(self, path: str, request: bytes, *, encoding: str = "") -> int:
        """Starts a call with its complete request, which may be compressed. Returns the stream id."""
        self.last_stream += 2
        message = bytes([bool(encoding)]) + struct.pack(">I", len(request)) + request
        self.writer.write(
            frame(HEADERS, END_HEADERS, self.last_stream, headers(path, encoding=encoding or "identity"))
            + frame(DATA, END_STREAM, self.last_stream, message)
        )
        return self.last_stream

    def begin(self, path: str, part: bytes, *, size: int) -> int:
        """Starts a call with the first part of a request of `size` bytes. Returns the stream id."""
        self.last_stream += 2
        self.writer.write(frame(HEADERS, END_HEADERS, self.last_stream, headers(path)))
        data = b"\0" + struct.pack(">I", size) + part
        for start in range(0, len(data), MAX_FRAME):
            self.writer.write(frame(DATA, 0, self.last_stream, data[start : start + MAX_FRAME]))
        return self.last_stream

    def reset(self, stream: int) -> None:
        """Cancels a call."""
        self.writer.write(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))

    async def answered(self) -> None:
        """Reads until the first HEADERS frame of a response."""
        kind = None
        while kind != HEADERS:
            head = await self.reader.readexactly(9)
            kind = head[3]
            await self.reader.readexactly(int.from_bytes(head[:3], "big"))

    async def closed(self) -> None:
        """Reads until the server closes the connection. Acknowledges PING and SETTINGS frames."""
        with suppress(ConnectionError):
            while head := await self.reader.read(9):
                head += await self.reader.readexactly(9 - len(head))
                payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == PING and not head[4] & ACK:
                    self.writer.write(frame(PING, ACK, 0, payload))
                if head[3] == SETTINGS and not head[4] & ACK:
                    # gRPC closes a connection that does not acknowledge within a minute.
                    self.writer.write(frame(SETTINGS, ACK, 0))


@asynccontextmanager
async def raw_client(
    address: str, *, greeting: bytes = PREFACE + frame(SETTINGS, 0, 0), buffer_bytes: int | None = None
) -> AsyncIterator[RawClient]:
    """A raw connection. `buffer_bytes` limits the receive buffer of its socket."""
    host, _, port = address.rpartition(":")
    connection = socket.socket()
    connection.setblocking(False)
    if buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    # A small buffer, so that unread bytes stay on the server.
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    writer.write(greeting)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()
