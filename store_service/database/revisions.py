"""Statements for the former versions of posts and comments. The primary key serves all of them."""

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Insert,
    Integer,
    Table,
    Text,
    delete,
    insert,
    literal_column,
    select,
)

from store_service.database.statements import Statement, before_in, one_of, parameter, rows
from store_service.database.tables import revision_table as revision
from store_service.model import ResourceKind

FIELDS = ("version", "body", "update_time", "author", "labels")
"""The fields of a version. The other fields of a resource do not change."""

_COLUMNS = ("kind", "resource_id", *FIELDS)


class RevisionSql:
    """The statements of one type of resource."""

    def __init__(self, table: Table, kind: ResourceKind) -> None:
        """Takes the table of the resources, and their kind."""
        self._kind: ColumnElement[int] = literal_column(str(int(kind)))
        self._table = table
        of_ids = (revision.c.kind == self._kind, one_of(revision.c.resource_id, "ids"))

        former = rows(
            "former",
            resource_id=BigInteger,
            version=BigInteger,
            body=Text,
            update_time=BigInteger,
            author=Text,
            labels=Text,
        )
        self.add: Statement = Statement(
            insert(revision).from_select(
                _COLUMNS, select(self._kind, former.c.resource_id, *[former.c[it] for it in FIELDS])
            )
        )
        """Adds `former` versions, which were never in the table of the resources."""
        newer = revision.alias("newer")
        first_removed = (
            select(newer.c.version)
            .where(newer.c.kind == revision.c.kind, newer.c.resource_id == revision.c.resource_id)
            .order_by(newer.c.version.desc())
            .limit(1)
            .offset(parameter("count", Integer))
            .correlate(revision)
            .scalar_subquery()
        )
        self.trim: Statement = Statement(delete(revision).where(*of_ids, revision.c.version <= first_removed))
        """Removes all but the last `count` former versions of these resources."""
        self.remove: Statement = Statement(delete(revision).where(*of_ids))
        """Removes all former versions of these resources."""
        groups = ((revision.c.kind, self._kind), (revision.c.resource_id, parameter("id", BigInteger)))
        self.page: Statement = Statement(
            select(*[revision.c[it] for it in FIELDS])
            .where(before_in(groups, revision.c.version, parameter("before", BigInteger)))
            .order_by(revision.c.kind.desc(), revision.c.resource_id.desc(), revision.c.version.desc())
            .limit(parameter("limit", Integer))
        )
        """The next `limit` versions of a resource before the version `before`, newest first, with FIELDS."""

    def insert_stored(self, condition: ColumnElement[bool]) -> Insert:
        """Returns an insert of the stored versions of the resources that meet a condition."""
        table = self._table
        stored = select(self._kind, table.c.id, *[table.c[it] for it in FIELDS]).where(condition)
        return insert(revision).from_select(_COLUMNS, stored)
