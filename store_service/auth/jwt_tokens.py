"""Authentication by tokens (JWT) of an identity provider. Needs the extra `store-service[jwt]`.

The type of the key determines the algorithm, never the token. So a public key is never used as a shared
secret, and the algorithm `none` is not accepted.
"""

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from store_service.auth.principal import Permission, Principal
from store_service.auth.watched_file import ReloadedFile
from store_service.errors import CredentialsInvalid

MIN_SECRET_BYTES = 32
MIN_RSA_BITS = 2048
MAX_TOKENS = 4096
"""Maximum number of verified tokens in the cache. A full cache is cleared."""

_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """Required claims of a token."""

    audience: str
    """Required value of `aud`, or one of its values."""
    issuer: str
    """Required value of `iss`."""
    leeway_seconds: float
    """Allowed difference between the clocks of the issuer and the service."""
    scope_claim: str
    """Claim with the permissions: a string of words, or a list of strings. Other words are ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationKey:
    """A key that verifies signatures."""

    key: Any = field(repr=False)
    algorithm: str
    key_id: str | None = None
    """`kid` of the tokens that are signed with this key; None: any `kid`."""


class KeySet:
    """The keys of one file, and a cache of tokens that were verified with them."""

    def __init__(self, keys: list[VerificationKey]) -> None:
        """Takes the keys. The cache ends with them when the file is loaded again."""
        self.keys = tuple(keys)
        self.known: dict[bytes, tuple[Principal, float]] = {}
        """Principal and expiry time (seconds since 1970, with the leeway) by SHA-256 of the token."""


class Tokens:
    """Verifies tokens. A verified token is cached until it expires."""

    def __init__(self, keys: ReloadedFile[KeySet], rules: TokenRules) -> None:
        """Takes the keys and the required claims."""
        self.file = keys
        self._rules = rules

    def authenticate(self, token: str) -> Principal:
        """Returns the principal of a token.

        Raises:
            CredentialsInvalid: The token has expired, lacks a required claim, or has no valid signature.
        """
        keys = self.file.value
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        known = keys.known.get(digest)
        if known is not None and time.time() < known[1]:
            return known[0]
        claims = self._verified_claims(keys, token)
        principal = Principal(name=claims["sub"], permissions=self._permissions(claims))
        if len(keys.known) >= MAX_TOKENS:
            keys.known.clear()
        keys.known[digest] = (principal, float(claims["exp"]) + self._rules.leeway_seconds)
        return principal

    def _verified_claims(self, keys: KeySet, token: str) -> dict[str, Any]:
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            for key in keys.keys:
                if key.algorithm != header["alg"] or key.key_id not in (None, header.get("kid", key.key_id)):
                    continue
                try:
                    return jwt.decode(
                        token,
                        key.key,
                        algorithms=[key.algorithm],
                        audience=self._rules.audience,
                        issuer=self._rules.issuer,
                        leeway=self._rules.leeway_seconds,
                        options={"require": ["exp", "aud", "iss", "sub"]},
                    )
                except jwt.InvalidSignatureError:
                    continue  # Another key may match.
        except jwt.ExpiredSignatureError:
            raise CredentialsInvalid("the token has expired") from None
        except Exception:
            # Malicious bytes may raise any exception in the library. They are not a valid token.
            raise CredentialsInvalid("the token is not valid here") from None
        raise CredentialsInvalid("the token is not valid here")

    def _permissions(self, claims: dict[str, Any]) -> frozenset[Permission]:
        claim = claims.get(self._rules.scope_claim, ())
        words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
        return frozenset(permission for permission in Permission if permission in words)


def parse_secret(data: bytes) -> KeySet:
    """Returns the key of a file with a shared secret (HS256).

    Raises:
        ValueError: The secret is too short, or the file has a PEM key.
    """
    secret = data.strip()
    if b"-----BEGIN" in secret:
        raise ValueError("holds a PEM key, which is not a shared secret")
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the secret must have at least {MIN_SECRET_BYTES} bytes")
    return KeySet([VerificationKey(key=secret, algorithm="HS256")])


def parse_public_keys(data: bytes) -> KeySet:
    """Returns the keys of a file with public keys: one or more PEM blocks, or a JWKS.

    Raises:
        ValueError: The file has no public key, a key that cannot be used, or a private key.
    """
    keys = _from_jwks(data) if data.lstrip().startswith(b"{") else _from_pem(data)
    if not keys:
        raise ValueError("holds no public key (PEM or JWKS)")
    return KeySet(keys)


def _from_pem(data: bytes) -> list[VerificationKey]:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from cryptography.x509 import load_pem_x509_certificate

    keys = []
    for block in _PEM.finditer(data):
        kind = block[1].decode()
        if "PRIVATE" in kind:
            raise ValueError("holds a private key, which only the issuer may have")
        try:
            key = (
                load_pem_x509_certificate(block[0]).public_key()
                if kind == "CERTIFICATE"
                else load_pem_public_key(block[0])
            )
        except Exception:
            raise ValueError(f"holds a PEM block {kind} that cannot be read") from None
        keys.append(VerificationKey(key=key, algorithm=_algorithm(key)))
    return keys


def _from_jwks(data: bytes) -> list[VerificationKey]:
    import jwt

    keys = []
    try:
        entries = [it for it in json.loads(data)["keys"] if it.get("use", "sig") == "sig"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("is not a JWKS") from None
    for entry in entries:
        # "oct" is a secret, and "d" is the private part of all other types.
        if entry.get("kty") == "oct" or "d" in entry:
            raise ValueError("holds a secret or private key, which only the issuer may have")
        try:
            key = jwt.PyJWK(entry).key
        except Exception:
            raise ValueError("holds a key that cannot be read") from None
        algorithm = _algorithm(key)
        if entry.get("alg", algorithm) != algorithm:
            raise ValueError(f"holds a key for another algorithm than {algorithm}, that of its type")
        keys.append(VerificationKey(key=key, algorithm=algorithm, key_id=entry.get("kid")))
    return keys


def _algorithm(key: object) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise ValueError(f"holds an RSA key of less than {MIN_RSA_BITS} bits")
        return "RS256"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "EdDSA"
    if isinstance(key, ec.EllipticCurvePublicKey):
        by_curve = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
        if key.curve.name in by_curve:
            return by_curve[key.curve.name]
    raise ValueError(
        "holds a key of an unsupported type; RSA, EC (P-256, P-384, P-521) and Ed25519 are supported"
    )
