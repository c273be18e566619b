"""The channel options of the gRPC server."""

from typing import Any

from store_service.config import Config

_CONSTANT = [
    # Clients may ping every 2 seconds, also without calls. The default of gRPC, 5 minutes, would close
    # connections of clients that use keepalive to detect dead connections.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # The server also sends pings on connections that have been idle for a long time.
    ("grpc.http2.max_pings_without_data", 0),
    # By default, gRPC refuses new calls at random, with CANCELLED, when 1000 calls wait for the event loop.
    # After a burst of calls with short deadlines, most of these have already ended.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # The RPC pipeline decompresses requests, large ones one at a time. gRPC would decompress all at once.
    ("grpc.per_message_decompression", 0),
]


def server_options(config: Config, *, reuse_port: bool) -> list[tuple[str, Any]]:
    """Returns all options. The docstrings of the settings explain those of limits."""
    return [
        *_CONSTANT,
        *_limits(config),
        # Enabled only for workers. Otherwise a second server could bind the port without an error.
        ("grpc.so_reuseport", int(reuse_port)),
        # gRPC enables channelz by default.
        ("grpc.enable_channelz", int(config.channelz)),
        ("grpc.keepalive_time_ms", round(config.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.keepalive_timeout_seconds * 1000)),
        # Otherwise gRPC waits a minute for the response to a ping, regardless of the keepalive timeout.
        ("grpc.http2.ping_timeout_ms", round(config.keepalive_timeout_seconds * 1000)),
    ]


def _limits(config: Config) -> list[tuple[str, int]]:
    """Returns the options of the limits that gRPC enforces."""
    return [
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.max_concurrent_streams", config.max_streams_per_connection),
        ("grpc.max_connection_age_ms", round(config.max_connection_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", round(config.max_connection_grace_seconds * 1000)),
        ("grpc.max_connection_idle_ms", round(config.max_idle_seconds * 1000)),
        ("grpc.server_handshake_timeout_ms", round(config.handshake_timeout_seconds * 1000)),
        ("grpc.max_receive_message_length", config.max_request_bytes),
        # gRPC refuses metadata of exactly the limit, so the limit is one byte more. Between the soft and the
        # absolute limit it refuses calls at random, so both are equal.
        ("grpc.max_metadata_size", config.max_metadata_bytes + 1),
        ("grpc.absolute_max_metadata_size", config.max_metadata_bytes + 1),
    ]
