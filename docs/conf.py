"""Builds the web site from README.md, docs/ and the comments of the protos; run by `make docs`.

The source directory is the repository, so links between its files are links of the site, and Sphinx checks
them.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import proto_reference  # noqa: E402

project = "store-service"
html_title = project
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "clients/*.md",
    "clients/*/README.md",
    "docs/**.md",
]
myst_heading_anchors = 4
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False

_SECTIONS = {
    "For callers": [
        "docs/tour",
        "docs/client",
        "docs/search",
        "docs/change-feed",
        "docs/comment-section",
        "docs/api",
        "clients/README",
        "clients/python/README",
        "clients/go/README",
        "clients/typescript/README",
        "clients/java/README",
        "clients/rust/README",
    ],
    "For operators": [
        "docs/installing",
        "docs/settings",
        "docs/commands",
        "docs/operations",
        "docs/proxies",
        "docs/postgresql",
        "docs/topologies",
        "docs/security",
        "docs/privacy",
        "docs/alerts-and-metrics",
        "docs/export-import",
        "docs/migrating",
        "docs/importing",
        "docs/copying",
    ],
    "For developers": [
        "docs/architecture",
        "docs/decisions/README",
        "clients/conformance/README",
        "docs/benchmarks",
        "docs/glossary",
        "CONTRIBUTING",
        "CHANGELOG",
    ],
}


def _toctree(caption: str, pages: list[str]) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def _extend(app: Sphinx, name: str, source: list[str]) -> None:
    """Adds what only the site has: the menus, and the reference of the API."""
    if name == "README":
        source[0] += "".join(_toctree(caption, pages) for caption, pages in _SECTIONS.items())
    elif name == "docs/decisions/README":
        pages = sorted(f"/docs/decisions/{path.stem}" for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
        source[0] += _toctree("Decisions", pages)
    elif name == "docs/api":
        source[0] += "\n" + proto_reference.markdown()


def _make_front_page(app: Sphinx, error: Exception | None) -> None:
    """The README is also the page of the folder."""
    if error is None and app.builder.name == "html":
        page = Path(app.outdir) / "README.html"
        Path(app.outdir, "index.html").write_text(page.read_text(encoding="utf-8"), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _extend)
    app.connect("build-finished", _make_front_page)
