"""Rules for combinations of settings. A violation is a ValueError whose text names the variable."""

from typing import TYPE_CHECKING

from store_service.address import Address

if TYPE_CHECKING:
    from store_service.config import Config

BESIDE_BODY_BYTES = 256
"""Bytes of a request in addition to the body: ids, times, an etag, a mask, a request_id and lengths."""


def check_combinations(config: "Config") -> None:
    """Checks settings that depend on each other.

    Raises:
        ValueError: They contradict each other, or one is missing.
    """
    for check in (_check_tls, _check_jwt, _check_sizes, _check_workers, _check_replicas, _check_direct_url):
        check(config)


def _check_tls(config: "Config") -> None:
    if config.tls_cert and not config.tls_key:
        raise ValueError("STORE_TLS_CERT: requires STORE_TLS_KEY, the key of the certificate")
    if config.tls_key and not config.tls_cert:
        raise ValueError("STORE_TLS_KEY: requires STORE_TLS_CERT, the certificate of the key")
    if config.tls_client_ca and not config.tls_cert:
        raise ValueError("STORE_TLS_CLIENT_CA: requires STORE_TLS_CERT and STORE_TLS_KEY")
    if not (config.tls_cert or config.allow_insecure or Address.parse(config.listen).is_local):
        raise ValueError(
            "STORE_LISTEN: other machines can reach this address without TLS; set STORE_TLS_CERT and "
            "STORE_TLS_KEY, or STORE_ALLOW_INSECURE=true if something else encrypts"
        )


def _check_jwt(config: "Config") -> None:
    if config.jwt_public_keys_file and config.jwt_secret_file:
        raise ValueError("STORE_JWT_SECRET_FILE: must not be set together with STORE_JWT_PUBLIC_KEYS_FILE")
    accepts_tokens = bool(config.jwt_public_keys_file or config.jwt_secret_file)
    for name in ("jwt_audience", "jwt_issuer"):
        variable = f"STORE_{name.upper()}"
        if accepts_tokens and not getattr(config, name):
            raise ValueError(f"{variable}: must be set if tokens are accepted")
        if getattr(config, name) and not accepts_tokens:
            raise ValueError(f"{variable}: requires STORE_JWT_PUBLIC_KEYS_FILE or STORE_JWT_SECRET_FILE")


def _check_sizes(config: "Config") -> None:
    if config.max_body_bytes + BESIDE_BODY_BYTES > config.max_request_bytes:
        raise ValueError(
            f"STORE_MAX_REQUEST_BYTES: must be at least {BESIDE_BODY_BYTES} more than "
            "STORE_MAX_BODY_BYTES, so that the longest body fits into a request"
        )
    if config.max_request_bytes > config.max_concurrent_bytes:
        raise ValueError(
            "STORE_MAX_CONCURRENT_BYTES: must be at least STORE_MAX_REQUEST_BYTES, so that the largest "
            "request can be accepted"
        )


def _check_workers(config: "Config") -> None:
    if config.workers > 1 and config.listen.startswith("unix:"):
        raise ValueError("STORE_WORKERS: must be 1 with a Unix socket, which processes cannot share")
    if config.workers > 1 and config.DB_FORCE_ROLL_BACK:
        raise ValueError(
            "STORE_WORKERS: must be 1 with DB_FORCE_ROLL_BACK, because each process would have its own "
            "transaction and would not see the writes of the others"
        )


def _check_replicas(config: "Config") -> None:
    if config.DATABASE_READ_URL and config.DATABASE_URL.startswith("sqlite:"):
        raise ValueError(
            "DATABASE_READ_URL: needs a PostgreSQL database in DATABASE_URL, because SQLite has no replicas"
        )
    if config.DATABASE_READ_URL and config.DB_FORCE_ROLL_BACK:
        raise ValueError(
            "DATABASE_READ_URL: must not be set with DB_FORCE_ROLL_BACK, because replicas never receive what "
            "is rolled back"
        )


def _check_direct_url(config: "Config") -> None:
    if config.DATABASE_DIRECT_URL and config.DATABASE_URL.startswith("sqlite:"):
        raise ValueError("DATABASE_DIRECT_URL: must not be set, because DATABASE_URL is a SQLite file")
