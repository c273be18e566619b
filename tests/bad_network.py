"""A TCP proxy that loses what it should carry."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

LEAST_BYTES = 60
"""What is shorter is no request and no answer; an answer in mid-air is lost most usefully."""


class BadNetwork:
    """Carries bytes between callers and a server, and does it badly whenever chance says so.

    It cuts connections in the midst of what they carry, lets them die without a word, and is slow.
    """

    def __init__(
        self, chance: random.Random, *, cuts: float = 0.0, drops: float = 0.0, delay_seconds: float = 0.0
    ) -> None:
        """Takes what decides.

        Args:
            chance: Where chance comes from.
            cuts: How probable it is that a piece of data is cut, and the connection with it.
            drops: How probable it is that from a piece of data on nothing comes through any more, in either
                direction, and the connection does not end.
            delay_seconds: How long a piece of data is kept at most.
        """
        self._chance = chance
        self._cuts = cuts
        self._drops = drops
        self._delay_seconds = delay_seconds
        self.is_silent = False
        """Whether nothing comes through any more, of connections that are there and of new ones."""
        self.silent_from: bytes | None = None
        """From a piece of data with this text on, nothing comes through any more on its connection."""
        self.server_address = ""
        """Where new connections lead."""
        self.address = ""
        self.cut_requests = 0
        self.cut_answers = 0
        self.dropped = 0
        self._carrying: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._carrying)

    def cut(self) -> None:
        """Ends every connection; new ones are carried."""
        for task in self._carrying:
            task.cancel()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["BadNetwork"]:
        """Carries until the end of the block."""
        carrying = self._carrying

        def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._carry(reader, writer))
            carrying.add(task)
            task.add_done_callback(carrying.discard)

        proxy = await asyncio.start_server(on_connection, "127.0.0.1", 0)
        self.address = "{}:{}".format(*proxy.sockets[0].getsockname())
        try:
            yield self
        finally:
            proxy.close()
            for task in carrying:
                task.cancel()
            await asyncio.gather(*carrying, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        is_dead = asyncio.Event()
        try:
            host, port = self.server_address.split(":")
            with suppress(OSError):
                server_reader, server_writer = await asyncio.open_connection(host, int(port))
                writers.append(server_writer)
                ways = [
                    asyncio.create_task(self._pump(reader, server_writer, is_dead, answers=False)),
                    asyncio.create_task(self._pump(server_reader, writer, is_dead, answers=True)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for each in writers:
                each.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_dead: asyncio.Event,
        *,
        answers: bool,
    ) -> None:
        """Carries one way until the connection ends, by itself or by chance."""
        while data := await reader.read(65_536):
            if len(data) > LEAST_BYTES:
                if self._chance.random() < self._cuts:
                    if answers:
                        self.cut_answers += 1
                    else:
                        self.cut_requests += 1
                    writer.write(data[: self._chance.randrange(len(data))])
                    return
                if self._chance.random() < self._drops and not is_dead.is_set():
                    self.dropped += 1
                    is_dead.set()
                if self._delay_seconds:
                    await asyncio.sleep(self._chance.random() * self._delay_seconds)
            if self.silent_from is not None and self.silent_from in data and not is_dead.is_set():
                self.dropped += 1
                is_dead.set()
            if self.is_silent:
                is_dead.set()
            if not is_dead.is_set():
                writer.write(data)
                await writer.drain()
