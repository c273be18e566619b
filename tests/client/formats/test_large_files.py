"""Memory does not grow with the file."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.foreign_files import WRITERS
from tests.support.timeouts import scaled_timeout

PROGRAM = """
import resource, sys
from pathlib import Path
from storeapi.formats import KINDS, Report, Source, Spool, reader

name, path = sys.argv[1:]
report = Report()
with Spool(source=name, prefix=name, report=report) as spool:
    spool.add(reader(name)(Source(Path(path)), report))
    count = sum(1 for kind in KINDS for _ in spool.records(kind))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
SMALL, LARGE = 8_000, 80_000
"""Comments: about 5 MB and 50 MB, except for remark42, which is compressed."""


def peak(name: str, path: Path, comments: int) -> int:
    """The memory of a process that reads a file of so many comments, in KiB."""
    WRITERS[name](path, comments)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=scaled_timeout(),
    )
    path.unlink()
    count, memory = map(int, done.stdout.split())
    assert count == comments + comments // 100
    return memory


@pytest.mark.parametrize("name", WRITERS)
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    small = peak(name, tmp_path / "small", SMALL)
    large = peak(name, tmp_path / "large", LARGE)
    # The page cache of the spool is 8 MiB; a file of 50 MB in memory would be far more.
    assert large - small < 16 * 1024, f"{small} KiB for {SMALL} comments, {large} KiB for {LARGE}"
