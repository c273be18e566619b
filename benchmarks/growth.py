"""Measures whether latencies grow with the number of rows: the same calls on files of different sizes.

Half of the rows are posts, half are comments. In addition, one post has LISTED_PAGES pages of comments, which
are distributed evenly among the others, as the comments of a busy post are.
"""

import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
from storeapi.v1 import comments_pb2, comments_pb2_grpc

from benchmarks import loads, seed
from benchmarks.lineup import SQLITE, started
from benchmarks.workloads import BODY, GET, Workload

SIZES = (10_000, 1_000_000, 5_000_000)

BYTES_A_ROW = 450
"""Disk space for a row, its index, and the temporary files of SQLite."""

POST_ID = 1
PAGE_SIZE = 50
LISTED_PAGES = 1000
WALK_SIZE = 1000
"""Page size on the way to the last page. A page token does not depend on the page size."""

CALLS = 300

_POSTS = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :posts)
    INSERT INTO posts (id, body, create_time, update_time) SELECT i, :body, :now, :now FROM n
"""
_COMMENTS = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :comments)
    INSERT INTO comments (id, body, post_id, create_time, update_time)
    SELECT i, :body,
        CASE WHEN i * :listed / :comments > (i - 1) * :listed / :comments
            THEN :post_id ELSE 2 + (i * 7919) % (:posts - 1) END,
        :now, :now FROM n
"""

GrowthTable = dict[str, dict[int, float]]
"""Milliseconds by the title of the call and the number of rows."""


def measure(folder: Path, rounds: int, left_out: list[str], sizes: Sequence[int] = SIZES) -> GrowthTable:
    """Returns the median of p50, with one call in flight, for each call and size."""
    with ExitStack() as stack:
        addresses: dict[int, str] = {}
        for rows in sizes:
            if shutil.disk_usage(folder).free < rows * BYTES_A_ROW:
                left_out.append(f"Growth to {rows:,} rows was left out: not enough free disk space.")
                continue
            own = folder / f"growth-{rows}"
            own.mkdir()
            url = _filled(own, rows)
            addresses[rows] = stack.enter_context(started(SQLITE, own, url, STORE_SEARCH="false")).address
        work = {rows: _workloads(_last_page_token(address)) for rows, address in addresses.items()}
        found: dict[str, dict[int, list[float]]] = {}
        for round in range(rounds + 1):
            for rows, address in addresses.items():
                for workload in work[rows]:
                    load = loads.run(workload, address, CALLS, http1=False, folder=folder)
                    if round:
                        found.setdefault(workload.title, {}).setdefault(rows, []).append(load.p50_ms)
    return {
        title: {rows: statistics.median(times) for rows, times in of_rows.items()}
        for title, of_rows in found.items()
    }


def factor(table: GrowthTable) -> dict[str, float]:
    """Returns for each call the ratio of its time with the most rows to that with the fewest."""
    return {title: times[max(times)] / times[min(times)] for title, times in table.items()}


def _filled(folder: Path, rows: int) -> str:
    """Creates a file with this number of rows and the post with its comments. Returns its URL."""
    url = f"sqlite:///{folder / 'store.db'}"
    seed.migrate(url, folder)
    listed = PAGE_SIZE * LISTED_PAGES + 1
    values = {
        "posts": rows // 2,
        "comments": rows // 2 + listed,
        "listed": listed,
        "post_id": POST_ID,
        "body": BODY,
        "now": time.time_ns() // 1000,
    }
    with seed.filling(url) as connection:
        connection.exec_driver_sql(_POSTS, values)
        connection.exec_driver_sql(_COMMENTS, values)
    return url


def _last_page_token(address: str) -> str:
    """Reads all pages except the last one, and returns its token."""
    token, to_skip = "", PAGE_SIZE * (LISTED_PAGES - 1)
    with grpc.insecure_channel(address) as channel:
        stub = comments_pb2_grpc.CommentServiceStub(channel)
        while to_skip:
            size = min(WALK_SIZE, to_skip)
            request = comments_pb2.ListCommentsRequest(post_id=POST_ID, page_size=size, page_token=token)
            page = stub.ListComments(request, timeout=10)
            token = page.next_page_token
            to_skip -= len(page.comments)
    return token


def _workloads(last_page_token: str) -> list[Workload]:
    def listing(title: str, token: str) -> Workload:
        return Workload(
            name="",
            title=title,
            service="CommentService",
            method="ListComments",
            request=comments_pb2.ListCommentsRequest(post_id=POST_ID, page_size=PAGE_SIZE, page_token=token),
            posts=PAGE_SIZE,
        )

    return [
        Workload(name="", title="GetPost", method="GetPost", request=GET),
        listing("ListComments, first page", ""),
        listing(f"ListComments, page {LISTED_PAGES:,}", last_page_token),
    ]
