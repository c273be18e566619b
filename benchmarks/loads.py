"""Makes a load, and says what came of it."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.processes import environment, python
from benchmarks.workloads import Workload, framed

LOAD_SECONDS = 120
"""A load that takes longer has failed."""

HOW_TO_GET_H2LOAD = (
    "h2load is needed to make the load: Debian and Ubuntu have it in the package nghttp2-client"
)


class LoadError(Exception):
    """A load did not end, or its answers are not what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of a load."""

    calls: int
    seconds: float
    failed: int
    """Calls whose answer was an error."""
    p50_ms: float
    """Half of the calls were answered within this time."""
    p99_ms: float

    @property
    def calls_per_second(self) -> float:
        """Calls that were answered well, each second."""
        return (self.calls - self.failed) / self.seconds

    def as_json(self) -> str:
        """The way from the process that made the load."""
        return json.dumps(asdict(self))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the values that this share of them does not pass."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def run(workload: Workload, address: str, calls: int, *, http1: bool, folder: Path) -> Load:
    """Makes a load of so many calls.

    Raises:
        LoadError: It took longer than LOAD_SECONDS, or calls were not answered at all.
    """
    if workload.varied is not None:
        return _varied(workload, address, calls, http1=http1)
    return _h2load(workload, address, calls, http1=http1, folder=folder)


def _varied(workload: Workload, address: str, calls: int, *, http1: bool) -> Load:
    in_flight = (workload.in_flight, 1) if http1 else (workload.connections, workload.streams)
    command = python("benchmarks.varied_load", address, str(workload.varied), *map(str, (*in_flight, calls)))
    output = _output([*command, *(["--http1"] if http1 else [])])
    return Load(**json.loads(output))


def _h2load(workload: Workload, address: str, calls: int, *, http1: bool, folder: Path) -> Load:
    answer = _once(workload, address, 1, (1, 1), http1=http1, folder=folder)
    if answer.answer_bytes < workload.posts * 100:
        raise LoadError(f"{workload.method} is not answered with {workload.posts} posts")
    in_flight = (workload.in_flight, 1) if http1 else (workload.connections, workload.streams)
    found = _once(workload, address, calls, in_flight, http1=http1, folder=folder)
    if found.done < calls:
        raise LoadError(f"{calls - found.done} of {calls} calls were not answered")
    # An error of gRPC is a good answer to h2load, but it has no body. Answers to one read are all the same;
    # those to writes have other times and ids, which take a few bytes more or less.
    bodies = found.answer_bytes / answer.answer_bytes
    differ = 0.03 if workload.writes else 0
    without_body = calls - round(bodies) if abs(1 - bodies / calls) > differ else 0
    return Load(
        calls=calls,
        seconds=calls / found.calls_per_second,
        failed=max(0, without_body, calls - found.succeeded),
        p50_ms=percentile(found.microseconds, 0.50) / 1000,
        p99_ms=percentile(found.microseconds, 0.99) / 1000,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What h2load says."""

    calls_per_second: float
    done: int
    succeeded: int
    answer_bytes: int
    microseconds: list[int]
    """How long each call took, the shortest first."""


def _once(
    workload: Workload, address: str, calls: int, in_flight: tuple[int, int], *, http1: bool, folder: Path
) -> _Found:
    data, log = folder / "request.bin", folder / "calls.log"
    log.unlink(missing_ok=True)
    connections, streams = in_flight
    command = ["h2load", "-n", str(calls), "-c", str(connections), "-m", str(streams), f"--log-file={log}"]
    if http1:
        assert workload.http is not None
        command += ["--h1", "-H", "content-type: application/json"]
        path, body = workload.http.path, workload.http.body
    else:
        assert workload.request is not None
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        path, body = workload.path, framed(workload.request)
    if body:
        data.write_bytes(body)
        command += ["-d", str(data)]
    output = _output([*command, f"http://{address}{path}"])
    return _Found(
        calls_per_second=float(_number(r"finished in .*?, ([\d.]+) req/s", output)),
        done=int(_number(r"(\d+) done", output)),
        succeeded=int(_number(r"(\d+) succeeded", output)),
        answer_bytes=int(_number(r"headers .*\((\d+)\) data", output)),
        microseconds=sorted(int(line.split()[2]) for line in log.read_text().splitlines()),
    )


def _number(pattern: str, output: str) -> str:
    found = re.search(pattern, output)
    if found is None:
        raise LoadError(f"h2load says something else than expected: {output.strip()[-500:]}")
    return found[1]


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment(),
            stdin=subprocess.DEVNULL,
            timeout=LOAD_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"the load did not end within {LOAD_SECONDS} seconds") from error
    except subprocess.CalledProcessError as error:
        raise LoadError(f"{command[0]} failed: {error.stderr.strip()[-500:]}") from error
    return done.stdout


def have_h2load() -> bool:
    """Whether a load can be made."""
    return shutil.which("h2load") is not None
