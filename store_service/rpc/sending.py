"""Sends responses within the limits of unread responses, and ends streams whose callers read nothing."""

import asyncio

import grpc
from google.protobuf.message import Message

from store_service.errors import StreamStalled
from store_service.rpc.call import Context
from store_service.rpc.pending import COUNTED_BYTES, Pending, PendingResponse
from store_service.rpc.responses import Encoder, LazyResponse
from store_service.rpc.turns import Turns

STALL_SECONDS = 30.0
"""Maximum time for a caller to read a message of a stream. After it, the stream ends."""

ROOM_POLL_SECONDS = 0.05
"""Interval at which a stream checks whether its next message fits into the limits."""

CANCEL_SECONDS = 1.0
"""Maximum time between a failed write and the cancellation by gRPC, which usually follows at once."""


class ResponseSender:
    """Encodes responses, and sends the messages of streams."""

    def __init__(self, pending: Pending, turns: Turns) -> None:
        """Takes the limits of unread responses, and the turns in which large responses are encoded."""
        self._pending = pending
        self._encoder = Encoder(turns)

    async def encode(
        self, response: LazyResponse, peer: str, *, always: bool
    ) -> tuple[bytes, PendingResponse | None]:
        """Encodes a response and counts it as unread, unless it is too small to be counted.

        Args:
            response: The response.
            peer: The connection, as gRPC names its other end.
            always: The response is sent in any case, because the call has been executed.

        Raises:
            Overloaded: The response exceeds the limits.
        """
        if response.size <= COUNTED_BYTES:
            return await self._encoder.encode(response), None
        unread = self._pending.reserve(peer, response.size, always=always)
        try:
            data = await self._encoder.encode(response)
            unread.resize(len(data))
        except BaseException:
            unread.release()
            raise
        return data, unread

    async def send(self, context: Context, response: Message | LazyResponse) -> None:
        """Sends one message of a stream.

        Raises:
            StreamStalled: The caller reads nothing, and the buffers of gRPC are full.
            CancelledError: The caller has cancelled the call or lost its connection.
        """
        unread: PendingResponse | None = None
        try:
            if not isinstance(response, LazyResponse):
                data = response.SerializeToString()
            else:
                if response.size > COUNTED_BYTES:
                    await self._wait_for_room(context.peer(), response.size)
                data, unread = await self.encode(response, context.peer(), always=True)
            if unread is not None:
                unread.send()
            async with asyncio.timeout(STALL_SECONDS):
                await context.write(data)
        except TimeoutError:
            raise StreamStalled(seconds=STALL_SECONDS) from None
        except grpc.aio.InternalError:
            # A write fails before gRPC cancels the call of a caller that has left. If no cancellation
            # follows, the error is unexpected.
            await asyncio.sleep(CANCEL_SECONDS)
            raise
        finally:
            if unread is not None:
                unread.release()

    async def _wait_for_room(self, peer: str, size: int) -> None:
        # A stream is not refused with OVERLOADED: its caller would retry at once.
        async with asyncio.timeout(STALL_SECONDS):
            while not self._pending.has_room(peer, size):  # noqa: ASYNC110  # polled only at the limit
                await asyncio.sleep(ROOM_POLL_SECONDS)
