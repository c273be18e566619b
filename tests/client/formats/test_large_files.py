"""Memory does not grow with the file."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.foreign_files import WRITERS
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout

PROGRAM = """
import sys
from pathlib import Path
from storeapi.formats import KINDS, Report, Source, Spool, reader

name, path = sys.argv[1:]
report = Report()
with Spool(source=name, prefix=name, report=report) as spool:
    spool.add(reader(name)(Source(Path(path)), report))
    count = sum(1 for kind in KINDS for _ in spool.records(kind))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
# Not ru_maxrss, which starts with the memory of the parent process.
print(count, status["VmHWM"].split()[0])
"""
SMALL, MEDIUM, LARGE = 8_000, 24_000, 80_000
"""Comments: about 5 MB, 15 MB and 50 MB, except for remark42, which is compressed."""


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
    # 50 MB take several seconds. One format shows that the spool does not grow, which all formats share.
    comments = LARGE if IS_LONG_RUN or name == "disqus" else MEDIUM
    small = peak(name, tmp_path / "small", SMALL)
    large = peak(name, tmp_path / "large", comments)
    # The page cache of the spool is 8 MiB. A file in memory adds at least the 10 MB that MEDIUM has more.
    assert large - small < 9 * 1024, f"{small} KiB for {SMALL} comments, {large} KiB for {comments}"
