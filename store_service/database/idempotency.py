"""Every statement about requests that were done before."""

from sqlalchemy import BigInteger, ColumnElement, Insert, Integer, Text, delete, func, insert, select, update

from store_service.database.statements import Statement, one_of, parameter, rows, stamp
from store_service.database.tables import request_table as request

REQUESTS_BY_ID = Statement(
    select(request.c.id, request.c.fingerprint, request.c.size).where(one_of(request.c.id, "ids", type_=Text))
)
"""What is known of these requests, and how long their answers are. Served by the primary key."""

ANSWERS_BY_ID = Statement(
    select(request.c.id, request.c.answer).where(one_of(request.c.id, "ids", type_=Text))
)
"""What these requests were answered. Served by the primary key."""

_done = rows("done", id=Text, fingerprint=Text, size=Integer, answer=Text)
_now = parameter("now", BigInteger)


def _insert(create_time: ColumnElement[int]) -> Insert:
    answers = select(_done.c.id, _done.c.fingerprint, _done.c.size, _done.c.answer, create_time)
    return insert(request).from_select(
        ["id", "fingerprint", "size", "answer", "create_time"], answers.order_by(_done.c.position)
    )


INSERT_REQUESTS = Statement(_insert(_now), on_postgresql=_insert(stamp(_now)))
"""Remembers requests. On PostgreSQL it fails, after waiting, when another process does the same one."""

SIZES = Statement(
    select(request.c.size)
    .where(request.c.create_time < parameter("before", BigInteger))
    .order_by(request.c.create_time)
    .limit(parameter("limit", Integer))
)
"""How long the answers to the oldest `limit` requests from before a time are. Served by
requests_create_time_idx."""

_old = (
    select(request.c.id)
    .where(request.c.create_time < parameter("before", BigInteger))
    .order_by(request.c.create_time)
    .limit(parameter("limit", Integer))
    .with_for_update(skip_locked=True)
)
DELETE_OLD_REQUESTS = Statement(delete(request).where(request.c.id.in_(_old)))
"""Forgets the oldest `limit` requests from before a time. Served by requests_create_time_idx."""

NEWEST_TIME = Statement(select(func.coalesce(func.max(request.c.create_time), 0)))
"""When the newest request is from; 0 if there is none. Served by requests_create_time_idx."""

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
"""Makes `limit` requests from the future, after a time, requests from now. Served by
requests_create_time_idx."""
