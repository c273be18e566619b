"""The connection settings of both clients, from arguments and the environment."""

import asyncio
import enum
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import grpc
import grpc.aio

from storeapi._addresses import (
    LOCAL_SCHEMES,
    NAME_OPTIONS,
    OTHER_SCHEMES,
    PROXY_VARIABLES,
    certificate_name_options,
    check_address,
    grpc_target_of,
    host_and_port,
    is_local,
    split_scheme,
    split_target,
)
from storeapi._diagnosis import Goal, Tls

DEFAULT_TIMEOUT: Final = 10.0

LONGEST_TIMEOUT: Final = 100_000_000
"""Three years. gRPC cannot represent more, and such a call would fail at once."""

MAX_RECEIVE_BYTES: Final = 64 * 1024 * 1024
"""The default of gRPC, 4 MiB, is too small for batches of long texts."""

Secret: TypeAlias = str | os.PathLike[str] | bytes
"""Path of a PEM file, or its content as bytes."""

OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    # All addresses are used in turn, except those that do not respond.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # A dead connection is detected early enough to repeat a call of ten seconds.
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Reconnect soon after a restart of the server; the default of gRPC is up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
"""The options of each channel; `channel_options` overrides them."""


class _Default(enum.Enum):
    CLIENT_DEFAULT = "the client's timeout"

    def __repr__(self) -> str:
        return self.name


CLIENT_DEFAULT: Final = _Default.CLIENT_DEFAULT
"""As the `timeout` of a call: that of the client. As that of a client: STOREAPI_TIMEOUT, or 10."""

Timeout: TypeAlias = float | Literal[_Default.CLIENT_DEFAULT] | None
"""A deadline in seconds from now, None for no deadline, or CLIENT_DEFAULT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """The checked arguments of a client, with defaults from the environment."""

    target: str
    """The target for gRPC; several addresses are one target."""
    timeout: float | None
    """Default deadline in seconds of each call."""
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    """The metadata of each call: the API key, if there is one."""
    credentials: grpc.ChannelCredentials | None
    """Credentials for TLS; None for plaintext."""
    options: list[tuple[str, Any]]
    """The channel's options."""
    goal: Goal | None
    """What to diagnose when no connection can be made; None if the client does not know how gRPC connects."""


def seconds(timeout: Timeout, client_timeout: float | None) -> float | None:
    """The deadline of a call with `timeout` on a client with `client_timeout`.

    Raises:
        ValueError: `timeout` is not a valid number of seconds.
    """
    return client_timeout if timeout is CLIENT_DEFAULT else _checked_timeout("timeout", timeout)


def connection(
    *,
    target: str | Sequence[str] | None,
    timeout: Timeout,
    api_key: str | None,
    tls: bool | None,
    tls_ca: Secret | None,
    tls_cert: Secret | None,
    tls_key: Secret | None,
    credentials: grpc.ChannelCredentials | None,
    channel_options: Sequence[tuple[str, Any]],
) -> Connection:
    """Checks the arguments of a client, and takes the missing ones from the environment.

    Raises:
        ValueError: An argument or a variable is invalid; the message names it.
    """
    environment = os.environ
    addresses = split_target(target, environment.get("STOREAPI_TARGET"))
    for address in addresses:
        check_address("STOREAPI_TARGET" if target is None else "target", address)
    secrets: Tls | None = None
    has_own_credentials = credentials is not None
    if credentials is None:
        tls = _is_on("STOREAPI_TLS", environment.get("STOREAPI_TLS")) if tls is None else tls
        if tls is not False:
            if bool(tls_cert or environment.get("STOREAPI_TLS_CERT")) != bool(
                tls_key or environment.get("STOREAPI_TLS_KEY")
            ):
                raise ValueError("tls_cert and tls_key belong together: give both or none")
            ca = _pem("tls_ca", tls_ca, b"CERTIFICATE")
            cert = _pem("tls_cert", tls_cert, b"CERTIFICATE")
            key = _pem("tls_key", tls_key, b"PRIVATE KEY")
            if tls or ca or cert:
                credentials = grpc.ssl_channel_credentials(ca, key, cert)
                secrets = Tls(ca=ca, cert=cert, key=key, name=None)
        elif tls_ca or tls_cert or tls_key:
            raise ValueError("tls_ca, tls_cert and tls_key need TLS, and tls=False says no")
    elif tls is not None or tls_ca or tls_cert or tls_key:
        raise ValueError(
            "credentials already say how to encrypt: leave out tls, tls_ca, tls_cert and tls_key"
        )

    metadata = _authorization(api_key or environment.get("STOREAPI_API_KEY"))
    if metadata and credentials is None and tls is None and not all(map(is_local, addresses)):
        raise ValueError(
            "an API key is not sent over the network in the clear: "
            "set tls=True, or tls=False where something else encrypts"
        )
    options = list(channel_options)
    if all(map(is_local, addresses)):
        # gRPC uses http_proxy even for localhost, and the proxy would see the API key in plaintext.
        options = [("grpc.enable_http_proxy", 0), *options]
    if credentials is not None and len(addresses) > 1:
        options = certificate_name_options(addresses, options) + options
    grpc_target = grpc_target_of(addresses)
    return Connection(
        target=grpc_target,
        timeout=_client_timeout(timeout, environment.get("STOREAPI_TIMEOUT")),
        metadata=metadata,
        credentials=credentials,
        options=_with_defaults(options),
        goal=_goal(addresses, grpc_target, secrets, dict(options), has_own_credentials=has_own_credentials),
    )


