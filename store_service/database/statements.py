"""Statements that are written once with SQLAlchemy Core and compiled once per dialect.

A whole batch travels as ONE parameter, a JSON array, which `one_of(column, "ids")` and `rows("drafts", ...)`
read. So a statement has the same text, and is prepared once, however large the batch is.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    column,
    extract,
    func,
    literal,
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
    "postgresql": asyncpg.dialect(),  # type: ignore[no-untyped-call]  # untyped there
}


class Statement:
    """One statement, ready to run."""

    def __init__(self, expression: ClauseElement, *, on_postgresql: ClauseElement | None = None) -> None:
        """Takes a Core expression whose bind parameters are given by name when it runs, and another one
        where PostgreSQL needs it."""
        self._expressions = {
            "sqlite": expression,
            "postgresql": expression if on_postgresql is None else on_postgresql,
        }
        self._compiled: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {}

    def on(self, dialect: str, values: dict[str, Any]) -> tuple[str, list[Any]]:
        """The text for a dialect ("sqlite" or "postgresql"), and its parameters in their order.

        Raises:
            KeyError: A parameter is not given.
        """
        if dialect not in self._compiled:
            self._compiled[dialect] = self._compile(dialect)
        text, names, own = self._compiled[dialect]
        return text, [own[name] if name in own else values[name] for name in names]

    def _compile(self, dialect: str) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        compiled = self._expressions[dialect].compile(dialect=_DIALECTS[dialect])
        assert isinstance(compiled, SQLCompiler)
        # SQLAlchemy adds parameters of its own, such as OFFSET 0; their values are part of the statement.
        own = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        return str(compiled), tuple(compiled.positiontup or ()), own


def parameter(name: str, type_: TypeEngine[Any] | type[TypeEngine[Any]]) -> Any:
    """A value that is given when the statement runs."""
    return bindparam(name, type_=type_, required=True)


MAX_CLOCK_SKEW_MICROSECONDS = 60_000_000
"""How far a row may be stamped before the time of the database."""


def database_time() -> ColumnElement[int]:
    """The time of PostgreSQL, in microseconds; one for all processes that share it."""
    return cast(extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)


def stamp(now: ColumnElement[int]) -> ColumnElement[int]:
    """The time of a process as PostgreSQL stores it: not much before its own, so that the rows of a process
    whose clock is behind do not look old."""
    earliest = select(database_time() - MAX_CLOCK_SKEW_MICROSECONDS).scalar_subquery()
    return func.greatest(now, earliest, type_=BigInteger)


def one_of(
    searched: ColumnElement[Any],
    name: str,
    *,
    type_: type[TypeEngine[Any]] = BigInteger,
    except_for: Select[Any] | None = None,
) -> ColumnElement[bool]:
    """Whether a column is one of the elements of the JSON array that is passed as parameter `name`.

    Elements that are in the query `except_for` do not count; they are left out before the column is searched.
    """
    elements = _TextElements(parameter(name, Text)).table_valued(column("value", Text))
    value = cast(elements.c.value, type_)
    wanted = select(value) if except_for is None else select(value).where(value.not_in(except_for))
    return _OneOf(searched, wanted.scalar_subquery())


def beyond(
    index: tuple[ColumnElement[Any], ColumnElement[Any]],
    group: ColumnElement[Any],
    id: ColumnElement[Any] | int,
) -> ColumnElement[bool]:
    """The rows of one group beyond an id, found by an index on (group, id) and to be ordered by both columns.

    For `group = ...`, ordered by id, the planner of PostgreSQL may take another index on id, along which it
    reads the rows of all other groups.
    """
    id = id if isinstance(id, ColumnElement) else literal(id, BigInteger)
    return _Beyond(*index, group, id)


def rows(name: str, **columns: type[TypeEngine[Any]]) -> Subquery:
    """The rows of the JSON array of arrays that is passed as parameter `name`.

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
    """A batch as the parameter of `one_of` or `rows`, and an answer as it is kept."""
    return _encode(batch)


# Made once: with such settings, json.dumps would make one each time.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


class _OneOf(FunctionElement[Any]):
    """A column, and a subquery that it is looked for in.

    It has no type: a Boolean would be compared with 1 on SQLite, which then would not use the index.
    """

    name = "one_of"
    inherit_cache = True


@compiles(_OneOf, "sqlite")
def _one_of_on_sqlite(element: _OneOf, compiler: SQLCompiler, **kw: Any) -> str:
    number, numbers = (compiler.process(it, **kw) for it in element.clauses)
    return f"{number} IN {numbers}"


@compiles(_OneOf, "postgresql")
def _one_of_on_postgresql(element: _OneOf, compiler: SQLCompiler, **kw: Any) -> str:
    # An array has the planner use the index; it takes the rows of a JSON function for too many and reads all.
    number, numbers = (compiler.process(it, **kw) for it in element.clauses)
    return f"{number} = ANY (ARRAY{numbers})"


class _Beyond(FunctionElement[Any]):
    """Two columns of an index, a group, and an id; without a type for the same reason."""

    name = "beyond"
    inherit_cache = True


@compiles(_Beyond, "sqlite")
def _beyond_on_sqlite(element: _Beyond, compiler: SQLCompiler, **kw: Any) -> str:
    # SQLite would compare pairs by their first element when it searches the index.
    group, id, wanted, after = (compiler.process(it, **kw) for it in element.clauses)
    return f"({group} = {wanted} AND {id} > {after})"


@compiles(_Beyond, "postgresql")
def _beyond_on_postgresql(element: _Beyond, compiler: SQLCompiler, **kw: Any) -> str:
    group, id, wanted, after = (compiler.process(it, **kw) for it in element.clauses)
    return f"(({group}, {id}) > ({wanted}, {after}) AND {group} <= {wanted})"


class _Elements(FunctionElement[Any]):
    """The elements of a JSON array, as a table with the column `value`."""

    name = "json_elements"
    inherit_cache = True


class _TextElements(_Elements):
    """The same, with the elements as text."""

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
