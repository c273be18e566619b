"""The records of exports and imports, and how they are sent; used by both clients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal, TypeAlias

from storeapi._resources import COMMENTS, POSTS
from storeapi.model import Comment, Post
from storeapi.v1 import changes_pb2, transfer_pb2

RecordState: TypeAlias = Literal["live", "deleted", "revision"]
"""What a record is: a post or comment that is not deleted, or a tombstone; a deleted one that can be
restored; or a former version."""

ConflictPolicy: TypeAlias = Literal["fail", "skip", "overwrite"]
"""How an import treats a record whose id or external id is stored with other values."""

BATCH_RECORDS: Final = 500
"""Default number of records in a batch of an import."""

BATCH_BYTES: Final = 512 * 1024
"""A batch ends with the record with which it reaches this size. The limit of the service is 4 MiB."""

IN_FLIGHT: Final = 4
"""Maximum number of batches that are sent and not stored yet."""

SILENCE_SECONDS: Final = 120.0
"""Maximum time without a response. A batch takes less than a second, but a busy service delays it."""

_STATES: Final[dict[int, RecordState]] = {
    transfer_pb2.RECORD_STATE_UNSPECIFIED: "live",
    transfer_pb2.RECORD_STATE_DELETED: "deleted",
    transfer_pb2.RECORD_STATE_REVISION: "revision",
}
_STATE_NUMBERS: Final = {name: number for number, name in _STATES.items()}
_POLICIES: Final = {
    "fail": transfer_pb2.CONFLICT_POLICY_FAIL,
    "skip": transfer_pb2.CONFLICT_POLICY_SKIP,
    "overwrite": transfer_pb2.CONFLICT_POLICY_OVERWRITE,
}
_KINDS: Final = {"post": changes_pb2.RESOURCE_KIND_POST, "comment": changes_pb2.RESOURCE_KIND_COMMENT}


@dataclass(frozen=True, kw_only=True)
class Record:
    """A post, a comment, or a former version of one, with everything that the service stores of it."""

    resource: Post | Comment
    """The resource. In an import, `id` may be 0 if `external_id` is set: the service finds the resource by
    its external id, or gives it an id. `post_id` may be 0 if `post_external_id` is set. Without `etag`
    it is a new resource, and the service sets an unknown `create_time`."""
    state: RecordState = "live"
    """What the record is."""
    post_external_id: str = ""
    """In an import: the external id of the post of a comment, if its `post_id` is 0."""
    reply_to_external_id: str = ""
    """In an import: the external id of the comment that a comment replies to, if its `reply_to_id` is 0."""
    ancestor_ids: tuple[int, ...] = ()
    """The comments above a reply in its thread, from the top. In an import it may be empty if the comment
    that is replied to is stored."""
    deleted_with: int = 0
    """The resource with which a deleted comment was deleted, and is restored: 0 for none, -1 for its post,
    otherwise the id of the comment above it."""


@dataclass(frozen=True, kw_only=True)
class ExportTotals:
    """The number of records at the end of an export."""

    posts: int
    """Posts that are not deleted."""
    comments: int
    """Comments that are not deleted, and tombstones."""
    deleted_posts: int
    """Deleted posts."""
    deleted_comments: int
    """Deleted comments, including those that only keep threads connected."""
    revisions: int
    """Former versions."""

    @property
    def all(self) -> int:
        """All records."""
        return self.posts + self.comments + self.deleted_posts + self.deleted_comments + self.revisions


@dataclass(frozen=True, kw_only=True)
class ExportBatch:
    """A part of an export; iterating over it returns its records."""

    records: tuple[Record, ...]
    """Posts come before comments, and comments before the replies to them."""
    cursor: str
    """An export that continues from this cursor returns what follows."""
    changed_post_ids: tuple[int, ...] = ()
    """Posts that have changed during the export: their earlier records are obsolete, and `records` has the
    new ones, if they still exist."""
    changed_comment_ids: tuple[int, ...] = ()
    """The same for comments."""
    resume_token: str = ""
    """Set in the last batch: the position in the change feed to which the records belong. A watch continues
    from it."""
    estimated_records: int = 0
    """In the first batch of a call: the approximate number of records of the whole export."""
    totals: ExportTotals | None = None
    """Set in the last batch."""

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True, kw_only=True)
class RecordFailure:
    """A record that the service has refused."""

    index: int
    """The index of the record among all records of the import, from 0."""
    reason: str
    """FIELD_INVALID, CONFLICT, EXTERNAL_ID_TAKEN, POST_NOT_FOUND, COMMENT_NOT_FOUND, REPLY_POST_MISMATCH or
    REPLY_TOO_DEEP."""
    field: str
    """The field, such as `comment.body`."""
    description: str
    """A description for people."""
    record: Record
    """The record."""


@dataclass(frozen=True, kw_only=True)
class ImportProgress:
    """What an import has done since its start; everything it counts is on disk."""

    created: int = 0
    """Records that were stored."""
    overwritten: int = 0
    """Records that replaced what was stored."""
    unchanged: int = 0
    """Records that were stored already, with the same values."""
    skipped: int = 0
    """Records that were skipped because of a conflict."""
    failed: int = 0
    """Records that were refused."""
    failures: tuple[RecordFailure, ...] = field(default=(), repr=False)
    """Those of the last batch, at most 100."""

    @property
    def records(self) -> int:
        """All records."""
        return self.created + self.overwritten + self.unchanged + self.skipped + self.failed


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of an import that is not stored yet."""

    first: int
    """The index of its first record."""
    records: tuple[Record, ...]
    request: transfer_pb2.ImportRequest


