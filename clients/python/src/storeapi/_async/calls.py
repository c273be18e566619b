"""Makes the calls of AsyncStoreClient."""

# ruff: noqa: ASYNC109 - a deadline that gRPC knows also ends the work of the server.

from __future__ import annotations

from typing import TypeVar

import grpc
import grpc.aio

from storeapi._connection import Timeout, seconds
from storeapi._status import store_error

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class AsyncCalls:
    """One way to call for all methods of a client: the same deadline, the same errors."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._is_closed = False

    def close(self) -> None:
        """Refuses all calls from now on."""
        self._is_closed = True

    async def unary(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Reply], request: Request, timeout: Timeout
    ) -> Reply:
        """The reply to a request; a failed call raises a StoreError."""
        # Asked here: gRPC answers differently for each kind of channel, and not at all for a borrowed one.
        if self._is_closed:
            raise RuntimeError("this client is closed; make a new one")
        try:
            return await method(request, timeout=seconds(timeout, self._timeout))
        except grpc.RpcError as error:
            raise store_error(error) from error
