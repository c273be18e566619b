"""Makes a load and returns its results."""

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
    "h2load is required to make the load; on Debian and Ubuntu it is in the package nghttp2-client"
)


class LoadError(Exception):
    """A load did not end, or its responses are not as expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The results of a load."""

    calls: int
    seconds: float
    failed: int
    """Calls that ended with an error."""
    p50_ms: float
    """Half of the calls ended within this time."""
    p99_ms: float

    @property
    def calls_per_second(self) -> float:
        """Successful calls per second."""
        return (self.calls - self.failed) / self.seconds

    def as_json(self) -> str:
        """Returns JSON, for the process that has started the load."""
        return json.dumps(asdict(self))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the smallest value that is not exceeded by this share of the values."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def run(workload: Workload, address: str, calls: int, *, http1: bool, folder: Path) -> Load:
    """Makes a load of this number of calls.

    Raises:
        LoadError: It took longer than LOAD_SECONDS, or some calls got no response.
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
    single = _once(workload, address, 1, (1, 1), http1=http1, folder=folder)
    if single.response_bytes < workload.posts * 100:
        raise LoadError(f"{workload.method} did not return {workload.posts} posts")
    in_flight = (workload.in_flight, 1) if http1 else (workload.connections, workload.streams)
    found = _once(workload, address, calls, in_flight, http1=http1, folder=folder)
    if found.done < calls:
        raise LoadError(f"{calls - found.done} of {calls} calls got no response")
    # To h2load, a gRPC error is a successful response, but it has no body. All responses to a read are equal;
    # those to writes have different times and ids, whose lengths differ by a few bytes.
    bodies = found.response_bytes / single.response_bytes
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
    """The output of h2load."""

    calls_per_second: float
    done: int
    succeeded: int
    response_bytes: int
    microseconds: list[int]
    """Durations of the calls in ascending order."""


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
        response_bytes=int(_number(r"headers .*\((\d+)\) data", output)),
        microseconds=sorted(int(line.split()[2]) for line in log.read_text().splitlines()),
    )


def _number(pattern: str, output: str) -> str:
    found = re.search(pattern, output)
    if found is None:
        raise LoadError(f"unexpected output of h2load: {output.strip()[-500:]}")
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
    """Returns whether h2load is installed."""
    return shutil.which("h2load") is not None
