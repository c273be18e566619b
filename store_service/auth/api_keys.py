"""The file of API keys. Each line has a name, the SHA-256 of a key, and permissions.

    # name                  SHA-256 of the key    permissions
    billing                 9f86d081...           read,write
    cert:search.internal    -                     read,watch

A key has 256 random bits and cannot be guessed, so its plain SHA-256 need not be secret. A slow or salted
hash, as for passwords, would only make every call slower. A line `cert:NAME` gives permissions to client
certificates with this subject alternative name (SAN).
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
"""Prefix of every key, by which people and secret scanners recognize it."""

CERTIFICATE_PREFIX = "cert:"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,63}")
"""The name of a key."""

INVALID_NAME = "the name must have letters, digits and ._@/-, at most 64, and begin with a letter or digit"

MIN_HASH_DIGITS = 4
"""Minimum number of leading hexadecimal digits of a hash that identify a line."""

_CERTIFICATE_NAME = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLine:
    """One line of the file."""

    name: str
    """Name of a key, or `cert:` and the name of a certificate."""
    digest: bytes
    """SHA-256 of the key; empty for a certificate."""
    permissions: frozenset[Permission]


class KeyRing:
    """The principals of a key file, by key and by name of certificate."""

    def __init__(self, lines: Sequence[KeyLine]) -> None:
        """Takes the lines of the file."""
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
        """Returns the principal of a key; None if the key is unknown.

        The lookup is by hash, so its duration reveals nothing about a key. The hash that is found is
        compared in constant time nevertheless.
        """
        digest = hashlib.sha256(key.encode(errors="replace")).digest()
        found = self._by_digest.get(digest)
        return found[1] if found is not None and hmac.compare_digest(found[0], digest) else None

    def find_by_certificate(self, names: Sequence[str]) -> Principal | None:
        """Returns the principal of the first of these names that has a line; None if none has one."""
        return next((self._by_certificate[name] for name in names if name in self._by_certificate), None)


def parse(data: bytes) -> KeyRing:
    """Parses the content of a key file.

    Raises:
        ValueError: A line is invalid. The text has its number, and not its content, which may be secret.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError("the file is not UTF-8 text") from None
    lines: list[KeyLine] = []
    line_numbers: dict[bytes | str, int] = {}
    for number, content in enumerate(text.splitlines(), start=1):
        if not content.strip() or content.lstrip().startswith("#"):
            continue
        try:
            line = _parse_line(content.split())
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        first = line_numbers.setdefault(line.digest or line.name, number)
        if first != number:
            duplicate = "key" if line.digest else "certificate name"
            raise ValueError(f"line {number}: line {first} has the same {duplicate}")
        lines.append(line)
    return KeyRing(lines)


def _parse_line(fields: list[str]) -> KeyLine:
    if len(fields) != 3:
        raise ValueError("must be a name, the SHA-256 of a key, and permissions such as read,write")
    name, digest, permissions = fields
    if name.startswith(CERTIFICATE_PREFIX):
        if not _CERTIFICATE_NAME.fullmatch(name.removeprefix(CERTIFICATE_PREFIX)):
            raise ValueError("cert: must be followed by the name of a certificate")
        if digest != "-":
            raise ValueError("the second field of a certificate must be -")
        return KeyLine(name=name, digest=b"", permissions=parse_permissions(permissions.split(",")))
    if not NAME.fullmatch(name):
        raise ValueError(INVALID_NAME)
    if not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise ValueError("the second field must be the SHA-256 of the key, 64 hexadecimal digits")
    return KeyLine(
        name=name, digest=bytes.fromhex(digest), permissions=parse_permissions(permissions.split(","))
    )


def new_key() -> str:
    """Returns a new random key."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def append(path: Path, *, name: str, key: str, permissions: frozenset[Permission]) -> None:
    """Adds a line for a key to the file. A file that does not exist is created with mode 0600.

    Raises:
        ValueError: The name is invalid, or the file already is.
        OSError: The file cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise ValueError(INVALID_NAME)
    digest = hashlib.sha256(key.encode()).hexdigest()
    line = (
        f"{name} {digest} {','.join(permission for permission in Permission if permission in permissions)}\n"
    )
    with _locked(path, os.O_CREAT | os.O_APPEND) as file:
        before = file.read()
        parse(before)
        # One write, so that a server that reads the file at this moment does not find half a line.
        file.write((b"" if before.endswith(b"\n") or not before else b"\n") + line.encode())
        os.fsync(file.fileno())
    # The file may be new.
    disk.sync(path.parent)


def remove(path: Path, which: str, *, all_of_name: bool) -> list[KeyLine]:
    """Removes lines from the file, which is replaced atomically. Everything else in it is unchanged.

    Args:
        path: The file.
        which: The name in the line, or at least the first MIN_HASH_DIGITS digits of the hash.
        all_of_name: Remove all lines with the name, even if there are several.

    Returns:
        The removed lines.

    Raises:
        ValueError: No line matches, several match, or the file is invalid.
        OSError: The file cannot be read or written.
    """
    # The target of a symbolic link is replaced, not the link.
    path = path.resolve()
    with _locked(path) as file:
        data = file.read()
        removed = _matching(parse(data).lines, which, all_of_name=all_of_name)
        kept = [it for it in data.decode().splitlines(keepends=True) if not _is_one_of(removed, it)]
        disk.replace(path, "".join(kept).encode())
    return removed


def _matching(lines: Sequence[KeyLine], which: str, *, all_of_name: bool) -> list[KeyLine]:
    by_name = [line for line in lines if line.name == which]
    if by_name and (all_of_name or len(by_name) == 1):
        return by_name
    is_hash = re.fullmatch(f"[0-9a-fA-F]{{{MIN_HASH_DIGITS},64}}", which) is not None
    by_hash = [line for line in lines if is_hash and line.digest.hex().startswith(which.lower())]
    if not by_name and len(by_hash) == 1:
        return by_hash
    if not by_name and not by_hash:
        # The message does not repeat the argument, which may be a key.
        raise ValueError("no line has this name or a hash that begins with it")
    found = ", ".join(f"{line.name} {line.digest.hex()[:12]}" for line in by_name or by_hash)
    hint = "give the hash of one line, or --all" if by_name else "give more digits of the hash"
    raise ValueError(f"there are {len(by_name or by_hash)} matching lines ({found}); {hint}")


def _is_one_of(lines: Sequence[KeyLine], content: str) -> bool:
    fields = content.split()
    return bool(fields) and not fields[0].startswith("#") and _parse_line(fields) in lines


@contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[BinaryIO]:
    """Opens the file and locks it, so that no other command changes it until the end of the block."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The previous holder of the lock may have replaced the file.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                yield file
                return
