# Made from storeapi/_async/calls.py by tools/generate_sync.py: change that one, then `make protos`.
"""Makes the calls of StoreClient."""

from __future__ import annotations

from typing import TypeVar

import grpc

from storeapi._connection import Timeout, seconds
from storeapi._status import store_error

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Calls:
    """One way to call for all methods of a client: the same deadline, the same errors."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._is_closed = False

    def close(self) -> None:
        """Refuses all calls from now on."""
        self._is_closed = True

    def unary(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Reply], request: Request, timeout: Timeout
    ) -> Reply:
        """The reply to a request; a failed call raises a StoreError."""
        # Asked here: gRPC answers differently for each kind of channel, and not at all for a borrowed one.
        if self._is_closed:
            raise RuntimeError("this client is closed; make a new one")
        try:
            return method(request, timeout=seconds(timeout, self._timeout))
        except grpc.RpcError as error:
            raise store_error(error) from error
