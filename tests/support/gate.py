"""A gate that blocks an operation until a test opens it."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from tests.support.timeouts import scaled_timeout


class Gate:
    """Blocks a connection until it is opened, so that other jobs have to wait.

    Writes on SQLite run in the thread of the connection, where nothing can be awaited. There the gate blocks
    the thread.
    """

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        """Set when the first operation reaches the gate."""
        self.operation: BatchOperation[Any, None] = BatchOperation(self._run)
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._opened = asyncio.Event()
        self._opened_for_threads = threading.Event()

    def open(self) -> None:
        """Lets all operations pass. Call it on the event loop."""
        self._opened.set()
        self._opened_for_threads.set()

    async def pass_through(self) -> None:
        """Waits until the gate is open."""
        if threading.get_ident() == self._loop_thread:
            self.entered.set()
            await self._opened.wait()
        else:
            self._loop.call_soon_threadsafe(self.entered.set)
            # A process waits for its threads at exit, so a gate that stays closed would block it forever.
            if not self._opened_for_threads.wait(scaled_timeout()):
                raise AssertionError("the gate was not opened in time")

    async def _run(self, _: Connection, arguments: Sequence[Any]) -> list[None]:
        await self.pass_through()
        return [None] * len(arguments)
