"""The steps that maintain the indexes for full-text search, each a small write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from store_service.database import changes as change_sql
from store_service.database import search_sql as sql
from store_service.database.batch_operation import BatchOperation
from store_service.database.connection import Connection
from store_service.database.search_entries import Entry, fields_of
from store_service.database.statements import as_json
from store_service.errors import ResumeTokenExpired, ResumeTokenForeign
from store_service.model import Position, ResourceKind
from store_service.search import VERSION, tokenize
from store_service.service.changes import check_position, feed_state, newest_position

STEP_ROWS = 400
"""Maximum number of changes, or of resources, of one step."""

STEP_BYTES = 256 * 1024
"""Maximum total size of their bodies. A single one may exceed it."""

JOB_BYTES = 512 * 1024
"""The size of a job that writes, so that it has a batch of its own."""

POST, COMMENT = ResourceKind.POST, ResourceKind.COMMENT

FIRST_ID, LAST_ID = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """The state of the indexes, as it is stored."""

    tokenizer: str
    store_id: str
    xid: int
    seq: int
    commit_time: int
    building_kind: int = 0
    """The kind of the resources that are being added; 0: the indexes are complete."""
    building_id: int = 0
    """The last id that was added."""

    @property
    def position(self) -> Position:
        """The position in the feed up to which changes are in the indexes."""
        return Position(xid=self.xid, seq=self.seq, time=self.commit_time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The state of the indexes, and what they should have."""

    state: IndexState | None
    newest: Position | None
    """The newest committed change."""
    progress: float
    """The part of the posts and comments that the indexes have; 0 if they have to be built again."""

    def is_current(self) -> bool:
        """Whether the indexes have every committed change."""
        return self.has(self.newest)

    def has(self, position: Position | None) -> bool:
        """Whether the indexes have every change up to a position."""
        if self.state is None or self.progress < 1:
            return False
        return position is None or self.state.position >= position


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a step has read."""

    expected: IndexState | None
    """The state before the step."""
    next: IndexState | None = None
    """The state after the step; None if there is nothing to do."""
    removed: Mapping[ResourceKind, Sequence[int]] = field(default_factory=dict)
    """The ids of rows that may be in an index."""
    rows: Mapping[ResourceKind, Sequence[Any]] = field(default_factory=dict)
    """The resources with these ids that exist."""
    in_order: bool
    """`Connection.SEARCHES_IN_ORDER`."""
    progress: float = 1.0
    oldest: int = 0
    """The time of the first change of the step; 0 if there is none."""
    has_more: bool = False
    """Whether there was more to read than one step takes."""
    reason: str = ""
    """Why the indexes are built, if this step begins with it."""

    @property
    def is_last(self) -> bool:
        """Whether this step completes the indexes."""
        was_building = self.expected is not None and bool(self.expected.building_kind)
        return was_building and self.next is not None and not self.next.building_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a step writes."""

    expected: IndexState | None
    next: IndexState
    removed: Mapping[ResourceKind, Sequence[int]]
    entries: Mapping[ResourceKind, str]
    """The parameter of `SearchSql.put`; empty for none."""
    count: int
    """The number of rows that are added."""


def prepared(read: Rows) -> Prepared:
    """Returns what a step writes. Takes milliseconds, so it runs in a thread."""
    assert read.next is not None
    entries = {
        kind: [it for it in map(_entry, sorted(rows, key=lambda row: row[0])) if it.words]
        for kind, rows in read.rows.items()
    }
    removed = {
        kind: sorted(set(ids).difference([it.id for it in entries.get(kind, ())]))
        for kind, ids in read.removed.items()
    }
    return Prepared(
        expected=read.expected,
        next=read.next,
        removed=removed,
        entries={
            kind: as_json([(it.id, it.on_sqlite() if read.in_order else it.on_postgresql()) for it in those])
            for kind, those in entries.items()
            if those
        },
        count=sum(map(len, entries.values())),
    )


def _entry(row: Sequence[Any]) -> Entry:
    id, body, author, labels, post_id, reply_to_id = row
    return Entry(id, tokenize(body), fields_of(labels, author, post_id, reply_to_id))


async def _state(connection: Connection) -> IndexState | None:
    for row in await connection.fetch(sql.STATE):
        return IndexState(**dict(zip(IndexState.__dataclass_fields__, row, strict=True)))
    return None


async def _problem(connection: Connection, state: IndexState | None) -> str:
    """Returns why indexes with this state have to be built again; empty if they do not."""
    if state is None:
        return "it is empty"
    if state.tokenizer != VERSION:
        return "another version has built it"
    try:
        feed = await check_position(connection, state.position)
    except ResumeTokenExpired:
        return "changes were deleted before they were read"
    except ResumeTokenForeign:
        return "the database has lost changes"
    return "" if feed.store_id == state.store_id else "the change feed has been restarted"


async def _progress(connection: Connection, state: IndexState) -> float:
    """Returns the part of the ids of posts and comments that the indexes have."""
    if not state.building_kind:
        return 1.0
    last = {
        kind: (await connection.fetch(it.last_id, before=LAST_ID))[0][0] or 0
        for kind, it in sql.SEARCH.items()
    }
    done = max(state.building_id, 0) + (last[POST] if state.building_kind == COMMENT else 0)
    return min(done / max(sum(last.values()), 1), 0.999)


async def _look(connection: Connection, jobs: Sequence[None]) -> list[Look]:
    # Before the state, so that the state may have more changes and not fewer.
    newest = await newest_position(connection)
    state = await _state(connection)
    progress = 0.0
    if state is not None and not await _problem(connection, state):
        progress = await _progress(connection, state)
    return [Look(state=state, newest=newest, progress=progress)] * len(jobs)


