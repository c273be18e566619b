"""Marks that choose the database engines of a test."""

import pytest

SQLITE_ONLY = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For tests whose subject never reaches the database. All other tests run on each engine."""


POSTGRESQL_ONLY = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
"""For tests of several processes on one database, or of concurrent transactions."""
