"""Requests that are packed, and what only looks so."""

import asyncio
import gzip
import zlib
from collections.abc import Callable

import pytest
from google.protobuf.message import Message
from storeapi.v1 import posts_pb2 as pb

from store_service.errors import RequestMalformed
from store_service.rpc.decoding import Decompressor, RequestTooLarge, decoder
from store_service.rpc.turns import LARGE_BYTES, Turns

REQUEST = pb.CreatePostRequest(post=pb.Post(body="packed"))
BYTES = REQUEST.SerializeToString()


decode = decoder(pb.CreatePostRequest)


async def read(data: bytes, *, max_bytes: int = 1000) -> Message:
    """Decodes the bytes of a request as the RPC pipeline does."""
    return await Decompressor(max_bytes, Turns()).decoded(data, decode)


@pytest.mark.parametrize("level", range(10))
async def test_gzip_and_deflate_are_decompressed(level: int) -> None:
    assert await read(gzip.compress(BYTES, level)) == REQUEST
    assert await read(zlib.compress(BYTES, level)) == REQUEST
    assert await read(BYTES) == REQUEST


async def test_large_message_is_decompressed_completely() -> None:
    """A truncated one is refused."""
    large = pb.CreatePostRequest(post=pb.Post(body="x" * (5 * LARGE_BYTES)))
    packed = gzip.compress(large.SerializeToString())

    assert await read(packed, max_bytes=large.ByteSize()) == large
    with pytest.raises(RequestTooLarge):
        await read(packed, max_bytes=large.ByteSize() - 1)
    with pytest.raises(RequestMalformed):
        await read(packed[:-1], max_bytes=large.ByteSize())


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_decompression_stops_at_the_limit(pack: Callable[[bytes], bytes]) -> None:
    """One byte more is too large."""
    assert await read(pack(BYTES), max_bytes=len(BYTES)) == REQUEST
    with pytest.raises(RequestTooLarge, match=f"larger than {len(BYTES) - 1} bytes"):
        await read(pack(BYTES), max_bytes=len(BYTES) - 1)


@pytest.mark.parametrize(
    "data",
    [gzip.compress(BYTES)[:-9], gzip.compress(BYTES) + b"more", b"\x1f\x8b\x00"],
    ids=["cut off", "goes on", "neither"],
)
async def test_truncated_or_extended_data_is_refused(data: bytes) -> None:
    with pytest.raises(RequestMalformed):
        await read(data)


async def test_uncompressed_message_with_a_gzip_prefix_is_read_as_it_is() -> None:
    """A field that is not known is for the validation to refuse."""
    unknown = b"\x78\x01" + BYTES

    assert (await read(unknown)).SerializeToString() == BYTES + b"\x78\x01"


LARGE_REQUEST = pb.CreatePostRequest(post=pb.Post(body="x" * (20 * LARGE_BYTES)))
LARGE = gzip.compress(LARGE_REQUEST.SerializeToString())


async def test_large_messages_are_decompressed_in_turns() -> None:
    decompressor = Decompressor(100 * LARGE_BYTES, Turns())
    turns: list[str] = []

    async def unpack() -> None:
        assert await decompressor.decoded(LARGE, decode) == LARGE_REQUEST
        turns.append("unpacked")

    async def work() -> None:
        while turns.count("unpacked") < 20:
            turns.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(*[unpack() for _ in range(20)], work())

    assert "unpacked unpacked" not in " ".join(turns)


async def test_small_message_does_not_wait_for_large_ones() -> None:
    decompressor = Decompressor(100 * LARGE_BYTES, Turns())
    waiting = [asyncio.ensure_future(decompressor.decoded(LARGE, decode)) for _ in range(3)]

    assert await decompressor.decoded(gzip.compress(BYTES), decode) == REQUEST
    assert not any(it.done() for it in waiting)
    await asyncio.gather(*waiting)


async def test_large_message_is_decompressed_when_it_is_decoded() -> None:
    """Waiting messages stay compressed."""
    decompressor = Decompressor(100 * LARGE_BYTES, Turns())
    happened: list[str] = []

    def decode_noted(data: bytes) -> Message:
        happened.append("decode")
        return decode(data)

    def hold(size: int) -> None:
        assert size == LARGE_REQUEST.ByteSize()
        happened.append("unpack")

    await asyncio.gather(*[decompressor.decoded(LARGE, decode_noted, hold) for _ in range(5)])

    assert happened == ["unpack", "decode"] * 5
