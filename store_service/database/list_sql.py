"""The statements that list and count the resources that match a filter.

A query reads the rows of one path in one order: the rows of an index, after a position. A row that does not
match the filter has no body. So a page reads a limited number of rows for any filter, and the index of the
path serves every statement.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Subquery,
    Table,
    Text,
    and_,
    case,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
)

from store_service.database.deletions import MARKED, is_in_visible_thread, is_visible
from store_service.database.statements import (
    Groups,
    Statement,
    after_in,
    before_in,
    one_of,
    one_of_query,
    parameter,
    rows,
    thread_key,
)
from store_service.database.tables import label_table as label
from store_service.model import ResourceKind

Path: TypeAlias = Literal["all", "post", "author", "label", "replies"]
"""The rows that a query reads: all, or those of one post, author, label, or comment that is replied to."""

Step: TypeAlias = Literal[
    "id",
    "id desc",
    "create_time",
    "create_time desc",
    "same create_time",
    "same create_time desc",
    "thread",
    "thread desc",
]
"""The order of the rows, and where they begin: after the id `after`, after the time `time`, among the rows of
the time `time` after the id `after`, or after the thread key `key`.

No step has an end, because PostgreSQL would read to the end of the path for it.
"""

_IDS: Sequence[Step] = ("id", "id desc")
_TIMES: Sequence[Step] = (
    "create_time",
    "create_time desc",
    "same create_time",
    "same create_time desc",
)
STEPS: Mapping[Path, Sequence[Step]] = {
    "all": (*_IDS, *_TIMES),
    "post": (*_IDS, *_TIMES, "thread", "thread desc"),
    "author": _IDS,
    "label": _IDS,
    "replies": _IDS,
}
"""The steps that an index serves, for each path."""

_Order: TypeAlias = Sequence[ColumnElement[Any]]

_after, _limit = parameter("after", BigInteger), parameter("limit", Integer)
_time, _key = parameter("time", BigInteger), parameter("key", Text)
_post_id = parameter("post_id", BigInteger)
_author = parameter("author", Text)
_time_from, _time_before = parameter("time_from", BigInteger), parameter("time_before", BigInteger)
_reply_to_id = parameter("reply_to_id", BigInteger)
_show_deleted = parameter("show_deleted", Integer)


class ListSql:
    """The statements of one resource. They take the parameters of its path and step, those of the filter
    (`author`, `wanted`, `time_from`, `time_before`, `reply_to_id`, `show_deleted`; see `filter_values`), and
    `limit`."""

    def __init__(
        self,
        table: Table,
        kind: ResourceKind,
        *,
        post_id: ColumnElement[int],
        columns: Sequence[ColumnElement[Any]] | None = None,
        label_kind: int | None = None,
        is_deleted: bool = False,
    ) -> None:
        """Takes the table, its kind, and the column with the id of the post.

        Args:
            table: The table.
            kind: Its kind.
            post_id: The column with the id of the post.
            columns: The columns of the rows; None: all.
            label_kind: The value of `kind` in the table of labels, if it is not `kind`.
            is_deleted: Whether it is the table of deleted resources.
        """
        self._table: Table = table
        self._kind: ResourceKind = kind
        self._all_columns: Sequence[ColumnElement[Any]] = columns or list(table.columns)
        self._label_kind: ColumnElement[int] = literal_column(str(label_kind or int(kind)))
        self._is_deleted: bool = is_deleted
        self._post_id: ColumnElement[int] = post_id
        self._time: ColumnElement[int] = func.coalesce(table.c.create_time, literal_column("0"))
        self._groups: dict[Path, Groups] = {
            "all": (),
            "author": ((table.c.author, _author),),
            "label": (
                (label.c.kind, self._label_kind),
                (label.c.key, parameter("label_key", Text)),
                (label.c.value, parameter("label_value", Text)),
            ),
        }
        if kind is ResourceKind.COMMENT:
            self._groups["post"] = ((table.c.post_id, _post_id),)
            self._groups["replies"] = ((table.c.reply_to_id, _reply_to_id),)
        self._selects: dict[Path, Select[Any]] = {}
        self._pages: dict[tuple[Path, Step], Statement] = {}
        self._counts: dict[Path, Statement] = {}
        self._by_ids: Statement | None = None

    @property
    def by_ids(self) -> Statement:
        """The statement that reads the rows with these `ids`, in any order, with all columns. Rows that do
        not match, and tombstones, have no body. Served by the primary key."""
        if self._by_ids is None:
            id, body, *rest = self._all_columns
            content = case((self._is_counted("all"), body), else_=null()).label("body")
            self._by_ids = Statement(select(id, content, *rest).where(one_of(self._table.c.id, "ids")))
        return self._by_ids

    @property
    def steps(self) -> Mapping[Path, Sequence[Step]]:
        """The paths, and the steps of each."""
        return {path: STEPS[path] for path in self._groups}

    def page(self, path: Path, step: Step) -> Statement:
        """Returns the statement that reads the next `limit` rows of a path, with all columns. Rows that do
        not match have no body. A statement is built when it is first used, which saves memory."""
        if (path, step) not in self._pages:
            self._pages[path, step] = self._page(path, step)
        return self._pages[path, step]

    def count(self, path: Path) -> Statement:
        """Returns the statement that counts the next `limit` rows of a path after the id `after`: the number
        of rows that match, the number of all rows, and the last id."""
        if path not in self._counts:
            id, matches = self._table.c.id, self._is_counted(path).label("matches")
            if path == "label":
                keys = select(id, matches).where(self._has_label("id"))
            else:
                condition, order, _ = self._step(path, "id")
                keys = select(id, matches).where(*self._index_condition(path), condition).order_by(*order)
                keys = keys.limit(_limit)
            self._counts[path] = _count(keys.subquery("keys"))
        return self._counts[path]

    def _page(self, path: Path, step: Step) -> Statement:
        if path not in self._selects:
            self._selects[path] = self._select(path)
        rows = self._selects[path]
        if path == "label":
            id = self._table.c.id
            return Statement(
                rows.where(self._has_label(step)).order_by(id.desc() if step == "id desc" else id)
            )
        condition, order, order_on_sqlite = self._step(path, step)
        page = rows.where(*self._index_condition(path), condition).limit(_limit)
        return Statement(page.order_by(*order_on_sqlite), on_postgresql=page.order_by(*order))

    def _has_label(self, step: Step) -> ColumnElement[bool]:
        """Returns the condition for the rows of the path "label" and a step."""
        condition, order, _ = self._step("label", step)
        return one_of_query(
            self._table.c.id, select(label.c.resource_id).where(condition).order_by(*order).limit(_limit)
        )

    def _select(self, path: Path) -> Select[Any]:
        id, body, *rest = self._all_columns
        return select(id, case((self._matches(path), body), else_=null()).label("body"), *rest)

    def _index_condition(self, path: Path) -> Sequence[ColumnElement[bool]]:
        """Returns conditions without which no engine uses the partial index of a path, and the visibility of
        the one post, which is checked once."""
        if path == "author":
            return (self._table.c.author != literal_column("''"),)
        if path == "replies":
            return (self._table.c.reply_to_id > literal_column("0"),)
        return (is_visible(_post_id),) if path == "post" and not self._is_deleted else ()

    def _matches(self, path: Path) -> ColumnElement[bool]:
        """Returns the condition of the filter. `ResourceFilter.matches` is the same in Python."""
        table = self._table
        wanted = rows("wanted", key=Text, value=Text)
        # A scalar subquery, because PostgreSQL would read all labels for an EXISTS in another EXISTS.
        has_label = (
            select(literal_column("1"))
            .where(
                label.c.kind == self._label_kind,
                label.c.key == wanted.c.key,
                label.c.value == wanted.c.value,
                label.c.resource_id == table.c.id,
            )
            .correlate(wanted, table)
            .scalar_subquery()
        )
        lacks_one = exists(
            select(literal_column("1")).select_from(wanted).where(has_label.is_(None)).correlate(table)
        )
        conditions = [
            or_(_author == literal_column("''"), table.c.author == _author),
            or_(
                parameter("wanted", Text) == literal_column("'[]'"),
                ~lacks_one,
            ),
            or_(_time_from.is_(None), table.c.create_time >= _time_from),
            or_(_time_before.is_(None), table.c.create_time < _time_before),
        ]
        if self._is_deleted:
            conditions.append(table.c.purge_time.is_not(None))
        else:
            if path != "post":
                conditions.append(self._post_id.not_in(MARKED))
            if self._kind is ResourceKind.COMMENT:
                # With deleted comments, tombstones that can be restored are read from their table.
                conditions.append(or_(_show_deleted == literal_column("0"), table.c.purge_time.is_(None)))
                conditions.append(is_in_visible_thread(table))
        if self._kind is ResourceKind.COMMENT:
            conditions.append(or_(_reply_to_id.is_(None), table.c.reply_to_id == _reply_to_id))
            if path != "post":
                conditions.append(or_(_post_id == literal_column("0"), table.c.post_id == _post_id))
        return and_(*conditions)

    def _is_counted(self, path: Path) -> ColumnElement[bool]:
        """Returns the condition that a row is counted: it matches, and is not a tombstone that is not shown
        as a deleted comment."""
        matches = self._matches(path)
        if self._is_deleted or self._kind is ResourceKind.POST:
            return matches
        return and_(matches, or_(_show_deleted == literal_column("1"), self._table.c.delete_time.is_(None)))

    def _step(self, path: Path, step: Step) -> tuple[ColumnElement[bool], _Order, _Order]:
        """Returns the condition of a step, and its order on PostgreSQL and on SQLite."""
        groups, table = self._groups[path], self._table
        id = label.c.resource_id if path == "label" else table.c.id
        name = step.removesuffix(" desc")
        key: ColumnElement[Any]
        if name == "id":
            key, value = id, _after
        elif name == "thread":
            key, value = thread_key(table), _key
        else:
            key, value = self._time, _time
        order = [*[column for column, _ in groups], key]
        order_on_sqlite = order
        if name == "create_time":
            order.append(id)
        elif name == "same create_time":
            groups, key, value = (*groups, (key, value)), id, _after
            # SQLite would sort by the time, although all rows have the same.
            order, order_on_sqlite = [*order, id], [id]
        if step == name:
            return after_in(groups, key, value), order, order_on_sqlite
        desc, desc_on_sqlite = [it.desc() for it in order], [it.desc() for it in order_on_sqlite]
        return before_in(groups, key, value), desc, desc_on_sqlite


def _count(keys: Subquery) -> Statement:
    matching = func.coalesce(func.sum(case((keys.c.matches, 1), else_=0)), 0)
    return Statement(select(matching, func.count(), func.max(keys.c.id)))
