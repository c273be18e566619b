"""Adds what an import has read, in batches that are done once however often they are sent."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Final

from storeapi import StoreClient
from storeapi.cli import lines
from storeapi.cli.failures import CommandFailed, ExitCode, exit_code
from storeapi.cli.words import in_words_of_the_command
from storeapi.errors import InvalidRequest, PostNotFound, RequestIdReused, ResourceExhausted, StoreError
from storeapi.model import CommentDraft

# A request id belongs to the content of its batch: with other limits or names, or another order, an import
# that one version has begun could not be finished by another.
BATCH_ITEMS: Final = 500
"""At most so many posts or comments in a batch."""
FULL_BYTES: Final = 1024 * 1024
"""And none behind the one with which its bodies have so many bytes; the service takes 4 MiB."""
BATCH_IDS: Final = uuid.UUID("0b8cf7a5-4c9e-4b52-8a86-5e3d0a7f1d64")
"""Where the request ids of batches come from."""


def request_id(import_id: str, kind: lines.Kind, number: int) -> str:
    """The request id of a batch: the same in every run."""
    return str(uuid.uuid5(BATCH_IDS, f"{import_id}/{kind}/{number}"))


def batches(items: Iterable[lines.Line]) -> Iterator[list[lines.Line]]:
    """Cuts lines into batches, always in the same places.

    Where one ends is up to the lines in it alone, so a line that is changed later leaves the batches before
    it as they were.
    """
    batch: list[lines.Line] = []
    size = 0
    for line in items:
        batch.append(line)
        size += len(line.body.encode())
        if len(batch) == BATCH_ITEMS or size >= FULL_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Importer:
    """One run of an import."""

    deleted: int
    """How many posts and comments a run before has added that are no longer there."""

    def __init__(self, client: StoreClient, file: IO[bytes], import_id: str) -> None:
        """Takes the client, a file that was checked, and the name of the import."""
        self._client = client
        self._file = file
        self._import_id = import_id
        self._new_ids: dict[int, int] = {}
        self.deleted = 0

    @property
    def again(self) -> str:
        """What to tell whose import has not come to its end."""
        return f"run it again with --import-id {self._import_id}; nothing will be there twice"

    def run(self) -> Iterator[list[tuple[lines.Line, int]]]:
        """Adds posts, then comments, and gives each batch with its new ids when it is stored."""
        kinds: tuple[lines.Kind, ...] = ("post", "comment")
        for kind in kinds:
            for number, batch in enumerate(batches(lines.read(self._file, kind))):
                try:
                    ids = self._add(kind, number, batch)
                    self.deleted += len(ids) - self._count_present(kind, ids)
                except StoreError as error:
                    raise self._explained(error, batch) from error
                if kind == "post":
                    self._new_ids.update(zip((line.id for line in batch), ids, strict=True))
                yield list(zip(batch, ids, strict=True))

    def _add(self, kind: lines.Kind, number: int, batch: Sequence[lines.Line]) -> list[int]:
        name = request_id(self._import_id, kind, number)
        if kind == "post":
            bodies = [line.body for line in batch]
            return [post.id for post in self._client.posts.create_many(bodies, request_id=name)]
        drafts = [CommentDraft(post_id=self._new_ids[line.post_id], body=line.body) for line in batch]
        return [comment.id for comment in self._client.comments.create_many(drafts, request_id=name)]

    def _count_present(self, kind: lines.Kind, ids: Sequence[int]) -> int:
        # The answer to a batch that was done before tells what was stored then, not what is there now.
        resource = self._client.posts if kind == "post" else self._client.comments
        return len(resource.get_many(ids, allow_missing=True))

    def _explained(self, error: StoreError, batch: Sequence[lines.Line]) -> CommandFailed:
        """The error in the terms of the file, with the way to go on."""
        if isinstance(error, RequestIdReused):
            message = (
                f"the import id {self._import_id} belongs to an import with another content; choose another "
                "for a new import, or undo the changes in lines that were imported already"
            )
        elif isinstance(error, PostNotFound):
            missing = set(error.missing_ids)
            old = [str(id) for id, new_id in self._new_ids.items() if new_id in missing]
            message = (
                f"posts that were imported have been deleted since: {', '.join(old)} of the file; take their "
                f"comments from line {batch[0].number} on out of it and {self.again}"
            )
        elif isinstance(error, InvalidRequest) and error.violations:
            found = "; ".join(_in_the_file(it.field, it.description, batch) for it in error.violations)
            message = f"{found}; change that and {self.again}"
        elif isinstance(error, ResourceExhausted) and not error.reason:
            # gRPC's own refusal of a message that is too large knows no fields.
            longest = max(batch, key=lambda line: len(line.body.encode()))
            message = f"{error}: shorten line {longest.number}, the longest, and {self.again}"
        else:
            message = (
                f"{error.reason or error.code.name}: {in_words_of_the_command(str(error))}; "
                f"to go on, {self.again}"
            )
        return CommandFailed(message, exit_code=ExitCode(exit_code(error)))


def _in_the_file(field: str, description: str, batch: Sequence[lines.Line]) -> str:
    """What is wrong, with the line instead of the place in the batch."""
    place = re.fullmatch(r"requests\[(\d+)\]\.(?:post|comment)\.(.+)", field)
    if place is None:
        return f"{field}: {description}"
    return f"line {batch[int(place[1])].number}: {place[2]} {description}"
