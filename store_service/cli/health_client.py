"""Asks a server whether it is well, as a container's health check does."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from store_service.address import Address

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # listened on, and never asked

_BEFORE_CAUSE = re.compile(
    r"^.*(last error: \w+: (\S+: )?|lookup failed for \S+: )(Failed to connect to remote host: )?", re.DOTALL
)
"""What gRPC puts before the cause of a connection that failed."""


class NotHealthy(Exception):
    """The server does not answer, or says that it does not serve; the text is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the connection is encrypted; each file is PEM."""

    ca: Path | None = None
    """The authorities to trust, or those that gRPC knows."""
    cert: Path | None = None
    """A certificate of the caller, for a server that wants one."""
    key: Path | None = None
    """The key that belongs to it."""
    server_name: str | None = None
    """The name in the server's certificate, when it is asked under another one."""


def connectable_address(listen: str) -> str:
    """Where a server on this machine that listens there is asked."""
    address = Address.parse(listen)
    return str(replace(address, host=_ANY_ADDRESS.get(address.host, address.host)))


def check_health(address: str, *, service: str, seconds: float, tls: Tls | None) -> None:
    """Returns when the server says that it serves.

    Args:
        address: HOST:PORT or unix:PATH.
        service: The full name of a service; "" is the whole server.
        seconds: How long it may take to say so.
        tls: None is a plain connection.

    Raises:
        NotHealthy: It says something else, or nothing.
    """
    # The health of this server is asked, not that of a proxy that leads elsewhere.
    options: list[tuple[str, object]] = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    if tls is None:
        channel = grpc.insecure_channel(address, options=options)
    else:
        if tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        ca, key, cert = (file.read_bytes() if file else None for file in (tls.ca, tls.key, tls.cert))
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options=options)
    with channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=seconds
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise NotHealthy(f"{address} does not answer within {seconds:g} s") from error
            said = error.details() or error.code().name.lower()
            cause = _BEFORE_CAUSE.sub("", said).rstrip("]")
            raise NotHealthy(f"{address} does not answer: {' '.join(cause.split())}") from error
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        raise NotHealthy(f"{address} says {status}")
