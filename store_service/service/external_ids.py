"""Creates resources with external ids, of which no two of a type are equal."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from store_service.database.batch_operation import DEFERRED
from store_service.database.connection import Connection
from store_service.database.resource_sql import ResourceSql
from store_service.database.statements import as_json
from store_service.errors import ExternalIdTaken, ResponseTooLarge, ServiceError
from store_service.model import Comment, CommentDraft, Post, PostDraft, WriteCommand
from store_service.service.operations import check_response_size

R = TypeVar("R", Post, Comment)
D = TypeVar("D", PostDraft, CommentDraft)

Create = Callable[
    [Connection, Sequence[WriteCommand[Sequence[D]]]], Awaitable[Sequence[tuple[R, ...] | ServiceError]]
]
"""Creates the resources of each write."""

Release = Callable[[Connection, Sequence[str]], Awaitable[None]]
"""Removes resources that callers do not see and that have one of these external ids."""


async def create_with_external_ids(
    sql: ResourceSql[R],
    release: Release,
    create: Create[D, R],
    connection: Connection,
    writes: Sequence[WriteCommand[Sequence[D]]],
) -> list[tuple[R, ...] | ServiceError]:
    """Creates the resources whose external ids do not exist yet.

    A write with an external id that an earlier write of this batch creates is deferred. No other process
    creates one at the same time, because the transaction is not insert-only.
    """
    existing: Mapping[str, R] = await by_external_id(
        connection, sql, {draft.external_id for write in writes for draft in write.argument}
    )
    claimed: set[str] = set()
    outcomes: list[tuple[R, ...] | ServiceError] = []
    new: list[WriteCommand[Sequence[D]]] = []
    for write in writes:
        ids = {draft.external_id for draft in write.argument if draft.external_id}
        taken = [it for it in write.argument if it.external_id in existing and not it.return_existing]
        if taken:
            outcomes.append(_taken(taken[0], existing[taken[0].external_id]))
        elif ids & claimed:
            outcomes.append(DEFERRED)
        elif error := _too_large(write.argument, existing):
            outcomes.append(error)
        else:
            claimed |= ids - existing.keys()
            drafts = [draft for draft in write.argument if draft.external_id not in existing]
            new.append(replace(write, argument=drafts))
            outcomes.append(())
    if claimed:
        await release(connection, sorted(claimed))
    created = iter(await create(connection, new) if new else ())
    for index, write in enumerate(writes):
        if outcomes[index] == ():
            outcome = next(created)
            outcomes[index] = (
                outcome if isinstance(outcome, ServiceError) else _merged(write.argument, existing, outcome)
            )
    return outcomes


async def by_external_id(connection: Connection, sql: ResourceSql[R], ids: set[str]) -> dict[str, R]:
    """Returns the stored resources with these external ids, by external id."""
    rows = await connection.fetch(sql.by_external_id, ids=as_json(sorted(ids - {""})))
    return {it.external_id: it for it in map(sql.from_row, rows)}


async def check_not_taken(connection: Connection, sql: ResourceSql[R], external_id: str) -> None:
    """Checks that no resource has the external id of a resource to restore.

    Raises:
        ExternalIdTaken: A resource has it.
    """
    for existing in (await by_external_id(connection, sql, {external_id})).values():
        raise ExternalIdTaken(
            resource_type=type(existing).__name__, id=existing.id, external_id=external_id, by_undelete=True
        )


def _taken(draft: PostDraft | CommentDraft, existing: Post | Comment) -> ServiceError:
    name = type(existing).__name__
    return ExternalIdTaken(resource_type=name, id=existing.id, external_id=draft.external_id)


def _too_large(drafts: Sequence[D], existing: Mapping[str, R]) -> ServiceError | None:
    """Returns the error of a batch that existing resources make too large for a response."""
    if len(drafts) > 1:
        try:
            check_response_size([existing.get(draft.external_id) or draft for draft in drafts])
        except ResponseTooLarge as error:
            return error
    return None


def _merged(drafts: Sequence[D], existing: Mapping[str, R], created: Iterable[R]) -> tuple[R, ...]:
    """Returns the resource of each draft: the existing one with its external id, or the created one."""
    rest = iter(created)
    return tuple([existing.get(draft.external_id) or next(rest) for draft in drafts])
