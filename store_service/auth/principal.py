"""Who calls, as the rest of the service sees them."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Permission(StrEnum):
    """Something that a caller may be allowed to do; the values are what people write into files."""

    READ = "read"
    WRITE = "write"
    WATCH = "watch"


ALL_PERMISSIONS = frozenset(Permission)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whoever makes a call, after they have been recognised."""

    name: str
    """How the log calls them: the name of a key, the subject of a token, the name in a certificate, or
    where the call comes from. Never a secret."""
    permissions: frozenset[Permission]
    """What they may do."""


def parse_permissions(words: Iterable[str]) -> frozenset[Permission]:
    """The rights that words name.

    Raises:
        ValueError: A word is no right.
    """
    found = frozenset(words)
    # What was written is not repeated: it may be a key in the wrong place.
    if not found <= set(Permission):
        raise ValueError("rights must be some of read, write and watch, with commas between them")
    return frozenset(Permission(word) for word in found)
