"""The import contracts hold and detect violations."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.timeouts import scaled_timeout

ROOT = Path(__file__).parents[2]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Checks the package that is in a folder."""
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [command, "--no-cache", "--no-logo"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
        check=False,
    )


def test_layers_are_respected() -> None:
    """Every import goes downward, and gRPC and SQL stay in their layers."""
    run = lint_imports(ROOT)

    assert run.returncode == 0, run.stdout + run.stderr


FORBIDDEN = [
    ("model/resources.py", "from store_service import errors"),
    ("errors/base.py", "import grpc"),
    ("logs.py", "from store_service import config"),
    ("database/posts.py", "from store_service.service import pages"),
    ("database/connect.py", "from store_service.config import Config"),
    ("service/posts.py", "from google.protobuf.message import Message"),
    ("service/posts.py", "from storeapi.v1 import posts_pb2"),
    ("service/comments.py", "import sqlalchemy"),
    ("service/pages.py", "from store_service.rpc import convert"),
    ("service/feed.py", "from storeapi.v1 import changes_pb2"),
    ("rpc/changes.py", "import sqlalchemy"),
    ("rpc/posts.py", "import aiosqlite"),
    ("service/posts.py", "import asyncpg"),
    ("rpc/pipeline.py", "from store_service.config import config"),
    ("rpc/health.py", "from store_service import server"),
    ("server.py", "from store_service import cli"),
    ("utils.py", "import os"),
]
"""Modules, each with an import that a contract forbids. The last one has no layer."""


def test_imports_across_layers_are_refused(tmp_path: Path) -> None:
    """Each forbidden import, by its line, and a module without a layer."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "store_service", tmp_path / "store_service")
    expected = ["- store_service.utils"]
    for module, statement in FORBIDDEN:
        path = tmp_path / "store_service" / module
        path.write_text((path.read_text() if path.exists() else "") + f"\n{statement}\n")
        name = module.removesuffix(".py").replace("/", ".")
        if name != "utils":
            line = len(path.read_text().splitlines())
            expected.append(rf"store_service\.{name} -> \S+ \(l\.{line}\)")

    run = lint_imports(tmp_path)

    assert run.returncode == 1, run.stdout + run.stderr
    assert [it for it in expected if not re.search(it, run.stdout)] == [], run.stdout
