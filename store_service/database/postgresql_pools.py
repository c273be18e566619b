"""Finds out how to connect to PostgreSQL, and opens pools of connections through `databases`."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

from databases import Database

from store_service.database.driver_errors import driver_errors, translate_error
from store_service.database.pooling import Pooling, find_pooling
from store_service.database.postgresql_tls import ssl_context
from store_service.database.sessions import CurrentServer, Hosts
from store_service.database_url import parse
from store_service.errors import DatabaseUnavailable

_STARTUP_PARAMETERS = {
    "application_name": "store-service",
    # asyncpg writes 'utf-8' with quotes. PgBouncer 1.18 takes this for another encoding than UTF8, and sets
    # it again in each transaction.
    "client_encoding": "UTF8",
}


class Found(NamedTuple):
    """How to connect to a URL, and what is between the service and PostgreSQL."""

    hosts: Hosts
    options: Mapping[str, Any]
    """Options of `asyncpg.connect`."""
    pooling: Pooling


async def find_connection(url: str, current: CurrentServer, connect_timeout_seconds: float) -> Found:
    """Opens two connections to a URL, finds out what is in between, and closes them.

    Raises:
        ServiceError: The database cannot be reached, or no server has the required role.
    """
    parsed = parse(url)
    try:
        tls = ssl_context(parsed)
    except OSError as error:  # a file is missing or not valid
        raise DatabaseUnavailable from error
    hosts = Hosts(parsed, current, seconds=connect_timeout_seconds)
    options = {**parsed.login, "ssl": tls or False, "server_settings": _STARTUP_PARAMETERS}
    first = second = None
    with translated_errors():
        try:
            first = await hosts.connect(**options, statement_cache_size=0)
            second = await hosts.connect(**options, statement_cache_size=0)
            async with asyncio.timeout(hosts.seconds):
                return Found(hosts, options, await find_pooling(first, second))
        except TimeoutError as error:
            if second is not None:
                error.args = (
                    "one of two connections gets no session: is a pooler in session mode too small?",
                )
            raise
        finally:
            for connection in (first, second):
                if connection is not None:
                    connection.terminate()


@asynccontextmanager
async def pool(
    found: Found, *, max_size: int, force_rollback: bool = False, **options: Any
) -> AsyncIterator[Database]:
    """Opens a pool of connections, and closes it after the block.

    Args:
        found: How to connect.
        max_size: Maximum number of connections.
        force_rollback: As for `databases`.
        options: More options of `asyncpg.connect`.

    Raises:
        ServiceError: The database cannot be reached.
    """
    if found.pooling.per_transaction:
        # By default asyncpg resets the settings of the session, which other clients use too.
        options["reset"] = _leave_session
    database = Database(
        "postgresql://",
        force_rollback=force_rollback,
        min_size=0,
        max_size=max_size,
        connect=found.hosts.connect,
        **found.options,
        **options,
    )
    async with AsyncExitStack() as stack:
        with translated_errors():
            await stack.enter_async_context(database)
        yield database


async def _leave_session(_: Any) -> None:
    return


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translates errors of asyncpg during connecting.

    Raises:
        ServiceError: The database cannot be reached.
    """
    try:
        yield
    # A refused certificate is also a ValueError, which `translate_error` would not translate.
    except (TimeoutError, ssl.SSLCertVerificationError) as error:
        raise DatabaseUnavailable from error
    except driver_errors() as error:
        raise translate_error(error) from error
