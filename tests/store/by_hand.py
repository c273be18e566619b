"""A look into a database, and a hand in it, past the store."""

from sqlalchemy import text

from tests.rpc.helpers import connected


def query(database_url: str, statement: str) -> list[tuple[object, ...]]:
    """The rows of one statement, read by a connection of its own."""
    with connected(database_url) as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def execute(database_url: str, *statements: str) -> None:
    """Runs statements as they stand, in one transaction."""
    with connected(database_url) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
