"""Starting looks for garbage where some may be, and not among modules."""

import gc
import importlib
import subprocess
import sys

import pytest

from store_service import garbage
from tests.patience import patience

PROGRAM = """
import gc
seen = []
gc.callbacks.append(lambda *_: seen.append(_))
import store_service.__main__
gc.callbacks.clear()
print(len(seen) < 20, gc.isenabled(), gc.get_freeze_count() > 10_000)
"""


def test_the_command_is_imported_without_a_look_for_garbage() -> None:
    """But for a few at the little that comes first; and what was imported is left alone afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=patience(), check=True
    )

    assert done.stdout.split() == ["True", "True", "True"]


def test_the_collector_works_on_after_an_import_that_fails() -> None:
    """Nothing else would ever find a cycle."""
    with pytest.raises(ModuleNotFoundError), garbage.none_in_imports():
        importlib.import_module("store_service.nothing_of_the_kind")

    assert gc.isenabled()
