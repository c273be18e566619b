"""Creates the resources of an import, in batches that take effect once however often they are sent."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import IO, Final

from storeapi import StoreClient
from storeapi._resources import RESOURCE_TYPES
from storeapi.cli import lines
from storeapi.cli.failures import CommandFailed, ExitCode, exit_code
from storeapi.cli.resources import collection
from storeapi.cli.words import with_option_names
from storeapi.errors import (
    CommentNotFound,
    InvalidRequest,
    PostNotFound,
    RequestIdReused,
    ResourceExhausted,
    StoreError,
)
from storeapi.model import CommentDraft, PostDraft

# A request id belongs to the content of its batch: with other limits, names or order, a version could not
# continue an import that another version has started.
BATCH_ITEMS: Final = 500
"""Maximum number of resources in a batch."""
FULL_BYTES: Final = 1024 * 1024
"""A batch ends with the resource with which its texts reach this size; the limit of the service is 4 MiB."""
BATCH_IDS: Final = uuid.UUID("0b8cf7a5-4c9e-4b52-8a86-5e3d0a7f1d64")
"""The namespace of the request ids of batches."""


def request_id(import_id: str, kind: str, number: int) -> str:
    """The request id of a batch, the same in every run."""
    return str(uuid.uuid5(BATCH_IDS, f"{import_id}/{kind}/{number}"))


def batches(items: Iterable[lines.Line]) -> Iterator[list[lines.Line]]:
    """Splits lines into batches.

    A batch ends before a reply to one of its comments, whose new id is needed to create the reply. Otherwise
    the end of a batch depends only on its own lines, so changing a line does not change the batches before.
    """
    batch: list[lines.Line] = []
    ids: set[int] = set()
    size = 0
    for line in items:
        if reply_to_id(line) in ids:
            yield batch
            batch, ids, size = [], set(), 0
        batch.append(line)
        ids.add(line.id)
        size += _size(line.draft)
        if len(batch) == BATCH_ITEMS or size >= FULL_BYTES:
            yield batch
            batch, ids, size = [], set(), 0
    if batch:
        yield batch


def reply_to_id(line: lines.Line) -> int:
    """The comment of the file that a line replies to; 0 if it replies to none."""
    return line.draft.reply_to_id if isinstance(line.draft, CommentDraft) else 0


def _size(draft: PostDraft | CommentDraft) -> int:
    labels = (text for label in draft.labels.items() for text in label)
    return sum(len(text.encode()) for text in (draft.body, draft.author, draft.external_id, *labels))


class Importer:
    """One run of an import."""

    deleted: int
    """The number of resources that a former run created and that no longer exist."""

    def __init__(self, client: StoreClient, file: IO[bytes], import_id: str) -> None:
        """Takes the client, a file that was checked, and the import id."""
        self._client = client
        self._file = file
        self._import_id = import_id
        self._new_ids: dict[str, dict[int, int]] = {kind: {} for kind in RESOURCE_TYPES}
        self._tombstones: list[int] = []
        self.deleted = 0

    @property
    def again(self) -> str:
        """How to continue an import that failed, for messages."""
        return f"run it again with --import-id {self._import_id}; nothing is created twice"

    def run(self) -> Iterator[list[tuple[lines.Line, int]]]:
        """Creates posts, then comments, and yields each stored batch with its new ids.

        The comments that are tombstones in the file are deleted at the end, when they have replies.
        """
        for kind in RESOURCE_TYPES:
            for number, batch in enumerate(batches(lines.read(self._file, kind))):
                try:
                    ids = self._create(kind, number, batch)
                    kept = [id for line, id in zip(batch, ids, strict=True) if not line.is_tombstone]
                    self.deleted += len(kept) - self._count_present(kind, kept)
                except StoreError as error:
                    raise self._explained(error, batch) from error
                self._new_ids[kind].update(zip((line.id for line in batch), ids, strict=True))
                self._tombstones += (id for line, id in zip(batch, ids, strict=True) if line.is_tombstone)
                yield list(zip(batch, ids, strict=True))
        for number, start in enumerate(range(0, len(self._tombstones), BATCH_ITEMS)):
            some = self._tombstones[start : start + BATCH_ITEMS]
            id = request_id(self._import_id, "tombstone", number)
            try:
                self._client.comments.delete_many(some, allow_missing=True, request_id=id)
            except StoreError as error:
                raise self._explained(error, []) from error

    def _create(self, kind: str, number: int, batch: Sequence[lines.Line]) -> list[int]:
        drafts = [self._with_new_ids(it.draft) for it in batch]
        id = request_id(self._import_id, kind, number)
        created = collection(self._client, RESOURCE_TYPES[kind]).create_many(drafts, request_id=id)
        return [resource.id for resource in created]

    def _with_new_ids(self, draft: PostDraft | CommentDraft) -> PostDraft | CommentDraft:
        if not isinstance(draft, CommentDraft):
            return draft
        # A comment that is not in the file was deleted. The replies to it are created at the top level.
        reply_to_id = self._new_ids["comment"].get(draft.reply_to_id, 0)
        return replace(draft, post_id=self._new_ids["post"][draft.post_id], reply_to_id=reply_to_id)

    def _count_present(self, kind: str, ids: Sequence[int]) -> int:
        # A replayed response has the resources that were created then, not those that exist now.
        return len(collection(self._client, RESOURCE_TYPES[kind]).get_many(ids, allow_missing=True))

    def _explained(self, error: StoreError, batch: Sequence[lines.Line]) -> CommandFailed:
        """The error with line numbers, and how to continue."""
        if isinstance(error, RequestIdReused):
            message = (
                f"the import id {self._import_id} belongs to an import with another content; choose another "
                "for a new import, or undo changes in lines that were already imported"
            )
        elif isinstance(error, (PostNotFound, CommentNotFound)):
            missing = set(error.missing_ids)
            kind, dependents = (
                ("post", "comments") if isinstance(error, PostNotFound) else ("comment", "replies")
            )
            old = [str(id) for id, new_id in self._new_ids[kind].items() if new_id in missing]
            message = (
                f"{kind}s that were imported have been deleted since: {', '.join(old)} of the file; take "
                f"their {dependents} from line {batch[0].number} on out of it and {self.again}"
            )
        elif isinstance(error, InvalidRequest) and error.violations:
            found = "; ".join(_in_the_file(it.field, it.description, batch) for it in error.violations)
            message = f"{found}; change that and {self.again}"
        elif isinstance(error, ResourceExhausted) and not error.reason and batch:
            # The error of gRPC for a message that is too large names no field.
            longest = max(batch, key=lambda line: len(line.draft.body.encode()))
            message = f"{error}: shorten line {longest.number}, the longest, and {self.again}"
        else:
            message = (
                f"{error.reason or error.code.name}: {with_option_names(str(error))}; "
                f"to continue, {self.again}"
            )
        return CommandFailed(message, exit_code=ExitCode(exit_code(error)))


def _in_the_file(field: str, description: str, batch: Sequence[lines.Line]) -> str:
    """A violation with the line number instead of the index in the batch."""
    place = re.fullmatch(r"requests\[(\d+)\]\.(?:post|comment)\.(.+)", field)
    if place is None:
        return f"{field}: {description}"
    return f"line {batch[int(place[1])].number}: {place[2]} {description}"
