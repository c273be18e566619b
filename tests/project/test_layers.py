"""The import contracts hold and detect violations."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("module", "statement"),
    [
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
    ],
)
def test_import_across_layers_is_refused(tmp_path: Path, module: str, statement: str) -> None:
    """A forbidden import, or a module without a layer, breaks a contract."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "store_service", tmp_path / "store_service")
    path = tmp_path / "store_service" / module
    path.write_text((path.read_text() if path.exists() else "") + f"\n{statement}\n")

    run = lint_imports(tmp_path)

    assert run.returncode == 1, run.stdout + run.stderr
    assert " BROKEN" in run.stdout, run.stdout + run.stderr
