"""Sessions of PostgreSQL: what their server may do, and that all of them are on the same server.

A name or address may lead to a standby for a moment, and a server may become read-only or be replaced while
sessions to it stay open. So each session asks for its server's role before it is used, and the sessions that
read follow the one that writes (docs/decisions/0027).
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
    """The session is on a server that must not serve it; the text is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a session's server says of itself."""

    started: datetime
    """When its postmaster was started. No two servers share it, and a server that was restarted counts as
    another one: all of its sessions have ended."""
    is_standby: bool
    """It replays what another server writes."""
    is_read_only: bool
    """Transactions of this session cannot write: on a standby, and by `default_transaction_read_only`."""
    generation: int
    """That of the current server when it was asked."""


_ASK = """
SELECT pg_postmaster_start_time(), pg_is_in_recovery(), current_setting('transaction_read_only')::boolean
"""

_PID = "SELECT pg_backend_pid()"


class PoolerRefused(OperatorError):
    """Something between us and PostgreSQL gives each transaction another session."""


async def refuse_transaction_pooling(first: Any, second: Any) -> None:
    """Makes sure that each of two connections of asyncpg, which keep no statements, has a session of its own.

    Raises:
        PoolerRefused: A pooler in transaction mode stands between.
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
    """The server on which every session belongs: that of the session that writes."""

    def __init__(self, *, read_only: bool, settings: Mapping[str, int | str]) -> None:
        """Takes whether the service takes no writes, so that a server that cannot write will do, and settings
        that each session is to have."""
        self._read_only = read_only
        # Not as startup parameters, which poolers refuse or ignore.
        self._ask = _ASK + "".join(
            f", set_config('{it}', '{value}', false)" for it, value in settings.items()
        )
        self._server: Server | None = None
        """The server of the session that writes; None while there is no such session."""
        self._last: Server | None = None
        self._on_move: list[Callable[[], None]] = []
        self.generation = 0
        """Changes when the other sessions may be on the wrong server; each then queries its role again."""

    async def ask(self, raw: Any) -> Server:
        """Queries the role of the server of an asyncpg session, and sets the session's settings."""
        generation = self.generation
        started, is_standby, is_read_only, *_ = await raw.fetchrow(self._ask)
        return Server(
            started=started, is_standby=is_standby, is_read_only=is_read_only, generation=generation
        )

    def check(self, server: Server) -> None:
        """Makes sure that a session may stay where it is.

        Raises:
            DatabaseUnavailable: Its server may not serve this service, or is not that of the session that
                writes.
        """
        self.check_role(server)
        if self.is_elsewhere(server):
            raise DatabaseUnavailable from WrongServer(
                "the session is not on the server that takes the writes"
            )

    def check_role(self, server: Server) -> None:
        """Makes sure that a server may serve this service at all.

        Raises:
            DatabaseUnavailable: It cannot write, and is to.
        """
        if self._read_only or not server.is_read_only:
            return
        what = "is a standby" if server.is_standby else "is read-only (default_transaction_read_only)"
        raise DatabaseUnavailable from WrongServer(
            f"the server {what}, and without STORE_READ_ONLY the service needs a server that accepts writes"
        )

    def is_elsewhere(self, server: Server) -> bool:
        """Whether a session has reached another server than the one that writes."""
        return self._server is not None and self._server.started != server.started

    @contextmanager
    def led_by(self, server: Server) -> Iterator[None]:
        """Until the end of the block the session that writes is on this server."""
        if self._last is not None and self._last.started != server.started:
            self._move()
        self._server = self._last = server
        try:
            yield
        finally:
            # The cause may affect the other sessions too, so they check their server.
            self._server = None
            self._move()

    @contextmanager
    def told_of_moves(self, tell: Callable[[], None]) -> Iterator[None]:
        """Calls `tell` at each change of `generation` until the end of the block."""
        self._on_move.append(tell)
        try:
            yield
        finally:
            self._on_move.remove(tell)

    def _move(self) -> None:
        self.generation += 1
        for tell in self._on_move:
            tell()


class Hosts:
    """Opens connections of asyncpg to the hosts of a URL."""

    def __init__(self, url: PostgresqlUrl, current: CurrentServer, *, seconds: float) -> None:
        """Takes the hosts, what a server must be, and how long an attempt may take for all hosts together."""
        self._url = url
        self._current = current
        self.seconds = seconds

    async def connect(self, *_: object, **options: Any) -> Any:
        """A connection to the first host that answers; of several, to the first that may serve us.

        Args:
            options: Those of `asyncpg.connect`; host and port are replaced.

        Raises:
            Exception: What the last host has answered.
        """
        options |= {"target_session_attrs": self._url.options.get("target_session_attrs", "any")}
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self.seconds
        for left, (host, port) in zip(range(len(self._url.hosts), 0, -1), self._url.hosts, strict=True):
            # A host that is silent, or hangs after the login, must not use up the time of the others.
            now = loop.time()
            seconds = max(ends_at - now, 0) / left
            try:
                connection = await asyncpg.connect(
                    **{**options, "host": host, "port": port, "timeout": seconds}
                )
            except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError):
                if left == 1:
                    raise
                continue
            if left == 1 or await self._may_serve(connection, ends_at=now + seconds):
                return connection
        raise AssertionError("a URL has a host")

    async def _may_serve(self, connection: Any, *, ends_at: float) -> bool:
        """Whether the server of a connection may serve us; if not, the connection is terminated.

        Args:
            connection: One of asyncpg.
            ends_at: When to give up waiting for the answer, in the time of the event loop.
        """
        try:
            async with asyncio.timeout_at(ends_at):
                self._current.check(await self._current.ask(connection))
        except (DatabaseUnavailable, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()
            return False
        except BaseException:
            # The caller never sees the connection, so nobody else can terminate it.
            connection.terminate()
            raise
        return True
