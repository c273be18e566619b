"""The options of commands that let a running service work, or work on the database themselves."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from store_service import grpc_core
from store_service.cli.health import PEM, check_address
from store_service.config import Config

if TYPE_CHECKING:
    # Imports gRPC, which takes longer than most commands.
    from store_service.cli.health_client import Tls

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """The values of the options."""

    address: str | None
    """HOST:PORT or unix:PATH; None if it was not given."""
    api_key: str | None = field(repr=False)
    tls: "Tls | None"
    """None without TLS."""

    def target(self, config: Config) -> str | None:
        """Returns the address of the service; None if there can be none, because its port is not known."""
        from store_service.cli.health_client import connectable_address

        if self.address is None and config.listen.endswith(":0"):
            return None
        return self.address or connectable_address(config.listen)


def service_options(command: Command) -> Command:
    """--address, --api-key and the options of TLS, passed to the command as `service`."""

    @wraps(command)
    def with_service(
        *arguments: Any,
        address: str | None,
        api_key: str | None,
        tls: bool,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        tls_name: str | None,
        **others: Any,
    ) -> Any:
        if bool(tls_cert) != bool(tls_key):
            raise click.UsageError("--tls-cert and --tls-key must be given together")
        if address is not None:
            check_address(address)
        grpc_core.configure()
        from store_service.cli.health_client import Tls

        is_encrypted = tls or bool(tls_ca or tls_cert or tls_name)
        encryption = Tls(ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_name)
        service = ServiceOptions(address=address, api_key=api_key, tls=encryption if is_encrypted else None)
        return command(*arguments, service=service, **others)

    decorated: Any = with_service
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    result: Command = decorated
    return result


_OPTIONS = (
    click.option("--address", metavar="ADDRESS", help="HOST:PORT or unix:PATH of the service."),
    click.option(
        "--api-key",
        envvar="STOREAPI_API_KEY",
        metavar="KEY",
        help="API key with the permission admin; better in the environment variable STOREAPI_API_KEY.",
    ),
    click.option("--tls", is_flag=True, envvar="STOREAPI_TLS", help="Use TLS; implied by the options below."),
    click.option(
        "--tls-ca", type=PEM, envvar="STOREAPI_TLS_CA", help="File of the authorities to trust (PEM)."
    ),
    click.option(
        "--tls-cert", type=PEM, envvar="STOREAPI_TLS_CERT", help="File of the client certificate (PEM)."
    ),
    click.option(
        "--tls-key", type=PEM, envvar="STOREAPI_TLS_KEY", help="File of the key of --tls-cert (PEM)."
    ),
    click.option(
        "--tls-name", metavar="NAME", help="Name in the certificate of the server, if not that of ADDRESS."
    ),
)
