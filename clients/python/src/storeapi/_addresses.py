"""Parses targets, and derives what gRPC needs for several addresses; used by both clients."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any, Final

DEFAULT_TARGET: Final = "localhost:50051"

NAME_OPTIONS: Final = ("grpc.ssl_target_name_override", "grpc.default_authority")
"""The options that override the name by which the certificate of a server is checked."""

OTHER_SCHEMES: Final = ("unix:", "unix-abstract:", "vsock:", "xds:", "google-c2p:")
"""Prefixes of the targets of gRPC that are not HOST:PORT."""

LOCAL_SCHEMES: Final = ("", "ipv4:", "ipv6:", "dns:", "dns:///")
"""Schemes whose names the system resolves. Another name server may resolve localhost differently."""

PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables from which gRPC takes a proxy."""


def split_target(target: str | Sequence[str] | None, from_environment: str | None) -> list[str]:
    if target is None:
        target = from_environment or DEFAULT_TARGET
    # "ipv4:10.0.0.1:50051,10.0.0.2:50051" is one target of gRPC's own.
    if isinstance(target, str):
        target = [target] if target.startswith(("ipv4:", "ipv6:")) else target.split(",")
    addresses = [address.strip() for address in target]
    if not addresses or not all(addresses):
        raise ValueError("target must be an address such as localhost:50051, or several")
    return addresses


def grpc_target_of(addresses: Sequence[str]) -> str:
    """One target for all addresses: gRPC accepts several only as IP addresses of one family."""
    if len(addresses) == 1:
        return addresses[0]
    endpoints = [host_and_port(address) for address in addresses]
    for family, scheme in ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")):
        found = [_resolve(host, port, family) for host, port in endpoints]
        if all(found):
            return f"{scheme}:{','.join(dict.fromkeys(address for these in found for address in these))}"
    raise ValueError("target: several addresses must all be IPv4 or all be IPv6, and have known names")


def certificate_name_options(
    addresses: Sequence[str], channel_options: Sequence[tuple[str, Any]]
) -> list[tuple[str, Any]]:
    """The one name by which the certificates of several addresses are checked.

    gRPC would take it from the target, which has only IP addresses.
    """
    if any(name in NAME_OPTIONS for name, _ in channel_options):
        return []
    hosts = list(dict.fromkeys(host_and_port(address)[0].lower() for address in addresses))
    if len(hosts) > 1 and not all(map(_is_ip_address, hosts)):
        raise ValueError(
            "target: with TLS several addresses must have the same name, by which certificates are checked: "
            "give one DNS name that has all of the addresses, as dns:///NAME:PORT, "
            "or only IP addresses, of which every certificate holds the first"
        )
    return [(name, hosts[0]) for name in NAME_OPTIONS]


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit()):
        raise ValueError(f"target: one of several must be HOST:PORT, which {address!r} is not")
    return host.strip("[]"), int(port)


def _resolve(host: str, port: int, family: socket.AddressFamily) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return [f"[{it[4][0]}]:{port}" if family is socket.AF_INET6 else f"{it[4][0]}:{port}" for it in found]


def check_address(name: str, address: str) -> None:
    """Rejects an address without a port or with an unknown scheme, which gRPC would resolve as a name."""
    if address.startswith(OTHER_SCHEMES):
        return
    _, endpoints = split_scheme(address)
    for one in endpoints:
        found = re.fullmatch(r"(?:[^\s/:\[\]]+|\[[^\s/\[\]]+\]):([0-9]{1,5})", one)
        if found is None or not 0 < int(found[1]) < 2**16:
            raise ValueError(f"{name} must be HOST:PORT, such as localhost:50051, which {address!r} is not")


def is_local(address: str) -> bool:
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    scheme, endpoints = split_scheme(address)
    return scheme in LOCAL_SCHEMES and all(map(_is_loopback, endpoints))


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    return host == "localhost" or (_is_ip_address(host) and ipaddress.ip_address(host).is_loopback)


def split_scheme(address: str) -> tuple[str, list[str]]:
    """The gRPC scheme of an address, or "", and each HOST:PORT after it."""
    found = re.match(r"(?:ipv4:|ipv6:|dns:(?://[^/]*/)?)", address)
    scheme = found[0] if found else ""
    return scheme, address[len(scheme) :].split(",")
