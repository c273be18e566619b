"""Measures pages of one post with many threads: in each order, and with a filter.

The ids of the comments of a thread are far from each other, as those of a busy post are.
"""

import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy
from storeapi.v1 import comments_pb2
from storeapi.v1.filters_pb2 import CommentFilter

from benchmarks import loads, seed
from benchmarks.lineup import POSTGRESQL, SQLITE, Contender, started
from benchmarks.postgresql import MissingError, empty_database
from benchmarks.workloads import BODY, Workload
from store_service.model import Order, Query, labels_to_text, path_below
from store_service.service import page_tokens
from store_service.service.scans import Cursor

THREADS = 100_000

ABOVE = ((), (0,), (0,), (0, 1), (0, 1), (0, 2), (0, 2), (0, 1, 3), (0, 1, 3), (0, 1, 4))
"""For each comment of a thread, the comments above it. The id of comment n of thread t is t + n * threads."""
COMMENTS = THREADS * len(ABOVE)
LAST = 6
"""The last comment of a thread in thread order."""

LABELS = {"status": "visible"}
LABELLED = 100
"""One of this many threads has labels. These threads are listed first."""

POST_ID = 1
PAGE_SIZE = 50

CALLS = 300
ROUNDS = 5

PLAIN = "id, first page"
WITH_LABEL = ", with a label"
"""The end of the titles of pages with a filter."""

PageTable = dict[str, dict[str, float]]
"""Milliseconds by the title of the page and the name of the contender."""

_HEX = {"sqlite": "printf('%016x', {})", "postgresql": "lpad(to_hex({}), 16, '0')"}


def measure(folder: Path, left_out: list[str], threads: int = THREADS) -> PageTable:
    """Returns the median of p50, with one call in flight, for each page and engine."""
    workloads = _workloads(threads)
    found: dict[str, dict[str, list[float]]] = {workload.title: {} for workload in workloads}
    with ExitStack() as stack:
        addresses: dict[str, str] = {}
        for contender in (SQLITE, POSTGRESQL):
            try:
                addresses[contender.name] = _start(stack, contender, folder, threads)
            except MissingError as error:
                left_out.append(f"Pages of threads were left out for {contender.title}: {error}.")
        for round in range(ROUNDS + 1):
            for workload in workloads:
                for name, address in addresses.items():
                    load = loads.run(workload, address, CALLS, http1=False, folder=folder)
                    if round:
                        found[workload.title].setdefault(name, []).append(load.p50_ms)
    return {
        title: {name: statistics.median(times) for name, times in by_contender.items()}
        for title, by_contender in found.items()
    }


def figures(table: PageTable) -> dict[str, float]:
    """Returns for each contender the maximum ratio of a page in thread order to a plain page."""
    return {
        f"{'' if name == SQLITE.name else f'{name}_'}thread_pages": max(
            times[name] / plain
            for title, times in table.items()
            if title.startswith("thread") and not title.endswith(WITH_LABEL)
        )
        for name, plain in table[PLAIN].items()
    }


def _start(stack: ExitStack, contender: Contender, folder: Path, threads: int) -> str:
    """Creates a database with the threads, and runs the service on it. Returns its address."""
    own = folder / f"threads-{contender.name}"
    own.mkdir()
    url = f"sqlite:///{own / 'store.db'}"
    if contender.database == "postgresql":
        server_folder = folder / "threads-postgresql-server"
        server_folder.mkdir()
        url = stack.enter_context(empty_database(server_folder)).url
    seed.migrate(url, own)
    with seed.filling(url) as connection:
        _fill(connection, threads)
    return stack.enter_context(started(contender, own, url, STORE_SEARCH="false")).address


def _fill(connection: sqlalchemy.Connection, threads: int) -> None:
    now = time.time_ns() // 1000
    connection.exec_driver_sql(
        "INSERT INTO posts (id, body, create_time, update_time)"  # noqa: S608  # constants
        f" VALUES ({POST_ID}, '{BODY}', {now}, {now})"
    )
    hex_id = _HEX[connection.dialect.name]
    for number, above in enumerate(ABOVE):
        reply_to_id = f"i + {above[-1] * threads}" if above else "0"
        path = " || ".join(hex_id.format(f"i + {n * threads}") for n in above) or "''"
        connection.exec_driver_sql(
            f"""
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {threads})
            INSERT INTO comments (id, body, post_id, create_time, update_time, labels, reply_to_id, path)
            SELECT i + {number * threads}, '{BODY}', {POST_ID}, {now} + i + {number * threads}, {now},
                CASE WHEN i <= {threads // LABELLED} THEN '{labels_to_text(LABELS)}' ELSE '' END,
                {reply_to_id}, {path}
            FROM n
            """  # noqa: S608  # constants
        )


def _workloads(threads: int) -> list[Workload]:
    later = threads // 10
    """The number of the page that begins after half of the threads, minus five."""
    skipped = threads // 2 - PAGE_SIZE // len(ABOVE)

    def page(order: Order, cursor: Cursor | None = None, *, labelled: bool = False) -> Workload:
        # Without post_id, a filter of labels is served by the table of labels.
        post_id = 0 if labelled and order == "id" else POST_ID
        query = Query(resource="comments", order=order, post_id=post_id)
        title = f"{order}, " + ("first page" if cursor is None else f"page {later:,}")
        return Workload(
            name="",
            title=f"{title}{WITH_LABEL}" if labelled else title,
            service="CommentService",
            method="ListComments",
            request=comments_pb2.ListCommentsRequest(
                post_id=post_id,
                page_size=PAGE_SIZE,
                order_by=order,
                page_token="" if cursor is None else page_tokens.make(query, cursor),
                filter=CommentFilter(labels=LABELS) if labelled else None,
            ),
            posts=PAGE_SIZE,
        )

    def last_of(thread: int) -> str:
        key = ""
        for number in (*ABOVE[LAST], LAST):
            key = path_below(key, thread + number * threads)
        return key

    return [
        page("id"),
        page("id", PAGE_SIZE * (later - 1)),
        page("thread"),
        page("thread", last_of(skipped)),
        page("thread desc"),
        page("thread desc", last_of(threads - skipped + 1)),
        page("create_time desc"),
        page("id", labelled=True),
        page("thread", labelled=True),
    ]
