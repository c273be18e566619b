"""Leaves a PostgreSQL server that has stopped to respond, when its address leads to another server.

A host that hangs or is cut off closes no connection. A session would wait for its response until the response
timeout, although a proxy, a DNS name or a list of hosts already leads to the new primary.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog

from store_service.database.driver_errors import driver_errors
from store_service.database.postgresql_connection import terminate
from store_service.database.sessions import CurrentServer, Hosts, Server
from store_service.database_url import PostgresqlUrl
from store_service.errors import DatabaseUnavailable

CHECK_SECONDS = 2.0
"""Maximum duration of a check."""

log = structlog.get_logger("store_service.database")


class MoveCheck:
    """Checks for all sessions of a process whether the writes have moved to another server."""

    def __init__(self, url: PostgresqlUrl, options: Mapping[str, Any], current: CurrentServer) -> None:
        """Takes the URL, further options of connections, and the server of the writer."""
        hosts = Hosts(url, current, seconds=CHECK_SECONDS, check=current.check_role)
        self._connect = partial(hosts.connect, **options, statement_cache_size=0)
        self._current = current
        self._sessions: dict[Any, Server] = {}
        self._check: asyncio.Task[None] | None = None

    @contextmanager
    def includes(self, raw: Any, server: Server) -> Iterator[None]:
        """Terminates a session on `server` if the writes move to another one, until the end of the block."""
        if self._current.per_transaction:
            # A pooler may give the connection a session on another server at any time.
            yield
            return
        self._sessions[raw] = server
        try:
            yield
        finally:
            del self._sessions[raw]

    def start(self) -> None:
        """Starts a check, unless one is running. Called while a session waits for a response."""
        # Each server is suitable for a read-only service, and its address may lead to several in turn.
        if not self._current.is_writable:
            return
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._terminate_if_moved(), name="move-check")

    async def close(self) -> None:
        """Ends a running check."""
        if self._check is not None:
            self._check.cancel()
            await asyncio.wait([self._check])

    async def _terminate_if_moved(self) -> None:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                connection = await self._connect()
                try:
                    found = await self._current.query_role(connection)
                finally:
                    connection.terminate()
            self._current.check_role(found)
        # A statement may still be answered if no server, a standby, or a server without free connections is
        # found.
        except (TimeoutError, DatabaseUnavailable):
            return
        except driver_errors():
            return
        left = [raw for raw, server in self._sessions.items() if server.started != found.started]
        if left:
            log.warning("the writes have moved to another server", sessions=len(left))
        for raw in left:
            terminate(raw)
