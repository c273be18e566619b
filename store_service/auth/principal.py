"""Principals and their permissions."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Permission(StrEnum):
    """A permission of a principal. The values are the words in key files and tokens."""

    READ = "read"
    WRITE = "write"
    WATCH = "watch"
    ADMIN = "admin"


ALL_PERMISSIONS = frozenset(Permission)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The identity of an authenticated caller."""

    name: str
    """Name in the log: the name of a key, the subject of a token, a name in a certificate, or the address of
    the caller. Never a secret."""
    permissions: frozenset[Permission]


def parse_permissions(words: Iterable[str]) -> frozenset[Permission]:
    """Returns the permissions that the words name.

    Raises:
        ValueError: A word is not a permission.
    """
    given = frozenset(words)
    # The message does not repeat the input, which may be a misplaced key.
    if not given <= set(Permission):
        raise ValueError("permissions must be read, write, watch or admin, separated by commas")
    return frozenset(Permission(word) for word in given)
