"""A TCP proxy that delays, cuts and blackholes connections."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

MIN_BYTES = 60
"""Smaller chunks are not a request or a response and are forwarded unchanged."""


class UnreliableProxy:
    """Forwards bytes between clients and a server, with random faults.

    It closes connections in the middle of a chunk, stops forwarding without closing, and delays chunks.
    """

    def __init__(
        self, chance: random.Random, *, cuts: float = 0.0, drops: float = 0.0, delay_seconds: float = 0.0
    ) -> None:
        """Sets the probabilities of faults.

        Args:
            chance: The source of randomness.
            cuts: Probability that a chunk is truncated and the connection closed.
            drops: Probability that the proxy stops forwarding in both directions from a chunk on, and keeps
                the connection open.
            delay_seconds: Maximum delay of a chunk.
        """
        self._chance = chance
        self._cuts = cuts
        self._drops = drops
        self._delay_seconds = delay_seconds
        self.is_silent = False
        """Whether nothing is forwarded, on existing and on new connections."""
        self.silent_from: bytes | None = None
        """A connection stops forwarding at the first chunk that contains these bytes."""
        self.server_address = ""
        """The address that new connections are forwarded to."""
        self.source_host = "127.0.0.1"
        """The address of this machine from which connections are forwarded."""
        self.address = ""
        self.cut_requests = 0
        self.cut_answers = 0
        self.dropped = 0
        self._carrying: set[asyncio.Task[None]] = set()
        self._dead: set[asyncio.Event] = set()
        """For each open connection, whether it stops forwarding."""

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._carrying)

    def cut(self) -> None:
        """Closes all connections. New ones are forwarded."""
        for task in self._carrying:
            task.cancel()

    def freeze(self) -> None:
        """Stops forwarding on all open connections, without closing them. New ones are forwarded."""
        for is_dead in self._dead:
            is_dead.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["UnreliableProxy"]:
        """Forwards until the end of the block."""
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
        self._dead.add(is_dead)
        try:
            host, port = self.server_address.split(":")
            with suppress(OSError):
                server_reader, server_writer = await asyncio.open_connection(
                    host, int(port), local_addr=(self.source_host, 0)
                )
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
            self._dead.discard(is_dead)
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
        """Forwards one direction until the connection ends or a fault ends it."""
        while data := await reader.read(65_536):
            if len(data) > MIN_BYTES:
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


@asynccontextmanager
async def forwarder(port: int) -> AsyncIterator[UnreliableProxy]:
    """A proxy without faults to a port of this machine. A test may lead it to another server, or to none."""
    network = UnreliableProxy(random.Random(1))
    network.server_address = f"127.0.0.1:{port}"
    async with network.running():
        yield network


def port_of(network: UnreliableProxy) -> int:
    """The port on which a proxy listens."""
    return int(network.address.split(":")[1])
