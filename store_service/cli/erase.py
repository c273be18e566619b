"""`store-service erase`."""

import os
from pathlib import Path

import click

from store_service.cli import progress
from store_service.cli.errors import fail, one_line_errors, settings_or_exit
from store_service.cli.health import PEM, check_address
from store_service.cli.help import epilog


@click.command(
    epilog=epilog(
        "store-service erase user-4711 --mode anonymize --dry-run",
        "store-service erase user-4711 --mode delete --address store.internal:50051",
    )
)
@click.argument("author")
@click.option(
    "--mode",
    type=click.Choice(["anonymize", "delete"]),
    required=True,
    help="Whether replies of others stay (anonymize), or go too (delete).",
)
@click.option("--dry-run", is_flag=True, help="Count only.")
@click.option("--skip-rewrite", is_flag=True, help="Do not rewrite the SQLite file at the end.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--address", metavar="ADDRESS", help="HOST:PORT or unix:PATH of the service.")
@click.option(
    "--api-key",
    envvar="STOREAPI_API_KEY",
    metavar="KEY",
    help="API key with the permission admin; better in the environment variable STOREAPI_API_KEY.",
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
def erase(
    author: str,
    mode: str,
    dry_run: bool,
    skip_rewrite: bool,
    yes: bool,
    address: str | None,
    api_key: str | None,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_name: str | None,
) -> None:
    """Erase everything that AUTHOR wrote, for good.

    The running service at --address does the work, or the one of this machine at STORE_LISTEN. If --address
    is not given and no service runs there, the command works on the database itself. It can be repeated after
    an interruption. docs/privacy.md lists what is erased. The numbers are printed on stdout.
    """
    config = settings_or_exit()
    if bool(tls_cert) != bool(tls_key):
        raise click.UsageError("--tls-cert and --tls-key must be given together")
    if address is not None:
        check_address(address)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if not yes and not dry_run:
        click.confirm(f"Erase everything that {author} wrote? This cannot be undone", abort=True, err=True)
    from store_service.cli import erase_client, health_client
    from store_service.model import EraseMode, Erasure

    erasure = Erasure(author=author, mode=EraseMode[mode.upper()], dry_run=dry_run, skip_rewrite=skip_rewrite)
    is_encrypted = tls or bool(tls_ca or tls_cert or tls_name)
    encryption = health_client.Tls(ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_name)
    target = address or health_client.connectable_address(config.listen)
    with one_line_errors(config), progress.shown(in_bytes=False) as report:
        try:
            if address is None and config.listen.endswith(":0"):
                raise erase_client.NoService
            counts = erase_client.erase_by_service(
                target, erasure, report, api_key=api_key, tls=encryption if is_encrypted else None
            )
        except erase_client.NoService as error:
            if address is not None:
                fail(str(error))
            counts = erase_client.erase_in_process(config, erasure, report)
        except erase_client.ErasureFailed as error:
            fail(str(error))
    for name, count in counts.items():
        click.echo(f"{name.replace('_', ' ')}: {count}")
