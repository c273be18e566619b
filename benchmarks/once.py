"""Figures that are measured once: memory after many calls, start time, fsyncs for many writes."""

import shutil
import statistics
import time
from pathlib import Path

import grpc
from storeapi.v1 import posts_pb2_grpc

from benchmarks import loads, seed
from benchmarks.lineup import SQLITE, started
from benchmarks.processes import memory_mib, python, serving
from benchmarks.workloads import BY_NAME, GET

READS, WRITES = 90_000, 10_000
"""Calls before the memory is measured."""

STARTS = 7

SYNCED_WRITES = 2_000


def memory_after_calls(folder: Path, seeded: Path) -> float:
    """Resident memory of a new server, in MiB, after READS and WRITES calls, 256 at a time."""
    own = folder / "memory"
    url = seed.copied(seeded, own)
    with started(SQLITE, own, url) as server:
        for name, calls in (("get_256", READS), ("create_256", WRITES)):
            load = loads.run(BY_NAME[name], server.address, calls, http1=False, folder=folder)
            if load.failed:
                raise loads.LoadError(f"{load.failed} of {calls} calls failed")
        return memory_mib(server.pid)


def start_seconds(folder: Path, seeded: Path) -> float:
    """Returns the median time from the command to the first response to GetPost, on an existing database."""
    own = folder / "start"
    url = seed.copied(seeded, own)
    times = []
    for _ in range(STARTS):
        begun = time.perf_counter()
        with started(SQLITE, own, url) as server, grpc.insecure_channel(server.address) as channel:
            posts_pb2_grpc.PostServiceStub(channel).GetPost(GET, timeout=10)
            times.append(time.perf_counter() - begun)
    # The first start compiles modules.
    return statistics.median(times[1:])


def syncs_for_writes(folder: Path, seeded: Path, left_out: list[str]) -> int | None:
    """Returns the number of fsync and fdatasync calls for SYNCED_WRITES CreatePost, including start and stop.

    None, with a sentence in `left_out`, if they cannot be counted.
    """
    if shutil.which("strace") is None:
        left_out.append("fsyncs were not counted: strace is not installed.")
        return None
    own = folder / "syncs"
    url = seed.copied(seeded, own)
    counts = own / "counts"
    # Without --seccomp-bpf strace would stop the server at every system call, which would change the result.
    strace = ["strace", "-f", "--seccomp-bpf", "-c", "-e", "trace=fsync,fdatasync", "-o", str(counts)]
    settings = {"DATABASE_URL": url, "STORE_LISTEN": "127.0.0.1:0"}
    with serving([*strace, *python(*SQLITE.module)], folder=own, settings=settings) as server:
        loads.run(BY_NAME["create_256"], server.address, SYNCED_WRITES, http1=False, folder=folder)
    return sum(
        int(fields[3])
        for line in counts.read_text().splitlines()
        if (fields := line.split()) and fields[-1] in ("fsync", "fdatasync")
    )
