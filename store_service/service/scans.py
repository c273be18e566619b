"""Reads the rows of a query in its order, in steps that continue after a position.

The position in an order is the id, the time and the id, or the thread key of the last row.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from store_service.database.connection import Connection
from store_service.database.list_sql import ListSql, Path, Step
from store_service.database.statements import AFTER_DIGITS, as_json
from store_service.model import LEVEL_DIGITS, Comment, Post, Query, ResourceFilter, path_below

Cursor: TypeAlias = int | tuple[int, ...] | str
"""A position: an id, a time and an id, a thread key, or the position of a search by relevance."""

FIRST_ID, LAST_ID = -(2**63), 2**63 - 1
BEFORE_ALL_TIMES, AFTER_ALL_TIMES = -(2**63), 2**63 - 1


def path_of(query: Query) -> Path:
    """Returns the rows to read for a query: those of the condition that usually selects the fewest.

    In the order of `create_time` and in thread order only a post is a path. Other conditions are checked for
    each row.
    """
    filter = query.filter
    if query.order in ("id", "id desc"):
        if filter.reply_to_id:
            return "replies"
        if query.post_id:
            return "post"
        if filter.author:
            return "author"
        if filter.labels:
            return "label"
    return "post" if query.post_id else "all"


def filter_values(query: Query) -> dict[str, Any]:
    """Returns the parameters of `ListSql` for the path and the filter of a query."""
    filter: ResourceFilter = query.filter
    key, value = filter.labels[0] if filter.labels else ("", "")
    return {
        "post_id": query.post_id,
        "author": filter.author,
        "wanted": as_json([(n, *label) for n, label in enumerate(filter.labels)]),
        "label_key": key,
        "label_value": value,
        "time_from": filter.create_time_from,
        "time_before": filter.create_time_before,
        "reply_to_id": filter.reply_to_id,
        "show_deleted": int(filter.show_deleted),
    }


class Scan(ABC):
    """Reads the rows of one query."""

    at_end = False
    """Whether the rows that were read are the last ones."""

    has_more = False
    """Whether a row that matches is known to follow those that were read."""

    def __init__(self, connection: Connection, sql: ListSql, query: Query) -> None:
        """Takes the connection, the statements of the resource, and the query."""
        self._connection = connection
        self._sql = sql
        self._path: Path = path_of(query)
        self._values: Mapping[str, Any] = filter_values(query)

    @abstractmethod
    async def read(self, limit: int) -> Sequence[Any]:
        """Returns about `limit` further rows in the order of the query; none is possible before the end."""

    @property
    @abstractmethod
    def cursor(self) -> Cursor:
        """The position after all rows that were read."""

    @abstractmethod
    def cursor_after(self, item: Post | Comment) -> Cursor:
        """Returns the position after a resource."""

    async def _fetch(self, step: Step, limit: int, **values: Any) -> Sequence[Any]:
        statement = self._sql.page(self._path, step)
        return await self._connection.fetch(statement, limit=limit, **values, **self._values)


class IdScan(Scan):
    """Reads in the order of ids."""

    def __init__(self, connection: Connection, sql: ListSql, query: Query, cursor: Cursor | None) -> None:
        """Takes also the position after which it begins."""
        super().__init__(connection, sql, query)
        self._step: Step = "id desc" if query.order == "id desc" else "id"
        first = LAST_ID if query.order == "id desc" else FIRST_ID
        self._after = cursor if isinstance(cursor, int) else first

    async def read(self, limit: int) -> Sequence[Any]:
        """See `Scan`."""
        rows = await self._fetch(self._step, limit, after=self._after)
        self.at_end = len(rows) < limit
        if rows:
            self._after = rows[-1][0]
        return rows

    @property
    def cursor(self) -> Cursor:
        """See `Scan`."""
        return self._after

    def cursor_after(self, item: Post | Comment) -> Cursor:
        """See `Scan`."""
        return item.id


class TimeScan(Scan):
    """Reads in the order of `create_time`, then id: the rest of the rows of one time, then other times."""

    def __init__(
        self,
        connection: Connection,
        sql: ListSql,
        query: Query,
        cursor: Cursor | None,
        time_column: int,
    ) -> None:
        """Takes also the position after which it begins, and the index of the column `create_time`."""
        super().__init__(connection, sql, query)
        self._time_column = time_column
        self._step: Step = "create_time desc" if query.order == "create_time desc" else "create_time"
        self._same: Step = (
            "same create_time desc" if query.order == "create_time desc" else "same create_time"
        )
        filter = query.filter
        since = BEFORE_ALL_TIMES if filter.create_time_from is None else filter.create_time_from
        until = AFTER_ALL_TIMES if filter.create_time_before is None else filter.create_time_before
        self._range = since, until
        self._is_descending = query.order == "create_time desc"
        self._time, self._after = (
            cursor
            if isinstance(cursor, tuple)
            else (until, FIRST_ID)
            if self._is_descending
            else (max(since - 1, BEFORE_ALL_TIMES), LAST_ID)
        )
        # A first page has no rows to continue after.
        self._continues = isinstance(cursor, tuple)

    async def read(self, limit: int) -> Sequence[Any]:
        """See `Scan`."""
        if self._continues:
            rows = await self._fetch(self._same, limit, time=self._time, after=self._after)
            self._continues = len(rows) == limit
        else:
            rows = await self._fetch(self._step, limit, time=self._time)
            self.at_end = len(rows) < limit or self._is_after_range(rows[-1][self._time_column] or 0)
            # The statement may have ended among rows of the same time.
            self._continues = not self.at_end
        if rows:
            self._time, self._after = rows[-1][self._time_column] or 0, rows[-1][0]
        return rows

    def _is_after_range(self, time: int) -> bool:
        """Whether no row from this time on matches the filter."""
        since, until = self._range
        return time < since if self._is_descending else time >= until

    @property
    def cursor(self) -> Cursor:
        """See `Scan`."""
        return self._time, self._after

    def cursor_after(self, item: Post | Comment) -> Cursor:
        """See `Scan`."""
        return item.create_time or 0, item.id


class ThreadScan(Scan):
    """Reads the comments of one post in thread order."""

    def __init__(
        self, connection: Connection, sql: ListSql, query: Query, cursor: Cursor | None, path_column: int
    ) -> None:
        """Takes also the position after which it begins, and the index of the column `path`."""
        super().__init__(connection, sql, query)
        self._path_column = path_column
        self._after = cursor if isinstance(cursor, str) else ""

    async def read(self, limit: int) -> Sequence[Any]:
        """See `Scan`."""
        rows = await self._fetch("thread", limit, key=self._after)
        self.at_end = len(rows) < limit
        if rows:
            self._after = self._key(rows[-1])
        return rows

    def _key(self, row: Sequence[Any]) -> str:
        return path_below(row[self._path_column], row[0])

    @property
    def cursor(self) -> Cursor:
        """See `Scan`."""
        return self._after

    def cursor_after(self, item: Post | Comment) -> Cursor:
        """See `Scan`."""
        assert isinstance(item, Comment)
        return item.thread_key


class NewestThreadScan(ThreadScan):
    """Reads the threads of one post from the newest to the oldest, each in thread order.

    The index has the keys in ascending order. Threads are read backwards together, and those that were read
    completely are returned in the right order. The last one may be incomplete. It can be large, so it is read
    again forwards.
    """

    def __init__(
        self, connection: Connection, sql: ListSql, query: Query, cursor: Cursor | None, path_column: int
    ) -> None:
        """Takes the same as `ThreadScan`. A position between two threads is a key with AFTER_DIGITS."""
        super().__init__(connection, sql, query, cursor, path_column)
        is_between = not self._after or self._after.endswith(AFTER_DIGITS)
        self._done = self._after.removesuffix(AFTER_DIGITS) or AFTER_DIGITS
        """All threads whose keys are not less than this one have been read."""
        self._last_keys: set[str] = set()
        """The keys of the last comments of threads."""
        self._root = "" if is_between else self._after[:LEVEL_DIGITS]
        """The thread that is read forwards; empty between two threads."""

    async def read(self, limit: int) -> Sequence[Any]:
        """See `Scan`."""
        if self._root:
            # The rows of other threads are not used. A statement with an end would take longer on PostgreSQL.
            found = await self._fetch("thread", limit, key=self._after)
            rows: Sequence[Any] = [row for row in found if self._root_of(row) == self._root]
            if rows:
                self._after = self._key(rows[-1])
            if len(rows) < limit:
                self._last_keys.add(self._after)
                self._done, self._root = self._root, ""
            self.has_more = False
            return rows
        rows = await self._fetch("thread desc", limit, key=self._done)
        threads = [(root, list(of_root)) for root, of_root in groupby(rows, key=self._root_of)]
        self.at_end = len(rows) < limit
        if not self.at_end:
            # More rows of the last thread may follow. It begins after all keys of the id before it.
            self._root, unfinished = threads.pop()
            self.has_more = any(row[1] is not None for row in unfinished)
            self._after = f"{int(self._root, 16) - 1:0{LEVEL_DIGITS}x}{AFTER_DIGITS}"
        if threads:
            self._done, _ = threads[-1]
            self._last_keys.update([self._key(thread[0]) for _, thread in threads])
        return [row for _, thread in threads for row in reversed(thread)]

    @property
    def cursor(self) -> Cursor:
        """See `Scan`."""
        is_inside = self._root and not self._after.endswith(AFTER_DIGITS)
        return self._after if is_inside else self._done + AFTER_DIGITS

    def cursor_after(self, item: Post | Comment) -> Cursor:
        """See `Scan`. A page after the end of a thread does not look for more comments of it."""
        assert isinstance(item, Comment)
        key = item.thread_key
        return key[:LEVEL_DIGITS] + AFTER_DIGITS if key in self._last_keys else key

    def _root_of(self, row: Sequence[Any]) -> str:
        return self._key(row)[:LEVEL_DIGITS]


def scan_of(
    connection: Connection, sql: ListSql, query: Query, cursor: Cursor | None, columns: Sequence[str]
) -> Scan:
    """Returns the scan of a query after a position; None is the beginning."""
    if query.order in ("id", "id desc"):
        return IdScan(connection, sql, query, cursor)
    if query.order == "thread":
        return ThreadScan(connection, sql, query, cursor, columns.index("path"))
    if query.order == "thread desc":
        return NewestThreadScan(connection, sql, query, cursor, columns.index("path"))
    return TimeScan(connection, sql, query, cursor, columns.index("create_time"))
