"""Measures the effect of watches on writes, and the lag of watches."""

import json
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from storeapi.v1 import posts_pb2_grpc

from benchmarks import loads, seed
from benchmarks.lineup import POSTGRESQL, SQLITE, started
from benchmarks.postgresql import MissingError, empty_database
from benchmarks.processes import environment, python
from benchmarks.workloads import BY_NAME, CREATE

WATCHES = 50
WRITES = 10_000
"""Creates of a load, 256 in flight."""
ROUNDS = 3

SINGLE_WRITES = 100
SINGLE_PAUSE_SECONDS = 0.02
"""Pause between the writes whose latency is measured."""


@contextmanager
def watched(address: str, count: int) -> Iterator[dict[str, Any]]:
    """Opens this number of watches until the end of the block; the dictionary then has their results."""
    found: dict[str, Any] = {}
    with subprocess.Popen(
        python("benchmarks.watchers", address, str(count)),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield found
            process.stdin.close()
            found.update(json.loads(process.stdout.read()))
        finally:
            process.kill()


def writes_with_watches(folder: Path, seeded: Path, left_out: list[str]) -> dict[str, float]:
    """Returns the ratio of creates per second with watches to that without, and the largest lag in s."""
    own = folder / "watched"
    url = seed.copied(seeded, own)
    shares, lags = [], []
    with started(SQLITE, own, url) as server:

        def rate() -> float:
            return loads.run(
                BY_NAME["create_256"], server.address, WRITES, http1=False, folder=own
            ).calls_per_second

        rate()
        for _ in range(ROUNDS):
            alone = rate()
            with watched(server.address, WATCHES) as found:
                together = rate()
            if found["changes"] < WRITES or not found["complete"]:
                left_out.append(f"A watch received {found['changes']} of {WRITES} changes.")
            shares.append(together / alone)
            lags.append(found["lag_s"])
    return {"watched_create_256": statistics.median(shares), "watch_lag_s": max(lags)}


def latency(folder: Path, seeded: Path, left_out: list[str]) -> dict[str, float]:
    """Returns the median time from a change to its arrival at one watch, in milliseconds, for each engine."""
    own = folder / "latency"
    figures = {"watch_latency_ms": _latency_on(own, seed.copied(seeded, own), postgresql=False)}
    try:
        server_folder = folder / "latency-postgresql"
        server_folder.mkdir()
        with empty_database(server_folder) as found:
            figures["postgresql_watch_latency_ms"] = _latency_on(own, found.url, postgresql=True)
    except MissingError as error:
        left_out.append(f"The latency on PostgreSQL was left out: {error}.")
    return figures


def _latency_on(folder: Path, url: str, *, postgresql: bool) -> float:
    contender = POSTGRESQL if postgresql else SQLITE
    with (
        started(contender, folder, url) as server,
        watched(server.address, 1) as found,
        grpc.insecure_channel(server.address) as channel,
    ):
        posts = posts_pb2_grpc.PostServiceStub(channel)
        for _ in range(SINGLE_WRITES):
            posts.CreatePost(CREATE, timeout=10)
            time.sleep(SINGLE_PAUSE_SECONDS)
    return float(found["latency_ms"])
