"""How both clients reach the service: addresses, encryption, keys, channels and deadlines.

What is not given to a client is taken from the environment, so that a program can be pointed elsewhere
without a change.
"""

import asyncio
import enum
import ipaddress
import math
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import grpc
import grpc.aio

from storeapi._diagnosis import Goal, Tls

DEFAULT_TARGET: Final = "localhost:50051"

DEFAULT_TIMEOUT: Final = 10.0

LONGEST_TIMEOUT: Final = 100_000_000
"""Three years: more does not fit into what gRPC counts with, and such a call would fail at once."""

MAX_RECEIVE_BYTES: Final = 64 * 1024 * 1024
"""gRPC's own limit, 4 MiB, is too small for batches of long texts."""

Secret: TypeAlias = str | os.PathLike[str] | bytes
"""Path of a PEM file, or its content as bytes."""

OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    # Of several addresses all are used; one that does not answer is left out until it does again.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # A connection that died without a word is noticed while a call of ten seconds can still be made again.
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that comes back is found at once; gRPC would wait for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
"""What each channel is set to, unless `channel_options` says otherwise."""

NAME_OPTIONS: Final = ("grpc.ssl_target_name_override", "grpc.default_authority")
"""The options that say which name the certificate of a server must hold, instead of the target."""

OTHER_SCHEMES: Final = ("unix:", "unix-abstract:", "vsock:", "xds:", "google-c2p:")
"""What gRPC's targets that are not HOST:PORT begin with."""

LOCAL_SCHEMES: Final = ("", "ipv4:", "ipv6:", "dns:", "dns:///")
"""Schemes whose names the system resolves. Another name server may resolve localhost differently."""

PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""Where gRPC looks for a proxy to connect through."""


class _Default(enum.Enum):
    CLIENT_DEFAULT = "the client's timeout"

    def __repr__(self) -> str:
        return self.name


CLIENT_DEFAULT: Final = _Default.CLIENT_DEFAULT
"""As a call's `timeout`: the one that the client was made with. As a client's: STOREAPI_TIMEOUT, or 10."""

Timeout: TypeAlias = float | Literal[_Default.CLIENT_DEFAULT] | None
"""A deadline in seconds from now, None for no deadline, or CLIENT_DEFAULT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """What a client was asked for, checked and completed from the environment."""

    target: str
    """As gRPC takes it; several addresses are one target."""
    timeout: float | None
    """Deadline in seconds of each call that names none of its own."""
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    """What each call carries: the API key, if there is one."""
    credentials: grpc.ChannelCredentials | None
    """What to encrypt with; None is plaintext."""
    options: list[tuple[str, Any]]
    """The channel's options."""
    goal: Goal | None
    """What to diagnose when no connection can be made; None if gRPC connects in an unknown way."""


def seconds(timeout: Timeout, client_timeout: float | None) -> float | None:
    """The deadline of a call that was asked for `timeout` on a client with `client_timeout`.

    Raises:
        ValueError: `timeout` is no number of seconds that a call could have.
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
    """Checks what a client was given, and takes what it was not given from the environment.

    Raises:
        ValueError: Something is wrong; one line names the argument or the variable.
    """
    environment = os.environ
    addresses = _addresses(target, environment.get("STOREAPI_TARGET"))
    for address in addresses:
        _check_address("STOREAPI_TARGET" if target is None else "target", address)
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
    if metadata and credentials is None and tls is None and not all(map(_is_this_machine, addresses)):
        raise ValueError(
            "an API key is not sent over the network in the clear: "
            "set tls=True, or tls=False where something else encrypts"
        )
    options = list(channel_options)
    if all(map(_is_this_machine, addresses)):
        # gRPC asks even for localhost the proxy of http_proxy, which would be told the API key in the clear.
        options = [("grpc.enable_http_proxy", 0), *options]
    if credentials is not None and len(addresses) > 1:
        options = _name_options(addresses, options) + options
    grpc_target = _grpc_target(addresses)
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
    """What is left to say of a channel that the caller made: how long calls take, and who calls.

    Raises:
        TypeError: It is a channel of the other kind, or none.
        ValueError: `settings` were given that a finished channel could no longer follow.
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
    # A channel made outside of a running event loop belongs to another one, and each call then fails.
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "make an AsyncStoreClient inside of a coroutine: it belongs to the event loop that runs then"
        ) from None
    if connection.credentials is None:
        return grpc.aio.insecure_channel(connection.target, options=connection.options)
    return grpc.aio.secure_channel(connection.target, connection.credentials, options=connection.options)


