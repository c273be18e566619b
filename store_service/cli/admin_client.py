"""Calls AdminService of a running service, or opens the database of the settings."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
from storeapi.v1 import admin_pb2_grpc

from store_service.cli.health_client import channel_to, connection_problem
from store_service.cli.service_options import ServiceOptions
from store_service.config import Config

CONNECT_SECONDS = 3.0
"""Maximum time to connect to a service."""


class NoService(Exception):
    """No service listens at the address. The text is one line."""


class CallFailed(Exception):
    """The service has refused or not finished the call. The text is one line."""


def responses(
    service: ServiceOptions,
    config: Config,
    call: Callable[[admin_pb2_grpc.AdminServiceStub, Any], Iterator[Any]],
) -> Iterator[Any]:
    """Yields the responses of a call, of which the last one has `complete`.

    Args:
        service: The service.
        config: The settings, which have its address if the options have none.
        call: Starts the call, with a stub and metadata.

    Raises:
        NoService: No service listens at the address.
        CallFailed: The service has refused or not finished the call.
    """
    with _stub(service, config) as (address, stub, metadata):
        last = None
        for last in call(stub, metadata):
            yield last
    if last is None or not last.complete:
        raise CallFailed(f"{address} has not finished; run the command again")


def call_once(
    service: ServiceOptions, config: Config, call: Callable[[admin_pb2_grpc.AdminServiceStub, Any], Any]
) -> None:
    """Makes a call with one response. Takes the arguments and raises the errors of `responses`."""
    with _stub(service, config) as (_, stub, metadata):
        call(stub, metadata)


@contextmanager
def _stub(
    service: ServiceOptions, config: Config
) -> Iterator[tuple[str, admin_pb2_grpc.AdminServiceStub, Any]]:
    """Yields the address, a stub and metadata. Raises the errors of `responses`."""
    address = service.target(config)
    if address is None:
        raise NoService("STORE_LISTEN has port 0")
    metadata = (("authorization", f"Bearer {service.api_key}"),) if service.api_key else ()
    with channel_to(address, service.tls) as channel:
        try:
            grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise NoService(f"{address} does not respond") from None
        try:
            yield address, admin_pb2_grpc.AdminServiceStub(channel), metadata
        except grpc.RpcError as error:
            raise CallFailed(f"{address}: {connection_problem(error)}") from error


@asynccontextmanager
async def opened_database(config: Config) -> AsyncIterator[Any]:
    """Opens the database of the settings, which no service uses, until the end of the block.

    Raises:
        OperatorError: A service uses the SQLite file, or the database is not one of the service.
        SchemaMismatch: The schema is not the latest.
        ServiceError: The database cannot be used.
    """
    import asyncio

    from store_service import startup
    from store_service.database import connect, schema
    from store_service.errors import SchemaMismatch
    from store_service.service.changes import Changes

    revision = await asyncio.to_thread(startup.check_database, config)
    if revision != schema.HEAD:
        raise SchemaMismatch(expected=schema.HEAD, actual=revision)
    with connect.sole_use(config.DATABASE_URL):
        async with startup.open_database(config) as database:
            await schema.look(database)
            await Changes(database).begin()
            yield database
