"""The list of what the service consists of is whole, valid, and says nothing of where it was made."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import ROOT, pinned_version, pins
from tests.support.timeouts import scaled_timeout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make sbom` writes; the tool validates it against the schema before."""
    path = tmp_path_factory.mktemp("sbom") / "build" / "sbom.json"
    command = [sys.executable, ROOT / "tools/sbom.py", path]
    run = subprocess.run(command, capture_output=True, text=True, timeout=scaled_timeout(100), check=False)
    assert run.returncode == 0, run.stderr
    return path


@pytest.fixture(scope="module")
def document(made: Path) -> dict[str, Any]:
    """The document."""
    found: dict[str, Any] = json.loads(made.read_text())
    return found


def test_sbom_lists_every_locked_package(document: dict[str, Any]) -> None:
    """With its version, and the client, which is built here."""
    locked = {name: pinned_version(it) for name, it in pins(ROOT / "requirements/runtime.txt").items()}
    listed = {it["name"]: it["version"] for it in document["components"]}
    root = document["metadata"]["component"]

    assert len(locked) > 20
    assert listed == locked | {"storeapi": root["version"]}
    assert (root["name"], root["type"]) == ("store-service", "application")
    assert all(it["purl"] == f"pkg:pypi/{it['name']}@{it['version']}" for it in document["components"])


def test_sbom_marks_direct_dependencies(document: dict[str, Any]) -> None:
    of_root, of_client = document["dependencies"]

    names = {ref.removeprefix("pkg:pypi/").partition("@")[0] for ref in of_root["dependsOn"]}
    assert {"storeapi", "grpcio", "sqlalchemy", "asyncpg", "psycopg"} <= names
    assert not {"mako", "pydantic-core"} & names
    assert "pkg:pypi/storeapi@" in of_client["ref"]


def test_sbom_names_no_package_source(made: Path) -> None:
    """The only URLs are those of the format."""
    addresses = {word for word in made.read_text().split('"') if "://" in word}

    assert addresses == {"http://cyclonedx.org/schema/bom-1.6.schema.json"}
    assert str(ROOT) not in made.read_text()


def test_sbom_is_reproducible(made: Path, tmp_path: Path) -> None:
    """So that two releases can be compared."""
    command = [sys.executable, ROOT / "tools/sbom.py", tmp_path / "again.json"]
    subprocess.run(command, capture_output=True, timeout=scaled_timeout(100), check=True)

    assert (tmp_path / "again.json").read_text() == made.read_text()
