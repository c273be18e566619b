"""What the docstrings of the client show is true: every example in them runs against a real server."""

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from textwrap import dedent
from types import CodeType
from typing import Any

import pytest
import storeapi
from storeapi import testing

from store_service.config import Config
from store_service.server import serving
from tests.support.timeouts import scaled_timeout

ADDRESSES = re.compile(r"\b(localhost|store\.example\.com):50051\b")
GROUPS = (
    *(storeapi.Collection, storeapi.Posts, storeapi.Comments, storeapi.Changes),
    *(storeapi.AsyncCollection, storeapi.AsyncPosts, storeapi.AsyncComments, storeapi.AsyncChanges),
)
"""The classes whose methods call the server."""


def documented() -> Iterator[tuple[str, Any]]:
    """Every public module, class, function and method, by the name that users call it."""
    for module in (storeapi, testing):
        yield module.__name__, module
        for name in module.__all__:
            value = getattr(module, name)
            # Two names of one class would run its examples twice.
            if not callable(value) or getattr(value, "__name__", name) != name:
                continue
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                yield from ((f"{module.__name__}.{name}.{method}", it) for method, it in methods(value))


def methods(kind: type) -> list[tuple[str, Any]]:
    """The public methods and properties that a class defines itself, and how it is made."""
    # What dataclasses make is explained by the fields.
    made = () if is_dataclass(kind) else ("__init__",)
    return [
        (name, value)
        for name, value in vars(kind).items()
        if (not name.startswith("_") or name in made)
        and (inspect.isfunction(value) or isinstance(value, property))
    ]


def examples_in(docstring: str) -> list[str]:
    """The indented blocks of a docstring; below `Args:` and the like the text follows without a free line."""
    blocks = re.findall(r"\n\n((?:    .*\n|\n(?=\n*    ))+)", f"{inspect.cleandoc(docstring)}\n")
    return [dedent(block) for block in blocks]


EXAMPLES = [
    pytest.param(example, id=name if count == 1 else f"{name} {count}")
    for name, value in documented()
    for count, example in enumerate(examples_in(value.__doc__ or ""), 1)
]


@pytest.fixture
def database_url(database_file: Path) -> str:
    """The examples are about the client, so one engine is enough."""
    return f"sqlite:///{database_file}"


@pytest.fixture
async def service(config: Config) -> AsyncIterator[str]:
    """The address of a server that has post 1 with comment 1, and keeps deleted resources."""
    config = config.model_copy(update={"undelete_hours": 24.0})
    async with serving(config) as running, storeapi.connect_async(running.address) as client:
        post = await client.posts.create(body="a post")
        comment = await client.comments.create(post_id=post.id, body="a comment")
        assert (post.id, comment.id) == (1, 1)
        yield running.address


def compiled(example: str) -> tuple[CodeType, bool]:
    """An example as a program, and whether that is a coroutine."""
    code = compile(example, "example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code, bool(code.co_flags & inspect.CO_COROUTINE)


@pytest.mark.parametrize("example", EXAMPLES)
async def test_docstring_example_runs(example: str, service: str) -> None:
    """Examples from help() work without changes."""
    code, is_async = compiled(ADDRESSES.sub(service, example))
    given = {name: getattr(module, name) for module in (storeapi, testing) for name in module.__all__}
    given |= {"storeapi": storeapi, "token": ""}

    async with asyncio.timeout(scaled_timeout()):
        if is_async:
            async with storeapi.connect_async(service) as client:
                await eval(code, given | {"client": client})
        else:
            with storeapi.connect(service) as client:
                await asyncio.to_thread(exec, code, given | {"client": client})


def test_docstring_examples_are_found() -> None:
    """The search finds complete examples of modules, classes and methods."""
    docstring = """Does it.

            first(1)

            second(2)

        And so on:

            third(3)

        Args:
            it: What to do,
                at most once.

        Raises:
            ValueError: It cannot be done.
    """

    assert examples_in(docstring) == ["first(1)\n\nsecond(2)\n", "third(3)\n"]
    assert examples_in("Does it.\n\nArgs:\n    it: What to do.\n\nRaises:\n    ValueError: No.\n") == []
    found = {param.id for param in EXAMPLES}
    assert {
        "storeapi",
        "storeapi.StoreClient",
        "storeapi.AsyncCollection.modify",
        "storeapi.Watch.batches",
    } <= found


def test_every_public_name_has_a_docstring() -> None:
    """At least one sentence."""
    # A class inherits the docstring of its parent, which says nothing of the class.
    texts = {
        name: vars(it).get("__doc__") if inspect.isclass(it) else it.__doc__ for name, it in documented()
    }

    assert len(texts) > 100
    assert [name for name, text in texts.items() if not re.match(r"\S[^(]*\s.*\w", text or "")] == []


@pytest.mark.parametrize("kind", GROUPS, ids=lambda kind: kind.__name__)
def test_every_call_has_an_example(kind: type) -> None:
    """For threads or for asyncio, as the client requires."""
    calls = [(name, value) for name, value in methods(kind) if name != "__init__"]

    assert calls
    for name, value in calls:
        examples = examples_in(value.__doc__)
        assert any(f".{name}(" in example for example in examples), name
        assert {compiled(example)[1] for example in examples} == {kind.__name__.startswith("Async")}, name
