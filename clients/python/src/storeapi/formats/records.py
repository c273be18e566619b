"""What a format yields and reports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal, TypeAlias

RecordKind: TypeAlias = Literal["post", "comment"]

KINDS: Final[tuple[RecordKind, ...]] = ("post", "comment")
"""In the order of an import."""

MAX_EXAMPLES: Final = 3
"""For each entry of a report, the number of places that it names."""

_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?\s*(?:(Z)|([+-])(\d\d):?(\d\d))?", re.ASCII
)


class FormatError(Exception):
    """The file cannot be read: the message names the file, the place and what is expected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A post or comment of a file, with ids and texts as the file has them."""

    kind: RecordKind
    """The resource type."""
    id: str
    """The id in the source system, unique among the posts or the comments of the file."""
    place: str
    """Where it is in the file, such as "line 12"."""
    body: str = ""
    """The text. A post without text gets its title and its url; a comment without text is left out."""
    title: str = ""
    """Of posts: becomes the label `title`."""
    url: str = ""
    """Of posts: becomes the label `url`."""
    author: str = ""
    """The name of the author. An e-mail address or IP address is left out."""
    create_time: datetime | None = None
    """When it was created, with a time zone; None if unknown: the import sets the time then."""
    update_time: datetime | None = None
    """When it was last changed, with a time zone; None if unknown."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """More labels, such as `status`. Empty values are left out."""
    post_id: str = ""
    """Of comments: the id of the post."""
    reply_to_id: str = ""
    """Of comments: the id of the comment that it replies to; empty at the top level."""
    is_deleted: bool = False
    """Of comments: deleted in the source system. It is imported only if it has replies, without its text."""
    needs_comments: bool = False
    """Of posts: left out if the file has no comment on it."""
    is_repeated: bool = False
    """Of posts: the format has no record of a post, so each comment repeats it. The first one counts, with
    the earliest `create_time`."""


@dataclass(kw_only=True, slots=True)
class Entry:
    """A line of a report."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """The first places, at most MAX_EXAMPLES."""

    def add(self, place: str, count: int = 1) -> None:
        """Counts one, or several at one place."""
        self.count += count
        if place and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(place)


@dataclass(kw_only=True, slots=True)
class Report:
    """What was read and imported, and what was left out. Its size does not grow with the file, as long as the
    reasons are a fixed set of texts."""

    counts: dict[str, dict[RecordKind, int]] = field(default_factory=dict)
    """Numbers by their name ("read", "created") and kind."""
    left_out: dict[tuple[RecordKind, str], Entry] = field(default_factory=dict)
    """Posts and comments that are not imported, by kind and reason."""
    changed: dict[tuple[RecordKind, str], Entry] = field(default_factory=dict)
    """Parts of posts and comments that are left out or changed, by kind and description."""

    def count(self, name: str, kind: RecordKind, count: int = 1) -> None:
        """Adds to a number."""
        numbers = self.counts.setdefault(name, dict.fromkeys(KINDS, 0))
        numbers[kind] += count

    def leave_out(self, kind: RecordKind, reason: str, place: str, count: int = 1) -> None:
        """Reports a post or comment that is not imported."""
        self.left_out.setdefault((kind, reason), Entry()).add(place, count)

    def change(self, kind: RecordKind, description: str, place: str, count: int = 1) -> None:
        """Reports a part of a post or comment that is left out or changed."""
        self.changed.setdefault((kind, description), Entry()).add(place, count)

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "counts": self.counts,
            "left_out": _entries(self.left_out, "reason"),
            "changed": _entries(self.changed, "description"),
        }


def _entries(entries: Mapping[tuple[RecordKind, str], Entry], name: str) -> list[dict[str, Any]]:
    return [
        {"kind": kind, name: text, "count": entry.count, "examples": entry.examples}
        for (kind, text), entry in entries.items()
    ]


def parse_time(text: str) -> datetime | None:
    """Reads a time such as "2024-05-06 07:08:09" or "2024-05-06T07:08:09.123456789+02:00".

    Without a time zone it is in UTC. None if it is not valid, or the "zero" time of a system (year 0 or 1).
    """
    found = _TIME.fullmatch(text.strip())
    if found is None or int(found[1]) < 2:
        return None
    year, month, day, hour, minute, second = (int(it) for it in found.groups()[:6])
    microsecond = int((found[7] or "0")[:6].ljust(6, "0"))
    try:
        time = datetime(year, month, day, hour, minute, second, microsecond, tzinfo=timezone.utc)
        if found[9]:
            offset = timedelta(hours=int(found[10]), minutes=int(found[11]))
            time += offset if found[9] == "-" else -offset
    except (ValueError, OverflowError):
        return None
    return time
