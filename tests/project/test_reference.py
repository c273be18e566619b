"""The reference that `make docs` builds is whole and can be read."""

import html
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import storeapi
from storeapi import testing

from tests.support.repository import ROOT
from tests.support.timeouts import scaled_timeout


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages, by their path in the folder."""
    folder = tmp_path_factory.mktemp("reference")
    command: list[str | Path] = [sys.executable, "-W", "error", ROOT / "tools/reference.py", folder]
    run = subprocess.run(command, capture_output=True, text=True, timeout=scaled_timeout(), check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert Path(run.stdout.strip()) == folder / "index.html"
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.html")}


def sections(page: str) -> dict[str, str]:
    """What a page says of each name of its module."""
    parts = re.split(r'<section id="([^"]+)">', page)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def tagless(markup: str) -> str:
    """What people read, with its lines."""
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


def visible_text(markup: str) -> str:
    """What people read, in one line."""
    return " ".join(tagless(markup).split())


@pytest.mark.parametrize("module", [storeapi, testing], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(pages: dict[str, str], module: ModuleType) -> None:
    """With its text; classes with all their members."""
    found = sections(pages[f"{module.__name__.replace('.', '/')}.html"])

    assert set(found) == set(module.__all__)
    for name, section in found.items():
        explained = re.search(r'<div class="docstring">(.*?)</div>', section, re.DOTALL)
        assert explained, name
        assert len(visible_text(explained[1]).split()) >= 3, name
        value = getattr(module, name)
        if inspect.isclass(value) and value.__name__ == name:
            first = inspect.cleandoc(value.__doc__ or "").partition("\n\n")[0].replace("`", "")
            assert visible_text(first) in visible_text(explained[1]), name


def test_every_field_and_method_is_explained(pages: dict[str, str]) -> None:
    """Inherited ones too."""
    members = re.split(r'<div id="(\w+\.\w+)" class="classattr">', pages["storeapi.html"])[1:]

    # pdoc shows how a value is made, without a text: its fields below have theirs.
    names = [name for name in members[::2] if not name.endswith(".__init__")]
    unexplained = [
        name
        for name, text in zip(members[::2], members[1::2], strict=True)
        if name in names and 'class="docstring"' not in text
    ]
    assert {"Resource.etag", "StoreError.request_id", "Watch.resume_token", "Collection.modify"} <= set(names)
    assert unexplained == []


def test_reference_text_is_formatted(pages: dict[str, str]) -> None:
    """Examples keep their lines, names in backticks are code, and arguments and errors are lists."""
    watch = pages["storeapi.html"].partition('<div id="Changes.watch"')[2]

    example, _, rest = watch.partition("</code></pre>")
    assert "\n    for change in watch:\n" in tagless(example)
    assert "<code>start</code>" in rest
    for item in ("post_ids", "ValueError", "ResumeTokenExpired"):
        assert f"<li><strong>{item}:</strong>" in rest
    assert "StoreError                      every failed call\n" in tagless(pages["storeapi/errors.html"])


def test_reference_is_reproducible(pages: dict[str, str]) -> None:
    """No memory addresses and no local paths."""
    for name, page in pages.items():
        assert not re.search(r"\bat 0x[0-9a-f]{6,}", page), name
        assert str(ROOT) not in page, name
