"""The progress of operations for administrators, and how it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from storeapi.v1 import admin_pb2

Mode: TypeAlias = Literal["anonymize", "delete"]

SILENCE_SECONDS = 120.0
"""Maximum time without a response. A step is short, but a busy service delays it."""

_MODES = {"anonymize": admin_pb2.ERASE_MODE_ANONYMIZE, "delete": admin_pb2.ERASE_MODE_DELETE}


@dataclass(frozen=True, kw_only=True)
class EraseProgress:
    """What an erasure has done since its start."""

    posts: int
    """Posts that were removed or emptied, including deleted posts."""
    comments: int
    """Comments that were removed or emptied, including deleted comments."""
    revisions: int
    """Former versions that were removed."""
    changes: int
    """Changes of the change feed whose content was removed."""
    stored_responses: int
    """Stored responses of idempotent requests whose content was removed."""
    progress: float
    """The work that has been done, from 0 to 1. An estimate."""
    complete: bool
    """Whether it has finished."""


def erase_request(
    author: str, *, mode: Mode, validate_only: bool, skip_rewrite: bool
) -> admin_pb2.EraseAuthorRequest:
    """The request of an erasure."""
    if mode not in _MODES:
        raise ValueError(f'mode must be "anonymize" or "delete", not {mode!r}')
    return admin_pb2.EraseAuthorRequest(
        author=author, mode=_MODES[mode], validate_only=validate_only, skip_rewrite=skip_rewrite
    )


def erase_progress(message: admin_pb2.EraseAuthorResponse) -> EraseProgress:
    """The progress in a response."""
    return EraseProgress(
        posts=message.posts,
        comments=message.comments,
        revisions=message.revisions,
        changes=message.changes,
        stored_responses=message.stored_responses,
        progress=message.progress,
        complete=message.complete,
    )


@dataclass(frozen=True, kw_only=True)
class RebuildProgress:
    """How much of the index of the search has been built."""

    progress: float
    """The part of the posts and comments that the index has, from 0 to 1."""
    complete: bool
    """Whether searches are answered."""


def rebuild_progress(message: admin_pb2.RebuildSearchIndexResponse) -> RebuildProgress:
    """The progress in a response."""
    return RebuildProgress(progress=message.progress, complete=message.complete)
