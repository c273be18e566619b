"""TLS: the server's certificate, and whose clients it takes, renewed without a restart."""

import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from store_service.auth.watched_file import BadFile, Signature, file_signature, read
from store_service.repeated_failure import RepeatedFailure

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, to which Python gives no name."""

log = structlog.get_logger("store_service.rpc")


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate is valid, in seconds since 1970."""

    begins: float
    ends: float


class Certificates:
    """The files of TLS as they were when they last fitted together."""

    def __init__(
        self, *, cert: Path, key: Path, client_ca: Path | None, settings: tuple[str, str, str]
    ) -> None:
        """Reads the files.

        Args:
            cert: The server's certificate, and those between it and its authority (PEM).
            key: Its private key, not encrypted (PEM).
            client_ca: Who must have signed the certificate of each client; None: clients need none.
            settings: The environment variables that name the three, for messages.

        Raises:
            BadFile: One cannot be used.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._settings = settings
        self._lock = threading.Lock()
        self._taken = self._signature()
        self._failure = RepeatedFailure(
            log,
            "cannot use the changed certificates; the previous ones stay in use",
            end_event="changed certificates are usable again",
        )
        self._validity: Validity | None = None
        self._initial = self._load()
        self._changed: grpc.ServerCertificateConfiguration | None = None
        """What gRPC has not been given yet."""

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`: looks at the files whenever somebody connects."""
        return grpc.dynamic_ssl_server_credentials(
            self._initial,
            self.renewed,  # type: ignore[arg-type]  # the published types leave out None, for no change
            require_client_authentication=self._client_ca is not None,
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What to use from now on; None while nothing has changed, or while the files do not fit together.

        Threads of gRPC call this before each handshake.
        """
        with self._lock:
            self._look()
            changed, self._changed = self._changed, None
            return changed

    def expires(self) -> float | None:
        """When the certificate expires that is shown to whoever connects now, in seconds since 1970.

        Looks at the files, for it may be long since anybody connected. None if it cannot be told.
        """
        with self._lock:
            self._look()
            return None if self._validity is None else self._validity.ends

    def _look(self) -> None:
        signature = self._signature()
        if signature == self._taken:
            self._failure.ended()
            return
        try:
            self._changed = self._load()
        except BadFile as error:
            self._failure.failed(problem=str(error))
            return
        self._taken = signature
        self._failure.ended()
        log.info("certificates reloaded")

    def _signature(self) -> tuple[Signature | None, ...]:
        paths = (self._cert, self._key, self._client_ca)
        return tuple(file_signature(path) for path in paths if path is not None)

    def _load(self) -> grpc.ServerCertificateConfiguration:
        cert_setting, key_setting, ca_setting = self._settings
        cert, key = read(self._cert, cert_setting), read(self._key, key_setting)
        context = self._check_pair()
        # OpenSSL reads the files by itself; what it has checked is what we have if nothing changed meanwhile.
        if (cert, key) != (read(self._cert, cert_setting), read(self._key, key_setting)):
            raise BadFile(cert_setting, "the file is being written")
        validity = _validity(context, cert)
        if self._client_ca is None:
            self._take(validity)
            return grpc.ssl_server_certificate_configuration([(key, cert)])
        client_ca = read(self._client_ca, ca_setting)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=client_ca.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise BadFile(ca_setting, "the file holds no certificates, or broken ones (PEM)") from None
        self._take(validity)
        return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)

    def _take(self, validity: Validity | None) -> None:
        self._validity = validity
        _warn(validity, self._settings[0])

    def _check_pair(self) -> ssl.SSLContext:
        """A server's context with both; BadFile unless the certificate can be read and the key is its own."""
        cert_setting, key_setting, _ = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Certificates alone; a key among them is passed over.
            context.load_verify_locations(cafile=self._cert)
        except (ssl.SSLError, OSError):
            raise BadFile(cert_setting, "the file holds no certificate, or a broken one (PEM)") from None
        try:
            # A password is never asked for: an encrypted key is one that cannot be used.
            context.load_cert_chain(self._cert, self._key, password=lambda: "")
        except (ssl.SSLError, OSError) as error:
            if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
                problem = f"the key is not that of the certificate in {cert_setting}"
            else:
                problem = "the file holds no private key, or a broken or encrypted one (PEM)"
            raise BadFile(key_setting, problem) from None
        return context


def _warn(validity: Validity | None, setting: str) -> None:
    """Tells of a certificate that no client will take; it is used all the same, for there is no other."""
    now = time.time()
    if validity is None or validity.begins <= now <= validity.ends:
        return
    event = "certificate has expired" if validity.ends < now else "certificate is not valid yet"
    log.warning(event, setting=setting, valid_from=_iso(validity.begins), valid_to=_iso(validity.ends))


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _validity(server: ssl.SSLContext, cert: bytes) -> Validity | None:
    """When the server's certificate is valid; None if OpenSSL would not take it from a server at any time.

    The `ssl` module tells what is in a certificate only to who was shown it and trusts it. So a client that
    trusts this one at any time is made and shown it, in memory.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(NO_CHECK_TIME)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    shown = client.wrap_bio(to_client, to_server)
    sides = (shown, server.wrap_bio(to_server, to_client, server_side=True))
    try:
        client.load_verify_locations(cadata=cert.decode("ascii", "ignore"))
        # With TLS 1.2 the client has three turns.
        for side in sides * 3:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        found = shown.getpeercert() or {}
    except (ssl.SSLError, ValueError):
        return None
    begins, ends = (ssl.cert_time_to_seconds(str(found[name])) for name in ("notBefore", "notAfter"))
    return Validity(begins, ends)
