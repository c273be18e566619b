"""Tokens (JWT) that an identity provider has signed, as the second way to say who calls.

Needs the extra `store-service[jwt]`. The algorithm follows from the kind of key and never from the token,
so that a public key cannot be taken for a secret, and `none` is no algorithm.
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
"""Tokens that are remembered as good; when there are more, all are checked anew."""

_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token must say, besides having a signature."""

    audience: str
    """`aud`, or one of them."""
    issuer: str
    """`iss`."""
    leeway_seconds: float
    """How far the clocks of issuer and service may differ."""
    scope_claim: str
    """Where the rights are: words in a text, or a list of texts; other words than rights are passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationKey:
    """A key that signatures are checked with."""

    key: Any = field(repr=False)
    algorithm: str
    key_id: str | None = None
    """`kid` of the tokens that it has signed; None: it may have signed any."""


class KeySet:
    """The keys of one file, and the tokens that they have shown to be good."""

    def __init__(self, keys: list[VerificationKey]) -> None:
        """Takes the keys; the tokens go with them when the file changes."""
        self.keys = tuple(keys)
        self.known: dict[bytes, tuple[Principal, float]] = {}


class Tokens:
    """Checks tokens, each kind of which is costly only the first time."""

    def __init__(self, keys: ReloadedFile[KeySet], rules: TokenRules) -> None:
        """Takes the keys, and what tokens must say."""
        self.file = keys
        self._rules = rules

    def authenticate(self, token: str) -> Principal:
        """Who holds a token.

        Raises:
            CredentialsInvalid: It has expired, is for or from somebody else, or was not signed with our keys.
        """
        keys = self.file.value
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        known = keys.known.get(digest)
        if known is not None and time.time() < known[1]:
            return known[0]
        claims = self._verified(keys, token)
        caller = Principal(name=claims["sub"], permissions=self._permissions(claims))
        if len(keys.known) >= MAX_TOKENS:
            keys.known.clear()
        keys.known[digest] = (caller, float(claims["exp"]) + self._rules.leeway_seconds)
        return caller

    def _verified(self, keys: KeySet, token: str) -> dict[str, Any]:
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
                    continue  # another key may have made it
        except jwt.ExpiredSignatureError:
            raise CredentialsInvalid("the token has expired") from None
        except Exception:
            # Whatever the library makes of bytes that somebody chose to harm it, they are no token.
            raise CredentialsInvalid("the token is not valid here") from None
        raise CredentialsInvalid("the token is not valid here")

    def _permissions(self, claims: dict[str, Any]) -> frozenset[Permission]:
        claim = claims.get(self._rules.scope_claim, ())
        words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
        return frozenset(permission for permission in Permission if permission in words)


def parse_secret(data: bytes) -> KeySet:
    """The keys of a file with a secret that the issuer has too (HS256).

    Raises:
        ValueError: It is too short to be a secret, or no secret at all.
    """
    secret = data.strip()
    if b"-----BEGIN" in secret:
        raise ValueError("holds a PEM key, which is no shared secret")
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the secret must have at least {MIN_SECRET_BYTES} bytes")
    return KeySet([VerificationKey(key=secret, algorithm="HS256")])


def parse_public_keys(data: bytes) -> KeySet:
    """The keys of a file with public keys: PEM, of which there may be several, or a JWKS.

    Raises:
        ValueError: There is no key in it, or one that cannot be used or should not be there.
    """
    keys = _from_jwks(data) if data.lstrip().startswith(b"{") else _from_pem(data)
    if not keys:
        raise ValueError("holds no public key, neither as PEM nor as JWKS")
    return KeySet(keys)


def _from_pem(data: bytes) -> list[VerificationKey]:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from cryptography.x509 import load_pem_x509_certificate

    keys = []
    for block in _PEM.finditer(data):
        kind = block[1].decode()
        if "PRIVATE" in kind:
            raise ValueError("holds a private key, which belongs to the issuer alone")
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
        raise ValueError("is no JWKS") from None
    for entry in entries:
        # "oct" is a secret, and "d" the private half of any other kind.
        if entry.get("kty") == "oct" or "d" in entry:
            raise ValueError("holds a secret or private key, which belongs to the issuer alone")
        try:
            key = jwt.PyJWK(entry).key
        except Exception:
            raise ValueError("holds a key that cannot be read") from None
        algorithm = _algorithm(key)
        if entry.get("alg", algorithm) != algorithm:
            raise ValueError(f"holds a key for another algorithm than {algorithm}, which goes with its kind")
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
    raise ValueError("holds a key of a kind that is not used for tokens; there are RSA, EC and Ed25519")