def export_request(kinds: Iterable[str], cursor: str | None) -> transfer_pb2.ExportRequest:
    """The request of an export."""
    names = list(kinds) if not isinstance(kinds, str) else [kinds]
    if unknown := [name for name in names if name not in _KINDS]:
        raise ValueError(f'each of kinds must be "post" or "comment", not {unknown[0]!r}')
    return transfer_pb2.ExportRequest(kinds=[_KINDS[name] for name in names], cursor=cursor or "")


def import_options(on_conflict: ConflictPolicy, validate_only: bool) -> transfer_pb2.ImportOptions:
    """The options of an import."""
    if on_conflict not in _POLICIES:
        raise ValueError(f'on_conflict must be "fail", "skip" or "overwrite", not {on_conflict!r}')
    return transfer_pb2.ImportOptions(on_conflict=_POLICIES[on_conflict], validate_only=validate_only)


def batches(records: Iterable[Record], size: int) -> Iterator[Batch]:
    """Splits the records of an import into batches."""
    number = first = 0
    rest = iter(records)
    left: list[Record] = []
    while left or (left := list(islice(rest, size))):
        request = transfer_pb2.ImportRequest(batch=number + 1)
        bytes = count = 0
        for record in left:
            message = record_to_message(record)
            request.records.append(message)
            count += 1
            bytes += message.ByteSize()
            if bytes >= BATCH_BYTES:
                break
        yield Batch(first=first, records=tuple(left[:count]), request=request)
        left = left[count:]
        number, first = number + 1, first + count


def record_to_message(record: Record) -> transfer_pb2.Record:
    """The message of a record."""
    resource = record.resource
    if record.state not in _STATE_NUMBERS:
        raise ValueError(f'state must be "live", "deleted" or "revision", not {record.state!r}')
    message = transfer_pb2.Record(
        state=_STATE_NUMBERS[record.state],  # type: ignore[arg-type]  # a number of the enum
        post_external_id=record.post_external_id,
        reply_to_external_id=record.reply_to_external_id,
        ancestor_ids=record.ancestor_ids,
        deleted_with=record.deleted_with,
    )
    if isinstance(resource, Comment):
        message.comment.CopyFrom(COMMENTS.to_message(resource))
    elif isinstance(resource, Post):
        message.post.CopyFrom(POSTS.to_message(resource))
    else:
        raise TypeError(f"the resource of a Record must be a Post or a Comment, not {resource!r}")
    return message


def record_from_message(message: transfer_pb2.Record) -> Record:
    """The record in a message."""
    is_post = message.HasField("post")
    return Record(
        resource=POSTS.from_message(message.post) if is_post else COMMENTS.from_message(message.comment),
        state=_STATES[message.state],
        ancestor_ids=tuple(message.ancestor_ids),
        deleted_with=message.deleted_with,
    )


def export_batch(response: transfer_pb2.ExportResponse) -> ExportBatch:
    """The batch in a response."""
    totals = None
    if response.HasField("totals"):
        found = response.totals
        totals = ExportTotals(
            posts=found.posts,
            comments=found.comments,
            deleted_posts=found.deleted_posts,
            deleted_comments=found.deleted_comments,
            revisions=found.revisions,
        )
    return ExportBatch(
        records=tuple(map(record_from_message, response.records)),
        cursor=response.cursor,
        changed_post_ids=tuple(response.changed_post_ids),
        changed_comment_ids=tuple(response.changed_comment_ids),
        resume_token=response.resume_token,
        estimated_records=response.estimated_records,
        totals=totals,
    )


def progress_after(
    progress: ImportProgress, batch: Batch, result: transfer_pb2.ImportResult
) -> ImportProgress:
    """The progress of an import after the result of a batch."""
    return ImportProgress(
        created=progress.created + result.created,
        overwritten=progress.overwritten + result.overwritten,
        unchanged=progress.unchanged + result.unchanged,
        skipped=progress.skipped + result.skipped,
        failed=progress.failed + result.failed,
        failures=tuple(
            RecordFailure(
                index=batch.first + it.index,
                reason=transfer_pb2.RecordErrorReason.Name(it.reason).removeprefix("RECORD_ERROR_REASON_"),
                field=it.field.partition("].")[2],
                description=it.description,
                record=batch.records[it.index],
            )
            for it in result.errors
        ),
    )
