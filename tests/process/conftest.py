"""Fixtures of the tests of copies."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from store_service.database.connect import is_sqlite
from tests.support.copying import (
    empty_database,
    served,
)
from tests.support.server_process import ServerProcess

WAYS = ("sqlite-postgresql", "postgresql-sqlite", "postgresql-postgresql")


@pytest.fixture(params=WAYS)
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URLs of a source and of a target, both empty."""
    with ExitStack() as stack:
        urls = [
            stack.enter_context(empty_database(it, tmp_path, request.getfixturevalue("postgres")))
            for it in request.param.split("-")
        ]
        yield urls[0], urls[1]


@pytest.fixture
def source(databases: tuple[str, str], tmp_path: Path) -> Iterator[ServerProcess]:
    """A server on the source, with several processes on PostgreSQL."""
    workers = "1" if is_sqlite(databases[0]) else "2"
    settings = {"STORE_UNDELETE_HOURS": "24", "STORE_WORKERS": workers}
    with served(databases[0], tmp_path / "source", **settings) as process:
        yield process
