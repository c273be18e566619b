# Made from storeapi/_async/transfer.py by tools/generate_sync.py: change that one, then `make protos`.
"""Exports and imports of StoreClient."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

from storeapi._connection import CLIENT_DEFAULT, Timeout
from storeapi._requests import Requests
from storeapi._sync.calls import Calls
from storeapi._sync.reconnecting import Reconnecting
from storeapi._transfer import (
    BATCH_RECORDS,
    IN_FLIGHT,
    SILENCE_SECONDS,
    Batch,
    ConflictPolicy,
    ExportBatch,
    ImportProgress,
    Record,
    batches,
    export_batch,
    export_request,
    import_options,
    progress_after,
)
from storeapi.v1 import transfer_pb2, transfer_pb2_grpc


class Transfer:
    """Exports and imports, which need the permission admin; `client.transfer`."""

    def __init__(self, calls: Calls, stub: transfer_pb2_grpc.TransferServiceStub) -> None:
        """Called by the client."""
        self._calls = calls
        self._stub = stub

    def export(
        self,
        *,
        kinds: Iterable[Literal["post", "comment"]] = (),
        cursor: str | None = None,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Export:
        """Iterates over everything that is stored, in batches of records.

            for batch in client.transfer.export():
                for record in batch:
                    print(record.state, record.resource.id)

        Nothing is sent before the first step. After the first response the export survives restarts of the
        server and lost connections. Other callers may write meanwhile: towards the end, batches name the
        resources that have changed, and have their new records. The records belong to one point in time only
        after the last batch, which has `resume_token`.

        Args:
            kinds: "post" or "comment", to export only these; both if empty.
            cursor: The cursor of a batch of an earlier export with the same kinds, to continue after it.
            timeout: Deadline in seconds of the first response; later ones have no deadline.

        Raises:
            ValueError: One of `kinds` is unknown.

        Its steps raise:
            PermissionDenied: The caller does not have the permission admin.
            FieldInvalid: `cursor` is damaged, or belongs to other kinds.
            ResumeTokenForeign: `cursor` belongs to another store; begin again.
            ResumeTokenExpired: Changes since the export began are no longer kept; begin again.
        """
        return Export(self._calls, self._stub, export_request(kinds, cursor), timeout)

    def import_records(
        self,
        records: Iterable[Record],
        *,
        on_conflict: ConflictPolicy = "fail",
        validate_only: bool = False,
        batch_size: int = BATCH_RECORDS,
        timeout: Timeout = CLIENT_DEFAULT,
    ) -> Import:
        """Stores records with their ids, times and etags, and iterates over the progress.

            batches = [batch for batch in client.transfer.export()]
            records = [record for batch in batches for record in batch]
            for progress in client.transfer.import_records(records, on_conflict="skip"):
                print(progress.created, progress.failed)

        Nothing is sent before the first step, and each step takes the next records. After the first response
        the import survives restarts of the server and lost connections: it sends the batches again that were
        not stored. A record that is stored already is not stored twice, so a failed import can be repeated.
        A record that the service refuses does not end the import: see `failures` of the progress.

        Posts must come before their comments, and comments before the replies to them.

        Args:
            records: The records.
            on_conflict: "fail": a record whose id or external id is stored with other values is refused.
                "skip": it is skipped. "overwrite": it replaces what is stored.
            validate_only: Whether to check the records only.
            batch_size: Maximum number of records in a batch, at most 1000.
            timeout: Deadline in seconds of the first response; later ones have no deadline.

        Raises:
            ValueError: `on_conflict` is unknown, or `batch_size` is not between 1 and 1000.

        Its steps raise:
            PermissionDenied: The caller does not have the permission admin.
            BatchTooLarge: The service has a lower limit for batches.
            ReadOnly: The service is read-only.
            StorageFull: The disk is full.
        """
        if not 1 <= batch_size <= 1000:
            raise ValueError(f"batch_size must be between 1 and 1000, not {batch_size}")
        options = import_options(on_conflict, validate_only)
        return Import(self._calls, self._stub, batches(records, batch_size), options, timeout)


class Export:
    """An iterator over the batches of an export, returned by `client.transfer.export()`."""

    cursor: str
    """The cursor of the last batch; empty before the first."""

    def __init__(
        self,
        calls: Calls,
        stub: transfer_pb2_grpc.TransferServiceStub,
        request: transfer_pb2.ExportRequest,
        timeout: Timeout,
    ) -> None:
        """Called by the client."""
        self.cursor = request.cursor
        self._request = request
        self._is_over = False
        self._responses = Reconnecting(
            calls,
            "export",
            lambda: stub.Export(request),
            timeout=timeout,
            silence_seconds=SILENCE_SECONDS,
        )

    def close(self) -> None:
        """Ends the export early; closing it again has no effect."""
        self._is_over = True
        self._responses.close()

    def __iter__(self) -> Export:
        return self

    def __next__(self) -> ExportBatch:
        response = None if self._is_over else self._responses.read()
        if response is None:
            raise StopIteration
        batch = export_batch(response)
        self.cursor = self._request.cursor = batch.cursor
        if batch.resume_token:
            self.close()
        return batch

    def __enter__(self) -> Export:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Import:
    """An iterator over the progress of an import, returned by `client.transfer.import_records()`."""

    progress: ImportProgress
    """What has been stored."""

    def __init__(
        self,
        calls: Calls,
        stub: transfer_pb2_grpc.TransferServiceStub,
        batches: Iterable[Batch],
        options: transfer_pb2.ImportOptions,
        timeout: Timeout,
    ) -> None:
        """Called by the client."""
        self.progress = ImportProgress()
        self._stub = stub
        self._batches = iter(batches)
        self._options = options
        self._is_over = False
        self._requests: Requests | None = None
        self._unstored: deque[Batch] = deque()
        self._responses = Reconnecting(
            calls, "import", self._open, timeout=timeout, silence_seconds=SILENCE_SECONDS
        )

    def close(self) -> None:
        """Ends the import early; closing it again has no effect. Batches that were sent may be stored."""
        self._is_over = True
        if self._requests is not None:
            self._requests.end()
        self._responses.close()

    def __iter__(self) -> Import:
        return self

    def __next__(self) -> ImportProgress:
        if not self._is_over:
            self._send_more()
        if not self._unstored or self._is_over:
            self.close()
            raise StopIteration
        response: Any = self._responses.read()
        if response is None:
            raise StopIteration
        batch = self._unstored.popleft()
        self.progress = progress_after(self.progress, batch, response.result)
        return self.progress

    def __enter__(self) -> Import:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> Any:
        """A call that begins with the first batch that is not stored."""
        if self._requests is not None:
            self._requests.end()
        self._requests = Requests()
        self._requests.put(transfer_pb2.ImportRequest(options=self._options))
        for batch in self._unstored:
            self._requests.put(batch.request)
        return self._stub.Import(self._requests)

    def _send_more(self) -> None:
        while len(self._unstored) < IN_FLIGHT:
            batch = next(self._batches, None)
            if batch is None:
                return
            self._unstored.append(batch)
            if self._requests is not None:
                self._requests.put(batch.request)
