"""Makes the reference of the Python client from its docstrings, as web pages; run by `make docs`.

It goes to build/reference, or to the folder that is named.
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
ORIGINS = ("storeapi.model", "storeapi._connection")
"""Where types and constants are explained that `storeapi` shows."""
LISTS = ("Its steps raise",)
"""Headings of docstrings, besides pdoc's own, with one name and its meaning in each line below."""


def make_types_real() -> None:
    """Gives names to what is only in the type information, so that signatures can be read."""
    for service in ("Post", "Comment", "Change"):
        stubs = importlib.import_module(f"storeapi.v1.{service.lower()}s_pb2_grpc")
        name = f"{service}ServiceAsyncStub"
        setattr(stubs, name, type(name, (), {"__module__": stubs.__name__}))
    # What runs, unlike what is checked, does not take the types that it is annotated with.
    generic = {"__class_getitem__": classmethod(lambda kind, item: kind)}
    vars(grpc)["UnaryUnaryMultiCallable"] = type("UnaryUnaryMultiCallable", (), generic)


def complete(module: pdoc.doc.Module) -> None:
    """Explains what the module shows with the words of where it is from; pdoc does so for classes only."""
    origins = [it for name in ORIGINS for it in pdoc.doc.Module.from_name(name).members.values()]
    for member in module.members.values():
        if isinstance(member, pdoc.doc.Variable) and not member.docstring:
            texts = [it.docstring for it in origins if it.obj is member.obj]
            if not any(texts):
                raise SystemExit(f"{member.fullname} has no docstring")
            member.docstring = next(filter(None, texts))


def without_paths(module: pdoc.doc.Module) -> None:
    """Leaves out values that are another path on each machine."""
    for member in module.members.values():
        if isinstance(member, pdoc.doc.Variable) and isinstance(member.default_value, Path):
            member.default_value_str = ""


def build(target: Path) -> None:
    """Writes the pages; whatever pdoc cannot read is an error."""
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
    """Builds, says where, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = ROOT / "build/reference"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="where to write")
    folder = parser.parse_args().folder

    build(folder)
    print(folder / "index.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
