"""What gRPC's core is told when the server is made."""

from typing import Any

from store_service.config import Config

_ALWAYS = [
    # A client may ping as often as every 2 seconds, also without calls; gRPC's 5 minutes would cut off
    # clients that merely want to know soon when their connection is dead.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Ask also after a client that has had nothing to say or hear for long.
    ("grpc.http2.max_pings_without_data", 0),
    # Above 1000 calls that wait for the event loop, most of which a burst of short deadlines has killed
    # already, gRPC would refuse new ones at random, with CANCELLED and no reason.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # The guard unpacks requests, the large ones in turns; gRPC would unpack all that have come at once.
    ("grpc.per_message_decompression", 0),
]


def server_options(config: Config, *, reuse_port: bool) -> list[tuple[str, Any]]:
    """Every option; those of limits are explained by the settings that they come from."""
    # Unless workers share the port on purpose, a second server must not bind it without an error.
    return [
        *_ALWAYS,
        *_limits(config),
        ("grpc.so_reuseport", int(reuse_port)),
        # gRPC keeps these books unless it is told not to.
        ("grpc.enable_channelz", int(config.channelz)),
        ("grpc.keepalive_time_ms", round(config.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(config.keepalive_timeout_seconds * 1000)),
        # Without it gRPC waits a minute for the answer to a ping, whatever the timeout is.
        ("grpc.http2.ping_timeout_ms", round(config.keepalive_timeout_seconds * 1000)),
    ]


def _limits(config: Config) -> list[tuple[str, int]]:
    """The limits that gRPC itself keeps."""
    return [
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.max_concurrent_streams", config.max_streams_per_connection),
        ("grpc.max_connection_age_ms", round(config.max_connection_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", round(config.max_connection_grace_seconds * 1000)),
        ("grpc.max_connection_idle_ms", round(config.max_idle_seconds * 1000)),
        ("grpc.server_handshake_timeout_ms", round(config.handshake_timeout_seconds * 1000)),
        ("grpc.max_receive_message_length", config.max_request_bytes),
        # gRPC refuses what is as large as the limit, and between the two what chance says.
        ("grpc.max_metadata_size", config.max_metadata_bytes + 1),
        ("grpc.absolute_max_metadata_size", config.max_metadata_bytes + 1),
    ]
