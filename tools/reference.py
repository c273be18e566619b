"""Generates the reference of the Python client from its docstrings, as web pages; run by `make docs`.

The pages are written to build/reference, or to the given folder.
"""

import argparse
import importlib
import warnings
from pathlib import Path

import grpc
import pdoc.doc
import pdoc.docstrings
import pdoc.render

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("storeapi", "storeapi.errors", "storeapi.testing", "storeapi.testing.fixtures", "storeapi.files")
ORIGINS = ("storeapi.model", "storeapi._connection", "storeapi._transfer")
"""Modules with the docstrings of types and constants that `storeapi` exports."""
LISTS = ("Its steps raise",)
"""Additional headings of docstrings, below which each line has a name and its meaning."""


def make_types_real() -> None:
    """Creates the classes that exist only in type information, so that pdoc can show signatures."""
    for service, module in (
        ("Post", "posts"),
        ("Comment", "comments"),
        ("Change", "changes"),
        ("Admin", "admin"),
        ("Transfer", "transfer"),
    ):
        stubs = importlib.import_module(f"storeapi.v1.{module}_pb2_grpc")
        name = f"{service}ServiceAsyncStub"
        setattr(stubs, name, type(name, (), {"__module__": stubs.__name__}))
    # At run time, unlike in the type information, this class is not generic.
    generic = {"__class_getitem__": classmethod(lambda kind, item: kind)}
    vars(grpc)["UnaryUnaryMultiCallable"] = type("UnaryUnaryMultiCallable", (), generic)


def complete(module: pdoc.doc.Module) -> None:
    """Adds the docstrings of variables from the modules that define them; pdoc does this only for classes."""
    origins = [it for name in ORIGINS for it in pdoc.doc.Module.from_name(name).members.values()]
    for member in module.members.values():
        if isinstance(member, pdoc.doc.Variable) and not member.docstring:
            texts = [it.docstring for it in origins if it.obj is member.obj]
            if not any(texts):
                raise SystemExit(f"{member.fullname} has no docstring")
            member.docstring = next(filter(None, texts))


def without_paths(module: pdoc.doc.Module) -> None:
    """Removes values that are paths, because they differ between machines."""
    for member in module.members.values():
        if isinstance(member, pdoc.doc.Variable) and isinstance(member.default_value, Path):
            member.default_value_str = ""


def build(target: Path) -> None:
    """Writes the pages. Warnings of pdoc are errors."""
    make_types_real()
    pdoc.docstrings.GOOGLE_LIST_SECTIONS += LISTS
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        modules = {name: pdoc.doc.Module.from_name(name) for name in MODULES}
        complete(modules["storeapi"])
        without_paths(modules["storeapi.files"])
        pages = {
            f"{name.replace('.', '/')}.html": pdoc.render.html_module(module, modules)
            for name, module in modules.items()
        }
        pages |= {
            "index.html": pdoc.render.html_index(modules),
            "search.js": pdoc.render.search_index(modules),
        }
    for name, page in pages.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")


def main() -> int:
    """Builds the pages, prints their path, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = ROOT / "build/reference"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="where to write")
    folder = parser.parse_args().folder

    build(folder)
    print(folder / "index.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
