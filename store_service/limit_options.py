"""Translates the settings of limits."""

from store_service.address import parse_networks
from store_service.config import Config
from store_service.rpc.connection_limits import ConnectionLimits
from store_service.rpc.connections import Connections
from store_service.rpc.limits import Limits
from store_service.rpc.pending import Pending
from store_service.rpc.trusted_proxies import TrustedProxies


def limits(config: Config, connections: Connections) -> Limits:
    """Returns the limits of calls."""
    return Limits(
        max_calls=config.max_concurrent_calls,
        max_bytes=config.max_concurrent_bytes,
        calls_per_second=config.rate_limit_per_caller,
        max_seconds=config.max_call_seconds,
        pending=Pending(
            max_connection_bytes=config.max_pending_response_bytes_per_connection,
            max_bytes=config.max_pending_response_bytes,
            max_seconds=config.max_call_seconds,
            cut=connections.cut,
        ),
    )


def connection_limits(config: Config, connections: Connections, limits: Limits) -> ConnectionLimits:
    """Returns the limits of connections. Connections with calls in flight, by `limits`, are not closed."""
    return ConnectionLimits(
        connections,
        max_connections=config.max_connections,
        max_per_address=config.max_connections_per_address,
        max_pending_bytes=config.max_concurrent_bytes,
        silent_seconds=config.handshake_timeout_seconds,
        busy=limits.peers,
        on_inspection=limits.pending.inspected,
    )


def trusted_proxies(config: Config) -> TrustedProxies | None:
    """Returns what finds the callers behind proxies; None if no proxy is trusted."""
    networks = parse_networks(config.trusted_proxies)
    return TrustedProxies(networks) if networks else None
