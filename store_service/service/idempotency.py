"""Requests that callers send again: done once, and answered as they were answered first.

What was done and what was answered are written in the transaction of the change itself, so a request was
done if and only if it is remembered. Failures are not remembered: they changed nothing.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from store_service.database import idempotency as sql
from store_service.database.batch_queue import DEFERRED, BatchOperation
from store_service.database.connect import Database
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.errors import ReadOnly, RequestIdReused, ServiceError
from store_service.model import Argument, BatchResult, Comment, IdempotencyKey, Post, WriteCommand
from store_service.records import RecordReader
from store_service.service.operations import MAX_HELD_BYTES, now_microseconds

Result = TypeVar("Result")

Run = Callable[[Connection, Sequence[WriteCommand[Argument]]], Awaitable[Sequence[Result | ServiceError]]]

_is_replay: ContextVar[bool] = ContextVar("store_service_repeated", default=False)


def is_replay() -> bool:
    """Whether the write of this task was answered as it was answered first, so that it has done nothing."""
    return _is_replay.get()


@dataclass(frozen=True, slots=True)
class _Answer(Generic[Result]):
    """What a request with an id gets."""

    result: Result
    is_replay: bool


class IdempotentWrite(Generic[Argument, Result]):
    """A kind of write, which a request with an id does only once."""

    def __init__(
        self,
        run: Run[Argument, Result],
        resource: type[Post] | type[Comment],
        *,
        answer_of: Callable[[Result], BatchResult[Any]],
        result_of: Callable[[BatchResult[Any]], Result],
        insert_only: bool = False,
        single_statement: bool = False,
    ) -> None:
        """Takes the work, what its answers hold, and how a result becomes an answer and is made of one."""
        self._run = run
        self._reader: RecordReader[Any] = RecordReader(resource)
        self._answer_of = answer_of
        self._result_of = result_of
        # Two operations, so that writes without a request_id pay nothing for it.
        self._plain = BatchOperation(run, insert_only=insert_only, single_statement=single_statement)
        self._once = BatchOperation(self._run_once, insert_only=insert_only)

    async def execute(
        self, database: Database, argument: Argument, key: IdempotencyKey | None, *, dry_run: bool, size: int
    ) -> Result:
        """Does the work, about `size` bytes of it, unless the same request did it before.

        Raises:
            RequestIdReused: Another request had the same id.
            ReadOnly: The server takes no writes for now.
        """
        if database.read_only:
            raise ReadOnly
        write = WriteCommand(argument=argument, key=key, dry_run=dry_run)
        if key is None:
            return await database.write(self._plain, write, dry_run=dry_run, size=size)
        answer = await database.write(self._once, write, dry_run=dry_run, size=size)
        _is_replay.set(answer.is_replay)
        return answer.result

    async def _run_once(
        self, connection: Connection, writes: Sequence[WriteCommand[Argument]]
    ) -> Sequence[_Answer[Result] | ServiceError]:
        keys = [write.key for write in writes if write.key is not None]
        assert len(keys) == len(writes), "writes without an idempotency key run as _plain"
        outcomes = await self._remembered(connection, keys)

        # Of equal keys in one batch the first that succeeds is executed. The others are replays.
        done: list[tuple[int, str, str, int, str]] = []
        while len(outcomes) < len(keys):
            first: dict[str, int] = {}
            for index, key in enumerate(keys):
                if index not in outcomes:
                    first.setdefault(key.id, index)
            results = await self._run(connection, [writes[index] for index in first.values()])
            came_of: dict[str, Any] = dict(zip(first, results, strict=True))
            for index, key in enumerate(keys):
                if index in outcomes:
                    continue
                result = came_of[key.id]
                if result is DEFERRED:
                    outcomes[index] = DEFERRED
                elif key.fingerprint == keys[first[key.id]].fingerprint:
                    is_replay = index != first[key.id]
                    outcomes[index] = (
                        result if isinstance(result, ServiceError) else _Answer(result, is_replay)
                    )
                elif not isinstance(result, ServiceError):
                    outcomes[index] = _reused()
            for id, result in came_of.items():
                if not isinstance(result, ServiceError) and result is not DEFERRED:
                    answer = self._text(result)
                    done.append((len(done), id, keys[first[id]].fingerprint, len(answer), answer))
        if done:
            await connection.fetch(sql.INSERT_REQUESTS, done=as_json(done), now=now_microseconds())
        return [outcomes[index] for index in range(len(keys))]

    async def _remembered(
        self, connection: Connection, keys: Sequence[IdempotencyKey]
    ) -> dict[int, _Answer[Result] | ServiceError]:
        """Returns the outcomes of keys that are stored, by index.

        Each response is read and decoded once. Responses after MAX_HELD_BYTES are DEFERRED: many small
        requests for large responses must not fill the memory.
        """
        rows = await connection.fetch(sql.REQUESTS_BY_ID, ids=as_json([it.id for it in keys]))
        if not rows:
            return {}
        known = {id: (fingerprint, size) for id, fingerprint, size in rows}
        outcomes: dict[int, _Answer[Result] | ServiceError] = {}
        wanted: set[str] = set()
        held = 0
        for index, key in enumerate(keys):
            if key.id not in known:
                continue
            fingerprint, size = known[key.id]
            if fingerprint != key.fingerprint:
                outcomes[index] = _reused()
            elif key.id not in wanted and held < MAX_HELD_BYTES:
                wanted.add(key.id)
                held += size
        rows = await connection.fetch(sql.ANSWERS_BY_ID, ids=as_json(list(wanted)))
        answers = {id: _Answer(self._result(text), is_replay=True) for id, text in rows}
        for index, key in enumerate(keys):
            if key.id in known and index not in outcomes:
                # DEFERRED also if another process has just deleted the key; the next batch runs the request.
                outcomes[index] = answers.get(key.id, DEFERRED)
        return outcomes

    def _text(self, result: Result) -> str:
        found = self._answer_of(result)
        return as_json({"items": [asdict(item) for item in found.items], "missing_ids": found.missing_ids})

    def _result(self, text: str) -> Result:
        found = json.loads(text)
        items = tuple(map(self._reader.read, found["items"]))
        return self._result_of(BatchResult(items=items, missing_ids=tuple(found.get("missing_ids", ()))))


def request_ids(keyed: Iterable[tuple[int, IdempotencyKey | None]]) -> str:
    """The parameter `requests` of a WriteWithChanges: the request id of each change, by its key."""
    with_id = [(key, request.id) for key, request in keyed if request is not None]
    return as_json([(n, key, id) for n, (key, id) in enumerate(with_id)])


def _reused() -> ServiceError:
    return RequestIdReused.at(
        "request_id", "was used before for another request; choose a new UUID for every request"
    )
