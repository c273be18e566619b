"""Makes the wall clock of a Python process wrong: on PYTHONPATH, Python imports this before anything else.

The file that WRONG_CLOCK names holds by how many seconds; it is read each time, so the clock can jump.
"""

import os
import time
from pathlib import Path

_FILE = Path(os.environ["WRONG_CLOCK"])
_time, _time_ns = time.time, time.time_ns


def _ahead() -> int:
    return int(_FILE.read_text())


time.time = lambda: _time() + _ahead()
time.time_ns = lambda: _time_ns() + _ahead() * 1_000_000_000
