"""The limit of open files, and how many connections it leaves room for."""

import resource
import subprocess
import sys

import pytest

from store_service.open_files import room_for

PROGRAM = """
import resource, sys
from store_service.open_files import room_for
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
print(room_for(int(sys.argv[3])), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def room(soft: int, hard: int, connections: int) -> tuple[list[int], str]:
    """How many connections there may be and the limits afterwards, and what was logged."""
    # In a process of its own, which keeps its limit.
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard), str(connections)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *log, numbers = done.stdout.splitlines()
    return [int(it) for it in numbers.split()], "".join(log)


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "expected"),
    [
        (1128, 4000, 1000, [1000, 1128, 4000]),
        (256, 4000, 1000, [1000, 1128, 4000]),
        (256, 600, 1000, [472, 600, 600]),
        (100, 100, 1000, [16, 100, 100]),
    ],
    ids=["enough", "raised", "raised, not enough", "hardly any"],
)
def test_connection_limit_follows_the_file_limit(
    soft: int, hard: int, connections: int, expected: list[int]
) -> None:
    numbers, log = room(soft, hard, connections)

    assert numbers == expected
    assert ("too low for STORE_MAX_CONNECTIONS" in log) == (expected[0] < connections)
    assert ("open file limit raised" in log) == (soft < expected[1] == 1128)


def test_file_limit_that_cannot_be_raised_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS the hard limit may exceed that of the kernel."""

    def refuse(_: int, __: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))

    assert room_for(1000) == 128
