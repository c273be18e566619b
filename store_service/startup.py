"""Preflight checks, which change nothing.

`store-service check` and every start run the same checks. A start upgrades the schema only after they have
passed (docs/decisions/0035).
"""

import asyncio
import errno
from contextlib import AbstractAsyncContextManager, suppress

from store_service import address, instrumentation
from store_service.config import Config
from store_service.database import connect, engines, privileges, schema
from store_service.database.writer_frames import WriterProcess
from store_service.errors import OperatorError, SchemaMismatch
from store_service.observability.batches import ObserverFactory, without_observer

IN_USE = "in use"
FREE = "fine"


class CannotListen(OperatorError):
    """The address cannot be bound."""

    def __init__(self, listen: str, error: OSError | None = None) -> None:
        """Takes the address, and the error of the system, if it is known."""
        unknown = "the address is in use, or is not an address of this machine"
        super().__init__(f"cannot listen on {listen}: {address.problem(listen, error) if error else unknown}")


async def prepare(config: Config, *, is_reserved: bool = False) -> str:
    """Runs all checks that are possible before a schema upgrade.

    Returns:
        The revision of the schema. If it is not the latest, an upgrade is necessary.

    Raises:
        CannotListen, MetricsAddressUnavailable: An address is in use, or is not an address of this machine.
        OperatorError: The database is of another application, or its files or privileges are insufficient.
        SchemaMismatch: The schema is unknown, or is old and STORE_AUTO_MIGRATE is false.
        ServiceError: The database cannot be opened.
    """
    await asyncio.to_thread(check_addresses, config, is_reserved=is_reserved)
    revision = await asyncio.to_thread(check_database, config, is_start=True)
    if revision != schema.HEAD:
        if not config.auto_migrate:
            raise SchemaMismatch(expected=schema.HEAD, actual=revision)
        # Without an upgrade, the server opens the database itself before it changes anything.
        await try_to_open(config)
    return revision


def check_addresses(config: Config, *, is_reserved: bool = False, may_be_in_use: bool = False) -> str:
    """Checks that the addresses can be bound.

    Args:
        config: The settings.
        is_reserved: The supervisor already holds the address to serve on.
        may_be_in_use: A service may be running and use the addresses.

    Returns:
        FREE, or IN_USE if `may_be_in_use` is true and an address is in use.

    Raises:
        CannotListen, MetricsAddressUnavailable: An address cannot be bound.
    """
    state = FREE
    addresses: list[tuple[str, type[CannotListen | instrumentation.MetricsAddressUnavailable]]] = []
    if not is_reserved:
        addresses.append((config.listen, CannotListen))
    if config.metrics_listen:
        addresses.append((config.metrics_listen, instrumentation.MetricsAddressUnavailable))
    for listen, error_class in addresses:
        try:
            address.check(listen)
        except OSError as error:
            if not (may_be_in_use and error.errno == errno.EADDRINUSE):
                raise error_class(listen, error) from None
            state = IN_USE
    return state


def check_database(config: Config, *, is_start: bool = False) -> str:
    """Checks that the database belongs to the service, and that files and privileges are sufficient.

    Args:
        config: The settings.
        is_start: A start follows. A start may serve reads on a full disk, which `store-service check` reports
            as an error, and may run an upgrade, which also recovers an interrupted write.

    Returns:
        The revision of the schema, or schema.UNKNOWN.

    Raises:
        OperatorError: The database is of another application, or its files or privileges are insufficient.
        SchemaMismatch: The schema is unknown to this program.
        ServiceError: The database cannot be opened.
    """
    will_upgrade = is_start and config.auto_migrate
    engines.check_same_database(
        config.DATABASE_URL,
        config.DATABASE_DIRECT_URL,
        connect_timeout_seconds=config.connect_timeout_seconds,
    )
    connect.check_files(config.DATABASE_URL, needs_room=not is_start)
    find = schema.find_to_upgrade if will_upgrade else schema.find
    revision = find(
        config.DATABASE_URL,
        connect_timeout_seconds=config.connect_timeout_seconds,
        upgrades=config.auto_migrate and not config.DATABASE_DIRECT_URL,
        serves=privileges.TO_READ if config.read_only else privileges.TO_WRITE,
    )
    if config.auto_migrate and config.DATABASE_DIRECT_URL:
        # Its role upgrades the schema.
        find(
            config.DATABASE_DIRECT_URL,
            connect_timeout_seconds=config.connect_timeout_seconds,
            upgrades=True,
        )
    if will_upgrade and revision != schema.HEAD:
        connect.check_files(config.DATABASE_URL)
    return revision


async def try_to_open(config: Config) -> str:
    """Opens a PostgreSQL database as the service does, because poolers may reject its startup parameters.

    Does nothing for SQLite, which cannot be opened by the service without changing the file.

    Returns:
        What is between the service and PostgreSQL; empty for SQLite.

    Raises:
        ServiceError: The database cannot be opened.
        OperatorError: A pooler does not preserve what a setting requires.
    """
    if connect.is_sqlite(config.DATABASE_URL):
        return ""
    async with open_database(config) as database:
        # An error about missing tables also proves that the connection works.
        with suppress(SchemaMismatch):
            await schema.look(database)
        return database.pooling


def open_database(
    config: Config,
    *,
    observe: ObserverFactory = without_observer,
    with_replicas: bool = False,
    writer_process: WriterProcess | None = None,
) -> AbstractAsyncContextManager[connect.Database]:
    """Opens the database with the settings, and the replicas if requested; see `connect.open_database`."""
    return connect.open_database(
        config.DATABASE_URL,
        direct_url=config.DATABASE_DIRECT_URL,
        statement_cache_size=config.statement_cache_size,
        readers=config.read_connections,
        lock_timeout_seconds=config.lock_timeout_seconds,
        statement_timeout_seconds=config.statement_timeout_seconds,
        connect_timeout_seconds=config.connect_timeout_seconds,
        force_roll_back=config.DB_FORCE_ROLL_BACK,
        observe=observe,
        read_only=config.read_only,
        replica_urls=config.DATABASE_READ_URL.split() if with_replicas else (),
        max_replica_lag_seconds=config.max_replica_lag_seconds,
        writer_process=writer_process,
    )
