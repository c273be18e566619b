"""The role of the server of each PostgreSQL session, and the rule that all sessions are on the same server.

A host name or address may lead to a standby for a short time. A server may become read-only or be replaced
while sessions to it stay open. Therefore each session queries the role of its server before it is used, and
readers follow the writer (docs/decisions/0027).
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from store_service.database_url import PostgresqlUrl
from store_service.errors import DatabaseUnavailable, OperatorError


class WrongServer(Exception):
    """The session is on a server without the required role. The text is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server of a session, as the session has queried it."""

    started: datetime
    """Start time of the postmaster. It identifies the server. A restarted server counts as another one,
    because all of its sessions have ended."""
    is_standby: bool
    """It replays the writes of another server."""
    is_read_only: bool
    """The session cannot write: it is on a standby, or `default_transaction_read_only` is on."""
    generation: int
    """`CurrentServer.generation` at the time of the query."""


_QUERY_ROLE = """
SELECT pg_postmaster_start_time(), pg_is_in_recovery(), current_setting('transaction_read_only')::boolean
"""

_PID = "SELECT pg_backend_pid()"


class PoolerRefused(OperatorError):
    """A pooler between the service and PostgreSQL gives each transaction another session."""


async def refuse_transaction_pooling(first: Any, second: Any) -> None:
    """Checks that each of two connections of asyncpg without a statement cache has a session of its own.

    Raises:
        PoolerRefused: A pooler in transaction mode is in between.
    """
    await first.execute("BEGIN")
    await second.execute("BEGIN")
    before = [await first.fetchval(_PID), await second.fetchval(_PID)]
    await first.execute("COMMIT")
    await second.execute("COMMIT")
    # A pooler assigns the session that was returned last, or the one that was returned first.
    # In this order the sessions are exchanged either way.
    after = [await _session_pid(second), await _session_pid(first)]
    if before != after[::-1]:
        raise PoolerRefused(
            "a pooler in transaction mode is between the service and PostgreSQL; it does not preserve"
            " prepared statements and session settings: use session mode, or connect to PostgreSQL directly"
        )


async def _session_pid(connection: Any) -> int:
    # Without BEGIN even this statement could be prepared in one session and run in another.
    await connection.execute("BEGIN")
    pid: int = await connection.fetchval(_PID)
    await connection.execute("COMMIT")
    return pid


class CurrentServer:
    """The server of the writer, on which all sessions have to be."""

    def __init__(self, *, read_only: bool, settings: Mapping[str, int | str]) -> None:
        """Takes whether the service is read-only, so that a server without writes is accepted, and the
        settings of each session."""
        self.is_writable = not read_only
        """Whether the server has to accept writes."""
        # Not startup parameters, because poolers refuse or ignore them.
        self._query_role = _QUERY_ROLE + "".join(
            f", set_config('{it}', '{value}', false)" for it, value in settings.items()
        )
        self._server: Server | None = None
        """The server of the writer; None while the writer has no session."""
        self._last: Server | None = None
        """The last server of the writer."""
        self._move_callbacks: list[Callable[[], None]] = []
        self.generation = 0
        """Changes when other sessions may be on the wrong server. Each then queries the role again."""

    async def query_role(self, raw: Any) -> Server:
        """Queries the role of the server of an asyncpg session, and applies the settings of sessions."""
        generation = self.generation
        started, is_standby, is_read_only, *_ = await raw.fetchrow(self._query_role)
        return Server(
            started=started, is_standby=is_standby, is_read_only=is_read_only, generation=generation
        )

    def check(self, server: Server) -> None:
        """Checks that a session is on a server with the required role, and on the server of the writer.

        Raises:
            DatabaseUnavailable: It is not.
        """
        self.check_role(server)
        if self.is_other_server(server):
            raise DatabaseUnavailable from WrongServer(
                "the session is not on the server that takes the writes"
            )

    def check_role(self, server: Server) -> None:
        """Checks that a server accepts writes, unless the service is read-only.

        Raises:
            DatabaseUnavailable: The server does not accept writes.
        """
        if not (self.is_writable and server.is_read_only):
            return
        what = "is a standby" if server.is_standby else "is read-only (default_transaction_read_only)"
        raise DatabaseUnavailable from WrongServer(
            f"the server {what}, and without STORE_READ_ONLY the service needs a server that accepts writes"
        )

    def is_other_server(self, server: Server) -> bool:
        """Whether a session is on another server than the writer."""
        return self._server is not None and self._server.started != server.started

    @contextmanager
    def writer_on(self, server: Server) -> Iterator[None]:
        """Makes a server the one of the writer until the end of the block."""
        if self._last is not None and self._last.started != server.started:
            self._move()
        self._server = self._last = server
        try:
            yield
        finally:
            # The cause may affect other sessions too, so they query the role of their server again.
            self._server = None
            self._move()

    @contextmanager
    def on_move(self, callback: Callable[[], None]) -> Iterator[None]:
        """Calls `callback` at each change of `generation` until the end of the block."""
        self._move_callbacks.append(callback)
        try:
            yield
        finally:
            self._move_callbacks.remove(callback)

    def _move(self) -> None:
        self.generation += 1
        for callback in self._move_callbacks:
            callback()


class Hosts:
    """Opens connections of asyncpg to the hosts of a URL."""

    def __init__(
        self,
        url: PostgresqlUrl,
        current: CurrentServer,
        *,
        seconds: float,
        check: Callable[[Server], None] | None = None,
    ) -> None:
        """Takes the URL and the required server.

        Args:
            url: The URL.
            current: The server of the writer.
            seconds: Timeout of an attempt for all hosts together.
            check: Raises DatabaseUnavailable for an unsuitable server. The default is `current.check`.
        """
        self._url = url
        self._current = current
        self._check = check or current.check
        self.seconds = seconds

    async def connect(self, *_: object, **options: Any) -> Any:
        """Opens a connection to the first host that accepts one and has the required role. The role of the
        last host is not checked here.

        Args:
            options: The options of `asyncpg.connect`; host and port are replaced.

        Raises:
            Exception: The error of the last host.
        """
        options |= {"target_session_attrs": self._url.options.get("target_session_attrs", "any")}
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self.seconds
        for hosts_left, (host, port) in zip(range(len(self._url.hosts), 0, -1), self._url.hosts, strict=True):
            # A host that does not respond, or hangs after the login, must not use the time of the others.
            now = loop.time()
            seconds = max(ends_at - now, 0) / hosts_left
            try:
                connection = await asyncpg.connect(
                    **{**options, "host": host, "port": port, "timeout": seconds}
                )
            except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError):
                if hosts_left == 1:
                    raise
                continue
            if hosts_left == 1 or await self._may_serve(connection, ends_at=now + seconds):
                return connection
        raise AssertionError("a URL has a host")

    async def _may_serve(self, connection: Any, *, ends_at: float) -> bool:
        """Whether the server of a connection has the required role. If not, the connection is terminated.

        Args:
            connection: A connection of asyncpg.
            ends_at: When to stop waiting for the response, in the time of the event loop.
        """
        try:
            async with asyncio.timeout_at(ends_at):
                self._check(await self._current.query_role(connection))
        except (DatabaseUnavailable, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()
            return False
        except BaseException:
            # The caller does not receive the connection, so it cannot terminate it.
            connection.terminate()
            raise
        return True
