"""From settings to what guards the door: certificates for the port, and who may call."""

from pathlib import Path

from store_service.access import keys, tokens
from store_service.access.files import ReloadedFile
from store_service.config import Config, variable_of
from store_service.rpc.access import Access
from store_service.rpc.tls import Certificates


def certificates(config: Config) -> Certificates | None:
    """The certificates to serve with; None: without TLS.

    Raises:
        BadFile: A file cannot be used.
    """
    if not config.tls_cert:
        return None
    return Certificates(
        cert=Path(config.tls_cert),
        key=Path(config.tls_key),
        client_ca=Path(config.tls_client_ca) if config.tls_client_ca else None,
        settings=(variable_of("tls_cert"), variable_of("tls_key"), variable_of("tls_client_ca")),
    )


def access(config: Config) -> Access | None:
    """What recognises callers; None: everybody may do everything.

    Raises:
        BadFile: A file cannot be used.
    """
    ring = (
        ReloadedFile(Path(config.api_keys_file), variable_of("api_keys_file"), keys.parse)
        if config.api_keys_file
        else None
    )
    checker = _tokens(config)
    if ring is None and checker is None and not config.tls_client_ca:
        return None
    return Access(keys=ring, tokens=checker, certificates=bool(config.tls_client_ca))


def check(config: Config) -> None:
    """Reads every file that the settings name, and keeps nothing.

    Raises:
        BadFile: One cannot be used.
    """
    certificates(config)
    access(config)


def _tokens(config: Config) -> tokens.Tokens | None:
    if config.jwt_public_keys_file:
        name, parse = "jwt_public_keys_file", tokens.parse_public_keys
    elif config.jwt_secret_file:
        name, parse = "jwt_secret_file", tokens.parse_secret
    else:
        return None
    rules = tokens.TokenRules(
        audience=config.jwt_audience,
        issuer=config.jwt_issuer,
        leeway_seconds=config.jwt_leeway_seconds,
        rights_claim=config.jwt_rights_claim,
    )
    return tokens.Tokens(ReloadedFile(Path(getattr(config, name)), variable_of(name), parse), rules)
