"""The role of the server of each PostgreSQL session, and the rule that all sessions are on the same server.

A host name or address may lead to a standby for a short time. A server may become read-only or be replaced
while sessions to it stay open. Therefore each session queries the role of its server before it is used, and
readers follow the writer (docs/decisions/0027).
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from store_service.database_url import PostgresqlUrl
from store_service.errors import DatabaseUnavailable


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

_OTHER_SERVER = "store_service.server_has_changed"
"""A setting that does not exist. A transaction on another server than expected fails because it reads it, and
the log of PostgreSQL has its name."""


class CurrentServer:
    """The server of the writer, on which all sessions have to be."""

    def __init__(self, *, read_only: bool, settings: Mapping[str, int | str]) -> None:
        """Takes whether the service is read-only, so that a server without writes is accepted, and the
        settings of each session."""
        self.is_writable = not read_only
        """Whether the server has to accept writes."""
        # Not startup parameters, because poolers refuse or ignore them.
        self._session_settings, self._transaction_settings = [
            ", ".join(f"set_config('{it}', '{value}', {is_local})" for it, value in settings.items())
            for is_local in ("false", "true")
        ]
        self._server: Server | None = None
        """The server of the writer; None while the writer has no session."""
        self._last: Server | None = None
        """The last server of the writer."""
        self._move_callbacks: list[Callable[[], None]] = []
        self.generation = 0
        """Changes when other sessions may be on the wrong server. Each then queries the role again."""
        self.per_transaction = True
        """Whether a pooler may give each transaction another session. True as long as it is not known."""
        self.ask_writer: Callable[[], Awaitable[None]] = _nobody
        """Lets the writer run a transaction. Behind a pooler it then knows its server."""

    async def query_role(self, raw: Any, *, follows_writer: bool = True) -> Server:
        """Queries the role of the server of an asyncpg session, and applies the settings of sessions.

        Behind a pooler that gives each transaction another session, the settings are those of the transaction
        alone. The transaction remains open if the server is refused: the pooler then closes its session
        together with the connection, and does not use it again.

        Args:
            raw: A connection of asyncpg.
            follows_writer: Another server than that of the writer is refused.
        """
        generation = self.generation
        if self.per_transaction:
            await raw.execute(self.begin("BEGIN"))
            row = await raw.fetchrow(_QUERY_ROLE)
        else:
            row = await raw.fetchrow(f"{_QUERY_ROLE}, {self._session_settings}")
        started, is_standby, is_read_only, *_ = row
        server = Server(
            started=started, is_standby=is_standby, is_read_only=is_read_only, generation=generation
        )
        if self.per_transaction and not (
            self._is_refused(server) or (follows_writer and self.is_other_server(server))
        ):
            await raw.execute("COMMIT")
        return server

    def begin(self, text: str, server: Server | None = None) -> str:
        """Returns statements that begin a transaction and apply the settings of sessions to it.

        Args:
            text: Statements, of which the first begins the transaction.
            server: The server on which the transaction has to be. On another one PostgreSQL reports that a
                setting does not exist (SQLSTATE 42704).
        """
        check = ""
        if server is not None:
            check = (
                f"CASE WHEN pg_postmaster_start_time() <> timestamptz '{server.started.isoformat()}'"
                f" THEN current_setting('{_OTHER_SERVER}') END, "
            )
        first, *others = text.split("; ")
        return "; ".join([first, f"SELECT {check}{self._transaction_settings}", *others])

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
        if not self._is_refused(server):
            return
        what = "is a standby" if server.is_standby else "is read-only (default_transaction_read_only)"
        raise DatabaseUnavailable from WrongServer(
            f"the server {what}, and without STORE_READ_ONLY the service needs a server that accepts writes"
        )

    def _is_refused(self, server: Server) -> bool:
        return self.is_writable and server.is_read_only

    def is_other_server(self, server: Server) -> bool:
        """Whether a session is on another server than the writer."""
        return self._server is not None and self._server.started != server.started

    @contextmanager
    def writer_on(self, server: Server) -> Iterator[None]:
        """Makes a server the one of the writer until the end of the block."""
        self.move_writer(server)
        try:
            yield
        finally:
            # The cause may affect other sessions too, so they query the role of their server again.
            self._server = None
            self._move()

    def move_writer(self, server: Server) -> None:
        """Makes a server the one of the writer, which has a session."""
        if self._last is not None and self._last.started != server.started:
            self._move()
        self._server = self._last = server

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


async def _nobody() -> None:
    return


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection whose prepared statements have unique names.

    asyncpg numbers them in each process from 1. If a pooler is changed to transaction mode, a name must not
    mean the statement of another process.
    """

    __slots__ = ()

    def _get_unique_id(self, prefix: str) -> str:
        return f"{super()._get_unique_id(prefix)}{secrets.token_hex(8)}"


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
            options: The options of `asyncpg.connect`; host, port and connection_class are replaced.

        Raises:
            Exception: The error of the last host.
        """
        options |= {
            "target_session_attrs": self._url.options.get("target_session_attrs", "any"),
            "connection_class": _Connection,
        }
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
