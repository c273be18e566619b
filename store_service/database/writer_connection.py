"""The connection of a worker to the writer process. `remote_writer.py` uses it."""

import asyncio
from typing import Any, Protocol, cast

import structlog

from store_service.database import writer_frames as frames
from store_service.database.writer_frames import FrameError, FrameReader, Hello, WriterMismatch

log = structlog.get_logger("store_service.database")


class Owner(Protocol):
    """What a connection needs of the writer that connects."""

    hello: Hello
    """What the writer process must say."""

    def received(self, event: int, answers: list[Any]) -> None:
        """Handles a message."""

    def send_soon(self) -> None:
        """Sends what is waiting."""

    def ended(self, *, is_finished: bool) -> None:
        """Handles the loss of the connection."""


class WriterConnection(asyncio.Protocol):
    """A connection to the writer process."""

    transport: asyncio.Transport

    def __init__(self, writer: Owner) -> None:
        """Takes the writer that connects."""
        loop = asyncio.get_running_loop()
        self._writer = writer
        self._reader = FrameReader()
        self.greeted: asyncio.Future[bool] = loop.create_future()
        """Whether the writer process accepts jobs. The error if it does not belong to this worker."""
        self.lost: asyncio.Future[None] = loop.create_future()
        self.is_full = False
        """Whether the writer process does not read what was sent."""
        self._is_finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            for payload in self._reader.feed(data):
                if not self.greeted.done():
                    self._writer.hello.check(payload)
                    self.greeted.set_result(True)
                    continue
                event, answers = frames.decoded(payload)
                self._is_finished = event == frames.FINISHED
                self._writer.received(event, answers)
        except WriterMismatch as error:
            self.greeted.set_exception(error)
        except FrameError as error:
            log.error("the connection to the writer process is closed", cause=str(error))
            self.transport.abort()

    def pause_writing(self) -> None:
        """Called when the writer process reads too slowly."""
        self.is_full = True

    def resume_writing(self) -> None:
        """Called when it has read enough."""
        self.is_full = False
        self._writer.send_soon()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        if not self.greeted.done():
            self.greeted.set_result(False)
        elif not self.greeted.cancelled() and self.greeted.exception() is None:
            self._writer.ended(is_finished=self._is_finished)
        if not self.lost.done():
            self.lost.set_result(None)
