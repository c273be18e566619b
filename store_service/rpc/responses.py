"""Responses with many items, which the guard encodes: after it has checked the limits, and once for all
callers that get the same result.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar
from weakref import ref

from google.protobuf.message import Message

from store_service.model import Comment, Post, concatenated_texts
from store_service.rpc.turns import LARGE_BYTES, Turns

LARGE_COUNT = 64
"""A response with more items waits for its turn, however small they are: each takes about 8 microseconds."""

MAX_VARIANTS = 8
"""Encodings that are kept of one result."""

BESIDE_BODY_BYTES = 64
"""About as much of an item on the wire is not its body."""


class _Items(Protocol):
    @property
    def items(self) -> Sequence[Post] | Sequence[Comment]: ...


R = TypeVar("R", bound=_Items)


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyResponse:
    """A response that has not been encoded yet."""

    result: object
    """The source of the message. Callers that get the same object get the same bytes."""
    parts: Callable[[], Iterable[Message]]
    """Makes messages that are the response when their bytes are joined; the event loop runs between them."""
    count: int
    """How many items it has."""
    size: int
    """Bytes on the wire, about."""
    variant: Hashable = None
    """Which of several responses that are made of the same result."""

    @property
    def is_large(self) -> bool:
        """Whether it has to wait for its turn."""
        return self.count > LARGE_COUNT or self.size > LARGE_BYTES


def lazy(result: R, to_message: Callable[[R], Message]) -> LazyResponse:
    """The response that `to_message` makes of a result with items."""
    return LazyResponse(
        result=result,
        parts=lambda: (to_message(result),),
        count=len(result.items),
        size=sum([utf8_size(concatenated_texts(item)) for item in result.items])
        + BESIDE_BODY_BYTES * len(result.items),
    )


def utf8_size(body: str) -> int:
    """Bytes of a body on the wire."""
    return len(body) if body.isascii() else len(body.encode())


class Encoder:
    """Encodes responses, large ones in turns, and keeps the bytes for as long as the result lives."""

    def __init__(self, turns: Turns) -> None:
        """Takes the queue in which large responses wait."""
        self._turns = turns
        self._encoded: dict[int, tuple[ref[object], dict[Hashable, bytes]]] = {}
        """By the identity of the result: comparing two pages would take as long as encoding one."""

    async def encode(self, response: LazyResponse) -> bytes:
        """The bytes of a response."""
        variants = self._variants(response.result)
        if not response.is_large:
            data = variants.get(response.variant)
            if data is None:
                data = b"".join([part.SerializeToString() for part in response.parts()])
        else:
            # Also for bytes that are there already: gRPC copies them.
            async with self._turns.turn():
                data = variants.get(response.variant)
                if data is None:
                    data = await _in_parts(response)
        if len(variants) < MAX_VARIANTS:
            # Before anything else runs, so that the next in turn finds it.
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
