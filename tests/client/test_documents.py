"""What docs/client.md shows works as it stands."""

import inspect
import re
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import storeapi
from storeapi.testing import running_server

PAGE = (Path(__file__).parents[2] / "docs/client.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
TESTS = [block for block in PYTHON if "def test_" in block]
FOR_CONFTEST = [block for block in PYTHON if "pytest_plugins" in block]
USES = [block for block in PYTHON if block not in TESTS + FOR_CONFTEST]


class EnoughError(Exception):
    """Ends an example that runs forever."""


@pytest.fixture(scope="module")
def real() -> Iterator[Any]:
    with running_server({"STORE_UNDELETE_HOURS": "24"}) as server:
        yield server


@pytest.mark.parametrize("block", USES, ids=lambda block: block.strip().splitlines()[-1].strip())
def test_documented_example_runs(block: str, real: Any) -> None:
    """Against a real server, with the names that the page uses."""

    def once(*_: object) -> None:
        raise EnoughError

    with storeapi.connect(real.target) as client:
        post = client.posts.create(body="Hello")
        given = {
            "storeapi": storeapi,
            "datetime": datetime,
            "timedelta": timedelta,
            "timezone": timezone,
            "client": client,
            "post": post,
            "order": SimpleNamespace(text="Hello", uuid=uuid.uuid4(), key=uuid.uuid4().hex),
            "stored_token": next(client.posts.pages()).resume_token,
            "database": nullcontext(),
            "apply": lambda change: None,
            "store": once,
            "print": once,
        }
        client.posts.create(body="after the token")
        never_ends = "watch(" in block
        with pytest.raises(EnoughError) if never_ends or "print(" in block else nullcontext():
            exec(compile(block.replace("localhost:50051", real.target), "docs/client.md", "exec"), given)


@pytest.mark.parametrize("block", TESTS, ids=lambda block: re.search(r"def (test_\w+)", block)[1])
def test_documented_test_passes(block: str, real: Any) -> None:
    """As in a project that copies it."""
    given: dict[str, Any] = {}
    exec(compile(block, "docs/client.md", "exec"), given)
    (name,) = [name for name in given if name.startswith("test_")]

    if "store_client" in block:
        with storeapi.connect(real.target) as client:
            given[name](client)
    else:
        given[name]()


def test_every_client_argument_and_variable_is_documented() -> None:
    """The table of the page is complete."""
    arguments = set(inspect.signature(storeapi.StoreClient).parameters)
    source = (Path(storeapi.__file__).parent / "_connection.py").read_text()
    variables = set(re.findall(r"STOREAPI_[A-Z_]+", source))

    named = set(re.findall(r"`(\w+)`", PAGE))
    assert arguments | variables <= named


def test_every_public_method_is_documented() -> None:
    kinds = (storeapi.Posts, storeapi.Comments, storeapi.Changes, storeapi.Watch, storeapi.Pager)
    methods = {name for kind in kinds for name in vars(kind) if not name.startswith("_")}

    assert {name for name in methods if not re.search(rf"\b{name}\b", PAGE)} == set()
