"""Finds the cause when no connection can be made.

gRPC reports only the last address, and for TLS little more than a closed socket. After such an error the
client connects once with the standard library, to every address and with the same certificates.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import pkgutil
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from storeapi.errors import ConnectionFailed, StoreError, Unavailable

PROBE_SECONDS: Final = 1.0
"""Timeout of a check of all addresses. Calls that fail meanwhile wait for it, until their deadline."""

FRESH_SECONDS: Final = 2.0
"""How long a finding is reused, because many calls fail at once when a server stops. Two checks are at least
this far apart."""

AGAIN_SECONDS: Final = 10.0
"""The same finding counts as repeated within this time."""

TLS_OF_GRPC: Final = re.compile("SSL_ERROR_SSL|certificate|verification|ALPN", re.IGNORECASE)
"""Messages of gRPC for a handshake that it rejected, unlike one that broke off."""

NAME_UNKNOWN: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""Other errors of name resolution may be temporary."""

EXPIRED, NOT_YET_VALID, WRONG_NAME, WRONG_ADDRESS = 10, 9, 62, 64
"""Verification errors of OpenSSL (X509_V_ERR_...)."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The TLS settings of a client."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None = field(repr=False)
    name: str | None
    """The name by which certificates are checked, if it is not that of the target."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The addresses of a client."""

    target: str
    """The target as the caller passed it."""
    endpoints: tuple[tuple[str, int], ...]
    tls: Tls | None
    """None for plaintext."""
    has_own_credentials: bool
    """Whether the caller passed gRPC credentials, whose content cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The cause for one address, or for all of them together."""

    message: str
    is_unknown_name: bool = False
    """Whether a name is unknown; it may be that of a service that is starting."""
    is_tls: bool = False
    """Whether the TLS handshake fails."""
    is_tls_everywhere: bool = False
    """Whether it fails at every address."""
    is_again: bool = False
    """Whether the previous check found the same."""

    def is_final(self, error: StoreError, *, has_answered: bool) -> bool:
        """Whether a retry cannot help a client with this error of gRPC."""
        if not has_answered:
            return self.is_tls or (self.is_unknown_name and self.is_again)
        # What worked before may work again: names, servers, and certificates when a load balancer starts.
        # gRPC must have rejected the handshake as well, because it may accept what Python does not.
        return self.is_tls_everywhere and self.is_again and bool(TLS_OF_GRPC.search(error.message))


def _passing(message: str) -> Finding:
    return Finding(message=message)


def _lasting(message: str) -> Finding:
    return Finding(message=message, is_tls=True, is_tls_everywhere=True)


class _Diagnosis:
    """Checks the addresses of one client, one check at a time."""

    def __init__(self, goal: Goal | None) -> None:
        """Takes the goal; None if it is unknown, as for a channel of the caller."""
        self._goal = goal
        self._lock = threading.Lock()
        self._looking: concurrent.futures.Future[Finding | None] | None = None
        self._since = 0.0
        self._before: Finding | None = None

    def _look(self, error: StoreError) -> "concurrent.futures.Future[Finding | None] | None":
        """The running check for an error; None if the error is not about connecting."""
        goal = self._goal
        if goal is None or type(error) is not Unavailable or error.reason or error.call_id:
            return None
        if "http2 header" in error.message:  # A proxy has answered.
            return None
        with self._lock:
            looking = self._looking
            age = time.monotonic() - self._since
            if looking is None or (looking.done() and age > FRESH_SECONDS):
                self._before = looking.result() if looking and age < AGAIN_SECONDS else None
                looking = self._looking = concurrent.futures.Future()
                # From now on a caller that stops waiting cannot cancel it for other callers.
                looking.set_running_or_notify_cancel()
                self._since = time.monotonic()
                # A daemon thread: name resolution can take much longer than the caller waits.
                threading.Thread(
                    target=_run, args=(goal, looking, self._before), name="storeapi-probe", daemon=True
                ).start()
        return looking

    def _explained(
        self, error: StoreError, looking: "concurrent.futures.Future[Finding | None]", *, has_answered: bool
    ) -> StoreError:
        # At the deadline the previous finding is used.
        finding = looking.result() if looking.done() else self._before
        if finding is None or self._goal is None:
            return error
        kind = ConnectionFailed if finding.is_final(error, has_answered=has_answered) else Unavailable
        return kind(f"cannot connect to {self._goal.target}: {finding.message}")