async def _read_each(connection: Connection, jobs: Sequence[None]) -> list[Rows]:
    return [await _read(connection)] * len(jobs)


async def _read(connection: Connection) -> Rows:
    state = await _state(connection)
    keys: Sequence[Any] = ()
    if state is not None and not state.building_kind:
        keys = await connection.fetch(
            change_sql.KEYS, after_xid=state.xid, after_seq=state.seq, limit=STEP_ROWS
        )
    # After the read: changes that are not deleted now were not deleted during the read.
    problem = await _problem(connection, state)
    if problem or state is None:
        feed = await feed_state(connection)
        next = IndexState(
            tokenizer=VERSION,
            store_id=feed.store_id,
            xid=feed.end.xid,
            seq=feed.end.seq,
            commit_time=feed.end.time,
            building_kind=POST,
            building_id=FIRST_ID,
        )
        return Rows(
            expected=state,
            next=next,
            in_order=connection.SEARCHES_IN_ORDER,
            progress=0.0,
            reason=problem,
            has_more=True,
        )
    if state.building_kind:
        return await _read_range(connection, state)
    return await _read_changes(connection, state, keys)


async def _read_changes(connection: Connection, state: IndexState, keys: Sequence[Any]) -> Rows:
    """Reads the resources of the next changes, as they are now: later changes of them follow."""
    if not keys:
        return Rows(expected=state, in_order=connection.SEARCHES_IN_ORDER)
    found, keys = len(keys), keys[: _count([key[2] for key in keys])]
    ids = {kind: list(dict.fromkeys([key[5] for key in keys if key[4] == kind])) for kind in sql.SEARCH}
    rows = {
        kind: await connection.fetch(it.by_ids, ids=as_json(ids[kind])) if ids[kind] else ()
        for kind, it in sql.SEARCH.items()
    }
    xid, seq, _, commit_time, *_ = keys[-1]
    return Rows(
        expected=state,
        next=replace(state, xid=xid, seq=seq, commit_time=commit_time),
        removed=ids,
        rows=rows,
        in_order=connection.SEARCHES_IN_ORDER,
        oldest=keys[0][3],
        has_more=found == STEP_ROWS or found > len(keys),
    )


async def _read_range(connection: Connection, state: IndexState) -> Rows:
    """Reads the next resources by id, and what the index has of their range."""
    kind, after = ResourceKind(state.building_kind), state.building_id
    statements = sql.SEARCH[kind]
    sizes = await connection.fetch(statements.sizes, after=after, limit=STEP_ROWS)
    count = _count([size for _, size in sizes])
    is_end = count == len(sizes) < STEP_ROWS
    until = LAST_ID if is_end else sizes[count - 1][0]
    stored = [
        id
        for (id,) in await connection.fetch(
            statements.ids_in_range, after=after, until=until, limit=STEP_ROWS
        )
    ]
    if len(stored) == STEP_ROWS and stored[-1] < until:
        is_end, until = False, stored[-1]
    rows = await connection.fetch(statements.range, after=after, until=until)
    if not is_end:
        next = replace(state, building_id=until)
    elif kind is POST:
        next = replace(state, building_kind=int(COMMENT), building_id=FIRST_ID)
    else:
        next = replace(state, building_kind=0, building_id=0)
    return Rows(
        expected=state,
        next=next,
        removed={kind: stored},
        rows={kind: rows},
        in_order=connection.SEARCHES_IN_ORDER,
        progress=await _progress(connection, next),
        has_more=True,
    )


def _count(sizes: Iterable[int]) -> int:
    """Returns how many resources of these sizes a step reads; at least one if there is one."""
    count = total = 0
    for size in sizes:
        total += size
        if count and total > STEP_BYTES:
            break
        count += 1
    return count


async def _apply_each(connection: Connection, steps: Sequence[Prepared]) -> list[bool]:
    return [await _apply(connection, it) for it in steps]


async def _apply(connection: Connection, step: Prepared) -> bool:
    """Writes a step. Returns False if another process has made it."""
    if await _locked_state(connection) != step.expected:
        return False
    if not await _save(connection, step.next, is_new=step.expected is None):
        return False
    for kind, statements in sql.SEARCH.items():
        if removed := step.removed.get(kind):
            await connection.fetch(statements.remove, ids=as_json(removed))
        if entries := step.entries.get(kind):
            await connection.fetch(statements.put, entries=entries)
    return True


async def _locked_state(connection: Connection) -> IndexState | None:
    for row in await connection.fetch(sql.LOCKED_STATE):
        return IndexState(**dict(zip(IndexState.__dataclass_fields__, row, strict=True)))
    return None


async def _save(connection: Connection, state: IndexState, *, is_new: bool) -> bool:
    """Stores a state. Returns False if it is new, and another process has added one."""
    values = dict(zip(IndexState.__dataclass_fields__, astuple(state), strict=True))
    if is_new:
        return bool(await connection.fetch(sql.ADD_STATE, **values))
    await connection.fetch(sql.SET_STATE, **values)
    return True


LOOK: BatchOperation[None, Look] = BatchOperation(_look)
"""Reads the state of the indexes."""

READ: BatchOperation[None, Rows] = BatchOperation(_read_each)
"""Reads what the next step needs."""

# No other write changes these rows, and the feed does not contain them.
APPLY: BatchOperation[Prepared, bool] = BatchOperation(_apply_each, insert_only=True, name="index step")
"""Writes a step."""
