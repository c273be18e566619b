"""The file of API keys: its lines, what is refused, and how a key is made and found."""

import hashlib
import hmac
import stat
from pathlib import Path

import pytest

from store_service.auth.api_keys import append, new_key, parse
from store_service.auth.principal import ALL_PERMISSIONS, Permission

# Not a new one: the names of tests hold it, and every process that runs them must have the same.
KEY = "storeapi_nJq0yqk3jv0kq9S4l1tGqk2H0m3Zr8bW5xUu7cPa6Yo"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def test_line_is_name_hash_and_permissions() -> None:
    """Comments and empty lines are ignored."""
    ring = parse(f"# keys\n\n  billing \t {DIGEST}   read,write  \n".encode())

    caller = ring.find_by_key(KEY)
    assert caller is not None
    assert (caller.name, caller.permissions) == ("billing", {Permission.READ, Permission.WRITE})


def test_unknown_key_has_no_principal() -> None:
    """Nor has a hash or a similar text."""
    ring = parse(f"billing {DIGEST} read".encode())

    for other in ("", new_key(), DIGEST, KEY[:-1], f"{KEY}x", f" {KEY}", KEY.swapcase(), "\ud800"):
        assert ring.find_by_key(other) is None


def test_hashes_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the function that is made for it."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one.hex(), other.hex()))
        return one == other

    ring = parse(f"billing {DIGEST} read".encode())
    monkeypatch.setattr(hmac, "compare_digest", compare)

    assert ring.find_by_key(KEY) is not None
    assert compared == [(DIGEST, DIGEST)]


def test_certificate_matches_its_first_name_with_a_line() -> None:
    ring = parse(f"cert:b - read\ncert:spiffe://x/y - write\nkey {DIGEST} watch".encode())

    assert ring.find_by_certificate(["a", "b", "spiffe://x/y"]) == parse(
        b"cert:b - read"
    ).find_by_certificate(["b"])
    assert ring.find_by_certificate(["key"]) is None
    assert ring.find_by_certificate([]) is None
    found = ring.find_by_certificate(["spiffe://x/y"])
    assert found is not None
    assert (found.name, found.permissions) == ("spiffe://x/y", {Permission.WRITE})
    assert ring.find_by_key("-") is None
    assert ring.find_by_key("") is None


@pytest.mark.parametrize(
    "line",
    [
        "billing",
        f"billing {DIGEST}",
        f"billing {DIGEST} read write",
        f"billing {DIGEST[:-1]} read",
        f"billing {DIGEST}0 read",
        f"billing {DIGEST[:-1]}g read",
        f"billing {DIGEST} ",
        f"billing {DIGEST} all",
        f"billing {DIGEST} read,",
        f"billing {DIGEST} READ",
        f"billing - {KEY}",
        f"billing {KEY} read",
        f"{DIGEST} read {KEY}",
        f"-x {DIGEST} read",
        f"{'x' * 65} {DIGEST} read",
        f"bil\x00ling {DIGEST} read",
        f"cert: {DIGEST} read",
        f"cert:billing {DIGEST} read",
        "cert:billing - root",
    ],
)
def test_invalid_line_is_named_by_its_number(line: str) -> None:
    """Its text may be a key."""
    with pytest.raises(ValueError, match=r"^line 3: ") as raised:
        parse(f"# a\nfine {'0' * 64} read\n{line}\n".encode())

    assert KEY not in str(raised.value)
    assert DIGEST not in str(raised.value)


@pytest.mark.parametrize("line", [f"other {DIGEST.upper()} watch", "cert:x - watch"])
def test_key_or_certificate_has_one_line(line: str) -> None:
    """Two could not both be right."""
    with pytest.raises(ValueError, match=r"^line 3: line [12] has the same"):
        parse(f"billing {DIGEST} read\ncert:x - read\n{line}".encode())


def test_name_may_have_several_keys() -> None:
    """For key rotation."""
    other = new_key()
    ring = parse(f"a {DIGEST} read\na {hashlib.sha256(other.encode()).hexdigest()} write".encode())

    assert [ring.find_by_key(it).permissions for it in (KEY, other)] == [
        {Permission.READ},
        {Permission.WRITE},
    ]


def test_key_is_random_with_a_known_prefix() -> None:
    """256 bits, so that a plain hash is enough."""
    made = {new_key() for _ in range(100)}

    assert len(made) == 100
    assert all(key.startswith("storeapi_") and len(key) == len("storeapi_") + 43 for key in made)


def test_new_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """Whatever the umask; and it does not have the key."""
    file = tmp_path / "keys"

    append(file, name="billing", key=KEY, permissions=ALL_PERMISSIONS)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == f"billing {DIGEST} read,write,watch,admin\n"


def test_line_is_appended(tmp_path: Path) -> None:
    """Comments stay, and a last line without an end gets one."""
    file = tmp_path / "keys"
    file.write_text(f"# ours\nbilling {DIGEST} read")

    append(file, name="billing", key=new_key(), permissions=frozenset([Permission.WATCH]))

    first, second, third = file.read_text().splitlines()
    assert (first, second) == ("# ours", f"billing {DIGEST} read")
    assert third.startswith("billing ")
    assert third.endswith(" watch")


def test_nothing_is_appended_to_an_invalid_file(tmp_path: Path) -> None:
    """The server would not take the new key."""
    file = tmp_path / "keys"
    file.write_text("nonsense\n")

    with pytest.raises(ValueError, match="line 1"):
        append(file, name="billing", key=KEY, permissions=ALL_PERMISSIONS)

    assert file.read_text() == "nonsense\n"


@pytest.mark.parametrize("name", ["", "a b", "cert:x", "a\n", "#a", "x" * 65])
def test_unreadable_name_is_refused(tmp_path: Path, name: str) -> None:
    """And no file is made."""
    with pytest.raises(ValueError, match="name"):
        append(tmp_path / "keys", name=name, key=KEY, permissions=ALL_PERMISSIONS)

    assert list(tmp_path.iterdir()) == []
