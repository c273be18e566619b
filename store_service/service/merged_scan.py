"""Reads the rows of a query from the table of resources and from the table of deleted resources together."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from store_service.database.connection import Connection
from store_service.database.deleted_sql import DeletedSql
from store_service.model import LEVEL_DIGITS, Comment, Post, Query, path_below
from store_service.service.scans import Cursor, Scan


class MergedScan(Scan):
    """Merges two scans of one query. Both begin after the same position."""

    def __init__(
        self,
        connection: Connection,
        query: Query,
        scans: Sequence[Scan],
        sql: DeletedSql[Post] | DeletedSql[Comment],
    ) -> None:
        """Takes the connection, the query, its scans, and the columns of the rows that are returned. Rows
        with fewer columns lack the last ones."""
        super().__init__(connection, sql.list, query)
        self._order = query.order
        self._scans = scans
        self._buffers: list[deque[Sequence[Any]]] = [deque() for _ in scans]
        self._names = sql.names
        self._position: Callable[[Sequence[Any]], Any] = self._positions()
        self._cursor: Cursor = 0

    async def read(self, limit: int) -> Sequence[Any]:
        """See `Scan`."""
        rows: list[Sequence[Any]] = []
        while len(rows) < limit:
            for scan, buffer in zip(self._scans, self._buffers, strict=True):
                while not buffer and not scan.at_end:
                    buffer.extend(await scan.read(limit))
            filled = [buffer for buffer in self._buffers if buffer]
            if not filled:
                self.at_end = True
                break
            row = min(filled, key=lambda it: self._sort_key(it[0])).popleft()
            rows.append((*row, *[None] * (len(self._names) - len(row))))
        if rows:
            self._cursor = self._position(rows[-1])
        return rows

    @property
    def cursor(self) -> Cursor:
        """See `Scan`."""
        return self._cursor

    def cursor_after(self, item: Post | Comment) -> Cursor:
        """See `Scan`."""
        if self._order in ("id", "id desc"):
            return item.id
        if self._order in ("create_time", "create_time desc"):
            return item.create_time or 0, item.id
        assert isinstance(item, Comment)
        return item.thread_key

    def _positions(self) -> Callable[[Sequence[Any]], Any]:
        """Returns the function that returns the position of a row."""
        if self._order in ("id", "id desc"):
            return lambda row: row[0]
        if self._order in ("create_time", "create_time desc"):
            time = self._names.index("create_time")
            return lambda row: (row[time] or 0, row[0])
        path = self._names.index("path")
        return lambda row: path_below(row[path], row[0])

    def _sort_key(self, row: Sequence[Any]) -> Any:
        """Returns a value that is smaller for rows that come first."""
        position = self._position(row)
        if self._order == "id desc":
            return -position
        if self._order == "create_time desc":
            return -position[0], -position[1]
        if self._order == "thread desc":
            return -int(position[:LEVEL_DIGITS], 16), position
        return position
