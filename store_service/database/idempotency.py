"""Statements for idempotency keys and their stored responses, in the table `requests`."""

from sqlalchemy import BigInteger, ColumnElement, Insert, Integer, Text, delete, func, insert, select, update

from store_service.database.statements import Statement, one_of, parameter, rows, stamp
from store_service.database.tables import request_table as request

REQUESTS_BY_ID = Statement(
    select(request.c.id, request.c.fingerprint, request.c.size).where(one_of(request.c.id, "ids", type_=Text))
)
"""Fingerprints of these requests and sizes of their responses. Served by the primary key."""

ANSWERS_BY_ID = Statement(
    select(request.c.id, request.c.answer).where(one_of(request.c.id, "ids", type_=Text))
)
"""Stored responses of these requests. Served by the primary key."""

_done = rows("done", id=Text, fingerprint=Text, size=Integer, answer=Text)
_now = parameter("now", BigInteger)


def _insert(create_time: ColumnElement[int]) -> Insert:
    answers = select(_done.c.id, _done.c.fingerprint, _done.c.size, _done.c.answer, create_time)
    return insert(request).from_select(
        ["id", "fingerprint", "size", "answer", "create_time"], answers.order_by(_done.c.position)
    )


INSERT_REQUESTS = Statement(_insert(_now), on_postgresql=_insert(stamp(_now)))
"""Stores requests with their responses. On PostgreSQL it waits for a process that is storing the same
request, and then fails."""

SIZES = Statement(
    select(request.c.size)
    .where(request.c.create_time < parameter("before", BigInteger))
    .order_by(request.c.create_time)
    .limit(parameter("limit", Integer))
)
"""Sizes of the responses of the oldest `limit` requests before a time. Served by requests_create_time_idx."""

_old = (
    select(request.c.id)
    .where(request.c.create_time < parameter("before", BigInteger))
    .order_by(request.c.create_time)
    .limit(parameter("limit", Integer))
    .with_for_update(skip_locked=True)
)
DELETE_OLD_REQUESTS = Statement(delete(request).where(request.c.id.in_(_old)))
"""Deletes the oldest `limit` requests before a time. Served by requests_create_time_idx."""

NEWEST_TIME = Statement(select(func.coalesce(func.max(request.c.create_time), 0)))
"""Time of the newest request; 0 if there is none. Served by requests_create_time_idx."""

_future = (
    select(request.c.id)
    .where(request.c.create_time > parameter("after", BigInteger))
    .order_by(request.c.create_time.desc())
    .limit(parameter("limit", Integer))
    .with_for_update(skip_locked=True)
)
RESTAMP_FUTURE_REQUESTS = Statement(
    update(request)
    .where(request.c.id.in_(_future))
    .values(create_time=parameter("now", BigInteger))
    .returning(request.c.id)
)
"""Sets the time of up to `limit` requests after a time to `now`, for times in the future. Served by
requests_create_time_idx."""
