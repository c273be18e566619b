"""A stream that is opened again where it broke off."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc

from storeapi._async.calls import AsyncCalls
from storeapi._connection import Timeout
from storeapi._retries import Attempts
from storeapi._status import undecodable
from storeapi._streams import AsyncStream
from storeapi.errors import StoreError

log = logging.getLogger("storeapi")


class AsyncReconnecting:
    """A stream of responses. After the first one it is opened again without a limit of attempts or time."""

    def __init__(
        self,
        calls: AsyncCalls,
        name: str,
        open: Callable[[], Any],
        *,
        timeout: Timeout,
        silence_seconds: float,
    ) -> None:
        """Takes how to open the stream.

        Args:
            calls: The calls of the client.
            name: The name of the operation, for the log.
            open: Makes the call that continues after the last response.
            timeout: Deadline in seconds of the first response.
            silence_seconds: Maximum time without a response after it.
        """
        self._calls = calls
        self._name = name
        self._open = open
        self._timeout = timeout
        self._silence_seconds = silence_seconds
        self._stream: AsyncStream | None = None
        self._pause = calls.pause()
        self._attempts: Attempts | None = None
        self._has_begun = False
        self.is_closed: bool = False

    async def close(self) -> None:
        """Ends the call; closing it again has no effect."""
        self.is_closed = True
        self._pause.cancel()
        self._drop()

    async def read(self) -> Any:
        """The next response; None after it was closed."""
        while True:
            if self.is_closed or (self._has_begun and self._calls.is_closed):
                return None
            self._calls.check_open()
            if self._attempts is None:
                self._attempts = self._calls.attempts(self._timeout)
            try:
                response = await self._response(self._attempts)
            except StoreError as silence:
                await self._after(silence, silence)
            except grpc.RpcError as failure:
                if not self.is_closed:
                    await self._after(await self._calls.error(failure, self._attempts), failure)
            else:
                if self._attempts.count > 1:
                    log.info("%s continues after %d attempts", self._name, self._attempts.count)
                self._has_begun = self._calls.has_answered = True
                self._attempts = Attempts(None, is_endless=True)
                return response

    async def _response(self, attempts: Attempts) -> Any:
        if self._stream is None:
            self._stream = self._calls.stream(
                self._open(),
                first_seconds=None if self._has_begun else attempts.remaining(),
                silence_seconds=self._silence_seconds,
            )
        try:
            response = await self._stream.read()
        except BaseException:
            self._drop()
            raise
        if response is None:
            self._drop()
            raise undecodable()
        return response

    async def _after(self, error: StoreError, cause: Exception) -> None:
        """Waits until the next attempt, or raises the error."""
        attempts = self._attempts
        assert attempts is not None
        error.attempts = attempts.count
        pause = attempts.pause_after(error) if self._calls.retries else None
        if pause is None:
            self._attempts = None if not self._has_begun else attempts
            raise error from (None if cause is error else cause)
        if error.attempts & (error.attempts - 1) == 0:
            log.log(
                logging.WARNING if self._has_begun else logging.INFO,
                "%s interrupted (attempt %d), retry in %.2f s: %s",
                self._name,
                error.attempts,
                pause,
                error,
            )
        await self._pause.wait(pause)

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
