"""Decompresses and decodes requests.

gRPC would decompress all requests that have arrived at once, and 4 KiB may become 4 MiB. Here large requests
are decompressed one after the other (docs/decisions/0017).
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable

from google.protobuf.message import DecodeError, Message

from store_service.errors import RequestMalformed, StreamStalled
from store_service.rpc.turns import LARGE_BYTES, Turns

_GZIP = b"\x1f\x8b"
_DEFLATE = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
COMPRESSED = (_GZIP, *_DEFLATE)
"""The first bytes of gzip and deflate. No message of the contract begins so: it would have a field 15."""

_GZIP_OR_DEFLATE = zlib.MAX_WBITS | 32
"""Tells zlib to detect the format."""


RECEIVE_SECONDS = 120.0
"""Maximum time between two messages of a stream of requests. After it, the stream ends: it would take one of
the places for concurrent calls as long as its connection exists."""


class RequestTooLarge(Exception):
    """A request exceeds its maximum size after decompression. The text is for the caller."""


class Decompressor:
    """Decompresses requests, large ones one at a time."""

    def __init__(self, max_bytes: int, turns: Turns) -> None:
        """Takes the maximum size of a request after decompression, and the turns of large requests."""
        self._max_bytes = max_bytes
        self._turns = turns

    async def decoded(
        self, data: bytes, decode: Callable[[bytes], Message], reserve: Callable[[int], None] = lambda _: None
    ) -> Message:
        """Returns the message of a request that may be compressed.

        Bytes that begin like compressed data and are not are decoded as they are.

        Args:
            data: The bytes of the request.
            decode: Decodes bytes; raises RequestMalformed.
            reserve: Called with the decompressed size before the request is decoded; may raise.

        Raises:
            RequestTooLarge: The decompressed size exceeds the maximum. Decompression stops there.
        """
        unpack = None
        if data.startswith(COMPRESSED):
            unpack = zlib.decompressobj(_GZIP_OR_DEFLATE)
            try:
                found = unpack.decompress(data, min(LARGE_BYTES, self._max_bytes + 1))
            except zlib.error:
                unpack = None
            else:
                if unpack.eof or len(found) > self._max_bytes:
                    data, unpack = self._whole(unpack, found, data), None
        if unpack is None:
            reserve(len(data))
            if len(data) <= LARGE_BYTES:
                return decode(data)
        async with self._turns.turn():
            if unpack is not None:
                # In the same turn as decoding, so that only one decompressed request is in memory.
                try:
                    found += unpack.decompress(unpack.unconsumed_tail, self._max_bytes + 1 - len(found))
                except zlib.error:
                    pass
                else:
                    data = self._whole(unpack, found, data)
                reserve(len(data))
            return decode(data)

    def _whole(self, unpack: "zlib._Decompress", found: bytes, data: bytes) -> bytes:
        """Returns the decompressed bytes, or the original bytes if they are not valid compressed data."""
        if len(found) > self._max_bytes:
            raise RequestTooLarge(
                f"the request is larger than {self._max_bytes} bytes when it is decompressed"
            )
        return found if unpack.eof and not unpack.unused_data else data


def decoder(message_class: type[Message]) -> Callable[[bytes], Message]:
    """Returns a function that decodes messages of one type and raises RequestMalformed."""
    parse = message_class.FromString

    def decode(data: bytes) -> Message:
        try:
            return parse(data)
        except DecodeError:
            # The library does not say which of the two it is.
            why = "it cannot be decoded, or a text in it is not UTF-8"
            raise RequestMalformed.at(
                "", f"the request is not a {message_class.DESCRIPTOR.full_name}: {why}"
            ) from None

    return decode


async def decode_each(
    data: AsyncIterator[bytes],
    decompressor: Decompressor,
    decode: Callable[[bytes], Message],
    reserve: Callable[[int], None],
) -> AsyncIterator[Message]:
    """Returns the messages of a stream of requests. The arguments are those of `Decompressor.decoded`.

    Raises:
        StreamStalled: The caller has sent no message for RECEIVE_SECONDS.
    """
    while True:
        try:
            async with asyncio.timeout(RECEIVE_SECONDS):
                one = await anext(data)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise StreamStalled(seconds=RECEIVE_SECONDS, missing="sent") from None
        yield await decompressor.decoded(one, decode, reserve)
