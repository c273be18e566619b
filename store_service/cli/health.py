"""`store-service health`."""

import os
from pathlib import Path

import click

from store_service import config as settings
from store_service.cli import progress
from store_service.cli.errors import fail, settings_or_exit
from store_service.cli.help import epilog

_PEM = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command(
    epilog=epilog("store-service health", "store-service health store.internal:50051 --tls-ca ca.pem")
)
@click.argument("address", required=False)
@click.option("--service", default="", help="Full name of a service; the whole server without.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, max=3600, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds in which it must answer.",
)
@click.option("--tls", is_flag=True, envvar="STOREAPI_TLS", help="Encrypt; any option below does too.")
@click.option("--tls-ca", type=_PEM, envvar="STOREAPI_TLS_CA", help="Authorities to trust.")
@click.option("--tls-cert", type=_PEM, envvar="STOREAPI_TLS_CERT", help="The caller's own certificate.")
@click.option("--tls-key", type=_PEM, envvar="STOREAPI_TLS_KEY", help="The key that belongs to it.")
@click.option("--tls-name", metavar="NAME", help="The name in the server's certificate.")
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
    """Ask the server at ADDRESS whether it is well.

    Without ADDRESS it is the one on this machine, at STORE_LISTEN. Exit code 0: it says SERVING. 1: it says
    something else, or nothing. The variables STOREAPI_TLS, STOREAPI_TLS_CA, STOREAPI_TLS_CERT and
    STOREAPI_TLS_KEY of the environment mean what they mean to clients.
    """
    config = settings_or_exit()
    if bool(tls_cert) != bool(tls_key):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    if address is None and config.listen.endswith(":0"):
        raise click.UsageError("STORE_LISTEN lets the system choose the port, so ADDRESS is needed")
    if address is not None:
        check_address(address)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Nothing of the server is loaded: this is called every few seconds.
    from store_service.cli import health_client

    is_encrypted = tls or bool(tls_ca or tls_cert or tls_name)
    encryption = health_client.Tls(ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_name)
    asked = address or health_client.connectable_address(config.listen)
    try:
        with progress.waiting(f"{asked} (no answer yet)"):
            health_client.check_health(
                asked, service=service, seconds=timeout, tls=encryption if is_encrypted else None
            )
    except health_client.NotHealthy as error:
        fail(str(error))
    click.echo(f"{asked} is serving")


def check_address(address: str) -> None:
    """Refuses an argument ADDRESS that is not an address.

    Raises:
        click.UsageError: It is not one.
    """
    try:
        settings.check_address(address)
    except ValueError as error:
        raise click.UsageError(f"ADDRESS {error}", click.get_current_context()) from None
