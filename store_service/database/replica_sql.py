"""Statements about primaries and standbys, only for PostgreSQL."""

from typing import Any

from sqlalchemy import ColumnElement, literal_column, select

from store_service.database.changes import feed_with, time_at
from store_service.database.statements import Statement

_is_standby: ColumnElement[Any] = literal_column("pg_is_in_recovery()")

_started: ColumnElement[Any] = literal_column(
    "(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint"
)

_cluster: ColumnElement[Any] = literal_column("(SELECT system_identifier FROM pg_control_system())")

# A standby has no function for its timeline, but it has that of its last restart point.
_timeline: ColumnElement[Any] = literal_column(
    "CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())"
    " ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer END"
)

# The server of DATABASE_URL is a standby too, if the service is read-only and reads from one.
_log_end: ColumnElement[Any] = literal_column(
    "coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
    " ELSE pg_current_wal_flush_lsn() END, '0/0'), 0)::bigint"
)

_revision: ColumnElement[Any] = literal_column("(SELECT max(version_num) FROM alembic_version)")

_newest_xid: ColumnElement[Any] = literal_column("coalesce((SELECT max(xid) FROM changes), 0)")

_ended_xid: ColumnElement[Any] = literal_column(
    "coalesce((SELECT max(xid) FROM changes"
    " WHERE xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint), (SELECT trimmed_xid FROM feed))"
)

TIMELINE = Statement(select(_timeline))
"""The timeline of the server. Each failover begins another one with a greater number."""

NEWEST_XID = Statement(select(_newest_xid))
"""The number of the transaction of the newest committed change; 0 if there is none. Served by
changes_xid_seq_idx."""

PRIMARY = feed_with(time_at, _timeline, _cluster, _log_end, _newest_xid)
"""Same as FEED_AT, with the timeline, the system identifier, the end of the log that is on disk, in bytes,
and NEWEST_XID."""

REPLICA = feed_with(_is_standby, _started, _cluster, _log_end, _revision)
"""Same as FEED, with whether the server is a standby, when it was started, the system identifier, the end of
the replayed log in bytes, and the revision of the schema."""

SHOWN = Statement(select(_started, _is_standby, _newest_xid, _ended_xid))
"""When the server was started, whether it is a standby, NEWEST_XID, and the number of the last transaction
with changes up to which all have ended. Served by changes_xid_seq_idx."""
