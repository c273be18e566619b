"""The RPC methods of TransferService."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from storeapi.v1 import transfer_pb2 as pb

from store_service.model import (
    Comment,
    Counts,
    ExportPart,
    ImportBatch,
    ImportResult,
    Post,
    Record,
    RecordState,
    ResourceKind,
    concatenated_texts,
)
from store_service.rpc.call import Context
from store_service.rpc.convert import comment_to_message, post_to_message
from store_service.rpc.responses import BESIDE_BODY_BYTES, LazyResponse, utf8_size
from store_service.rpc.validation import Validation
from store_service.rpc.validation.transfer import export_request
from store_service.service.restoration import ids_in
from store_service.service.transfer_export import Exports
from store_service.service.transfer_import import Imports

MAX_ERRORS = 100
"""Maximum number of errors of records in one response."""


class TransferService:
    """Implements storeapi.v1.TransferService. protos/storeapi/v1/transfer.proto documents the methods."""

    def __init__(self, exports: Exports, imports: Imports, validation: Validation) -> None:
        """Takes the services, and the validation of requests."""
        self._exports = exports
        self._imports = imports
        self._validation = validation.transfer

    async def Export(
        self, request: pb.ExportRequest, _: Context
    ) -> AsyncGenerator[pb.ExportResponse | LazyResponse, None]:
        kinds = export_request(request)
        async with aclosing(self._exports.run(kinds, request.cursor)) as parts:
            async for part in parts:
                yield _part_response(part)

    async def Import(
        self, requests: AsyncIterator[pb.ImportRequest], _: Context
    ) -> AsyncGenerator[pb.ImportResponse, None]:
        first = await anext(requests, pb.ImportRequest())
        options = self._validation.options(first)
        number = 0
        # One batch is stored while the next one arrives and is checked.
        reading: asyncio.Future[pb.ImportRequest | None] | None = asyncio.ensure_future(anext(requests, None))
        writing: asyncio.Future[ImportResult] | None = None
        ready: tuple[int, ImportBatch] | None = None
        stored = 0
        try:
            while reading is not None or ready is not None or writing is not None:
                if ready is not None and writing is None:
                    (stored, batch), ready = ready, None
                    writing = asyncio.ensure_future(self._imports.store(batch))
                waiting = {it for it in (reading if ready is None else None, writing) if it is not None}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if writing is not None and writing.done():
                    result, writing = writing.result(), None
                    yield pb.ImportResponse(batch=stored, result=_result_to_message(result))
                if reading is not None and ready is None and reading.done():
                    request = reading.result()
                    reading = None
                    if request is not None:
                        ready = (
                            request.batch,
                            await self._validation.batch(request, options, after=number),
                        )
                        number = request.batch
                        reading = asyncio.ensure_future(anext(requests, None))
        finally:
            for task in (reading, writing):
                if task is not None:
                    task.cancel()

    async def ImportRecords(self, request: pb.ImportRecordsRequest, _: Context) -> pb.ImportRecordsResponse:
        result = await self._imports.store(await self._validation.only_batch(request))
        return pb.ImportRecordsResponse(result=_result_to_message(result))


def _part_response(part: ExportPart) -> LazyResponse:
    texts = sum([utf8_size(concatenated_texts(it.resource)) for it in part.records])
    return LazyResponse(
        result=part,
        parts=lambda: (_part_to_message(part),),
        count=len(part.records),
        size=texts + BESIDE_BODY_BYTES * len(part.records),
    )


def _part_to_message(part: ExportPart) -> pb.ExportResponse:
    response = pb.ExportResponse(
        records=[_record_to_message(it) for it in part.records],
        cursor=part.cursor,
        changed_post_ids=part.changed.get(ResourceKind.POST, ()),
        changed_comment_ids=part.changed.get(ResourceKind.COMMENT, ()),
        resume_token=part.resume_token,
    )
    if part.counts is not None and part.resume_token:
        response.totals.CopyFrom(_totals(part.counts))
    elif part.counts is not None:
        response.estimated_records = sum(part.counts.values())
    return response


def _totals(counts: Counts) -> pb.ExportTotals:
    def of(state: RecordState, kinds: Sequence[ResourceKind] = tuple(ResourceKind)) -> int:
        return sum([counts.get((kind, state), 0) for kind in kinds])

    post, comment = [ResourceKind.POST], [ResourceKind.COMMENT]
    return pb.ExportTotals(
        posts=of(RecordState.LIVE, post),
        comments=of(RecordState.LIVE, comment),
        deleted_posts=of(RecordState.DELETED, post),
        deleted_comments=of(RecordState.DELETED, comment),
        revisions=of(RecordState.REVISION),
    )


def _record_to_message(record: Record) -> pb.Record:
    resource: Post | Comment = record.resource
    state = pb.RecordState.ValueType(record.state)
    if isinstance(resource, Post):
        return pb.Record(post=post_to_message(resource), state=state)
    return pb.Record(
        comment=comment_to_message(resource),
        state=state,
        ancestor_ids=ids_in(resource.path),
        deleted_with=record.deleted_with,
    )


def _result_to_message(result: ImportResult) -> pb.ImportResult:
    return pb.ImportResult(
        created=result.created,
        overwritten=result.overwritten,
        unchanged=result.unchanged,
        skipped=result.skipped,
        failed=len(result.errors),
        errors=[
            pb.RecordError(
                index=it.index,
                reason=pb.RecordErrorReason.ValueType(it.reason),
                field=f"records[{it.index}].{it.field}",
                description=it.description,
            )
            for it in result.errors[:MAX_ERRORS]
        ],
    )
