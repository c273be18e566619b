"""Erases an author: calls a running service, or works on the database of the settings."""

import asyncio
from collections.abc import Mapping

from storeapi.v1 import admin_pb2

from store_service.cli.admin_client import CallFailed, opened_database, responses
from store_service.cli.progress import Report
from store_service.cli.service_options import ServiceOptions
from store_service.config import Config
from store_service.errors import InvalidRequest
from store_service.model import Erasure, ErasureProgress

_COUNTS = ("posts", "comments", "revisions", "changes", "stored_responses")


def erase_by_service(
    service: ServiceOptions, config: Config, erasure: Erasure, report: Report
) -> Mapping[str, int]:
    """Lets a service erase an author, and returns the numbers of rows. Raises the errors of `responses`."""
    request = admin_pb2.EraseAuthorRequest(
        author=erasure.author,
        mode=admin_pb2.EraseMode.ValueType(erasure.mode),
        validate_only=erasure.dry_run,
        skip_rewrite=erasure.skip_rewrite,
    )
    response = admin_pb2.EraseAuthorResponse()
    for response in responses(
        service, config, lambda stub, metadata: stub.EraseAuthor(request, metadata=metadata)
    ):
        _show(report, erasure, response.progress)
    return {name: getattr(response, name) for name in _COUNTS}


def erase_in_process(config: Config, erasure: Erasure, report: Report) -> Mapping[str, int]:
    """Erases an author from the database of the settings, which no service uses, and returns the numbers of
    rows.

    Raises:
        CallFailed: The request is not valid.
        OperatorError: A service uses the SQLite file, or the database is not one of the service.
        SchemaMismatch: The schema is not the latest.
        ServiceError: The database cannot be used.
    """
    return asyncio.run(_erase(config, erasure, report))


async def _erase(config: Config, erasure: Erasure, report: Report) -> Mapping[str, int]:
    from store_service.rpc.validation.identifiers import check_identifier
    from store_service.service.erasure import Erasures
    from store_service.service.search_index import SearchIndex

    for description in check_identifier(erasure.author) if erasure.author else ("must not be empty",):
        raise CallFailed(f"AUTHOR {description}")
    progress = ErasureProgress()
    async with opened_database(config) as database:
        erasures = Erasures(database, SearchIndex(database, enabled=config.search))
        try:
            async for progress in erasures.run(erasure):
                _show(report, erasure, progress.progress)
        except InvalidRequest as error:
            raise CallFailed(str(error)) from error
    return progress.counts


def _show(report: Report, erasure: Erasure, progress: float) -> None:
    report("counting" if erasure.dry_run else "erasing", int(progress * 100), 100)
