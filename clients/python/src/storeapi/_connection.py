"""How both clients reach the service: channels and deadlines."""

import asyncio
import enum
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import grpc
import grpc.aio

DEFAULT_TARGET: Final = "localhost:50051"

MAX_RECEIVE_BYTES: Final = 64 * 1024 * 1024
"""gRPC's own limit, 4 MiB, is too small for batches of long texts."""


class _Default(enum.Enum):
    CLIENT_DEFAULT = "the client's timeout"

    def __repr__(self) -> str:
        return self.name


CLIENT_DEFAULT: Final = _Default.CLIENT_DEFAULT
"""As a call's `timeout`: the one that the client was made with."""

Timeout: TypeAlias = float | Literal[_Default.CLIENT_DEFAULT] | None
"""A deadline in seconds from now, None for no deadline, or CLIENT_DEFAULT."""


def seconds(timeout: Timeout, client_timeout: float | None) -> float | None:
    """The deadline of a call that was asked for `timeout` on a client with `client_timeout`."""
    return client_timeout if timeout is CLIENT_DEFAULT else timeout


def new_channel(
    target: str, credentials: grpc.ChannelCredentials | None, options: Sequence[tuple[str, Any]]
) -> grpc.Channel:
    """A channel for StoreClient; without credentials it is not encrypted."""
    if credentials is None:
        return grpc.insecure_channel(target, options=_with_defaults(options))
    return grpc.secure_channel(target, credentials, options=_with_defaults(options))


def new_async_channel(
    target: str, credentials: grpc.ChannelCredentials | None, options: Sequence[tuple[str, Any]]
) -> grpc.aio.Channel:
    """A channel for AsyncStoreClient; without credentials it is not encrypted."""
    # A channel made outside of a running event loop belongs to another one, and each call then fails.
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "make an AsyncStoreClient inside of a coroutine: it belongs to the event loop that runs then"
        ) from None
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_with_defaults(options))
    return grpc.aio.secure_channel(target, credentials, options=_with_defaults(options))


def check_own_channel(
    channel: object,
    kind: type[grpc.Channel] | type[grpc.aio.Channel],
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: Sequence[tuple[str, Any]],
) -> None:
    """Refuses a channel of the other kind, and settings that a finished channel could no longer follow."""
    if not isinstance(channel, kind):
        wanted = "grpc.aio.Channel" if kind is grpc.aio.Channel else "grpc.Channel"
        found = f"{type(channel).__module__}.{type(channel).__qualname__}"
        raise TypeError(f"channel must be a {wanted}, not a {found}")
    settings = {
        "target": target != DEFAULT_TARGET,
        "credentials": credentials is not None,
        "channel_options": bool(options),
    }
    given = [name for name, is_given in settings.items() if is_given]
    if given:
        raise ValueError(f"{' and '.join(given)} cannot be set for a channel that is given: it has its own")


def _with_defaults(options: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    # Through a dict, because gRPC does not say which of two options of one name counts.
    return list({"grpc.max_receive_message_length": MAX_RECEIVE_BYTES, **dict(options)}.items())
