"""Why no connection can be made.

gRPC reports only the address that it tried last, and of TLS little more than that a socket was closed. After
such a failure the client connects once with the standard library, to every address and with the same
certificates, and reports what it finds.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import pkgutil
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from storeapi.errors import ConnectionFailed, StoreError, Unavailable

PROBE_SECONDS: Final = 1.0
"""How long all addresses together may take. Calls that fail meanwhile wait for it."""

FRESH_SECONDS: Final = 2.0
"""How long a finding is used again: many calls fail at once when a server stops."""

NAME_UNKNOWN: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""Other errors of a look-up are those of the name server, and may pass."""

EXPIRED, NOT_YET_VALID, WRONG_NAME, WRONG_ADDRESS = 10, 9, 62, 64
"""Verification errors of OpenSSL (X509_V_ERR_...)."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """What a client encrypts with."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None = field(repr=False)
    name: str | None
    """The name that certificates must hold, if it is not that of the target."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a client connects to."""

    target: str
    """As the caller wrote it."""
    endpoints: tuple[tuple[str, int], ...]
    tls: Tls | None
    """None for plaintext."""
    has_own_credentials: bool
    """Whether the caller gave gRPC's own credentials, which do not tell what is in them."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is wrong with one address, or with all of them together."""

    message: str
    ends_first: bool
    """Whether another try cannot help a client that has never had an answer."""
    ends_always: bool
    """Whether another try cannot help any client. Servers and names come back; certificates stay."""


def _passing(message: str) -> Finding:
    return Finding(message=message, ends_first=False, ends_always=False)


def _lasting(message: str) -> Finding:
    return Finding(message=message, ends_first=True, ends_always=True)


class _Diagnosis:
    """Looks at the addresses of one client, at most once at a time."""

    def __init__(self, goal: Goal | None) -> None:
        """Takes the goal; None if it is not known, as that of a channel that the caller made."""
        self._goal = goal
        self._lock = threading.Lock()
        self._looking: concurrent.futures.Future[Finding | None] | None = None
        self._since = 0.0

    def _look(self, error: StoreError) -> "concurrent.futures.Future[Finding | None] | None":
        """What is being found out about an error; None if it does not come from connecting."""
        goal = self._goal
        if goal is None or type(error) is not Unavailable or error.reason or error.call_id:
            return None
        if "http2 header" in error.message:  # Somebody has answered, a proxy.
            return None
        with self._lock:
            looking = self._looking
            if looking is None or (looking.done() and time.monotonic() - self._since > FRESH_SECONDS):
                looking = self._looking = concurrent.futures.Future()
                self._since = time.monotonic()
                # A daemon: looking up a name can take much longer than anybody waits for it.
                threading.Thread(
                    target=_run, args=(goal, looking), name="storeapi-probe", daemon=True
                ).start()
        return looking

    def _explained(self, error: StoreError, finding: Finding | None, *, has_answered: bool) -> StoreError:
        if finding is None or self._goal is None:
            return error
        is_final = finding.ends_always if has_answered else finding.ends_first
        kind = ConnectionFailed if is_final else Unavailable
        return kind(f"cannot connect to {self._goal.target}: {finding.message}")


class AsyncDiagnosis(_Diagnosis):
    """For the tasks of an event loop."""

    async def explain(self, error: StoreError, *, has_answered: bool) -> StoreError:
        """The error itself, or one that says why no connection could be made."""
        looking = self._look(error)
        if looking is None:
            return error
        done, _ = await asyncio.wait({asyncio.wrap_future(looking)}, timeout=PROBE_SECONDS)
        return self._explained(error, looking.result() if done else None, has_answered=has_answered)


class Diagnosis(_Diagnosis):
    """For threads."""

    def explain(self, error: StoreError, *, has_answered: bool) -> StoreError:
        """The error itself, or one that says why no connection could be made."""
        looking = self._look(error)
        if looking is None:
            return error
        done, _ = concurrent.futures.wait({looking}, timeout=PROBE_SECONDS)
        return self._explained(error, looking.result() if done else None, has_answered=has_answered)


def _run(goal: Goal, looking: "concurrent.futures.Future[Finding | None]") -> None:
    finding = None
    # Whatever goes wrong here, gRPC's own error is still there.
    with contextlib.suppress(Exception):
        finding = look(goal)
    looking.set_result(finding)


