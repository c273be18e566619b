"""TLS for connections to PostgreSQL, as libpq configures it."""

import ssl
from pathlib import Path

from store_service.database_url import PostgresqlUrl


def ssl_context(url: PostgresqlUrl) -> ssl.SSLContext | None:
    """Returns the TLS context for the options of a URL, with the rules of libpq; None without TLS.

    Raises:
        OSError: A file does not exist or is not valid.
    """
    query = url.options
    mode = query.get("sslmode", "disable")
    if mode == "disable":
        return None
    files = {option: query.get(option) or _default_file(name) for option, name in _DEFAULT_FILES.items()}
    # Python's default context is stricter and refuses certificates that libpq accepts.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    if files["sslrootcert"] == "system":
        context.load_default_certs()
    elif files["sslrootcert"] is not None:
        context.load_verify_locations(files["sslrootcert"])
    elif mode == "require":
        # As in libpq, "require" verifies only if there is a root certificate.
        context.verify_mode = ssl.CERT_NONE
    if files["sslcert"] is not None:
        context.load_cert_chain(files["sslcert"], files["sslkey"])
    return context


_DEFAULT_FILES = {"sslrootcert": "root.crt", "sslcert": "postgresql.crt", "sslkey": "postgresql.key"}
"""The files in the folder ~/.postgresql that libpq uses if the URL names none."""


def _default_file(name: str) -> str | None:
    path = Path.home() / ".postgresql" / name
    return str(path) if path.exists() else None
