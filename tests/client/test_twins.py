"""The two clients are one, and the package shows all that is public."""

import importlib.metadata
import importlib.util
import inspect
import re
import shutil
from pathlib import Path

import pytest
import storeapi
from storeapi.v1 import comments_pb2, posts_pb2

ROOT = Path(__file__).parents[2]
PAIRS = [
    (storeapi.StoreClient, storeapi.AsyncStoreClient),
    (storeapi.Collection, storeapi.AsyncCollection),
    (storeapi.Posts, storeapi.AsyncPosts),
    (storeapi.Comments, storeapi.AsyncComments),
    (storeapi.Changes, storeapi.AsyncChanges),
    (storeapi.Watch, storeapi.AsyncWatch),
    (storeapi.Pager, storeapi.AsyncPager),
]


def public(kind):
    """The names that a caller of this class sees, and how it is built."""
    return {name for name in [*vars(kind), *kind.__annotations__] if not name.startswith("_")} | {"__init__"}


def shape(function):
    """A signature with what must differ taken out."""
    text = str(inspect.signature(function))
    return re.sub(r"Async(?=\w)|\.aio(?=\.)| \| Awaitable\[\w+ \| str \| None\]", "", text)


@pytest.mark.parametrize(("sync_kind", "async_kind"), PAIRS)
def test_both_clients_have_the_same_names(sync_kind, async_kind):
    assert public(sync_kind) == public(async_kind)


@pytest.mark.parametrize(
    ("sync_method", "async_method"),
    [
        pytest.param(getattr(sync_kind, name), getattr(async_kind, name), id=f"{sync_kind.__name__}.{name}")
        for sync_kind, async_kind in PAIRS
        for name in sorted(public(sync_kind))
        if callable(getattr(sync_kind, name, None))
    ],
)
def test_both_clients_have_the_same_methods(sync_method, async_method):
    """Same arguments and results; one is awaited or iterated asynchronously."""
    gives_something_to_iterate = re.search(
        r"-> '?(AsyncIterator|AsyncPager|AsyncWatch)\b", str(inspect.signature(async_method))
    )

    assert shape(sync_method) == shape(async_method)
    assert not inspect.iscoroutinefunction(sync_method)
    assert inspect.isgeneratorfunction(sync_method) == inspect.isasyncgenfunction(async_method)
    if async_method.__name__ not in ("__init__", "read_at_least"):  # these send nothing
        assert inspect.iscoroutinefunction(async_method) == (not gives_something_to_iterate)


@pytest.mark.parametrize(("sync_kind", "async_kind"), PAIRS)
def test_every_public_method_has_help(sync_kind, async_kind):
    """On both clients."""
    for kind in (sync_kind, async_kind):
        methods = [name for name in public(kind) - {"__init__"} if hasattr(kind, name)]
        assert [name for name in methods if not getattr(kind, name).__doc__] == []


# The generator


@pytest.fixture
def generator(tmp_path, monkeypatch):
    """The tool, working on a copy of the client."""
    spec = importlib.util.spec_from_file_location("generate_sync", ROOT / "tools/generate_sync.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    shutil.copytree(tool.CLIENT, tmp_path / "storeapi", ignore=shutil.ignore_patterns("v1", "__pycache__"))
    monkeypatch.setattr(tool, "CLIENT", tmp_path / "storeapi")
    return tool


def test_sync_client_is_current(generator, capsys):
    """The committed code equals the output of the generator."""
    assert generator.main(["--check"]) == 0
    assert capsys.readouterr().err == ""


def test_stale_file_is_reported_and_regenerated(generator, capsys):
    """--check reports changed, missing and extra files without changing them."""
    sync = generator.CLIENT / "_sync"
    (sync / "posts.py").write_text("")
    (sync / "calls.py").unlink()
    (sync / "old.py").write_text("")

    checked = generator.main(["--check"])
    complaints = re.findall(r"_sync/(\w+)\.py is stale", capsys.readouterr().err)
    untouched = (sync / "posts.py").read_text()
    mended = generator.main([])
    checked_again = generator.main(["--check"])

    assert (checked, complaints, untouched) == (1, ["calls", "old", "posts"], "")
    assert (mended, checked_again) == (0, 0)


def test_unknown_async_construct_is_refused(generator):
    """A new asyncio construct needs a replacement rule."""
    with pytest.raises(SystemExit, match=r"_async/posts\.py: .*asyncio\.gather"):
        generator.twin("asyncio.gather(1)\n", "posts.py")


@pytest.mark.parametrize(
    "path", sorted(Path(storeapi.__file__).parent.glob("_sync/*.py")), ids=lambda p: p.name
)
def test_generated_file_starts_with_a_notice(path):
    first = path.read_text().splitlines()[0]

    assert first.startswith(f"# Made from storeapi/_async/{path.name} by tools/generate_sync.py")


# The package


def test_every_public_name_is_exported_once():
    """`__all__` contains clients, values and all errors."""
    classes = [name for name, value in vars(storeapi).items() if inspect.isclass(value)]

    assert len(set(storeapi.__all__)) == len(storeapi.__all__)
    assert set(classes) <= set(storeapi.__all__)
    assert [name for name in storeapi.__all__ if not hasattr(storeapi, name)] == []
    assert {name for name, value in vars(storeapi.errors).items() if _is_ours(value)} <= set(storeapi.__all__)


def _is_ours(value):
    return inspect.isclass(value) and value.__module__.startswith("storeapi.errors")


def test_version_is_that_of_the_distribution():
    assert storeapi.__version__ == importlib.metadata.version("storeapi")


def examples():
    """Every program in the README and the docstring of the package that creates a client."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "clients/python/README.md").read_text(), re.DOTALL)
    docstring = inspect.getdoc(storeapi)
    blocks.append("\n".join(line[4:] for line in docstring.splitlines() if line.startswith("    ")))
    return [block for block in blocks if re.search(r"StoreClient\(|connect(_async)?\(", block)]


@pytest.mark.parametrize("source", examples(), ids=["readme sync", "readme async", "docstring"])
def test_examples_run(server, source, capsys):
    server.answer(
        posts_pb2.Post(id=1, body="Hello"),
        comments_pb2.Comment(id=2, post_id=1, body="Hello yourself"),
        comments_pb2.ListCommentsResponse(
            comments=[comments_pb2.Comment(id=2, post_id=1, body="Hello yourself")]
        ),
    )

    exec(
        compile(source.replace("localhost:50051", server.target), "example", "exec"), {"__name__": "example"}
    )

    assert server.methods == ["CreatePost", "CreateComment", "ListComments"]
    assert "Hello yourself" in capsys.readouterr().out
