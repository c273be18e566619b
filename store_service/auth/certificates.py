"""The TLS certificates of the server, which are loaded again when their files change."""

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
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python's `ssl` does not define."""

log = structlog.get_logger("store_service.rpc")


@dataclass(frozen=True, slots=True)
class Validity:
    """The validity period of a certificate, in seconds since 1970."""

    begins: float
    ends: float


class Certificates:
    """The last valid versions of the certificate, its key and the authorities of clients."""

    def __init__(
        self, *, cert: Path, key: Path, client_ca: Path | None, settings: tuple[str, str, str]
    ) -> None:
        """Reads the files.

        Args:
            cert: The certificate chain of the server (PEM).
            key: The private key of the certificate, not encrypted (PEM).
            client_ca: Authorities of client certificates (PEM); None: clients need no certificate.
            settings: The environment variables that name the three files, for messages.

        Raises:
            BadFile: A file cannot be used.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._settings = settings
        self._lock = threading.Lock()
        self._loaded_signature = self._signature()
        self._failure = RepeatedFailure(
            log,
            "cannot use the changed certificates; the previous ones stay in use",
            end_event="changed certificates are usable again",
        )
        self._validity: Validity | None = None
        self._initial = self._load()
        self._changed: grpc.ServerCertificateConfiguration | None = None
        """A configuration that was loaded and that gRPC does not have yet."""

    def credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials for `add_secure_port`. They check the files at each new connection."""
        return grpc.dynamic_ssl_server_credentials(
            self._initial,
            self.renewed,  # type: ignore[arg-type]  # the published types leave out None, for no change
            require_client_authentication=self._client_ca is not None,
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the new configuration; None if nothing has changed or the files do not match.

        Threads of gRPC call this before each handshake.
        """
        with self._lock:
            self._reload_if_changed()
            changed, self._changed = self._changed, None
            return changed

    def expires(self) -> float | None:
        """Returns the expiry time of the certificate for new connections, in seconds since 1970; None if it
        cannot be determined.

        Checks the files, because the last new connection may be long ago.
        """
        with self._lock:
            self._reload_if_changed()
            return None if self._validity is None else self._validity.ends

    def _reload_if_changed(self) -> None:
        signature = self._signature()
        if signature == self._loaded_signature:
            self._failure.ended()
            return
        try:
            self._changed = self._load()
        except BadFile as error:
            self._failure.failed(problem=str(error))
            return
        self._loaded_signature = signature
        self._failure.ended()
        log.info("certificates reloaded")

    def _signature(self) -> tuple[Signature | None, ...]:
        paths = (self._cert, self._key, self._client_ca)
        return tuple(file_signature(path) for path in paths if path is not None)

    def _load(self) -> grpc.ServerCertificateConfiguration:
        cert_setting, key_setting, ca_setting = self._settings
        cert, key = read(self._cert, cert_setting), read(self._key, key_setting)
        context = self._check_pair()
        # OpenSSL has read the files itself. It has checked these bytes only if the files are still the same.
        if (cert, key) != (read(self._cert, cert_setting), read(self._key, key_setting)):
            raise BadFile(cert_setting, "the file is being written")
        validity = _validity(context, cert)
        if self._client_ca is None:
            self._set_validity(validity)
            return grpc.ssl_server_certificate_configuration([(key, cert)])
        client_ca = read(self._client_ca, ca_setting)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=client_ca.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise BadFile(ca_setting, "the file holds no valid certificates (PEM)") from None
        self._set_validity(validity)
        return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)

    def _set_validity(self, validity: Validity | None) -> None:
        self._validity = validity
        _warn_if_not_valid_now(validity, self._settings[0])

    def _check_pair(self) -> ssl.SSLContext:
        """Returns a server context with the certificate and the key.

        Raises:
            BadFile: The certificate or the key cannot be read, or they do not match.
        """
        cert_setting, key_setting, _ = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # This reads only certificates; a key in the same file is ignored.
            context.load_verify_locations(cafile=self._cert)
        except (ssl.SSLError, OSError):
            raise BadFile(cert_setting, "the file holds no valid certificate (PEM)") from None
        try:
            # An encrypted key is an error. Without this function OpenSSL would ask for a password.
            context.load_cert_chain(self._cert, self._key, password=lambda: "")
        except (ssl.SSLError, OSError) as error:
            if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
                problem = f"the key does not match the certificate of {cert_setting}"
            else:
                problem = "the file holds no valid, unencrypted private key (PEM)"
            raise BadFile(key_setting, problem) from None
        return context


def _warn_if_not_valid_now(validity: Validity | None, setting: str) -> None:
    """Logs a certificate that clients will not accept. The server still uses it, because it has no other."""
    now = time.time()
    if validity is None or validity.begins <= now <= validity.ends:
        return
    event = "certificate has expired" if validity.ends < now else "certificate is not valid yet"
    log.warning(event, setting=setting, valid_from=_iso(validity.begins), valid_to=_iso(validity.ends))


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _validity(server: ssl.SSLContext, cert: bytes) -> Validity | None:
    """Returns the validity of the server's certificate; None if OpenSSL never accepts it as a server's.

    The `ssl` module decodes only certificates that a peer has presented and that are trusted. Therefore a
    client that trusts this certificate at any time makes a handshake with the server, in memory.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(NO_CHECK_TIME)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(to_client, to_server)
    sides = (client_side, server.wrap_bio(to_server, to_client, server_side=True))
    try:
        client.load_verify_locations(cadata=cert.decode("ascii", "ignore"))
        # A handshake of TLS 1.2 needs three steps of the client.
        for side in sides * 3:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        decoded = client_side.getpeercert() or {}
    except (ssl.SSLError, ValueError):
        return None
    begins, ends = (ssl.cert_time_to_seconds(str(decoded[name])) for name in ("notBefore", "notAfter"))
    return Validity(begins, ends)