class AsyncDiagnosis(_Diagnosis):
    """For the tasks of an event loop."""

    async def explain(
        self, error: StoreError, *, has_answered: bool, seconds_left: float | None
    ) -> StoreError:
        """The error itself, or one with the cause if no connection could be made."""
        looking = self._look(error)
        if looking is None:
            return error
        waiting = asyncio.wrap_future(looking)
        try:
            await asyncio.wait({waiting}, timeout=_patience(seconds_left))
        finally:
            # The event loop may be closed when the check is done.
            waiting.cancel()
        return self._explained(error, looking, has_answered=has_answered)


class Diagnosis(_Diagnosis):
    """For threads."""

    def explain(self, error: StoreError, *, has_answered: bool, seconds_left: float | None) -> StoreError:
        """The error itself, or one with the cause if no connection could be made."""
        looking = self._look(error)
        if looking is None:
            return error
        concurrent.futures.wait({looking}, timeout=_patience(seconds_left))
        return self._explained(error, looking, has_answered=has_answered)


def _patience(seconds_left: float | None) -> float:
    """Seconds that a call waits for a check."""
    return PROBE_SECONDS if seconds_left is None else min(PROBE_SECONDS, seconds_left)


def _run(goal: Goal, looking: "concurrent.futures.Future[Finding | None]", before: Finding | None) -> None:
    finding = None
    # After any exception here, the error of gRPC is reported.
    with contextlib.suppress(Exception):
        finding = look(goal)
        if finding and before and finding.message == before.message:
            finding = replace(finding, is_again=True)
    looking.set_result(finding)


def look(goal: Goal) -> Finding | None:
    """The cause for all addresses; None if one of them seems to work, or the cause is unknown."""
    end = time.monotonic() + PROBE_SECONDS
    findings: list[Finding] = []
    for host, port in goal.endpoints:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno not in NAME_UNKNOWN:
                return None
            findings.append(Finding(message=f"the name {host} is not known", is_unknown_name=True))
            continue
        for family, _, _, _, address in dict.fromkeys(found):
            finding = _look_at(goal, host, family, address, end)
            if finding is None:
                return None
            findings.append(finding)
    # One address of localhost may refuse connections, and the other have a wrong certificate.
    telling = [it for it in findings if it.is_tls or it.is_unknown_name] or findings
    if not telling:
        return None
    return Finding(
        message="; ".join(dict.fromkeys(it.message for it in telling)),
        is_unknown_name=any(it.is_unknown_name for it in findings),
        is_tls=any(it.is_tls for it in findings),
        is_tls_everywhere=all(it.is_tls for it in findings),
    )


def _look_at(goal: Goal, host: str, family: socket.AddressFamily, address: Any, end: float) -> Finding | None:
    """The cause for one address."""
    shown = f"[{address[0]}]:{address[1]}" if family is socket.AF_INET6 else f"{address[0]}:{address[1]}"
    try:
        connection = _connected(family, address, max(end - time.monotonic(), 0.01))
    except ConnectionRefusedError:
        return _passing(f"nothing listens at {shown}")
    except TimeoutError:
        return _passing(f"{shown} does not answer")
    except OSError as error:
        return _passing(f"{shown} cannot be reached: {error.strerror}")
    with connection:
        if goal.has_own_credentials:
            return None
        if goal.tls is None:
            is_tls = _speaks_tls(connection)
            return _lasting(f"{shown} uses TLS, and the client does not") if is_tls else None
        return _look_at_tls(goal.tls, host, shown, connection)


def _connected(family: socket.AddressFamily, address: Any, seconds: float) -> socket.socket:
    """A connection; OSError also if the host does not support this address family."""
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _speaks_tls(connection: socket.socket) -> bool:
    """Whether a server answers a TLS handshake, possibly with an alert."""
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
            # With TLS 1.3 a server rejects a client certificate after the handshake, with an alert. A gRPC
            # server only closes, as for other, temporary reasons. A server that accepts sends first.
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
    """The TLS checks of gRPC."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST
    context.set_alpn_protocols(["h2"])
    ca = tls.ca or _roots_of_grpc()
    if ca is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(cadata=ca.decode("ascii", "ignore"))
    # Python reads private keys only from files. A file in memory exists only on Linux; elsewhere a client
    # with a certificate gets no diagnosis.
    if tls.cert and tls.key:
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no file in memory for the key")
        with os.fdopen(os.memfd_create("storeapi"), "wb") as file:
            file.write(tls.cert + b"\n" + tls.key)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def _roots_of_grpc() -> bytes | None:
    """The certificate authorities that gRPC trusts by default."""
    path = os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
    if path:
        return Path(path).read_bytes()
    try:
        return pkgutil.get_data("grpc._cython", "_credentials/roots.pem")
    except OSError:
        return None
