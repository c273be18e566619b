"""Measures searches among a million comments, and creates with and without the search index.

The words of the comments have a Zipf distribution: the word n occurs about 1/n times as often as the first.
"""

# ruff: noqa: S311, S608  # random words, and constants in statements

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path

import grpc
import sqlalchemy
from storeapi.v1 import comments_pb2, comments_pb2_grpc

from benchmarks import loads, seed
from benchmarks.lineup import POSTGRESQL, SQLITE, Contender, started
from benchmarks.postgresql import MissingError, empty_database
from benchmarks.processes import StartError
from benchmarks.workloads import BY_NAME, Workload

COMMENTS = 1_000_000
VOCABULARY = 50_000
WORDS = 20
"""Words of each comment."""

PAGE_SIZE = 50
CALLS = 300
ROUNDS = 5

CREATES = 12_000
"""Creates of one load, of which there are CREATE_ROUNDS with and without the index."""
CREATE_ROUNDS = 5

BUILD_SECONDS = 600
"""An index that takes longer to build has failed."""

CHUNK = 20_000

SearchTable = dict[str, dict[str, tuple[float, float]]]
"""p50 and p99 in milliseconds by the title of the search and the name of the contender."""


def measure(folder: Path, left_out: list[str], comments: int = COMMENTS) -> SearchTable:
    """Returns the medians of p50 and p99, with one call in flight, for each search and engine."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with ExitStack() as stack:
        addresses: dict[str, str] = {}
        for contender in (SQLITE, POSTGRESQL):
            try:
                addresses[contender.name] = _start(
                    stack, contender, folder / f"search-{contender.name}", comments
                )
            except MissingError as error:
                left_out.append(f"Searches were left out for {contender.title}: {error}.")
        for round in range(ROUNDS + 1):
            for workload in _workloads():
                for name, address in addresses.items():
                    load = loads.run(workload, address, CALLS, http1=False, folder=folder)
                    if round:
                        times = found.setdefault(workload.title, {}).setdefault(name, [])
                        times.append((load.p50_ms, load.p99_ms))
    return {
        title: {
            name: (statistics.median(p50 for p50, _ in times), statistics.median(p99 for _, p99 in times))
            for name, times in by_contender.items()
        }
        for title, by_contender in found.items()
    }


def figures(table: SearchTable) -> dict[str, float]:
    """Returns for each contender the maximum p99 of the searches in the order of ids."""
    names = {name for times in table.values() for name in times}
    return {
        f"{_prefix(name)}search_p99_ms": max(
            times[name][1] for title, times in table.items() if name in times and not title.startswith("rel")
        )
        for name in names
    }


def creates(folder: Path, seeded: Path, left_out: list[str]) -> dict[str, float]:
    """Returns for each engine the rate of creates with the search index, as a ratio to that without it."""
    found: dict[str, float] = {}
    # The body of the other benchmarks is a single word.
    comment = comments_pb2.Comment(post_id=1, body=next(bodies(1)))
    workload = replace(
        BY_NAME["create_comment_256"], request=comments_pb2.CreateCommentRequest(comment=comment)
    )
    for contender in (SQLITE, POSTGRESQL):
        rates: dict[str, list[float]] = {"true": [], "false": []}
        with ExitStack() as stack:
            try:
                addresses = {
                    search: _start_seeded(
                        stack, contender, folder / f"{contender.name}-search-{search}", seeded, search
                    )
                    for search in rates
                }
            except MissingError as error:
                left_out.append(f"Creates without search were left out for {contender.title}: {error}.")
                continue
            for round in range(CREATE_ROUNDS + 1):
                for search, address in addresses.items():
                    load = loads.run(workload, address, CREATES, http1=False, folder=folder)
                    if round:
                        rates[search].append(load.calls_per_second)
        found[f"{_prefix(contender.name)}create_with_search"] = statistics.median(
            with_index / without for with_index, without in zip(rates["true"], rates["false"], strict=True)
        )
    return found


def _prefix(name: str) -> str:
    return "" if name == SQLITE.name else f"{name}_"


def _database(stack: ExitStack, contender: Contender, folder: Path) -> str:
    """Creates the folder of a contender and an empty database. Returns its URL."""
    folder.mkdir()
    if contender.database == "sqlite":
        return f"sqlite:///{folder / 'store.db'}"
    server_folder = folder.with_name(f"{folder.name}-server")
    server_folder.mkdir()
    return stack.enter_context(empty_database(server_folder)).url


def _start(stack: ExitStack, contender: Contender, folder: Path, comments: int) -> str:
    """Runs the service on a database with comments, and waits for the index. Returns the address."""
    url = _database(stack, contender, folder)
    seed.migrate(url, folder)
    with seed.filling(url) as connection:
        _fill(connection, comments)
    address = stack.enter_context(started(contender, folder, url)).address
    ends_at = time.monotonic() + BUILD_SECONDS
    with grpc.insecure_channel(address) as channel:
        stub = comments_pb2_grpc.CommentServiceStub(channel)
        while True:
            try:
                stub.SearchComments(comments_pb2.SearchCommentsRequest(query="word"), timeout=10)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > ends_at:
                    raise StartError(f"the search index was not built: {error.details()}") from error
            else:
                return address


def _start_seeded(stack: ExitStack, contender: Contender, folder: Path, seeded: Path, search: str) -> str:
    """Runs the service, with or without the index, on a database with the usual posts."""
    if contender.database == "sqlite":
        url = seed.copied(seeded, folder)
    else:
        url = _database(stack, contender, folder)
        seed.seed(url, folder)
    return stack.enter_context(started(contender, folder, url, STORE_SEARCH=search)).address


def vocabulary() -> list[str]:
    """Returns words of two to twelve letters, the most frequent one first."""
    chance = random.Random(49)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        length = max(2, min(12, round(chance.gauss(6, 2))))
        words["".join(chance.choice(letters[: 10 + len(words) % 17]) for _ in range(length))] = None
    return list(words)


def bodies(count: int) -> Iterator[str]:
    """Yields the bodies of comments."""
    chance = random.Random(50)
    words = vocabulary()
    weights = list(accumulate(1 / number for number in range(1, len(words) + 1)))
    for _ in range(count):
        yield " ".join(chance.choices(words, cum_weights=weights, k=WORDS))


def _fill(connection: sqlalchemy.Connection, comments: int) -> None:
    now = time.time_ns() // 1000
    on_sqlite = connection.dialect.name == "sqlite"
    overriding = "" if on_sqlite else "OVERRIDING SYSTEM VALUE"
    connection.exec_driver_sql(f"INSERT INTO posts (id, body) {overriding} VALUES (1, 'a post')")
    columns = "INSERT INTO comments (body, post_id, create_time, update_time)"
    each = bodies(comments)
    while chunk := list(islice(each, CHUNK)):
        if on_sqlite:
            connection.exec_driver_sql(f"{columns} VALUES (?, 1, {now}, {now})", [(body,) for body in chunk])
        else:
            connection.exec_driver_sql(
                f"{columns} SELECT body, 1, {now}, {now} FROM unnest(CAST(%s AS text[])) AS it (body)",
                (chunk,),
            )


def _workloads() -> list[Workload]:
    words = vocabulary()
    common, other = words[0], words[4]
    rare = words[20_000]
    queries = {
        "a common word": common,
        "a rare word": rare,
        "a phrase": f'"{common} {words[1]}"',
        "a prefix": f"{words[300][:3]}*",
        "two words": f"{common} {other}",
        "a common word without another": f"{common} -{other}",
    }
    return [
        Workload(
            name="",
            title=f"{order}: {title}",
            service="CommentService",
            method="SearchComments",
            request=comments_pb2.SearchCommentsRequest(query=query, order_by=order_by, page_size=PAGE_SIZE),
            posts=1,
        )
        for order, order_by in (("newest", "id desc"), ("relevance", "relevance"))
        for title, query in queries.items()
    ]
