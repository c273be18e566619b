"""The cursors of exports: where an export continues."""

from dataclasses import dataclass

from store_service.errors import FieldInvalid, ResumeTokenForeign, ResumeTokenInvalid
from store_service.model import Position, RecordState, ResourceKind, ResumePoint
from store_service.service import resume_tokens

PARTS = tuple(
    (kind, state) for state in (RecordState.LIVE, RecordState.DELETED) for kind in ResourceKind
) + tuple((kind, RecordState.REVISION) for kind in ResourceKind)
"""What the pages have, in order: a record comes after those that it refers to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where an export continues."""

    position: Position
    """The changes after this position are followed at the end."""
    seen: Position | None = None
    """See `ResumePoint.seen`."""
    part: int = 0
    """The index of the part in PARTS; `len(PARTS)` after the pages."""
    after: int = 0
    """The id of the last record of the part."""
    after_version: int = 0
    """The version of the last record, if it is a former version."""


def make_cursor(at: Cursor, kinds: frozenset[ResourceKind], store_id: str) -> str:
    """Returns the cursor of an export of some kinds: numbers, and a resume token, separated by dots."""
    token = resume_tokens.make(store_id, ResumePoint(position=at.position, seen=at.seen))
    return f"{_mask(kinds)}.{at.part}.{at.after}.{at.after_version}.{token}"


def read_cursor(text: str, kinds: frozenset[ResourceKind], store_id: str) -> Cursor:
    """Returns where the export of a cursor continues.

    Raises:
        FieldInvalid: The cursor is damaged, or belongs to other kinds.
        ResumeTokenForeign: The cursor belongs to another store.
    """
    *numbers, token = text.split(".")
    try:
        mask, part, after, after_version = [int(it) for it in numbers]
        point = resume_tokens.read(token, store_id)
    except ResumeTokenForeign:
        raise ResumeTokenForeign.at("cursor", "belongs to another store; begin again") from None
    except (ValueError, ResumeTokenInvalid):
        mask = part = -1
    if not 0 <= part <= len(PARTS) or not all(0 <= it < 2**63 for it in (after, after_version)):
        raise FieldInvalid.at("cursor", "is not a cursor of an export, or is damaged")
    if mask != _mask(kinds):
        raise FieldInvalid.at("cursor", "belongs to an export with other kinds")
    return Cursor(
        position=point.position, seen=point.seen, part=part, after=after, after_version=after_version
    )


def _mask(kinds: frozenset[ResourceKind]) -> int:
    return sum(kinds)
