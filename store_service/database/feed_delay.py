"""Statements that find what delays the change feed on PostgreSQL."""

from sqlalchemy import false, literal, select, text

from store_service.database.changes import horizon
from store_service.database.statements import Statement, database_time
from store_service.database.tables import change_table as change

_NO_ROW = select(literal(0)).where(false())

FIRST_DELAYED = Statement(
    _NO_ROW,
    on_postgresql=select(database_time(), change.c.commit_time)
    .where(change.c.xid >= horizon)
    .order_by(change.c.xid, change.c.seq)
    .limit(1),
)
"""The time of the database, and the time of the first committed change that the feed does not send yet. No
row if there is none. Served by changes_xid_seq_idx."""

OLDEST_TRANSACTION_FIELDS = ("transaction", "database", "user", "application", "state", "began")

OLDEST_TRANSACTION = Statement(
    _NO_ROW,
    on_postgresql=text(
        """
SELECT holder, coalesce(database, ''), coalesce(username, ''), coalesce(application, ''), coalesce(state, ''),
  coalesce(to_char(began AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), '')
FROM (
  SELECT backend_xid AS xid, 'session ' || pid AS holder, datname::text AS database,
    usename::text AS username, application_name AS application, state, xact_start AS began
  FROM pg_stat_activity
  WHERE backend_xid IS NOT NULL
  UNION ALL
  SELECT transaction, 'prepared transaction ' || gid, database::text, owner::text, NULL, 'prepared', prepared
  FROM pg_prepared_xacts
) AS transactions
ORDER BY age(xid) DESC
LIMIT 1
"""
    ),
)
"""OLDEST_TRANSACTION_FIELDS of the oldest transaction with a number. Without the role pg_read_all_stats, what
other users run is empty. No row on a standby, which does not know the sessions of its primary."""
