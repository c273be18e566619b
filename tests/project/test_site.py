"""`make docs` builds the whole documentation without a warning, and its pages need no other site."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from storeapi.v1 import changes_pb2, comments_pb2, errors_pb2, posts_pb2

from tests.support.repository import ROOT
from tests.support.timeouts import scaled_timeout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--fail-on-warning", "--keep-going", "-d", folder / "doctrees", "-c", ROOT / "docs"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ROOT, folder / "html"],
        capture_output=True,
        text=True,
        timeout=scaled_timeout(120),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"


def test_every_document_is_a_page(site: Path) -> None:
    """Every Markdown file of docs/, and the front page."""
    documents = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]

    assert len(documents) > 40
    assert [path for path in documents if not (site / path.with_suffix(".html")).is_file()] == []
    assert (site / "index.html").read_text() == (site / "README.html").read_text()


def test_the_api_reference_has_every_message_service_and_enum(site: Path) -> None:
    """Each has a heading that links can point to."""
    page = (site / "docs/api.html").read_text()
    names = {
        name
        for file in (posts_pb2, comments_pb2, changes_pb2, errors_pb2)
        for group in ("services_by_name", "message_types_by_name", "enum_types_by_name")
        for name in getattr(file.DESCRIPTOR, group)
    }

    assert {"PostService", "Comment", "WatchRequest", "ErrorReason"} <= names
    assert [name for name in names if f'id="{name.lower()}"' not in page] == []


def test_pages_load_nothing_from_other_sites(site: Path) -> None:
    """No script, style, font or image has an absolute address."""
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+href="(?:https?:)?//|url\(["\']?https?:'
    )
    files = [path for path in site.rglob("*") if path.suffix in {".html", ".css"}]

    assert len(files) > 50
    assert [str(path.relative_to(site)) for path in files if loaded.search(path.read_text())] == []
