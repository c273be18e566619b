"""The file of API keys: one line for each, with a name, the SHA-256 of the key, and rights.

    # name                  SHA-256 of the key    rights
    billing                 9f86d081...           read,write
    cert:search.internal    -                     read,watch

A key is 256 random bits, which nobody finds by trying, so its plain SHA-256 gives nothing away, and a slow
or salted hash, made for passwords, would only make every call slower. A line `cert:NAME` gives rights to
whoever has a client certificate with this name (SAN).
"""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from store_service import disk
from store_service.auth.principal import Permission, Principal, parse_permissions

KEY_PREFIX = "storeapi_"
"""Every key begins so, for people and programs that look for secrets where none should be."""

CERTIFICATE_PREFIX = "cert:"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,63}")
"""The name of a key."""

MIN_HASH_DIGITS = 4
"""Hexadecimal digits of a hash that are enough to name its line, if no other hash begins so."""

_CERTIFICATE_NAME = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLine:
    """One line of the file."""

    name: str
    """With the prefix `cert:` if it is that of a certificate."""
    digest: bytes
    """SHA-256 of the key; empty if there is none."""
    permissions: frozenset[Permission]


class KeyRing:
    """Who is known by a key, and who by a certificate."""

    def __init__(self, lines: Sequence[KeyLine]) -> None:
        """Takes the lines of a file."""
        self.lines = tuple(lines)
        self._by_digest = {
            line.digest: (line.digest, Principal(name=line.name, permissions=line.permissions))
            for line in lines
            if line.digest
        }
        self._by_certificate = {
            name: Principal(name=name, permissions=line.permissions)
            for line in lines
            if not line.digest
            for name in [line.name.removeprefix(CERTIFICATE_PREFIX)]
        }

    def find_by_key(self, key: str) -> Principal | None:
        """Whose key this is.

        What is looked up is a hash, so the time it takes says nothing of any key; what is found is compared
        in constant time all the same.
        """
        digest = hashlib.sha256(key.encode(errors="replace")).digest()
        found = self._by_digest.get(digest)
        return found[1] if found is not None and hmac.compare_digest(found[0], digest) else None

    def find_by_certificate(self, names: Sequence[str]) -> Principal | None:
        """Who has a certificate with these names; the first one that the file knows counts."""
        return next((self._by_certificate[name] for name in names if name in self._by_certificate), None)


def parse(data: bytes) -> KeyRing:
    """Reads a file.

    Raises:
        ValueError: A line is wrong; the text names it, and repeats nothing that may be secret.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError("the file is no text in UTF-8") from None
    lines: list[KeyLine] = []
    known: dict[bytes | str, int] = {}
    for number, content in enumerate(text.splitlines(), start=1):
        if not content.strip() or content.lstrip().startswith("#"):
            continue
        try:
            line = _parse_line(content.split())
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        first = known.setdefault(line.digest or line.name, number)
        if first != number:
            what = "key" if line.digest else "certificate's name"
            raise ValueError(f"line {number}: line {first} has the same {what}")
        lines.append(line)
    return KeyRing(lines)


def _parse_line(fields: list[str]) -> KeyLine:
    if len(fields) != 3:
        raise ValueError("must be a name, the SHA-256 of a key, and rights such as read,write")
    name, digest, permissions = fields
    if name.startswith(CERTIFICATE_PREFIX):
        if not _CERTIFICATE_NAME.fullmatch(name.removeprefix(CERTIFICATE_PREFIX)):
            raise ValueError("cert: must be followed by the name in a certificate")
        if digest != "-":
            raise ValueError("a certificate has no key; write - in its place")
        return KeyLine(name=name, digest=b"", permissions=parse_permissions(permissions.split(",")))
    if not NAME.fullmatch(name):
        raise ValueError("the name must be letters, digits and ._@/-, at most 64")
    if not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise ValueError("the second field must be the SHA-256 of the key, 64 hexadecimal digits")
    return KeyLine(
        name=name, digest=bytes.fromhex(digest), permissions=parse_permissions(permissions.split(","))
    )


def new_key() -> str:
    """A key that nobody has: 256 random bits as text."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def append(path: Path, *, name: str, key: str, permissions: frozenset[Permission]) -> None:
    """Adds a line for a key to the file, which is made, for its owner alone, if it is not there.

    Raises:
        ValueError: The name is not allowed, or the file is wrong already.
        OSError: The file cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise ValueError("the name must be letters, digits and ._@/-, at most 64")
    digest = hashlib.sha256(key.encode()).hexdigest()
    line = (
        f"{name} {digest} {','.join(permission for permission in Permission if permission in permissions)}\n"
    )
    with _locked(path, os.O_CREAT | os.O_APPEND) as file:
        before = file.read()
        parse(before)
        # In one piece, so that a server that looks at this moment finds the line whole or not at all.
        file.write((b"" if before.endswith(b"\n") or not before else b"\n") + line.encode())
        os.fsync(file.fileno())
    # It may be new.
    disk.sync(path.parent)


def remove(path: Path, which: str, *, all_of_name: bool) -> list[KeyLine]:
    """Removes lines from the file, which is replaced atomically; everything else in it is unchanged.

    Args:
        path: The file.
        which: The name in the line, or at least MIN_HASH_DIGITS of the first digits of the hash.
        all_of_name: Take all lines with this name out, and not only the one if there is one.

    Returns:
        The lines that were taken out.

    Raises:
        ValueError: There is no such line, or there are several, or the file is already invalid.
        OSError: The file cannot be read or written.
    """
    # The file that a symbolic link leads to is replaced, not the link.
    path = path.resolve()
    with _locked(path) as file:
        data = file.read()
        removed = _chosen(parse(data).lines, which, all_of_name=all_of_name)
        kept = [it for it in data.decode().splitlines(keepends=True) if not _is_one_of(removed, it)]
        disk.replace(path, "".join(kept).encode())
    return removed


def _chosen(lines: Sequence[KeyLine], which: str, *, all_of_name: bool) -> list[KeyLine]:
    named = [line for line in lines if line.name == which]
    if named and (all_of_name or len(named) == 1):
        return named
    is_hash = re.fullmatch(f"[0-9a-fA-F]{{{MIN_HASH_DIGITS},64}}", which) is not None
    hashed = [line for line in lines if is_hash and line.digest.hex().startswith(which.lower())]
    if not named and len(hashed) == 1:
        return hashed
    if not named and not hashed:
        # It is not repeated: it may be a key.
        raise ValueError("no line has this name or a hash with this beginning")
    found = ", ".join(f"{line.name} {line.digest.hex()[:12]}" for line in named or hashed)
    more = "give the hash of one line, or --all" if named else "give more of the hash"
    raise ValueError(f"there are {len(named or hashed)} matching lines ({found}); {more}")


def _is_one_of(lines: Sequence[KeyLine], content: str) -> bool:
    fields = content.split()
    return bool(fields) and not fields[0].startswith("#") and _parse_line(fields) in lines


@contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[BinaryIO]:
    """The file, which no other command changes until the end of the block."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The previous holder of the lock may have replaced the file meanwhile.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                yield file
                return
