"""What a service needs, found out before anything is changed.

`store-service check` asks what every start asks; only then does a start upgrade the schema
(docs/decisions/0035).
"""

import asyncio
import errno
from contextlib import AbstractAsyncContextManager, suppress

from store_service import address, instrumentation
from store_service.config import Config
from store_service.database import connect, privileges, schema
from store_service.errors import OperatorError, SchemaMismatch
from store_service.observability.batches import ObserverFactory, without_observer

IN_USE = "in use"
FREE = "fine"


class CannotListen(OperatorError):
    """The address cannot be bound."""

    def __init__(self, listen: str, error: OSError | None = None) -> None:
        """Takes the address, and what the system says, if that is known."""
        why = "somebody else has it, or it is not of this machine"
        super().__init__(f"cannot listen on {listen}: {address.problem(listen, error) if error else why}")


async def prepare(config: Config, *, is_reserved: bool = False) -> str:
    """Makes sure that the service can work, as far as that can be known before the schema is upgraded.

    Returns:
        The revision of the schema; if it is not the latest, an upgrade is needed.

    Raises:
        CannotListen, observing.MetricsAddressUnavailable: An address is in use, or not of this machine.
        OperatorError: The database is not ours, or its files or rights do not allow to serve it.
        SchemaMismatch: The schema is another one, and must not be upgraded.
        ServiceError: The database cannot be opened.
    """
    await asyncio.to_thread(check_addresses, config, is_reserved=is_reserved)
    revision = await asyncio.to_thread(check_database, config, is_start=True)
    if revision != schema.HEAD:
        if not config.auto_migrate:
            raise SchemaMismatch(expected=schema.HEAD, actual=revision)
        # Otherwise it is opened anyhow, before anything is changed.
        await try_to_open(config)
    return revision


def check_addresses(config: Config, *, is_reserved: bool = False, may_be_in_use: bool = False) -> str:
    """Makes sure that the addresses can be bound.

    Args:
        config: The settings.
        is_reserved: The address to serve on is ours already.
        may_be_in_use: A service may be running, and then it has them.

    Returns:
        FREE, or IN_USE if one is and may be.

    Raises:
        CannotListen, observing.MetricsAddressUnavailable: One cannot be bound.
    """
    state = FREE
    wanted: list[tuple[str, type[CannotListen | instrumentation.MetricsAddressUnavailable]]] = []
    if not is_reserved:
        wanted.append((config.listen, CannotListen))
    if config.metrics_listen:
        wanted.append((config.metrics_listen, instrumentation.MetricsAddressUnavailable))
    for listen, refused in wanted:
        try:
            address.check(listen)
        except OSError as error:
            if not (may_be_in_use and error.errno == errno.EADDRINUSE):
                raise refused(listen, error) from None
            state = IN_USE
    return state


def check_database(config: Config, *, is_start: bool = False) -> str:
    """Makes sure that the database is ours, and that files and rights allow to serve it; changes nothing.

    Args:
        config: The settings.
        is_start: A start follows. It serves reads on a full disk, which `store-service check` reports, and an
            upgrade may come first, which also undoes what is half written.

    Returns:
        The revision of the schema, or schema.UNKNOWN.

    Raises:
        OperatorError: It is another application's, or something does not allow to serve it.
        SchemaMismatch: It has a schema that this program does not know.
        ServiceError: It cannot be opened.
    """
    will_upgrade = is_start and config.auto_migrate
    connect.check_files(config.DATABASE_URL, needs_room=not is_start)
    find = schema.find_to_upgrade if will_upgrade else schema.find
    revision = find(
        config.DATABASE_URL,
        connect_timeout_seconds=config.connect_timeout_seconds,
        upgrades=config.auto_migrate,
        serves=privileges.TO_READ if config.read_only else privileges.TO_WRITE,
    )
    if will_upgrade and revision != schema.HEAD:
        connect.check_files(config.DATABASE_URL)
    return revision


async def try_to_open(config: Config) -> None:
    """Opens a database of PostgreSQL as the service does: poolers refuse what other programs do not ask for.

    SQLite has nothing to try that would not change the file.

    Raises:
        ServiceError: It cannot be opened.
    """
    if not connect.is_sqlite(config.DATABASE_URL):
        async with open_database(config) as database:
            # An error about missing tables also shows that the connection works.
            with suppress(SchemaMismatch):
                await schema.look(database)


def open_database(
    config: Config, *, observe: ObserverFactory = without_observer
) -> AbstractAsyncContextManager[connect.Database]:
    """The database, opened as the settings say; see `connect.open_database`."""
    return connect.open_database(
        config.DATABASE_URL,
        readers=config.read_connections,
        lock_timeout_seconds=config.lock_timeout_seconds,
        statement_timeout_seconds=config.statement_timeout_seconds,
        connect_timeout_seconds=config.connect_timeout_seconds,
        force_roll_back=config.DB_FORCE_ROLL_BACK,
        observe=observe,
        read_only=config.read_only,
    )
