"""Who calls, as the rest of the service sees them."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Right(StrEnum):
    """Something that a caller may be allowed to do; the values are what people write into files."""

    READ = "read"
    WRITE = "write"
    WATCH = "watch"


ALL_RIGHTS = frozenset(Right)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever makes a call, after they have been recognised."""

    name: str
    """How the log calls them: the name of a key, the subject of a token, the name in a certificate, or
    where the call comes from. Never a secret."""
    rights: frozenset[Right]
    """What they may do."""


def rights_from(words: Iterable[str]) -> frozenset[Right]:
    """The rights that words name.

    Raises:
        ValueError: A word is no right.
    """
    found = frozenset(words)
    # What was written is not repeated: it may be a key in the wrong place.
    if not found <= set(Right):
        raise ValueError("rights must be some of read, write and watch, with commas between them")
    return frozenset(Right(word) for word in found)
