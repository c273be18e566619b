"""Finds out whether a pooler is between the service and PostgreSQL, and what it preserves."""

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

EXCHANGES = 3
"""How often the sessions of two connections are compared. Other clients of a pooler can make a comparison
succeed by chance."""

WAIT_SECONDS = 1.0
"""Time in which a pooler assigns a session, unless its only session is in use."""

_PID = "SELECT pg_backend_pid()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """What is between the service and PostgreSQL."""

    is_pooler: bool
    """Something else than PostgreSQL has accepted the connection."""
    per_transaction: bool
    """Each transaction of a connection may get another session."""
    keeps_statements: bool
    """Prepared statements exist in each session that a connection gets."""

    def __str__(self) -> str:
        """Returns the description for operators."""
        if not self.per_transaction:
            return "a pooler in session mode" if self.is_pooler else "direct"
        return (
            "a pooler in transaction mode"
            f" {'with' if self.keeps_statements else 'without'} support for prepared statements"
        )


async def find_pooling(first: Any, second: Any) -> Pooling:
    """Finds out what is between the service and PostgreSQL.

    Sets nothing, and leaves no prepared statement in a session that other clients may get.

    Args:
        first: A connection of asyncpg without a statement cache.
        second: Another one.
    """
    await first.execute("BEGIN")
    pid = await first.fetchval(_PID)
    # A pooler has numbers of its own for cancel requests.
    is_pooler = pid != first.get_server_pid()
    statement = await _prepared_by_pooler(first)
    begin = asyncio.ensure_future(second.execute("BEGIN"))
    await asyncio.wait([begin], timeout=WAIT_SECONDS)
    await first.execute("COMMIT")
    # If the pooler has a single session, `second` gets it now.
    await begin
    pids = [await second.fetchval(_PID), pid]
    await second.execute("COMMIT")
    per_transaction = pids[0] == pids[1]
    for _ in range(EXCHANGES):
        # A pooler assigns the session that was returned last, or the one that was returned first. In this
        # order the sessions are exchanged either way.
        per_transaction |= pids != [await _session_pid(second), await _session_pid(first, statement)]
    return Pooling(
        is_pooler=is_pooler or per_transaction,
        per_transaction=per_transaction,
        keeps_statements=not per_transaction or statement is not None,
    )


async def _prepared_by_pooler(connection: Any) -> Any | None:
    """Prepares `_PID` inside a transaction. Returns the statement if a pooler has changed its name, as
    poolers do that prepare it again in other sessions. Otherwise the statement is closed."""
    name = f"store_service_{secrets.token_hex(8)}"
    statement = await connection.prepare(_PID, name=name)
    if not await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name = $1", name):
        return statement
    await connection.execute(f"DEALLOCATE {name}")
    return None


async def _session_pid(connection: Any, statement: Any | None = None) -> int:
    # Without BEGIN even this statement could be prepared in one session and run in another.
    await connection.execute("BEGIN")
    pid: int = await (connection.fetchval(_PID) if statement is None else statement.fetchval())
    await connection.execute("COMMIT")
    return pid
