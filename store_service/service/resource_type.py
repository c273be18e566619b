"""The description of one type of resource. posts.py and comments.py hold one each, with their own rules."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from store_service.database.connection import Connection
from store_service.database.resource_sql import ResourceSql
from store_service.errors import NotFound, ServiceError
from store_service.model import (
    Comment,
    CommentDraft,
    DeletedResource,
    Deletion,
    DeletionTimes,
    IdempotencyKey,
    Page,
    PageRequest,
    Post,
    PostDraft,
    ResourceFields,
    WriteCommand,
)
from store_service.service.external_ids import Release

R = TypeVar("R", Post, Comment)
D = TypeVar("D", PostDraft, CommentDraft)


@dataclass(frozen=True, slots=True)
class DeletionPlan(Generic[R]):
    """The deletions of one transaction."""

    may_run: Callable[[WriteCommand[Deletion], Sequence[R]], bool]
    """Returns whether a deletion of these resources runs in this transaction. If not, it is deferred. A
    ServiceError that it raises refuses the deletion."""
    execute: Callable[[Mapping[int, DeletedResource[R]], DeletionTimes], Awaitable[None]]
    """Deletes resources, by id, with everything below them."""


BeforeCreate = Callable[[Connection, Sequence[Sequence[D]]], Awaitable[Sequence[Sequence[D] | ServiceError]]]
"""Takes the drafts of each write. Returns for each write its drafts with their derived fields, or the error
that refuses it."""

PlanDeletions = Callable[
    [Connection, Sequence[WriteCommand[Deletion]], Mapping[int, R]], Awaitable[DeletionPlan[R]]
]
"""Takes the deletions of one transaction, and the stored resources that they name, which are locked."""

CheckRestore = Callable[[Connection, R], Awaitable[None]]
"""Raises the ServiceError for which a deleted resource cannot be restored now."""

Restore = Callable[[Connection, R, IdempotencyKey | None], Awaitable[None]]
"""Restores a deleted resource, with everything that was deleted with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceType(Generic[R, D]):
    """The description of one type of resource."""

    name: str
    """The name of its field in requests: "post"."""
    model: type[R]
    draft: type[D]
    fields: ResourceFields
    """Which fields are mutable, immutable or output only."""
    sql: ResourceSql[R]
    not_found: type[NotFound]
    plan_deletions: PlanDeletions[R]
    check_restore: CheckRestore[R]
    restore: Restore[R]
    release_external_ids: Release
    read_page: Callable[[Connection, PageRequest], Awaitable[Page[R]]] | None = None
    """Reads a page of a query with its own rules; None if there are none."""
    before_create: BeforeCreate[D] | None = None
