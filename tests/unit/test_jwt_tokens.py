"""Tokens (JWT): what is taken, what is refused, and that only the kind of key chooses the algorithm."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from store_service.auth import jwt_tokens
from store_service.auth.jwt_tokens import TokenRules, Tokens, parse_public_keys, parse_secret
from store_service.auth.principal import Permission, Principal
from store_service.auth.watched_file import ReloadedFile
from store_service.errors import CredentialsInvalid

AUDIENCE, ISSUER = "storeapi", "https://issuer.example"
SECRET = b"a secret of more than 32 bytes, from the issuer"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PRIVATE = {"RS256": RSA, "ES256": EC, "EdDSA": ED}


def pem(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data


def jwks(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": entries}).encode()


def jwk(algorithm: str, **more: Any) -> dict[str, Any]:
    key = PRIVATE[algorithm].public_key()
    by_kind = {
        "RS256": jwt.algorithms.RSAAlgorithm,
        "ES256": jwt.algorithms.ECAlgorithm,
        "EdDSA": jwt.algorithms.OKPAlgorithm,
    }
    return {**by_kind[algorithm].to_jwk(key, as_dict=True), **more}


DAY_SECONDS = 86_400
"""Tokens are made when tests are collected, which may be long before they are used."""


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    usual = {"sub": "indexer", "aud": AUDIENCE, "iss": ISSUER, "exp": now + DAY_SECONDS, "scope": "read"}
    return {name: value for name, value in (usual | more).items() if value is not None}


@pytest.fixture
def checker(tmp_path: Path) -> Callable[..., Tokens]:
    """Makes what checks tokens, with a file of keys."""

    def make(data: bytes, parse: Any = parse_public_keys, **rules: Any) -> Tokens:
        path = tmp_path / "keys"
        path.write_bytes(data)
        usual = {"audience": AUDIENCE, "issuer": ISSUER, "leeway_seconds": 0.0, "scope_claim": "scope"}
        return Tokens(ReloadedFile(path, "STORE_JWT", parse), TokenRules(**(usual | rules)))

    return make


@pytest.mark.parametrize("algorithm", PRIVATE)
@pytest.mark.parametrize("form", ["PEM", "JWKS"])
def test_algorithm_follows_the_key_type(checker: Callable[..., Tokens], algorithm: str, form: str) -> None:
    """RSA, EC and Ed25519, in either file format."""
    data = pem(PRIVATE[algorithm]) if form == "PEM" else jwks(jwk(algorithm, kid="1"))
    token = jwt.encode(claims(), PRIVATE[algorithm], algorithm=algorithm)

    caller = checker(data).authenticate(token)

    assert caller == Principal(name="indexer", permissions=frozenset([Permission.READ]))


def test_secret_is_for_hs256(checker: Callable[..., Tokens]) -> None:
    """Surrounding white space is ignored."""
    token = jwt.encode(claims(), SECRET, algorithm="HS256")

    assert checker(SECRET + b"\n", parse_secret).authenticate(token).name == "indexer"


def segment(data: Any) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(header: dict[str, Any], key: bytes | None) -> str:
    """A token signed by hand, as a library would refuse to."""
    signed = f"{segment(header)}.{segment(claims())}"
    signature = b"" if key is None else hmac.digest(key, signed.encode(), "sha256")
    return f"{signed}.{segment(signature)}"


FORGED = {
    "no signature": forged({"alg": "none", "typ": "JWT"}, None),
    "no signature, spelt otherwise": forged({"alg": "nOnE"}, None),
    "the public key as a secret": forged({"alg": "HS256"}, pem(RSA)),
    "the trimmed public key as a secret": forged({"alg": "HS256"}, pem(RSA).strip()),
    "a key of the caller's own": jwt.encode(
        claims(), rsa.generate_private_key(65537, 2048), algorithm="RS256"
    ),
    "a key in the header": jwt.encode(claims(), EC, algorithm="ES256", headers={"jwk": jwk("ES256")}),
    "another algorithm of the same key": jwt.encode(claims(), RSA, algorithm="RS512"),
    "no algorithm": forged({"typ": "JWT"}, pem(RSA)),
    "an algorithm that is a list": forged({"alg": ["RS256"]}, pem(RSA)),
    "a header that is no object": f"{segment([1])}.{segment(claims())}.x",
    "nested without end": f"{segment(b'[' * 100_000)}.{segment(claims())}.x",
    "no token": "a.b.c",
    "nothing": "..",
    "no ASCII": "\udcff.ä.😀",
}


@pytest.mark.parametrize("how", FORGED)
def test_forged_jwt_is_refused(checker: Callable[..., Tokens], how: str) -> None:
    """Whatever its header says of how it is signed."""
    with pytest.raises(CredentialsInvalid, match="not valid here"):
        checker(pem(RSA)).authenticate(FORGED[how])


NOW = int(time.time())
WRONG = {
    "for another audience": claims(aud="another"),
    "for none": claims(aud=None),
    "from another issuer": claims(iss="https://else.example"),
    "from none": claims(iss=None),
    "of nobody": claims(sub=None),
    "of no text": claims(sub=7),
    "for ever": claims(exp=None),
    "until no number": claims(exp="tomorrow"),
    "not yet": claims(nbf=NOW + DAY_SECONDS),
}


@pytest.mark.parametrize("how", WRONG)
def test_jwt_without_required_claims_is_refused(checker: Callable[..., Tokens], how: str) -> None:
    """Signed well, and not for us."""
    with pytest.raises(CredentialsInvalid, match="not valid here"):
        checker(pem(RSA)).authenticate(jwt.encode(WRONG[how], RSA, algorithm="RS256"))


def test_one_of_several_audiences_is_enough(checker: Callable[..., Tokens]) -> None:
    token = jwt.encode(claims(aud=["another", AUDIENCE]), RSA, algorithm="RS256")

    assert checker(pem(RSA)).authenticate(token).name == "indexer"


@pytest.mark.parametrize("seen_before", [False, True])
def test_jwt_is_valid_until_its_expiry_and_the_leeway(
    checker: Callable[..., Tokens], seen_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from the cache."""
    made = checker(SECRET, parse_secret, leeway_seconds=30.0)
    recent = jwt.encode(claims(exp=time.time() - 20), SECRET, algorithm="HS256")
    assert made.authenticate(recent).name == "indexer"
    if not seen_before:
        made.file.value.known.clear()
        old = jwt.encode(claims(exp=time.time() - 40), SECRET, algorithm="HS256")
    else:
        old = recent
        (key, (caller, until)) = made.file.value.known.popitem()
        assert until == pytest.approx(time.time() + 10, abs=9)
        made.file.value.known[key] = (caller, time.time() - 1)
        monkeypatch.setattr(made, "_verified_claims", refuses)

    with pytest.raises(CredentialsInvalid):
        made.authenticate(old)


