"""Requests that callers send again: done once, and answered as they were answered first.

What was done and what was answered are written in the transaction of the change itself, so a request was
done if and only if it is remembered. Failures are not remembered: they changed nothing.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from store_service.database import requests as sql
from store_service.database.connect import Store
from store_service.database.connection import Connection
from store_service.database.statements import as_json
from store_service.database.workers import LATER, Operation
from store_service.errors import ReadOnly, RequestIdReused, StoreError
from store_service.model import Argument, Comment, Found, Post, Request, Write
from store_service.records import RecordReader
from store_service.store.batches import MAX_HELD_BYTES, now_microseconds

Result = TypeVar("Result")

Run = Callable[[Connection, Sequence[Write[Argument]]], Awaitable[Sequence[Result | StoreError]]]

_was_repeated: ContextVar[bool] = ContextVar("store_service_repeated", default=False)


def was_repeated() -> bool:
    """Whether the write of this task was answered as it was answered first, so that it has done nothing."""
    return _was_repeated.get()


@dataclass(frozen=True, slots=True)
class _Answer(Generic[Result]):
    """What a request with an id gets."""

    result: Result
    is_repeated: bool


class WriteOperation(Generic[Argument, Result]):
    """A kind of write, which a request with an id does only once."""

    def __init__(
        self,
        run: Run[Argument, Result],
        resource: type[Post] | type[Comment],
        *,
        answer_of: Callable[[Result], Found[Any]],
        result_of: Callable[[Found[Any]], Result],
        only_adds: bool = False,
        is_one_write: bool = False,
    ) -> None:
        """Takes the work, what its answers hold, and how a result becomes an answer and is made of one."""
        self._run = run
        self._reader: RecordReader[Any] = RecordReader(resource)
        self._answer_of = answer_of
        self._result_of = result_of
        # Two operations, so that writes without a request_id pay nothing for it.
        self._plain = Operation(run, only_adds=only_adds, is_one_write=is_one_write)
        self._once = Operation(self._run_once, only_adds=only_adds)

    async def do(
        self, store: Store, argument: Argument, request: Request | None, *, keep: bool, size: int
    ) -> Result:
        """Does the work, about `size` bytes of it, unless the same request did it before.

        Raises:
            RequestIdReused: Another request had the same id.
            ReadOnly: The server takes no writes for now.
        """
        if store.read_only:
            raise ReadOnly
        write = Write(argument=argument, request=request, keep=keep)
        if request is None:
            return await store.write(self._plain, write, keep=keep, size=size)
        answer = await store.write(self._once, write, keep=keep, size=size)
        _was_repeated.set(answer.is_repeated)
        return answer.result

    async def _run_once(
        self, connection: Connection, writes: Sequence[Write[Argument]]
    ) -> Sequence[_Answer[Result] | StoreError]:
        requests = [write.request for write in writes if write.request is not None]
        assert len(requests) == len(writes), "only requests with an id are to be done once"
        outcomes = await self._remembered(connection, requests)

        # Of equal ids in one batch the first that succeeds is done, and answers the others.
        done: list[tuple[int, str, str, int, str]] = []
        while len(outcomes) < len(requests):
            first: dict[str, int] = {}
            for index, request in enumerate(requests):
                if index not in outcomes:
                    first.setdefault(request.id, index)
            results = await self._run(connection, [writes[index] for index in first.values()])
            came_of: dict[str, Any] = dict(zip(first, results, strict=True))
            for index, request in enumerate(requests):
                if index in outcomes:
                    continue
                result = came_of[request.id]
                if result is LATER:
                    outcomes[index] = LATER
                elif request.fingerprint == requests[first[request.id]].fingerprint:
                    is_repeated = index != first[request.id]
                    outcomes[index] = (
                        result if isinstance(result, StoreError) else _Answer(result, is_repeated)
                    )
                elif not isinstance(result, StoreError):
                    outcomes[index] = _reused()
            for id, result in came_of.items():
                if not isinstance(result, StoreError) and result is not LATER:
                    answer = self._text(result)
                    done.append((len(done), id, requests[first[id]].fingerprint, len(answer), answer))
        if done:
            await connection.fetch(sql.INSERT_REQUESTS, done=as_json(done), now=now_microseconds())
        return [outcomes[index] for index in range(len(requests))]

    async def _remembered(
        self, connection: Connection, requests: Sequence[Request]
    ) -> dict[int, _Answer[Result] | StoreError]:
        """What comes of those requests that were done before, by their place.

        An answer is read and decoded once for all who want it. Those after MAX_HELD_BYTES are LATER, so that
        small requests for large answers do not fill the memory.
        """
        rows = await connection.fetch(sql.REQUESTS_BY_ID, ids=as_json([it.id for it in requests]))
        if not rows:
            return {}
        known = {id: (fingerprint, size) for id, fingerprint, size in rows}
        outcomes: dict[int, _Answer[Result] | StoreError] = {}
        wanted: set[str] = set()
        held = 0
        for index, request in enumerate(requests):
            if request.id not in known:
                continue
            fingerprint, size = known[request.id]
            if fingerprint != request.fingerprint:
                outcomes[index] = _reused()
            elif request.id not in wanted and held < MAX_HELD_BYTES:
                wanted.add(request.id)
                held += size
        rows = await connection.fetch(sql.ANSWERS_BY_ID, ids=as_json(list(wanted)))
        answers = {id: _Answer(self._result(text), is_repeated=True) for id, text in rows}
        for index, request in enumerate(requests):
            if request.id in known and index not in outcomes:
                # Also when another process has just forgotten it; the next batch does the request anew.
                outcomes[index] = answers.get(request.id, LATER)
        return outcomes

    def _text(self, result: Result) -> str:
        found = self._answer_of(result)
        return as_json({"items": [asdict(item) for item in found.items], "missing_ids": found.missing_ids})

    def _result(self, text: str) -> Result:
        found = json.loads(text)
        items = tuple(map(self._reader.read, found["items"]))
        return self._result_of(Found(items=items, missing_ids=tuple(found.get("missing_ids", ()))))


def request_ids(keyed: Iterable[tuple[int, Request | None]]) -> str:
    """The parameter `requests` of a LoggedWrite: which requests the changes with these keys belong to."""
    with_id = [(key, request.id) for key, request in keyed if request is not None]
    return as_json([(n, key, id) for n, (key, id) in enumerate(with_id)])


def _reused() -> StoreError:
    return RequestIdReused.at(
        "request_id", "was used before for another request; choose a new UUID for every request"
    )