def look(goal: Goal) -> Finding | None:
    """What is wrong with all addresses; None if one of them seems well, or nothing is known."""
    end = time.monotonic() + PROBE_SECONDS
    findings: list[Finding] = []
    for host, port in goal.endpoints:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno not in NAME_UNKNOWN:
                return None
            message = f"the name {host} is not known"
            findings.append(Finding(message=message, ends_first=True, ends_always=False))
            continue
        for family, _, _, _, address in dict.fromkeys(found):
            finding = _look_at(goal, host, family, address, end)
            if finding is None:
                return None
            findings.append(finding)
    # Of localhost one address may refuse, and the other have the wrong certificate.
    telling = [it for it in findings if it.ends_first] or findings
    if not telling:
        return None
    return Finding(
        message="; ".join(dict.fromkeys(it.message for it in telling)),
        ends_first=any(it.ends_first for it in findings),
        ends_always=all(it.ends_always for it in findings),
    )


def _look_at(goal: Goal, host: str, family: socket.AddressFamily, address: Any, end: float) -> Finding | None:
    """What is wrong with one address."""
    shown = f"[{address[0]}]:{address[1]}" if family is socket.AF_INET6 else f"{address[0]}:{address[1]}"
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(max(end - time.monotonic(), 0.01))
        try:
            connection.connect(address)
        except ConnectionRefusedError:
            return _passing(f"nothing listens at {shown}")
        except TimeoutError:
            return _passing(f"{shown} does not answer")
        except OSError as error:
            return _passing(f"{shown} cannot be reached: {error.strerror}")
        if goal.has_own_credentials:
            return None
        if goal.tls is None:
            is_tls = _speaks_tls(connection)
            return _lasting(f"{shown} uses TLS, and the client does not") if is_tls else None
        return _look_at_tls(goal.tls, host, shown, connection)


def _speaks_tls(connection: socket.socket) -> bool:
    """Whether a server, of which nothing else is known, answers a TLS handshake, be it with a refusal."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        context.wrap_socket(connection).close()
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
    return True


def _look_at_tls(tls: Tls, host: str, shown: str, connection: socket.socket) -> Finding | None:
    name = tls.name or host
    try:
        with _context(tls).wrap_socket(connection, server_hostname=name) as encrypted:
            if encrypted.selected_alpn_protocol() is None:
                return _lasting(f"{shown} does not offer HTTP/2 over TLS")
            # With TLS 1.3 a server refuses a client's certificate after the handshake, with an alert. That of
            # gRPC only closes, as it may for other reasons that pass. A server that accepts speaks first.
            if not encrypted.recv(1):
                wanted = "another client certificate" if tls.cert else "a client certificate"
                return _passing(
                    f"{shown} closes connections after the TLS handshake; it may require {wanted}"
                )
    except ssl.SSLCertVerificationError as error:
        return _lasting(_certificate_error(error, shown, name))
    except ssl.SSLError as error:
        reason = (error.reason or "").replace("_", " ").lower()
        if "alert" in reason and ("certificate" in reason or "unknown ca" in reason):
            wanted = (
                "does not accept the client's certificate" if tls.cert else "asks for a client certificate"
            )
            return _lasting(f"{shown} {wanted} ({reason})")
        if "wrong version number" in reason or "http request" in reason:
            return _lasting(f"{shown} does not use TLS, and the client does")
        return None
    except OSError:
        return None
    return None


def _certificate_error(error: ssl.SSLCertVerificationError, shown: str, name: str) -> str:
    if error.verify_code == EXPIRED:
        return f"the certificate of {shown} has expired"
    if error.verify_code == NOT_YET_VALID:
        return f"the certificate of {shown} is not valid yet"
    if error.verify_code in (WRONG_NAME, WRONG_ADDRESS):
        return f"the certificate of {shown} is not valid for the name {name}"
    return f"the certificate of {shown} is not trusted: {error.verify_message}"


def _context(tls: Tls) -> ssl.SSLContext:
    """The checks that gRPC makes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST
    context.set_alpn_protocols(["h2"])
    ca = tls.ca or _roots_of_grpc()
    if ca is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(cadata=ca.decode("ascii", "ignore"))
    # Python reads a private key from a file only. This one is in memory, which only Linux has; elsewhere a
    # client with a certificate gets no diagnosis.
    if tls.cert and tls.key:
        if not hasattr(os, "memfd_create"):
            raise OSError("there is no file for the key")
        with os.fdopen(os.memfd_create("storeapi"), "wb") as file:
            file.write(tls.cert + b"\n" + tls.key)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def _roots_of_grpc() -> bytes | None:
    """The authorities that gRPC trusts when it is told of no others."""
    path = os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
    if path:
        return Path(path).read_bytes()
    try:
        return pkgutil.get_data("grpc._cython", "_credentials/roots.pem")
    except OSError:
        return None