def _addresses(target: str | Sequence[str] | None, from_environment: str | None) -> list[str]:
    if target is None:
        target = from_environment or DEFAULT_TARGET
    # "ipv4:10.0.0.1:50051,10.0.0.2:50051" is one target of gRPC's own.
    if isinstance(target, str):
        target = [target] if target.startswith(("ipv4:", "ipv6:")) else target.split(",")
    addresses = [address.strip() for address in target]
    if not addresses or not all(addresses):
        raise ValueError("target must be an address such as localhost:50051, or several")
    return addresses


def _grpc_target(addresses: Sequence[str]) -> str:
    """One target for all addresses: gRPC balances between several only as numbers of one family."""
    if len(addresses) == 1:
        return addresses[0]
    endpoints = [_endpoint(address) for address in addresses]
    for family, scheme in ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")):
        found = [_looked_up(host, port, family) for host, port in endpoints]
        if all(found):
            return f"{scheme}:{','.join(dict.fromkeys(address for these in found for address in these))}"
    raise ValueError("target: several addresses must all be IPv4 or all be IPv6, and have known names")


def _goal(
    addresses: Sequence[str],
    grpc_target: str,
    secrets: Tls | None,
    options: dict[str, Any],
    *,
    has_own_credentials: bool,
) -> Goal | None:
    """What gRPC connects to; None for socket files, other name servers and proxies."""
    scheme, endpoints = _without_scheme(grpc_target)
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
        endpoints=tuple(map(_endpoint, endpoints)),
        tls=secrets,
        has_own_credentials=has_own_credentials,
    )


def _name_options(
    addresses: Sequence[str], channel_options: Sequence[tuple[str, Any]]
) -> list[tuple[str, Any]]:
    """The one name by which the certificates behind several addresses are checked.

    gRPC would take it from the target, where nothing but numbers is left.
    """
    if any(name in NAME_OPTIONS for name, _ in channel_options):
        return []
    hosts = list(dict.fromkeys(_endpoint(address)[0].lower() for address in addresses))
    if len(hosts) > 1 and not all(map(_is_number, hosts)):
        raise ValueError(
            "target: with TLS several addresses must have the same name, by which certificates are checked: "
            "give one DNS name that has all of the addresses, as dns:///NAME:PORT, "
            "or only IP addresses, of which every certificate holds the first"
        )
    return [(name, hosts[0]) for name in NAME_OPTIONS]


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _endpoint(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit()):
        raise ValueError(f"target: one of several must be HOST:PORT, which {address!r} is not")
    return host.strip("[]"), int(port)


def _looked_up(host: str, port: int, family: socket.AddressFamily) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return [f"[{it[4][0]}]:{port}" if family is socket.AF_INET6 else f"{it[4][0]}:{port}" for it in found]


def _check_address(name: str, address: str) -> None:
    """Refuses an address that has no port or a scheme that gRPC has not: it would look it up as a name."""
    if address.startswith(OTHER_SCHEMES):
        return
    _, endpoints = _without_scheme(address)
    for one in endpoints:
        found = re.fullmatch(r"(?:[^\s/:\[\]]+|\[[^\s/\[\]]+\]):([0-9]{1,5})", one)
        if found is None or not 0 < int(found[1]) < 2**16:
            raise ValueError(f"{name} must be HOST:PORT, such as localhost:50051, which {address!r} is not")


def _is_this_machine(address: str) -> bool:
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    scheme, endpoints = _without_scheme(address)
    return scheme in LOCAL_SCHEMES and all(map(_is_loopback, endpoints))


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    return host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)


def _without_scheme(address: str) -> tuple[str, list[str]]:
    """The scheme of gRPC's that an address begins with, or "", and each HOST:PORT behind it."""
    found = re.match(r"(?:ipv4:|ipv6:|dns:(?://[^/]*/)?)", address)
    scheme = found[0] if found else ""
    return scheme, address[len(scheme) :].split(",")


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
    # Written so that NaN is refused too. What is no number is refused alike: not every caller asks a type
    # checker, and gRPC would complain of something else, or of nothing.
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
    """The content of a PEM file that an argument or its variable names."""
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
    # gRPC takes anything, and then fails each call with words about the connection.
    if not re.search(rb"-----BEGIN [A-Z0-9 ]*" + label + b"-----", secret):
        what = "certificate" if label == b"CERTIFICATE" else "private key"
        raise ValueError(f"{place} holds no {what} in PEM")
    return secret


def _authorization(api_key: str | None) -> tuple[tuple[str, str], ...]:
    if not api_key:
        return ()
    # The key itself is not in the text: it would end up in a log.
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ValueError("an API key is printable ASCII without spaces; is there a line break at its end?")
    return (("authorization", f"Bearer {api_key}"),)


def _with_defaults(options: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    # Through a dict, because gRPC does not say which of two options of one name counts.
    agent = ("grpc.primary_user_agent", f"storeapi/{version('storeapi')}")
    return list({**dict(OPTIONS), agent[0]: agent[1], **dict(options)}.items())
