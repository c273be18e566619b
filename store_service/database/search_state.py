"""The state of the search index, for a command."""

import sqlalchemy

from store_service.database.engines import read_only_engine
from store_service.database.search_tables import search_index_table as index
from store_service.search import VERSION


def describe(database_url: str) -> str:
    """Returns the state of the index in words. The database has the latest schema."""
    engine = read_only_engine(database_url)
    try:
        with engine.connect() as connection:
            row = connection.execute(
                sqlalchemy.select(index.c.tokenizer, index.c.building_kind)
            ).one_or_none()
    finally:
        engine.dispose()
    if row is None:
        return "empty; the service builds it after its start"
    if row[0] != VERSION:
        return "of another version; the service builds it again after its start"
    return "not complete; the service builds it" if row[1] else "fine"
