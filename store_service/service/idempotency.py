"""Executes a write with an idempotency key only once, and answers each replay with the first response.

The key and the response are stored in the transaction of the write. So a write was executed if and only if
its key is stored. Failed writes are not stored, because they have changed nothing.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from store_service.database import idempotency as sql
from store_service.database.batch_operation import DEFERRED, BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import ReadOnly, RequestIdReused, ServiceError
from store_service.model import Argument, BatchResult, Comment, IdempotencyKey, Post, WriteCommand
from store_service.records import RecordReader
from store_service.service.operations import MAX_HELD_BYTES, now_microseconds

Result = TypeVar("Result")

Run = Callable[[Connection, Sequence[WriteCommand[Argument]]], Awaitable[Sequence[Result | ServiceError]]]

_is_replay: ContextVar[bool] = ContextVar("store_service_is_replay", default=False)


def is_replay() -> bool:
    """Whether the write of this task was a replay, and so has changed nothing."""
    return _is_replay.get()


@dataclass(frozen=True, slots=True)
class Response(Generic[Result]):
    """The outcome of a write with an idempotency key."""

    result: Result
    is_replay: bool


class IdempotentWrite(Generic[Argument, Result]):
    """A write operation that is executed once for each idempotency key."""

    def __init__(
        self,
        run: Run[Argument, Result],
        resource: type[Post] | type[Comment],
        *,
        name: str,
        to_batch_result: Callable[[Result], BatchResult[Any]],
        from_batch_result: Callable[[BatchResult[Any]], Result],
        insert_only: bool = False,
        single_statement: bool = False,
    ) -> None:
        """Takes the operation and how its results are stored.

        Args:
            run: Executes a batch of writes.
            resource: The type of the resources in the results.
            name: See `BatchOperation`.
            to_batch_result: Converts a result to the form that is stored.
            from_batch_result: Converts the stored form to a result.
            insert_only: See `BatchOperation`.
            single_statement: See `BatchOperation`.
        """
        self._run = run
        self._reader: RecordReader[Any] = RecordReader(resource)
        self._to_batch_result = to_batch_result
        self._from_batch_result = from_batch_result
        # Writes without a request id have their own operation, so that they have no overhead.
        self._plain = BatchOperation(
            run, insert_only=insert_only, single_statement=single_statement, name=name
        )
        self._once = BatchOperation(self._run_once, insert_only=insert_only, name=f"{name} once")
        self.operations = (self._plain, self._once)
        """The operations of writes without and with an idempotency key."""

    async def execute(
        self, database: Database, argument: Argument, key: IdempotencyKey | None, *, dry_run: bool, size: int
    ) -> Result:
        """Executes a write of about `size` bytes, or returns the stored result of its key.

        Raises:
            RequestIdReused: The key has the request id of a different request.
            ReadOnly: The server is in read-only mode.
        """
        if database.read_only:
            raise ReadOnly
        write = WriteCommand(argument=argument, key=key, dry_run=dry_run)
        if key is None:
            return await database.write(self._plain, write, dry_run=dry_run, size=size)
        response = await database.write(self._once, write, dry_run=dry_run, size=size)
        _is_replay.set(response.is_replay)
        return response.result

    async def _run_once(
        self, connection: Connection, writes: Sequence[WriteCommand[Argument]]
    ) -> Sequence[Response[Result] | ServiceError]:
        keys = [write.key for write in writes if write.key is not None]
        assert len(keys) == len(writes), "writes without an idempotency key run as _plain"
        outcomes = await self._stored_outcomes(connection, keys)

        # Of equal keys in one batch the first that succeeds is executed. The others are replays.
        executed: list[tuple[int, str, str, int, str]] = []
        while len(outcomes) < len(keys):
            first: dict[str, int] = {}
            for index, key in enumerate(keys):
                if index not in outcomes:
                    first.setdefault(key.id, index)
            results = await self._run(connection, [writes[index] for index in first.values()])
            result_by_id: dict[str, Any] = dict(zip(first, results, strict=True))
            for index, key in enumerate(keys):
                if index in outcomes:
                    continue
                result = result_by_id[key.id]
                if result is DEFERRED:
                    outcomes[index] = DEFERRED
                elif key.fingerprint == keys[first[key.id]].fingerprint:
                    is_replay = index != first[key.id]
                    outcomes[index] = (
                        result if isinstance(result, ServiceError) else Response(result, is_replay)
                    )
                elif not isinstance(result, ServiceError):
                    outcomes[index] = _reused()
            for id, result in result_by_id.items():
                if not isinstance(result, ServiceError) and result is not DEFERRED:
                    text = self._to_text(result)
                    executed.append((len(executed), id, keys[first[id]].fingerprint, len(text), text))
        if executed:
            await connection.fetch(sql.INSERT_REQUESTS, done=as_json(executed), now=now_microseconds())
        return [outcomes[index] for index in range(len(keys))]

    async def _stored_outcomes(
        self, connection: Connection, keys: Sequence[IdempotencyKey]
    ) -> dict[int, Response[Result] | ServiceError]:
        """Returns the outcomes of keys that are stored, by index.

        Each response is read and decoded once. Responses after MAX_HELD_BYTES are DEFERRED: many small
        requests for large responses must not fill the memory.
        """
        rows = await connection.fetch(sql.REQUESTS_BY_ID, ids=as_json([it.id for it in keys]))
        if not rows:
            return {}
        stored = {id: (fingerprint, size) for id, fingerprint, size in rows}
        outcomes: dict[int, Response[Result] | ServiceError] = {}
        ids_to_read: set[str] = set()
        held_bytes = 0
        for index, key in enumerate(keys):
            if key.id not in stored:
                continue
            fingerprint, size = stored[key.id]
            if fingerprint != key.fingerprint:
                outcomes[index] = _reused()
            elif key.id not in ids_to_read and held_bytes < MAX_HELD_BYTES:
                ids_to_read.add(key.id)
                held_bytes += size
        rows = await connection.fetch(sql.ANSWERS_BY_ID, ids=as_json(list(ids_to_read)))
        responses = {id: Response(self._from_text(text), is_replay=True) for id, text in rows}
        for index, key in enumerate(keys):
            if key.id in stored and index not in outcomes:
                # DEFERRED also if another process has just deleted the key; the next batch runs the request.
                outcomes[index] = responses.get(key.id, DEFERRED)
        return outcomes

    def _to_text(self, result: Result) -> str:
        stored = self._to_batch_result(result)
        return as_json({"items": [asdict(item) for item in stored.items], "missing_ids": stored.missing_ids})

    def _from_text(self, text: str) -> Result:
        stored = json.loads(text)
        items = tuple(map(self._reader.read, stored["items"]))
        missing_ids = tuple(stored.get("missing_ids", ()))
        return self._from_batch_result(BatchResult(items=items, missing_ids=missing_ids))


def request_ids(keys: Iterable[tuple[int, IdempotencyKey | None]]) -> str:
    """Returns the parameter `requests` of a WriteWithChanges.

    Args:
        keys: The idempotency key of each write, with the number by which the statement finds its change: the
            index of the row, or the id of the resource.
    """
    with_id = [(number, key.id) for number, key in keys if key is not None]
    return as_json([(n, number, id) for n, (number, id) in enumerate(with_id)])


def stored_key(request_id: str | None) -> IdempotencyKey | None:
    """Returns the key of a write whose request id is stored with its unfinished work."""
    return IdempotencyKey(id=request_id, fingerprint="") if request_id else None


def _reused() -> ServiceError:
    return RequestIdReused.at(
        "request_id", "was already used for a different request; choose a new UUID for each request"
    )
