"""Certificates for tests of TLS: authorities, what they sign, and files that hold it."""

from datetime import datetime
from pathlib import Path

import grpc
import trustme

HOST = "127.0.0.1"


def chain_of(cert: trustme.LeafCert) -> bytes:
    """The certificate and those between it and its authority, as PEM."""
    return b"".join(blob.bytes() for blob in cert.cert_chain_pems)


def key_of(cert: trustme.LeafCert) -> bytes:
    """The private key, as PEM."""
    return cert.private_key_pem.bytes()


class Files:
    """What the settings of TLS name; every change replaces a file in one step, as careful tools do."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        """Writes a certificate for this machine that `authority` has signed."""
        self.cert, self.key, self.client_ca = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))
        self.renew(authority)
        self.trust(authority)

    def renew(
        self, authority: trustme.CA, not_before: datetime | None = None, not_after: datetime | None = None
    ) -> trustme.LeafCert:
        """Puts another certificate and its key in place of those before."""
        cert = authority.issue_cert("localhost", HOST, not_before=not_before, not_after=not_after)
        replace(self.key, key_of(cert))
        replace(self.cert, chain_of(cert))
        return cert

    def trust(self, *authorities: trustme.CA) -> None:
        """Takes clients of these authorities and of no others."""
        replace(self.client_ca, b"".join(it.cert_pem.bytes() for it in authorities))


def replace(path: Path, content: bytes) -> None:
    """Puts a whole file in place of another."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def channel_credentials(
    authority: trustme.CA, client: trustme.LeafCert | None = None
) -> grpc.ChannelCredentials:
    """For a client that takes servers of an authority, and shows a certificate if it has one."""
    root = authority.cert_pem.bytes()
    if client is None:
        return grpc.ssl_channel_credentials(root)
    return grpc.ssl_channel_credentials(root, key_of(client), chain_of(client))