def connection_of_channel(
    channel: object,
    kind: type[grpc.Channel] | type[grpc.aio.Channel],
    *,
    timeout: Timeout,
    api_key: str | None,
    **settings: object,
) -> Connection:
    """The settings of a client on a channel of the caller.

    Raises:
        TypeError: It is a channel of the other kind, or not a channel.
        ValueError: `settings` contains arguments that configure a new channel.
    """
    if not isinstance(channel, kind):
        wanted = "grpc.aio.Channel" if kind is grpc.aio.Channel else "grpc.Channel"
        found = f"{type(channel).__module__}.{type(channel).__qualname__}"
        raise TypeError(f"channel must be a {wanted}, not a {found}")
    given = [name for name, value in settings.items() if value is not None and value != ()]
    if given:
        raise ValueError(f"{' and '.join(given)} cannot be set for a channel that is given: it has its own")
    return Connection(
        target="",
        timeout=_client_timeout(timeout, os.environ.get("STOREAPI_TIMEOUT")),
        metadata=_authorization(api_key or os.environ.get("STOREAPI_API_KEY")),
        credentials=None,
        options=[],
        goal=None,
    )


def new_channel(connection: Connection) -> grpc.Channel:
    """A channel for StoreClient; nothing is sent before the first call."""
    if connection.credentials is None:
        return grpc.insecure_channel(connection.target, options=connection.options)
    return grpc.secure_channel(connection.target, connection.credentials, options=connection.options)


def new_async_channel(connection: Connection) -> grpc.aio.Channel:
    """A channel for AsyncStoreClient; nothing is sent before the first call."""
    # A channel that is created outside of a running event loop belongs to another one, and calls fail.
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "make an AsyncStoreClient inside of a coroutine: it belongs to the event loop that runs then"
        ) from None
    if connection.credentials is None:
        return grpc.aio.insecure_channel(connection.target, options=connection.options)
    return grpc.aio.secure_channel(connection.target, connection.credentials, options=connection.options)


def _goal(
    addresses: Sequence[str],
    grpc_target: str,
    secrets: Tls | None,
    options: dict[str, Any],
    *,
    has_own_credentials: bool,
) -> Goal | None:
    """What gRPC connects to; None for Unix sockets, other name servers and proxies."""
    scheme, endpoints = split_scheme(grpc_target)
    has_proxy = any(os.environ.get(name) for name in PROXY_VARIABLES)
    if (
        grpc_target.startswith(OTHER_SCHEMES)
        or scheme not in LOCAL_SCHEMES
        or (has_proxy and options.get("grpc.enable_http_proxy", 1))
    ):
        return None
    if secrets is not None:
        names = [str(options[name]) for name in NAME_OPTIONS if name in options]
        secrets = replace(secrets, name=re.sub(r":[0-9]+$", "", names[0]) if names else None)
    return Goal(
        target=", ".join(addresses),
        endpoints=tuple(map(host_and_port, endpoints)),
        tls=secrets,
        has_own_credentials=has_own_credentials,
    )


def _client_timeout(timeout: Timeout, from_environment: str | None) -> float | None:
    if timeout is not CLIENT_DEFAULT:
        name, value = "timeout", timeout
    else:
        name, value = "STOREAPI_TIMEOUT", DEFAULT_TIMEOUT
        if from_environment:
            try:
                value = None if from_environment.lower() == "none" else float(from_environment)
            except ValueError:
                value = math.nan
    return _checked_timeout(name, value)


def _checked_timeout(name: str, value: float | None) -> float | None:
    # NaN fails this comparison too. Other types are rejected here, because gRPC would report another error
    # or none.
    if value is not None and not (isinstance(value, (int, float)) and 0 < value <= LONGEST_TIMEOUT):
        raise ValueError(
            f"{name} must be a number of seconds above 0 and at most {LONGEST_TIMEOUT:,}, or none at all"
        )
    return value


def _is_on(name: str, value: str | None) -> bool | None:
    if not value:
        return None
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{name} must be true or false")


def _pem(name: str, secret: Secret | None, label: bytes) -> bytes | None:
    """The content of a PEM file from an argument or its variable."""
    if not secret:
        name = f"STOREAPI_{name.upper()}"
        secret = os.environ.get(name)
    if not secret:
        return None
    place = name
    if not isinstance(secret, bytes):
        place = f"{name}: {os.fspath(secret)}"
        try:
            secret = Path(secret).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{place} cannot be read: {reason}") from error
    # gRPC accepts anything, and each call then fails with an error of the connection.
    if not re.search(rb"-----BEGIN [A-Z0-9 ]*" + label + b"-----", secret):
        what = "certificate" if label == b"CERTIFICATE" else "private key"
        raise ValueError(f"{place} holds no {what} in PEM")
    return secret


def _authorization(api_key: str | None) -> tuple[tuple[str, str], ...]:
    if not api_key:
        return ()
    # The message does not contain the key, because messages are logged.
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ValueError("an API key is printable ASCII without spaces; is there a line break at its end?")
    return (("authorization", f"Bearer {api_key}"),)


def _with_defaults(options: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    # A dict, because gRPC does not define which of two options with one name it uses.
    agent = ("grpc.primary_user_agent", f"storeapi/{version('storeapi')}")
    return list({**dict(OPTIONS), agent[0]: agent[1], **dict(options)}.items())
