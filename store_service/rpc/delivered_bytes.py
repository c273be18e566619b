"""How much of what each connection has sent has become calls."""

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store_service.rpc.call import Context

CALL_BYTES = 512
"""What a call takes on the wire besides its request and its metadata, or with small metadata."""


class Delivered(defaultdict[str, int]):
    """Bytes of the calls of each peer, as gRPC names it."""

    def __init__(self) -> None:
        """No peer has made a call, and metadata of none is counted."""
        super().__init__(int)
        self.closely: set[str] = set()
        """Peers whose metadata is counted too. To read it for every call would slow down all of them."""

    def add_call(self, context: "Context", peer: str, request_bytes: int) -> None:
        """Counts a call of a peer with its request."""
        self[peer] += CALL_BYTES + request_bytes
        if peer in self.closely:
            self[peer] += _metadata_bytes(context)


def _metadata_bytes(context: "Context") -> int:
    """About the most that the metadata of a call takes on the wire."""
    # Binary values are sent in base64.
    return sum(
        len(key) + (len(value) if isinstance(value, str) else len(value) * 4 // 3)
        for key, value in context.invocation_metadata() or ()
    )
