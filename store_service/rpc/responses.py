"""Responses with many resources. The RPC pipeline encodes them after it has checked the limits, and once for
all calls that get the same result.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar
from weakref import ref

from google.protobuf.message import Message

from store_service.model import Comment, Post, concatenated_texts
from store_service.rpc.turns import LARGE_BYTES, Turns

LARGE_COUNT = 128
"""A response with more resources waits for its turn, whatever their size: each takes 1 to 4 microseconds."""

MAX_VARIANTS = 8
"""Maximum number of encodings that are kept of one result."""

BESIDE_BODY_BYTES = 64
"""Estimated bytes of a resource on the wire without its texts."""


class _Items(Protocol):
    @property
    def items(self) -> Sequence[Post] | Sequence[Comment]: ...


R = TypeVar("R", bound=_Items)


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyResponse:
    """A response that has not been encoded yet."""

    result: object
    """The source of the response. Calls that get the same object share the encoded bytes."""
    parts: Callable[[], Iterable[Message]]
    """Returns messages whose joined bytes are the response. The event loop runs between two of them."""
    count: int
    """Number of resources."""
    size: int
    """Estimated bytes on the wire."""
    variant: Hashable = None
    """Distinguishes several responses of the same result."""

    @property
    def is_large(self) -> bool:
        """Whether it waits for its turn."""
        return self.count > LARGE_COUNT or self.size > LARGE_BYTES


def lazy(result: R, to_message: Callable[[R], Message]) -> LazyResponse:
    """Returns the response for a result with resources, which `to_message` converts."""
    return LazyResponse(
        result=result,
        parts=lambda: (to_message(result),),
        count=len(result.items),
        size=sum([utf8_size(concatenated_texts(item)) for item in result.items])
        + BESIDE_BODY_BYTES * len(result.items),
    )


def utf8_size(body: str) -> int:
    """Returns the bytes of a text on the wire."""
    return len(body) if body.isascii() else len(body.encode())


class Encoder:
    """Encodes responses, large ones in turns. Keeps the bytes as long as the result exists."""

    def __init__(self, turns: Turns) -> None:
        """Takes the turns of large responses."""
        self._turns = turns
        self._encoded: dict[int, tuple[ref[object], dict[Hashable, bytes]]] = {}
        """By identity of the result. Comparing two pages would take as long as encoding one."""

    async def encode(self, response: LazyResponse) -> bytes:
        """Returns the bytes of a response."""
        variants = self._variants(response.result)
        if not response.is_large:
            data = variants.get(response.variant)
            if data is None:
                data = b"".join([part.SerializeToString() for part in response.parts()])
        else:
            # A turn also for bytes that are already encoded: gRPC copies them.
            async with self._turns.turn():
                data = variants.get(response.variant)
                if data is None:
                    data = await _in_parts(response)
        if len(variants) < MAX_VARIANTS:
            # Before any other task runs, so that the next turn finds the bytes.
            variants[response.variant] = data
        return data

    def _variants(self, result: object) -> dict[Hashable, bytes]:
        key = id(result)
        if key not in self._encoded:
            self._encoded[key] = (ref(result, lambda _: self._encoded.pop(key, None)), {})
        return self._encoded[key][1]


async def _in_parts(response: LazyResponse) -> bytes:
    parts: list[bytes] = []
    for part in response.parts():
        parts.append(part.SerializeToString())
        await asyncio.sleep(0)
    return b"".join(parts)
