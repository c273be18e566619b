"""Sets the write mode of the source of a copy: calls its service, or works on the database itself."""

import asyncio

from storeapi.v1 import admin_pb2

from store_service.cli.admin_client import call_once, opened_database
from store_service.cli.service_options import ServiceOptions
from store_service.config import Config
from store_service.model import WriteMode

CALL_SECONDS = 20.0
"""Deadline of the call. It waits for the writes that were sent before."""


def set_mode(service: ServiceOptions, config: Config, mode: WriteMode) -> None:
    """Sets the mode of the database of the settings. Returns when it has an effect in all processes.

    Only the service of a SQLite file may write to it, so it is called if there is one. PostgreSQL is written
    to directly, unless the options have an address.

    Raises:
        NoService: The SQLite file is in use, and no service responds at its address.
        CallFailed: The service has refused the call.
        OperatorError, SchemaMismatch, ServiceError: As for `opened_database`.
    """
    from store_service.database import connect

    if service.address is None and not connect.is_in_use(config.DATABASE_URL):
        asyncio.run(_set(config, mode))
        return
    request = admin_pb2.SetWriteModeRequest(mode=admin_pb2.WriteMode.ValueType(mode))
    call_once(
        service,
        config,
        lambda stub, metadata: stub.SetWriteMode(request, metadata=metadata, timeout=CALL_SECONDS),
    )


async def _set(config: Config, mode: WriteMode) -> None:
    from store_service.service.write_modes import set_write_mode

    async with opened_database(config) as database:
        await set_write_mode(database, mode)
