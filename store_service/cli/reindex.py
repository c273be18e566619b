"""`store-service reindex`."""

import click

from store_service.cli import progress
from store_service.cli.errors import fail, one_line_errors, settings_or_exit
from store_service.cli.help import epilog
from store_service.cli.service_options import ServiceOptions, service_options


@click.command(epilog=epilog("store-service reindex", "store-service reindex --address store.internal:50051"))
@service_options
def reindex(service: ServiceOptions) -> None:
    """Build the index for full-text search again.

    The running service at --address does the work, or the one of this machine at STORE_LISTEN. If --address
    is not given and no service runs there, the command works on the database itself. Searches fail meanwhile;
    other calls continue. If the command is interrupted, the service continues.
    """
    config = settings_or_exit()
    if service.address is None and not config.search:
        fail("search is switched off (STORE_SEARCH)")
    from store_service.cli import admin_client, reindex_client

    with one_line_errors(config), progress.shown(in_bytes=False) as report:
        try:
            reindex_client.reindex_by_service(service, config, report)
        except admin_client.NoService as error:
            if service.address is not None:
                fail(str(error))
            reindex_client.reindex_in_process(config, report)
        except admin_client.CallFailed as error:
            fail(str(error))
    click.echo("search index: complete")
