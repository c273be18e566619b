"""Statements of SQLAlchemy Core, each compiled once per dialect.

A batch is one parameter, a JSON array, which `one_of(column, "ids")` and `rows("drafts", ...)` read. So a
statement has the same text for every batch size, and is prepared once.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    column,
    extract,
    func,
    select,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement, Subquery
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

_DIALECTS: dict[str, Dialect] = {
    "sqlite": sqlite.dialect(paramstyle="qmark"),
    "postgresql": asyncpg.dialect(),  # type: ignore[no-untyped-call]  # SQLAlchemy has no types here
}


class Statement:
    """A statement for both dialects."""

    def __init__(self, expression: ClauseElement, *, on_postgresql: ClauseElement | None = None) -> None:
        """Takes a Core expression with named bind parameters, and a different one for PostgreSQL if
        necessary."""
        self._expressions = {
            "sqlite": expression,
            "postgresql": expression if on_postgresql is None else on_postgresql,
        }
        self._compiled: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {}

    def on(self, dialect: str, values: dict[str, Any]) -> tuple[str, list[Any]]:
        """Returns the text for a dialect ("sqlite" or "postgresql"), and the parameters in their order.

        Raises:
            KeyError: A parameter is missing in `values`.
        """
        if dialect not in self._compiled:
            self._compiled[dialect] = self._compile(dialect)
        text, names, own = self._compiled[dialect]
        return text, [own[name] if name in own else values[name] for name in names]

    def _compile(self, dialect: str) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        compiled = self._expressions[dialect].compile(dialect=_DIALECTS[dialect])
        assert isinstance(compiled, SQLCompiler)
        # SQLAlchemy adds parameters such as OFFSET 0, whose values are part of the statement.
        own = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        return str(compiled), tuple(compiled.positiontup or ()), own


def parameter(name: str, type_: TypeEngine[Any] | type[TypeEngine[Any]]) -> Any:
    """Returns a bind parameter whose value is passed when the statement runs."""
    return bindparam(name, type_=type_, required=True)


MAX_CLOCK_SKEW_MICROSECONDS = 60_000_000
"""Maximum difference by which the time of a row may be before the time of the database."""


def database_time() -> ColumnElement[int]:
    """Returns the time of the PostgreSQL server in microseconds, which is the same for all processes."""
    return cast(extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)


def stamp(now: ColumnElement[int]) -> ColumnElement[int]:
    """Returns the time of a process as stored by PostgreSQL: at most MAX_CLOCK_SKEW_MICROSECONDS before the
    time of the server, so that rows of a process with a slow clock do not appear expired."""
    earliest = select(database_time() - MAX_CLOCK_SKEW_MICROSECONDS).scalar_subquery()
    return func.greatest(now, earliest, type_=BigInteger)


def one_of(
    searched: ColumnElement[Any],
    name: str,
    *,
    type_: type[TypeEngine[Any]] = BigInteger,
    except_for: Select[Any] | None = None,
) -> ColumnElement[bool]:
    """Returns the condition that a column equals an element of the JSON array in the parameter `name`.

    Elements that the query `except_for` returns are removed before the column is searched.
    """
    elements = _TextElements(parameter(name, Text)).table_valued(column("value", Text))
    value = cast(elements.c.value, type_)
    elements_to_find = select(value) if except_for is None else select(value).where(value.not_in(except_for))
    return _OneOf(searched, elements_to_find.scalar_subquery())


def one_of_query(searched: ColumnElement[Any], query: Select[Any]) -> ColumnElement[bool]:
    """Returns the condition that a column equals a value that a query returns, which runs once."""
    return _OneOf(searched, query.scalar_subquery())


Groups = Sequence[tuple[ColumnElement[Any], ColumnElement[Any]]]
"""The first columns of an index, each with its value."""


def after_in(groups: Groups, column: ColumnElement[Any], value: ColumnElement[Any]) -> ColumnElement[bool]:
    """Returns the condition for rows of one group with a column greater than a value.

    It is served by an index on the columns of the group and the column. The rows must be ordered by all of
    them. For `group = ...` ordered by the column alone, the planner of PostgreSQL may use another index on
    the column and read the rows of all other groups.
    """
    return _beyond(groups, column, value, (">", "<="))


def before_in(groups: Groups, column: ColumnElement[Any], value: ColumnElement[Any]) -> ColumnElement[bool]:
    """Same as `after_in` for rows with a column less than a value, in descending order."""
    return _beyond(groups, column, value, ("<", ">="))


def _beyond(
    groups: Groups,
    column: ColumnElement[Any],
    value: ColumnElement[Any],
    operators: tuple[str, str],
) -> ColumnElement[bool]:
    if not groups:
        return column > value if operators[0] == ">" else column < value
    columns, values = zip(*groups, strict=True)
    element = _Beyond(*columns, *values, column, value)
    element.operators = operators
    return element


AFTER_DIGITS = "g"
"""Sorts after every hexadecimal digit: no thread key below a comment is greater than its key with this."""


def thread_key(table: FromClause) -> ColumnElement[str]:
    """Returns the position of a comment in thread order, as in the index comments_thread_idx."""
    return _ThreadKey(table.c.path, table.c.id)


def rows(name: str, **columns: type[TypeEngine[Any]]) -> Subquery:
    """Returns the rows of the JSON array of arrays in the parameter `name`.

    The first element of each row is its position, for ORDER BY: `rows("drafts", body=Text)` reads
    `[[0, "a"], [1, "b"]]`.
    """
    elements = _Elements(parameter(name, Text)).table_valued(column("value", Text))
    types: dict[str, type[TypeEngine[Any]]] = {"position": Integer, **columns}
    items = [
        cast(_Item(elements.c.value, index), type_).label(key)
        for index, (key, type_) in enumerate(types.items())
    ]
    return select(*items).subquery(name)


def as_json(batch: Sequence[Any] | Mapping[str, Any]) -> str:
    """Encodes a batch as a parameter of `one_of` or `rows`. Stored responses have the same encoding."""
    return _encode(batch)


# Created once: with these options, json.dumps would create an encoder for each call.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


class _OneOf(FunctionElement[Any]):
    """A column, and a subquery that returns the values to find.

    It has no type. SQLAlchemy would compare a Boolean with 1, and SQLite would then not use the index.
    """

    name = "one_of"
    inherit_cache = True


@compiles(_OneOf, "sqlite")
def _one_of_on_sqlite(element: _OneOf, compiler: SQLCompiler, **kw: Any) -> str:
    number, numbers = (compiler.process(it, **kw) for it in element.clauses)
    return f"{number} IN {numbers}"


@compiles(_OneOf, "postgresql")
def _one_of_on_postgresql(element: _OneOf, compiler: SQLCompiler, **kw: Any) -> str:
    # With an array the planner uses the index. It overestimates the rows of a JSON function and reads the
    # table.
    number, numbers = (compiler.process(it, **kw) for it in element.clauses)
    return f"{number} = ANY (ARRAY{numbers})"


class _Beyond(FunctionElement[Any]):
    """The columns and the values of the groups, a column, and its value. It has no type either."""

    name = "beyond"
    inherit_cache = False
    operators: tuple[str, str]


@compiles(_Beyond, "sqlite")
def _beyond_on_sqlite(element: _Beyond, compiler: SQLCompiler, **kw: Any) -> str:
    *groups, column, value = (compiler.process(it, **kw) for it in element.clauses)
    half = len(groups) // 2
    equal = [f"{group} = {it}" for group, it in zip(groups[:half], groups[half:], strict=True)]
    return f"({' AND '.join(equal)} AND {column} {element.operators[0]} {value})"


@compiles(_Beyond, "postgresql")
def _beyond_on_postgresql(element: _Beyond, compiler: SQLCompiler, **kw: Any) -> str:
    *groups, column, value = (compiler.process(it, **kw) for it in element.clauses)
    half = len(groups) // 2
    *equal, last = zip(groups[:half], groups[half:], strict=True)
    operator, bound = element.operators
    conditions = [
        f"({last[0]}, {column}) {operator} ({last[1]}, {value})",
        f"{last[0]} {bound} {last[1]}",
    ]
    # A scan of an index ends at a bound of a column only if the columns before it are equal to values. A
    # comparison of rows bounds only its first column. The first equality keeps the column in the order, other
    # than "=".
    for number, (group, it) in enumerate(equal):
        conditions.append(f"{group} = {it}" if number else f"{group} = ANY (ARRAY[{it}])")
    return f"({' AND '.join(conditions)})"


class _ThreadKey(FunctionElement[str]):
    """The path and the id of a comment. The text of the expression is that of the index."""

    name = "thread_key"
    inherit_cache = True
    type = Text()


@compiles(_ThreadKey, "sqlite")
def _thread_key_on_sqlite(element: _ThreadKey, compiler: SQLCompiler, **kw: Any) -> str:
    path, id = (compiler.process(it, **kw) for it in element.clauses)
    return f"({path} || printf('%016x', {id}))"


@compiles(_ThreadKey, "postgresql")
def _thread_key_on_postgresql(element: _ThreadKey, compiler: SQLCompiler, **kw: Any) -> str:
    path, id = (compiler.process(it, **kw) for it in element.clauses)
    return f"(({path} || lpad(to_hex({id}), 16, '0')) COLLATE \"C\")"


class _Elements(FunctionElement[Any]):
    """The elements of a JSON array, as a table with the column `value`."""

    name = "json_elements"
    inherit_cache = True


class _TextElements(_Elements):
    """Same as _Elements, with the elements as text."""

    inherit_cache = True


@compiles(_Elements, "sqlite")
def _elements_on_sqlite(element: _Elements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(_Elements, "postgresql")
def _elements_on_postgresql(element: _Elements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_array_elements(CAST({compiler.process(element.clauses, **kw)} AS JSON))"


@compiles(_TextElements, "postgresql")
def _text_elements_on_postgresql(element: _Elements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **kw)} AS JSON))"


class _Item(FunctionElement[Any]):
    """One element of a JSON array, by its index."""

    name = "json_item"
    inherit_cache = False

    def __init__(self, array: ClauseElement, index: int) -> None:
        super().__init__(array)
        self.index = index


@compiles(_Item, "sqlite")
def _item_on_sqlite(element: _Item, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_extract({compiler.process(element.clauses, **kw)}, '$[{element.index}]')"


@compiles(_Item, "postgresql")
def _item_on_postgresql(element: _Item, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.clauses, **kw)} ->> {element.index})"
