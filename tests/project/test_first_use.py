"""What a newcomer runs first: `make run` in a fresh copy of the sources."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.polling import wait_until
from tests.support.repository import ROOT, Wheels, repository_files
from tests.support.timeouts import scaled_timeout

TOOL = ROOT / "tools/uv_pip.py"


def without_settings() -> dict[str, str]:
    """The environment without settings of the service, and without uv's and those of pip's index."""
    ours = ("STORE_", "DATABASE_URL", "DATABASE_DIRECT_URL", "DB_FORCE_ROLL_BACK", "UV_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of every file of the repository, and nothing else."""
    folder = tmp_path_factory.mktemp("sources")
    for path in repository_files():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return folder


@pytest.fixture(scope="module")
def running(sources: Path) -> Iterator[Path]:
    """`make run` until it serves; gives the file with what it has printed."""
    screen = sources / "screen.log"
    environment = without_settings() | {"STORE_LISTEN": "127.0.0.1:0"}
    with (
        screen.open("wb") as output,
        subprocess.Popen(
            ["make", "--no-print-directory", "run", f"PYTHON={sys.executable}"],
            cwd=sources,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            wait_until(
                lambda: "is serving on" in screen.read_text() or process.poll() is not None, seconds=200
            )
            assert "is serving on" in screen.read_text(), screen.read_text()
            yield screen
        finally:
            os.killpg(process.pid, 15)


@pytest.mark.timeout(400)
def test_make_run_prints_what_it_does(running: Path) -> None:
    """Two lines before the service starts, without the output of package builds."""
    lines = running.read_text().splitlines()

    assert lines[0].startswith("Creating .venv with Python 3.")
    assert lines[1] == "Installing the service and its requirements into .venv"
    assert lines[2].startswith("{") or "serving on" in lines[2]
    assert not [line for line in lines if "DEPRECATION" in line or "warning" in line.lower()]


@pytest.mark.timeout(400)
def test_make_run_installs_only_runtime_packages(running: Path, sources: Path) -> None:
    """No tool for checks or tests, and no Node.js."""
    programs = {path.name for path in (sources / ".venv/bin").iterdir()}

    assert {"store-service", "storeapi", "uv"} <= programs
    assert not {"pytest", "mypy", "ruff", "buf", "basedpyright", "grpcurl", "node"} & programs
    assert sum(it.stat().st_size for it in (sources / ".venv").rglob("*") if not it.is_symlink()) < 250e6


# uv is told what pip was told


@pytest.fixture
def index(tmp_path: Path, wheels: Wheels) -> Path:
    """A private index with one package that no other has."""
    folder = tmp_path / "index/storeapi"
    folder.mkdir(parents=True)
    shutil.copy(wheels.storeapi, folder)
    name = wheels.storeapi.name
    (folder / "index.html").write_text(f'<a href="{name}">{name}</a>')
    return folder.parent


def configured(index: Path, home: Path, way: str) -> dict[str, str]:
    """The environment of a user who configured an index for pip or uv in one of several ways."""
    address, links = index.as_uri(), str(index / "storeapi")
    if way == "pip.conf":
        (home / ".config/pip").mkdir(parents=True)
        (home / ".config/pip/pip.conf").write_text(f"[global]\nindex-url = {address}\n")
        return {}
    # Written so that no file of this repository chooses an index.
    names = {"pip": "PIP_INDEX" + "_URL", "extra": "PIP_EXTRA_INDEX" + "_URL", "uv": "UV_DEFAULT_INDEX"}
    if way == "extra":
        return {names["extra"]: address, names["pip"]: index.with_name("empty").as_uri()}
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": links} if way == "links" else {names[way]: address}


@pytest.mark.parametrize("way", ["pip", "pip.conf", "extra", "links", "uv"])
def test_index_of_pip_is_used(index: Path, tmp_path: Path, way: str) -> None:
    """The configuration of pip is passed to uv."""
    kept = {name: value for name, value in without_settings().items() if not name.startswith("PIP_")}
    home = tmp_path / "home"
    (tmp_path / "empty").mkdir()
    variables = kept | {"HOME": str(home)} | configured(index, home, way)
    command = [sys.executable, TOOL, "install", "--no-deps", "--target", tmp_path / "target", "storeapi"]

    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=scaled_timeout(), check=False
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "target/storeapi/py.typed").exists()