def refuses(*_: Any) -> Any:
    raise CredentialsInvalid("it was checked anew")


def test_expiry_is_reported(checker: Callable[..., Tokens]) -> None:
    """A forged token gets a general error."""
    expired = claims(exp=time.time() - 1)

    with pytest.raises(CredentialsInvalid, match="has expired"):
        checker(pem(RSA)).authenticate(jwt.encode(expired, RSA, algorithm="RS256"))
    with pytest.raises(CredentialsInvalid, match="not valid here"):
        checker(pem(RSA)).authenticate(jwt.encode(expired, EC, algorithm="ES256"))


@pytest.mark.parametrize(
    ("claim", "permissions"),
    [
        ("read write watch admin", set(Permission)),
        ("openid read profile", {Permission.READ}),
        (["watch", "other", 7], {Permission.WATCH}),
        ("readwrite READ", set()),
        ("", set()),
        (None, set()),
        (7, set()),
        ({"read": True}, set()),
    ],
)
def test_permissions_are_the_words_of_the_scope_claim(
    checker: Callable[..., Tokens], claim: Any, permissions: set[Permission]
) -> None:
    """As a string or a list; unknown words are ignored."""
    token = jwt.encode(claims(scope=None, permissions=claim), RSA, algorithm="RS256")

    assert checker(pem(RSA), scope_claim="permissions").authenticate(token).permissions == permissions


