"""The callers of calls that a trusted proxy forwards, by the metadata `x-forwarded-for`."""

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from store_service.address import Network

if TYPE_CHECKING:
    from store_service.rpc.call import Context

FORWARDED_KEY = "x-forwarded-for"
"""Metadata to which each proxy appends the address of its own caller."""

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """The proxies whose `x-forwarded-for` is believed."""

    def __init__(self, networks: tuple[Network, ...]) -> None:
        """Trusts every peer with an address in one of the networks."""
        self._networks = networks

    def forwarded_caller(self, context: "Context", peer: str) -> str | None:
        """Returns the caller for which a trusted proxy has forwarded a call; None if none has.

        The addresses are read from the last to the first, as long as the proxy that reported them is trusted.
        A caller can only write addresses before the one that its first trusted proxy appends.

        Args:
            context: The call.
            peer: The other end of the connection, as gRPC names it. A Unix socket is not trusted.

        Returns:
            The address as gRPC names a peer, without a port.
        """
        if not self._trusts(_parsed_peer(peer)):
            return None
        caller: IPAddress | None = None
        for text in _forwarded(context):
            address = _parsed(text)
            if address is None:
                break
            caller = address
            if not self._trusts(caller):
                break
        if caller is None:
            return None
        return f"ipv4:{caller}" if caller.version == 4 else f"ipv6:%5B{caller}%5D"

    def _trusts(self, address: IPAddress | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _forwarded(context: "Context") -> Iterator[str]:
    """Yields the addresses, the last one first. A proxy appends to the value, or adds another value."""
    values = [str(value) for key, value in context.invocation_metadata() or () if key == FORWARDED_KEY]
    yield from (text.strip() for text in reversed(",".join(values).split(",")))


def _parsed_peer(peer: str) -> IPAddress | None:
    kind, _, address = peer.partition(":")
    return _parsed(address.replace("%5B", "[").replace("%5D", "]")) if kind in ("ipv4", "ipv6") else None


def _parsed(text: str) -> IPAddress | None:
    """Returns an address that may have brackets and a port; None if it is not one."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address
