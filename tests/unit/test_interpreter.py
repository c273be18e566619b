"""Starting looks for garbage where some may be, and not among modules."""

import gc
import importlib
import subprocess
import sys

import pytest

from store_service import interpreter
from tests.support.timeouts import scaled_timeout

PROGRAM = """
import gc
seen = []
gc.callbacks.append(lambda *_: seen.append(_))
import store_service.__main__
gc.callbacks.clear()
print(len(seen) < 20, gc.isenabled(), gc.get_freeze_count() > 10_000)
"""


def test_command_is_imported_without_garbage_collection() -> None:
    """The imported objects are frozen."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=scaled_timeout(), check=True
    )

    assert done.stdout.split() == ["True", "True", "True"]


def test_collector_is_enabled_after_a_failed_import() -> None:
    """Nothing else would ever find a cycle."""
    with pytest.raises(ModuleNotFoundError), interpreter.paused_during_imports():
        importlib.import_module("store_service.nothing_of_the_kind")

    assert gc.isenabled()