def test_jwt_is_verified_once(checker: Callable[..., Tokens], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is keyed by its hash and bounded in time."""
    monkeypatch.setattr(jwt_tokens, "MAX_TOKENS", 3)
    made = checker(SECRET, parse_secret)
    first = jwt.encode(claims(), SECRET, algorithm="HS256")
    caller = made.authenticate(first)
    with monkeypatch.context() as patch:
        patch.setattr(made, "_verified_claims", refuses)
        assert made.authenticate(first) is caller
    for n in range(10):
        made.authenticate(jwt.encode(claims(sub=str(n)), SECRET, algorithm="HS256"))
        assert len(made.file.value.known) <= 3
    assert first.encode() not in made.file.value.known


def test_several_keys_are_distinguished(checker: Callable[..., Tokens]) -> None:
    """By the key id in the header, or by trying."""
    other = ec.generate_private_key(ec.SECP256R1())
    made = checker(pem(other) + pem(EC) + pem(RSA))
    for key, algorithm in ((other, "ES256"), (EC, "ES256"), (RSA, "RS256")):
        assert made.authenticate(jwt.encode(claims(), key, algorithm=algorithm)).name == "indexer"

    by_id = checker(jwks(jwk("ES256", kid="new"), jwk("RS256", kid="old", use="sig")))
    assert by_id.authenticate(jwt.encode(claims(), EC, algorithm="ES256", headers={"kid": "new"}))
    assert by_id.authenticate(jwt.encode(claims(sub="b"), EC, algorithm="ES256"))
    with pytest.raises(CredentialsInvalid):
        by_id.authenticate(jwt.encode(claims(), EC, algorithm="ES256", headers={"kid": "old"}))


def test_removed_key_invalidates_its_tokens(checker: Callable[..., Tokens], tmp_path: Path) -> None:
    made = checker(pem(RSA))
    token = jwt.encode(claims(), RSA, algorithm="RS256")
    made.authenticate(token)

    (tmp_path / "keys").write_bytes(pem(EC))
    assert [made.file.reload_if_changed(), made.file.reload_if_changed()] == [False, True]

    with pytest.raises(CredentialsInvalid):
        made.authenticate(token)


PRIVATE_PEM = EC.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
BAD_FILES = {
    "nothing": b"",
    "no key": b"hello",
    "a private key": PRIVATE_PEM,
    "a private key beside a public one": pem(EC) + PRIVATE_PEM,
    "half a key": pem(EC)[:80],
    "a broken key": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    "a short RSA key": pem(rsa.generate_private_key(65537, 1024)),
    "a curve that is not used": pem(ec.generate_private_key(ec.SECP256K1())),
    "no JWKS": b"{}",
    "an empty JWKS": jwks(),
    "a list of no keys": b'{"keys": [1]}',
    "a secret in a JWKS": jwks({"kty": "oct", "k": "c2VjcmV0"}),
    "a private key in a JWKS": jwks(jwk("RS256", d="x")),
    "another algorithm than the kind's": jwks(jwk("RS256", alg="RS512")),
    "a kind that is unknown": jwks({"kty": "XYZ"}),
    "keys for encryption alone": jwks(jwk("RS256", use="enc")),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_file_without_valid_public_keys_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r"^(holds|is) ") as raised:
        parse_public_keys(BAD_FILES[what])

    assert type(raised.value) is ValueError
    assert raised.value.__cause__ is None


PRIVATE_JWKS = {
    "RSA": jwt.algorithms.RSAAlgorithm.to_jwk(RSA, as_dict=True),
    "EC": jwt.algorithms.ECAlgorithm.to_jwk(EC, as_dict=True),
    "Ed25519": jwt.algorithms.OKPAlgorithm.to_jwk(ED, as_dict=True),
    "secret": {"kty": "oct", "k": "c2VjcmV0"},
}


@pytest.mark.parametrize("kind", PRIVATE_JWKS)
def test_private_key_is_refused_as_a_leak(kind: str) -> None:
    with pytest.raises(ValueError, match="only the issuer may have"):
        parse_public_keys(jwks(PRIVATE_JWKS[kind]))


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 31, b" " * 40, pem(RSA), PRIVATE_PEM])
def test_file_without_a_valid_secret_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="secret"):
        parse_secret(data)
