"""Records of exports and imports."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from store_service.model.resources import Comment, Post, ResourceKind


class RecordState(IntEnum):
    """What a record is. The contract uses the same numbers."""

    LIVE = 0
    """A resource that is not deleted, or a tombstone."""
    DELETED = 1
    REVISION = 2


class ConflictPolicy(IntEnum):
    """How a record is treated whose id or external id is stored with other values."""

    FAIL = 1
    SKIP = 2
    OVERWRITE = 3


class RecordErrorReason(IntEnum):
    """Why a record was refused."""

    FIELD_INVALID = 1
    CONFLICT = 2
    EXTERNAL_ID_TAKEN = 3
    POST_NOT_FOUND = 4
    COMMENT_NOT_FOUND = 5
    REPLY_POST_MISMATCH = 6
    REPLY_TOO_DEEP = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A stored post or comment, a deleted one, or a former version."""

    kind: ResourceKind
    state: RecordState
    resource: Post | Comment
    """Of a former version only id, body, update_time, version, author and labels have a meaning."""
    deleted_with: int = 0
    """Of a deleted comment; see `deleted_comment_table`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRecord(Record):
    """A record to store."""

    index: int
    """Its index in the batch."""
    unset: frozenset[str] = frozenset()
    """Those of `version`, `create_time` and `update_time` that the caller has not set."""
    post_external_id: str = ""
    reply_to_external_id: str = ""
    depth: int = 0
    """The depth that the comment must have; 0: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordError:
    """The error of a record."""

    index: int
    reason: RecordErrorReason
    field: str
    """The field below the record, such as `comment.body`."""
    description: str


@dataclass(slots=True, kw_only=True)
class ImportResult:
    """What happened to the records of a batch."""

    created: int = 0
    overwritten: int = 0
    unchanged: int = 0
    skipped: int = 0
    errors: list[RecordError] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportBatch:
    """The records of a batch that are valid, and what applies to them."""

    records: Sequence[ImportedRecord]
    errors: Sequence[RecordError]
    """Those of the other records."""
    on_conflict: ConflictPolicy
    size: int
    """Approximate bytes."""
    dry_run: bool = False
    is_part: bool = False
    """Whether earlier batches of the import may have posts and comments that this one names. Only a dry run
    needs to know it: otherwise they are stored."""


Counts: TypeAlias = dict[tuple[ResourceKind, RecordState], int]
"""The number of records."""


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class ExportPart:
    """One response of an export."""

    records: Sequence[Record]
    cursor: str
    changed: dict[ResourceKind, Sequence[int]] = field(default_factory=dict)
    """Ids of resources whose earlier records are obsolete."""
    resume_token: str = ""
    """Set in the last part."""
    counts: Counts | None = None
    """Set in the first part, where it is an estimate, and in the last one."""
