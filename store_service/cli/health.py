"""`store-service health`."""

from pathlib import Path

import click

from store_service import grpc_core
from store_service.address import Address
from store_service.cli import progress
from store_service.cli.errors import fail, settings_or_exit
from store_service.cli.help import epilog

PEM = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
"""The type of options with a PEM file."""


@click.command(
    epilog=epilog("store-service health", "store-service health store.internal:50051 --tls-ca ca.pem")
)
@click.argument("address", required=False)
@click.option("--service", default="", help="Full name of a gRPC service instead of the whole server.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, max=3600, min_open=True),
    default=3.0,
    show_default=True,
    help="Maximum time for the response, in seconds.",
)
@click.option("--tls", is_flag=True, envvar="STOREAPI_TLS", help="Use TLS; implied by the options below.")
@click.option("--tls-ca", type=PEM, envvar="STOREAPI_TLS_CA", help="File of the authorities to trust (PEM).")
@click.option(
    "--tls-cert", type=PEM, envvar="STOREAPI_TLS_CERT", help="File of the client certificate (PEM)."
)
@click.option("--tls-key", type=PEM, envvar="STOREAPI_TLS_KEY", help="File of the key of --tls-cert (PEM).")
@click.option(
    "--tls-name", metavar="NAME", help="Name in the certificate of the server, if not that of ADDRESS."
)
def health(
    address: str | None,
    service: str,
    timeout: float,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_name: str | None,
) -> None:
    """Check the health of the server at ADDRESS.

    ADDRESS is HOST:PORT or unix:PATH; without it, the server of this machine at STORE_LISTEN is checked. The
    exit code is 0 if the status is SERVING, and 1 for another status or no response. The environment
    variables STOREAPI_TLS, STOREAPI_TLS_CA, STOREAPI_TLS_CERT and STOREAPI_TLS_KEY are the defaults of the
    options, as for clients.
    """
    config = settings_or_exit()
    if bool(tls_cert) != bool(tls_key):
        raise click.UsageError("--tls-cert and --tls-key must be given together")
    if address is None and config.listen.endswith(":0"):
        raise click.UsageError("ADDRESS is required if STORE_LISTEN has port 0")
    if address is not None:
        check_address(address)
    grpc_core.configure()
    # No module of the server is imported, because health checks run every few seconds.
    from store_service.cli import health_client

    is_encrypted = tls or bool(tls_ca or tls_cert or tls_name)
    encryption = health_client.Tls(ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_name)
    target = address or health_client.connectable_address(config.listen)
    try:
        with progress.waiting(f"{target} (no response yet)"):
            health_client.check_health(
                target, service=service, seconds=timeout, tls=encryption if is_encrypted else None
            )
    except health_client.NotHealthy as error:
        fail(str(error))
    click.echo(f"{target} is serving")


def check_address(address: str) -> None:
    """Checks an argument ADDRESS.

    Raises:
        click.UsageError: It is not an address.
    """
    try:
        Address.parse(address)
    except ValueError as error:
        raise click.UsageError(f"ADDRESS {error}", click.get_current_context()) from None
