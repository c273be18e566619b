"""Counts how many bytes of each connection belong to calls that have arrived completely."""

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store_service.rpc.call import Context

CALL_BYTES = 512
"""Estimated bytes of a call on the wire, without the request and without large metadata."""


class Delivered(defaultdict[str, int]):
    """Bytes of calls by peer as gRPC names it."""

    def __init__(self) -> None:
        """Starts without peers."""
        super().__init__(int)
        self.closely: set[str] = set()
        """Peers whose metadata is counted too. Reading the metadata of every call would be too slow."""

    def add_call(self, context: "Context", peer: str, request_bytes: int) -> None:
        """Counts a call with its request."""
        self[peer] += CALL_BYTES + request_bytes
        if peer in self.closely:
            self[peer] += _metadata_bytes(context)


def _metadata_bytes(context: "Context") -> int:
    """Returns an upper estimate of the bytes of metadata on the wire."""
    # Binary values are base64 on the wire.
    return sum(
        len(key) + (len(value) if isinstance(value, str) else len(value) * 4 // 3)
        for key, value in context.invocation_metadata() or ()
    )
