"""Something for an operation to wait for, wherever it runs."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from store_service.database.connection import Connection
from store_service.database.workers import Operation
from tests.patience import patience


class Gate:
    """A worker that comes to it stays until it is opened, so that other work has to wait.

    Writes on SQLite run in the connection's thread, where nothing of the event loop can be awaited; there
    the gate keeps the thread itself.
    """

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        """Somebody stands in it, or has."""
        self.operation: Operation[Any, None] = Operation(self._run)
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._opened = asyncio.Event()
        self._opened_for_threads = threading.Event()

    def open(self) -> None:
        """Lets everybody through; to be called on the event loop."""
        self._opened.set()
        self._opened_for_threads.set()

    async def pass_through(self) -> None:
        """Returns when the gate is open."""
        if threading.get_ident() == self._loop_thread:
            self.entered.set()
            await self._opened.wait()
        else:
            self._loop.call_soon_threadsafe(self.entered.set)
            # The process waits for its threads, so a test that forgets one would never end.
            if not self._opened_for_threads.wait(patience()):
                raise AssertionError("nobody opened the gate")

    async def _run(self, _: Connection, arguments: Sequence[Any]) -> list[None]:
        await self.pass_through()
        return [None] * len(arguments)
