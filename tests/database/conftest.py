"""Fixtures of the tests of the database layer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgresql import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables, on each engine in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
        return
    with new_database(request.getfixturevalue("postgres")) as url:
        yield url
