"""Parses the URL of a PostgreSQL database as libpq does. Hosts may be names, addresses or Unix sockets."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

DEFAULT_PORT = 5432

TLS_MODES = ("disable", "require", "verify-ca", "verify-full")
"""Accepted values of `sslmode`, with the meaning of libpq. Without it connections are not encrypted."""

TLS_OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey")

SESSION_ATTRS = ("any", "read-write", "read-only", "primary", "standby")
"""Accepted values of `target_session_attrs`."""

OPTIONS = (*TLS_OPTIONS, "host", "port", "target_session_attrs")
"""Accepted options in the query of a URL."""

_FORM = re.compile(
    r"postgresql://"
    r"(?:(?P<user>[^:/@]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<hosts>[^/?]*)(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_HOST = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[^:]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresqlUrl:
    """The hosts, the database and the login of a PostgreSQL URL."""

    hosts: tuple[tuple[str, int], ...]
    """Hosts and their ports, in the order in which they are tried. A host that begins with / is the folder of
    a Unix socket."""
    database: str
    user: str | None
    """None means the name of the user of the operating system."""
    password: str | None = field(repr=False)
    options: Mapping[str, str]
    """Those of TLS_OPTIONS and target_session_attrs that the URL has."""

    def __str__(self) -> str:
        """Returns the URL without the password."""
        password = "" if self.password is None else ":***"
        user = "" if self.user is None else f"{self.user}{password}@"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"postgresql://{user}{hosts}/{self.database}"

    @property
    def login(self) -> dict[str, Any]:
        """User, password and database, with the names of asyncpg's arguments."""
        return {"user": self.user, "password": self.password, "database": self.database}


def parse(url: str) -> PostgresqlUrl:
    """Parses a URL.

    Raises:
        ValueError: The URL is not valid for both drivers. The text continues the name of the setting and does
            not contain the password.
    """
    found = _FORM.fullmatch(url)
    if found is None or "@" in found["hosts"] or "@" in (found["database"] or ""):
        # An @ in the password would end it, and the rest of the password would appear as a host in messages.
        raise ValueError("has more than one @; percent-encode the password, in which @ is %40")
    options = _options(found["query"] or "")
    hosts, ports = options.pop("host", None), options.pop("port", None)
    if found["hosts"] and (hosts or ports):
        raise ValueError("names hosts twice, before and after the ?")
    pairs = (
        _from_options(hosts, ports) if hosts else [_from_authority(it) for it in found["hosts"].split(",")]
    )
    database = unquote(found["database"] or "")
    if not database or not all(host for host, _ in pairs):
        raise ValueError("must name a host and a database, such as postgresql://user:password@host/store")
    password = found["password"]
    return PostgresqlUrl(
        hosts=tuple(pairs),
        database=database,
        user=unquote(found["user"]) if found["user"] else None,
        password=unquote(password) if password is not None else None,
        options=options,
    )


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS:
            raise ValueError(f"has the unknown option {name}; known options are {', '.join(OPTIONS)}")
        if name in options:
            raise ValueError(f"has the option {name} twice; several hosts are separated by commas")
        options[name] = value
    if options.get("sslmode", "disable") not in TLS_MODES:
        raise ValueError("sslmode must be disable, require, verify-ca or verify-full")
    if options.get("target_session_attrs", "any") not in SESSION_ATTRS:
        raise ValueError(f"target_session_attrs must be one of {', '.join(SESSION_ATTRS)}")
    return options


def _from_authority(text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError(
            "a host must be a name, an address or [an IPv6 address], optionally with : and a port"
        )
    return unquote(found["host"].strip("[]")), _port(found["port"])


def _from_options(hosts: str, ports: str | None) -> list[tuple[str, int]]:
    names = hosts.split(",")
    numbers = (ports or "").split(",")
    if len(numbers) == 1:
        numbers *= len(names)
    if len(numbers) != len(names):
        raise ValueError("must name one port, or one for each host")
    return [(name, _port(number)) for name, number in zip(names, numbers, strict=True)]


def _port(text: str | None) -> int:
    if not text:
        return DEFAULT_PORT
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= 65_535:
        raise ValueError("the port must be a number from 1 to 65535")
    return int(text)
