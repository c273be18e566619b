"""Measures `storeapi export` and `storeapi import` of many records, and compares the databases row by row.

`python -m benchmarks.transfer [RECORDS]` prints a line for each engine. A tenth of the records are posts, and
half of the comments are replies.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path

import sqlalchemy

from benchmarks import seed
from benchmarks.lineup import POSTGRESQL, SQLITE, Contender, started
from benchmarks.postgresql import empty_database
from benchmarks.processes import cpu_seconds, environment, python

RECORDS = 1_000_000

_BODY = "a comment of about two hundred bytes, as most comments are; " * 3
_HEX = {"sqlite": "printf('%016x', {})", "postgresql": "lpad(to_hex({}), 16, '0')"}


def main(records: int) -> None:
    """Prints the figures of each engine."""
    for contender in (SQLITE, POSTGRESQL):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            # PostgreSQL runs as another user if this process runs as root.
            Path(folder).chmod(0o755)
            _measure(contender, Path(folder), stack, records)


def _measure(contender: Contender, folder: Path, stack: ExitStack, records: int) -> None:
    urls = [stack.enter_context(_database(contender, folder / name)) for name in ("source", "target")]
    with seed.filling(urls[0]) as connection:
        _fill(connection, records)
    file = folder / "all.jsonl"
    for command, url in (("export", urls[0]), ("import", urls[1])):
        with started(contender, folder, url) as server:
            began = cpu_seconds(server.pid)
            seconds, client_seconds, client_mib = _run(server.address, command, str(file))
            server_seconds = cpu_seconds(server.pid) - began
            server_mib = _peak_mib(server.pid)
        print(
            f"{contender.name} {command}: {records:,} records, {seconds:.1f} s,"
            f" {records / seconds:,.0f} records/s; CPU time: client {client_seconds:.1f} s,"
            f" server {server_seconds:.1f} s; peak memory: client {client_mib:.0f} MiB,"
            f" server {server_mib:.0f} MiB",
            flush=True,
        )
    print(f"{contender.name}: {file.stat().st_size / 1e6:,.0f} MB, rows equal: {_equal(*urls)}", flush=True)


@contextmanager
def _database(contender: Contender, folder: Path) -> Iterator[str]:
    folder.mkdir()
    if contender.database != "postgresql":
        url = f"sqlite:///{folder / 'store.db'}"
        seed.migrate(url, folder)
        yield url
        return
    with empty_database(folder) as database:
        seed.migrate(database.url, folder)
        yield database.url


def _run(address: str, *arguments: str) -> tuple[float, float, float]:
    """Runs the command. Returns its seconds, its seconds of CPU time, and its peak memory in MiB."""
    began = time.perf_counter()
    process = subprocess.Popen(
        python("storeapi", *arguments), env=environment(STOREAPI_TARGET=address, STOREAPI_TIMEOUT="60")
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} failed")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _fill(connection: sqlalchemy.Connection, records: int) -> None:
    posts = records // 10
    comments = records - posts
    now = time.time_ns() // 1000
    hex_id = _HEX[connection.dialect.name].format("i / 2")
    # psycopg would take a single % for a parameter.
    modulo = "%" if connection.dialect.name == "sqlite" else "%%"
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})"
    connection.exec_driver_sql(
        f"{numbers.format(posts)} INSERT INTO posts (id, body, create_time, update_time, author, external_id)"  # noqa: S608
        f" SELECT i, '{_BODY}', {now} + i, {now} + 2 * i, 'user-' || (i {modulo} 1000), 'p:' || i FROM n"
    )
    # Comment i replies to comment i / 2, if i is even and comment i / 2 is at the top level.
    is_reply = f"i {modulo} 2 = 0 AND i / 2 {modulo} 2 = 1"
    connection.exec_driver_sql(
        f"{numbers.format(comments)} INSERT INTO comments"  # noqa: S608
        " (id, body, post_id, create_time, update_time, version, author, labels, reply_to_id, path)"
        f" SELECT i, '{_BODY}', 1 + (CASE WHEN {is_reply} THEN i / 2 ELSE i END) {modulo} {posts},"
        f" {now} + i, {now} + 3 * i, 1 + i {modulo} 5, 'user-' || (i {modulo} 1000),"
        f" CASE WHEN i {modulo} 10 = 0 THEN '{{\"status\":\"approved\"}}' ELSE '' END,"
        f" CASE WHEN {is_reply} THEN i / 2 ELSE 0 END, CASE WHEN {is_reply} THEN {hex_id} ELSE '' END FROM n"
    )


def _equal(*urls: str) -> bool:
    return len({_digest(url) for url in urls}) == 1


def _digest(url: str) -> str:
    digest = blake2b()
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1))
    try:
        with engine.connect().execution_options(stream_results=True) as connection:
            for table in ("posts", "comments"):
                for row in connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY id"):  # noqa: S608
                    digest.update(repr(tuple(row)).encode())
            labels = "SELECT * FROM labels ORDER BY kind, resource_id, key"
            for row in connection.exec_driver_sql(labels):
                digest.update(repr(tuple(row)).encode())
    finally:
        engine.dispose()
    return digest.hexdigest()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS)
