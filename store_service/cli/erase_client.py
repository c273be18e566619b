"""Erases an author: calls a running service, or works on the database of the settings."""

import asyncio
from collections.abc import Mapping

import grpc
from storeapi.v1 import admin_pb2, admin_pb2_grpc

from store_service.cli.health_client import Tls, channel_to, connection_problem
from store_service.cli.progress import Report
from store_service.config import Config
from store_service.errors import InvalidRequest
from store_service.model import Erasure, ErasureProgress

CONNECT_SECONDS = 3.0
"""Maximum time to connect to a service."""

_COUNTS = ("posts", "comments", "revisions", "changes", "stored_responses")


class NoService(Exception):
    """No service listens at the address. The text is one line."""


class ErasureFailed(Exception):
    """The service has refused or not finished the call. The text is one line."""


def erase_by_service(
    address: str, erasure: Erasure, report: Report, *, api_key: str | None, tls: Tls | None
) -> Mapping[str, int]:
    """Lets a service erase an author, and returns the numbers of rows.

    Args:
        address: HOST:PORT or unix:PATH.
        erasure: The request.
        report: Reports the progress.
        api_key: The key to authenticate with, if there is one.
        tls: TLS options; None without TLS.

    Raises:
        NoService: No service listens at the address.
        ErasureFailed: The service has refused or not finished the call.
    """
    request = admin_pb2.EraseAuthorRequest(
        author=erasure.author,
        mode=admin_pb2.EraseMode.ValueType(erasure.mode),
        validate_only=erasure.dry_run,
        skip_rewrite=erasure.skip_rewrite,
    )
    metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
    with channel_to(address, tls) as channel:
        try:
            grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise NoService(f"{address} does not respond") from None
        last: admin_pb2.EraseAuthorResponse | None = None
        try:
            for last in admin_pb2_grpc.AdminServiceStub(channel).EraseAuthor(request, metadata=metadata):
                _show(report, erasure, last.progress)
        except grpc.RpcError as error:
            raise ErasureFailed(f"{address}: {connection_problem(error)}") from error
    if last is None or not last.complete:
        raise ErasureFailed(f"{address} has not finished; run the command again")
    return {name: getattr(last, name) for name in _COUNTS}


def erase_in_process(config: Config, erasure: Erasure, report: Report) -> Mapping[str, int]:
    """Erases an author from the database of the settings, which no service uses, and returns the numbers of
    rows.

    Raises:
        ErasureFailed: The request is not valid.
        OperatorError: A service uses the SQLite file, or the database is not one of the service.
        SchemaMismatch: The schema is not the latest.
        ServiceError: The database cannot be used.
    """
    return asyncio.run(_erase(config, erasure, report))


async def _erase(config: Config, erasure: Erasure, report: Report) -> Mapping[str, int]:
    from store_service import startup
    from store_service.database import connect, schema
    from store_service.errors import SchemaMismatch
    from store_service.rpc.validation.identifiers import check_identifier
    from store_service.service.changes import Changes
    from store_service.service.erasure import Erasures

    for description in check_identifier(erasure.author) if erasure.author else ("must not be empty",):
        raise ErasureFailed(f"AUTHOR {description}")
    revision = await asyncio.to_thread(startup.check_database, config)
    if revision != schema.HEAD:
        raise SchemaMismatch(expected=schema.HEAD, actual=revision)
    progress = ErasureProgress()
    with connect.sole_use(config.DATABASE_URL):
        async with startup.open_database(config) as database:
            await schema.look(database)
            await Changes(database).begin()
            try:
                async for progress in Erasures(database).run(erasure):
                    _show(report, erasure, progress.progress)
            except InvalidRequest as error:
                raise ErasureFailed(str(error)) from error
    return progress.counts


def _show(report: Report, erasure: Erasure, progress: float) -> None:
    report("counting" if erasure.dry_run else "erasing", int(progress * 100), 100)
