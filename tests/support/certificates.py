"""Certificates for TLS tests, and the files that contain them."""

from datetime import datetime
from pathlib import Path

import grpc
import trustme

HOST = "127.0.0.1"


def certificate_chain(cert: trustme.LeafCert) -> bytes:
    """Returns the certificate and its intermediate certificates as PEM."""
    return b"".join(blob.bytes() for blob in cert.cert_chain_pems)


def private_key(cert: trustme.LeafCert) -> bytes:
    """Returns the private key as PEM."""
    return cert.private_key_pem.bytes()


class TlsFiles:
    """The files that the TLS settings refer to. Each change replaces a file atomically."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        """Writes a certificate for this machine, signed by `authority`."""
        self.cert, self.key, self.client_ca = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))
        self.renew(authority)
        self.trust(authority)

    def renew(
        self, authority: trustme.CA, not_before: datetime | None = None, not_after: datetime | None = None
    ) -> trustme.LeafCert:
        """Replaces the certificate and its key."""
        cert = authority.issue_cert("localhost", HOST, not_before=not_before, not_after=not_after)
        replace_file(self.key, private_key(cert))
        replace_file(self.cert, certificate_chain(cert))
        return cert

    def trust(self, *authorities: trustme.CA) -> None:
        """Accepts clients of these authorities only."""
        replace_file(self.client_ca, b"".join(it.cert_pem.bytes() for it in authorities))


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file atomically."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def channel_credentials(
    authority: trustme.CA, client: trustme.LeafCert | None = None
) -> grpc.ChannelCredentials:
    """Credentials of a client that trusts one authority; with a client certificate if one is given."""
    root = authority.cert_pem.bytes()
    if client is None:
        return grpc.ssl_channel_credentials(root)
    return grpc.ssl_channel_credentials(root, private_key(client), certificate_chain(client))
