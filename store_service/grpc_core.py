"""Settings of the core of gRPC, which reads them from the environment when it is loaded."""

import os

ENVIRONMENT = {
    # Its own log lines would duplicate those of the service.
    "GRPC_VERBOSITY": "NONE",
    # The thread that waits for completed operations then also reads and writes the sockets of the server.
    # With the default, further threads do, and each call switches between threads twice as often
    # (docs/decisions/0055).
    "GRPC_EXPERIMENTS": "-event_engine_listener",
}


def configure() -> None:
    """Sets the variables that are not set yet. Has an effect only before gRPC is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
