"""Compiled modules that all processes of the tests share.

Where Python may not write `__pycache__`, each process compiles all of its imports.
That is more than half of the start of a server, and the tests start hundreds of them.
"""

import os
import subprocess
import sys
from pathlib import Path

_CACHE = Path(__file__).parents[2] / "build" / "pycache"

_IMPORT_ALL = """
import contextlib, importlib, pkgutil
import hypothesis, pytest, pytest_asyncio, pytest_timeout, xdist.remote
import store_service, storeapi
for package in (store_service, storeapi):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__") and ".migrations." not in module.name:
            importlib.import_module(module.name)
with contextlib.suppress(ImportError):
    import aiosqlite, alembic.command, alembic.config, asyncpg, databases.backends.sqlite, psycopg, uvloop
"""


def share_bytecode() -> None:
    """Compiles the imports of both distributions and of pytest once, for all processes of the tests.

    Only the processes of pytest write further files to the directory, such as test modules with rewritten
    assertions. Others read it: a process whose file size is limited would write truncated files.
    """
    if os.environ.get("PYTHONPYCACHEPREFIX") != str(_CACHE):
        os.environ["PYTHONPYCACHEPREFIX"] = str(_CACHE)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        subprocess.run([sys.executable, "-c", _IMPORT_ALL], check=True)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.pycache_prefix = str(_CACHE)
    sys.dont_write_bytecode = False
