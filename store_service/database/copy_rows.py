"""Reads rows of any table, for a copy to another database."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Table, func, select, tuple_

from store_service.errors import OperatorError

Row = tuple[Any, ...]
Key = tuple[Any, ...]

PAGE_ROWS = 5000
"""Maximum number of rows of a page."""

PAGE_BYTES = 4 * 1024 * 1024
"""Size of the texts at which a page ends. Its rows are in memory twice, while they are compared."""

KEYS = 500
"""Number of keys in one statement."""

_FETCHED_ROWS = 500
"""Number of rows that the driver reads at once."""


class NulInText(OperatorError):
    """A row of a legacy database has a character that PostgreSQL cannot store."""


class CopiedTable:
    """A table, and what a copy needs to know about it."""

    def __init__(self, table: Table) -> None:
        """Takes the table."""
        self.table = table
        self.name: str = table.name
        self.columns: list[str] = [it.name for it in table.columns]
        self._key_columns = list(table.primary_key)
        indexes = [self.columns.index(it.name) for it in self._key_columns]
        only = indexes[0]
        self.key: Callable[[Row], Key] = (
            itemgetter(*indexes) if len(indexes) > 1 else lambda row: (row[only],)
        )
        """Returns the key of a row."""

    def page(self, connection: Connection, after: Key | None) -> list[Row]:
        """Returns the next rows after a key in the order of the primary key; all of them if they are few."""
        rows = select(self.table).order_by(*self._key_columns).limit(PAGE_ROWS)
        if after is not None:
            rows = rows.where(tuple_(*self._key_columns) > tuple_(*after))
        page: list[Row] = []
        size = 0
        with connection.execute(rows, execution_options={"yield_per": _FETCHED_ROWS}) as result:
            for row in result:
                page.append(tuple(row))
                size += sum([len(it) for it in row if isinstance(it, str)])
                if size > PAGE_BYTES:
                    break
        return page

    def rows(self, connection: Connection, keys: Iterable[Key]) -> dict[Key, Row]:
        """Returns the rows with these keys that exist, by key."""
        found = {}
        for some in chunks(keys, KEYS):
            for row in connection.execute(select(self.table).where(self._is_one_of(some))):
                found[self.key(row)] = tuple(row)
        return found

    def delete(self, connection: Connection, keys: Iterable[Key]) -> None:
        """Deletes the rows with these keys."""
        for some in chunks(keys, KEYS):
            connection.execute(self.table.delete().where(self._is_one_of(some)))

    def insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Inserts rows."""
        driver: Any = connection.connection.driver_connection
        names = ", ".join(self.columns)
        if connection.dialect.name == "sqlite":
            marks = ", ".join("?" for _ in self.columns)
            driver.executemany(f"INSERT INTO {self.name} ({names}) VALUES ({marks})", rows)  # noqa: S608
            return
        try:
            with driver.cursor() as cursor, cursor.copy(f"COPY {self.name} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        except Exception:
            for row in rows:
                if any(isinstance(it, str) and "\0" in it for it in row):
                    key = " ".join(map(str, self.key(row)))
                    raise NulInText(
                        f"{self.name} {key} has NUL in a text, which PostgreSQL cannot store"
                    ) from None
            raise

    def count(self, connection: Connection) -> int:
        """Returns the number of rows."""
        return int(connection.scalar(select(func.count()).select_from(self.table)) or 0)

    def _is_one_of(self, keys: Sequence[Key]) -> Any:
        if len(self._key_columns) == 1:
            return self._key_columns[0].in_([key for (key,) in keys])
        return tuple_(*self._key_columns).in_(keys)


def chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields the values in lists of at most `size`."""
    iterator = iter(values)
    while some := list(islice(iterator, size)):
        yield some
