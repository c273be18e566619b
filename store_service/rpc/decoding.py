"""From bytes to messages; what cannot be read is the caller's error.

Requests are unpacked here too, large ones one after the other: gRPC would unpack all that have come before it
looks at any, and 4 KiB may become 4 MiB (docs/decisions/0017).
"""

import zlib
from collections.abc import AsyncIterator, Callable

from google.protobuf.message import DecodeError, Message

from store_service.errors import RequestMalformed
from store_service.rpc.turns import LARGE_BYTES, Turns

_GZIP = b"\x1f\x8b"
_DEFLATE = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
PACKED = (_GZIP, *_DEFLATE)
"""How bytes begin that gzip or deflate have made. No message of ours does: it would have a field 15."""

_EITHER = zlib.MAX_WBITS | 32
"""Tells zlib to find out by itself which of the two it is."""


class RequestTooLarge(Exception):
    """What was unpacked is larger than a request may be; the text is for the caller."""


class Decompressor:
    """Unpacks requests, large ones one at a time."""

    def __init__(self, max_bytes: int, turns: Turns) -> None:
        """Takes how large a request may be when it is unpacked, and the queue in which large ones wait."""
        self._max_bytes = max_bytes
        self._turns = turns

    async def decoded(
        self, data: bytes, decode: Callable[[bytes], Message], hold: Callable[[int], None] = lambda _: None
    ) -> Message:
        """A request, however its bytes came; those that only begin like packed ones are decoded as they are.

        Args:
            data: The bytes.
            decode: Makes the message of them, and raises RequestMalformed.
            hold: Called with their decompressed size before they are decoded; may raise.

        Raises:
            RequestTooLarge: There would be more than may be; what is more is not unpacked.
        """
        unpack = None
        if data.startswith(PACKED):
            unpack = zlib.decompressobj(_EITHER)
            try:
                found = unpack.decompress(data, min(LARGE_BYTES, self._max_bytes + 1))
            except zlib.error:
                unpack = None
            else:
                if unpack.eof or len(found) > self._max_bytes:
                    data, unpack = self._whole(unpack, found, data), None
        if unpack is None:
            hold(len(data))
            if len(data) <= LARGE_BYTES:
                return decode(data)
        async with self._turns.turn():
            if unpack is not None:
                # In the turn in which it is decoded, so that no others of its size wait in memory.
                try:
                    found += unpack.decompress(unpack.unconsumed_tail, self._max_bytes + 1 - len(found))
                except zlib.error:
                    pass
                else:
                    data = self._whole(unpack, found, data)
                hold(len(data))
            return decode(data)

    def _whole(self, unpack: "zlib._Decompress", found: bytes, data: bytes) -> bytes:
        """What was unpacked, or the bytes as they came if that was not all."""
        if len(found) > self._max_bytes:
            raise RequestTooLarge(
                f"the request is larger than {self._max_bytes} bytes when it is decompressed"
            )
        return found if unpack.eof and not unpack.unused_data else data


def decoder(message_class: type[Message]) -> Callable[[bytes], Message]:
    """What makes messages of a kind; it raises RequestMalformed."""
    parse = message_class.FromString

    def decode(data: bytes) -> Message:
        try:
            return parse(data)
        except DecodeError:
            # Which of the two it was, the library does not tell.
            why = "it cannot be decoded, or a text in it is not UTF-8"
            raise RequestMalformed.at(
                "", f"the request is no {message_class.DESCRIPTOR.full_name}: {why}"
            ) from None

    return decode


async def decode_each(
    data: AsyncIterator[bytes], decompressor: Decompressor, decode: Callable[[bytes], Message]
) -> AsyncIterator[Message]:
    """The messages that a stream of requests is made of."""
    async for one in data:
        yield await decompressor.decoded(one, decode)
