"""Builds the search index again: calls a running service, or works on the database of the settings."""

import asyncio

from storeapi.v1 import admin_pb2

from store_service.cli.admin_client import opened_database, responses
from store_service.cli.progress import Report
from store_service.cli.service_options import ServiceOptions
from store_service.config import Config


def reindex_by_service(service: ServiceOptions, config: Config, report: Report) -> None:
    """Lets a service build the index. Raises the errors of `responses`."""
    request = admin_pb2.RebuildSearchIndexRequest()
    for response in responses(
        service, config, lambda stub, metadata: stub.RebuildSearchIndex(request, metadata=metadata)
    ):
        _show(report, response.progress)


def reindex_in_process(config: Config, report: Report) -> None:
    """Builds the index of the database of the settings, which no service uses. Raises the errors of
    `opened_database`."""
    asyncio.run(_reindex(config, report))


async def _reindex(config: Config, report: Report) -> None:
    from store_service.service.search_index import SearchIndex

    async with opened_database(config) as database:
        index = SearchIndex(database, enabled=True)
        await index.restart()
        while await index.step():
            _show(report, await index.progress())


def _show(report: Report, progress: float) -> None:
    report("building the search index", int(progress * 1000), 1000)
