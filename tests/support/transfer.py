"""Exports and imports between servers, and the rows that they have to keep."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc
from sqlalchemy import text
from storeapi.v1 import transfer_pb2 as pb

from tests.support.database import database_connection
from tests.support.errors import received_error
from tests.support.stubs import Stubs

TABLES = ("posts", "comments", "deleted_posts", "deleted_comments", "revisions", "labels")
"""The tables whose rows an export and an import keep."""

FAIL = pb.CONFLICT_POLICY_FAIL
SKIP = pb.CONFLICT_POLICY_SKIP
OVERWRITE = pb.CONFLICT_POLICY_OVERWRITE


def stored_rows(database_url: str) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of TABLES."""
    with database_connection(database_url) as connection:
        return {
            table: sorted(
                [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))],
                key=repr,
            )
            for table in TABLES
        }


async def export(stubs: Stubs, **fields: Any) -> list[Any]:
    """All responses of an export."""
    return [it async for it in stubs.transfers.Export(pb.ExportRequest(**fields))]


def final_records(responses: Iterable[Any]) -> list[Any]:
    """The records of an export that are not obsolete, in an order in which they can be imported."""
    found: dict[tuple[Any, ...], Any] = {}
    for response in responses:
        changed = {
            "post": set(response.changed_post_ids),
            "comment": set(response.changed_comment_ids),
        }
        for key in found:
            if key[1] in changed[key[0]]:
                found[key] = None
        for record in response.records:
            name = record.WhichOneof("resource")
            resource = getattr(record, name)
            version = resource.etag if record.state == pb.RECORD_STATE_REVISION else ""
            found[name, resource.id, record.state, version] = record
    return [record for record in found.values() if record is not None]


def in_batches(records: Sequence[Any], size: int = 7) -> Iterator[list[Any]]:
    """The records in batches."""
    for first in range(0, len(records), size):
        yield list(records[first : first + size])


def import_requests(
    records: Sequence[Any], *, on_conflict: Any = FAIL, validate_only: bool = False, size: int = 7
) -> Iterator[Any]:
    """The requests of an import."""
    options = pb.ImportOptions(on_conflict=on_conflict, validate_only=validate_only)
    yield pb.ImportRequest(options=options)
    for number, batch in enumerate(in_batches(records, size), start=1):
        yield pb.ImportRequest(batch=number, records=batch)


async def import_all(stubs: Stubs, records: Sequence[Any], **options: Any) -> list[Any]:
    """The responses of an import of records."""
    return await import_stream(stubs, import_requests(records, **options))


async def import_stream(stubs: Stubs, requests: Iterable[Any]) -> list[Any]:
    """The responses of an import.

    If a call ends while the client of grpc.aio sends, the client can report INTERNAL instead of the status of
    the server. Such a call is repeated.
    """
    sent = list(requests)
    while True:
        try:
            return [it async for it in stubs.transfers.Import(iter(sent))]
        except grpc.RpcError as error:
            if received_error(error).message != "Internal error from Core":
                raise


def total(responses: Iterable[Any]) -> dict[str, int]:
    """The numbers of all results together, without zeros."""
    names = ("created", "overwritten", "unchanged", "skipped", "failed")
    sums = {name: sum(getattr(it.result, name) for it in responses) for name in names}
    return {name: count for name, count in sums.items() if count}
