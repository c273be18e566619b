"""Creates the certificates and the authenticator of a server from the settings."""

from pathlib import Path

from store_service.auth import api_keys, jwt_tokens
from store_service.auth.authentication import Authenticator
from store_service.auth.certificates import Certificates
from store_service.auth.watched_file import ReloadedFile
from store_service.config import Config, environment_variable


def load_certificates(config: Config) -> Certificates | None:
    """Returns the certificates of the server; None without TLS.

    Raises:
        BadFile: A file cannot be used.
    """
    if not config.tls_cert:
        return None
    return Certificates(
        cert=Path(config.tls_cert),
        key=Path(config.tls_key),
        client_ca=Path(config.tls_client_ca) if config.tls_client_ca else None,
        settings=(
            environment_variable("tls_cert"),
            environment_variable("tls_key"),
            environment_variable("tls_client_ca"),
        ),
    )


def make_authenticator(config: Config) -> Authenticator | None:
    """Returns the authenticator of callers; None if all callers have all permissions.

    Raises:
        BadFile: A file cannot be used.
    """
    keys = (
        ReloadedFile(Path(config.api_keys_file), environment_variable("api_keys_file"), api_keys.parse)
        if config.api_keys_file
        else None
    )
    tokens = _tokens(config)
    if keys is None and tokens is None and not config.tls_client_ca:
        return None
    return Authenticator(keys=keys, tokens=tokens, certificates=bool(config.tls_client_ca))


def check(config: Config) -> None:
    """Checks every file of credentials that the settings name.

    Raises:
        BadFile: A file cannot be used.
    """
    load_certificates(config)
    make_authenticator(config)


def _tokens(config: Config) -> jwt_tokens.Tokens | None:
    if config.jwt_public_keys_file:
        name, parse = "jwt_public_keys_file", jwt_tokens.parse_public_keys
    elif config.jwt_secret_file:
        name, parse = "jwt_secret_file", jwt_tokens.parse_secret
    else:
        return None
    rules = jwt_tokens.TokenRules(
        audience=config.jwt_audience,
        issuer=config.jwt_issuer,
        leeway_seconds=config.jwt_leeway_seconds,
        scope_claim=config.jwt_scope_claim,
    )
    return jwt_tokens.Tokens(
        ReloadedFile(Path(getattr(config, name)), environment_variable(name), parse), rules
    )
