"""Calls the health service of a server, for health checks of containers."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from store_service.address import Address

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # to listen on; clients need an address

_BEFORE_CAUSE = re.compile(
    r"^.*(last error: \w+: (\S+: )?|lookup failed for \S+: )(Failed to connect to remote host: )?", re.DOTALL
)
"""The text of gRPC before the cause of a failed connection."""


class NotHealthy(Exception):
    """The server does not respond, or its status is not SERVING. The text is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS options of a connection. Each file is PEM."""

    ca: Path | None = None
    """Authorities to trust; None: the default authorities of gRPC."""
    cert: Path | None = None
    """Client certificate, if the server requires one."""
    key: Path | None = None
    """Private key of `cert`."""
    server_name: str | None = None
    """Name in the certificate of the server; None: the host of the address."""


def connectable_address(listen: str) -> str:
    """Returns the address at which a client on this machine reaches a server that listens on `listen`."""
    address = Address.parse(listen)
    return str(replace(address, host=_LOOPBACK.get(address.host, address.host)))


def check_health(address: str, *, service: str, seconds: float, tls: Tls | None) -> None:
    """Checks that the health status of a server is SERVING.

    Args:
        address: HOST:PORT or unix:PATH.
        service: Full name of a gRPC service; "" for the whole server.
        seconds: Maximum time for the response.
        tls: TLS options; None without TLS.

    Raises:
        NotHealthy: The server does not respond, or has another status.
    """
    with channel_to(address, tls) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=seconds
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise NotHealthy(f"{address} does not respond within {seconds:g} s") from error
            raise NotHealthy(f"{address} does not respond: {connection_problem(error)}") from error
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        raise NotHealthy(f"{address} has status {status}")


def channel_to(address: str, tls: Tls | None) -> grpc.Channel:
    """Returns a channel to a server; without TLS if `tls` is None."""
    # Without HTTP proxies, so that this server is checked.
    options: list[tuple[str, object]] = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    ca, key, cert = (file.read_bytes() if file else None for file in (tls.ca, tls.key, tls.cert))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options=options)


def connection_problem(error: grpc.RpcError) -> str:
    """Returns the cause of a failed call in one line."""
    details = error.details() or error.code().name.lower()
    cause = _BEFORE_CAUSE.sub("", details).rstrip("]")
    return " ".join(cause.split())
