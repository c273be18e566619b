"""Missing privileges of a PostgreSQL role are reported in one line before anything is changed."""

import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
import pytest
from sqlalchemy.engine import make_url
from storeapi.v1 import posts_pb2

from store_service import config as settings
from store_service.database import privileges, schema
from store_service.server import serving
from tests.support import legacy_database
from tests.support.database import execute, query
from tests.support.errors import expect_error
from tests.support.postgresql import new_database
from tests.support.server_process import run_command
from tests.support.stubs import Stubs


class Database:
    """A database, and a role that has only the privileges that a test grants."""

    def __init__(self, url: str, role: str) -> None:
        self.url = url
        """Creates both as a superuser."""
        self.role = role
        self.role_url = make_url(url).set(username=role).render_as_string(hide_password=False)

    def grant(self, *statements: str) -> None:
        """Runs statements as the superuser, with {role} replaced by the name of the role."""
        execute(self.url, *(statement.format(role=self.role) for statement in statements))


@pytest.fixture
def database(postgres: str) -> Iterator[Database]:
    """An empty database, in which the role may use the schema `public` and nothing else."""
    with new_database(postgres) as url:
        role = f"role_{make_url(url).database}"
        database = Database(url, role)
        database.grant("CREATE ROLE {role} LOGIN", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        yield database
        database.grant("DROP OWNED BY {role}", "DROP ROLE {role}")


GRANT_ALL = "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO {role}"


def refused_by(command: str, database: Database, folder: Path, **environment: str) -> str:
    """Runs a command that must fail with one line. Returns the line."""
    settings = {"DATABASE_URL": database.role_url, "STORE_LISTEN": "127.0.0.1:0", **environment}
    done = run_command(command, folder=folder, settings=settings)
    assert done.returncode == 1
    assert "database: fine" not in done.stdout
    (line,) = done.stderr.splitlines()
    return line


def tables(database: Database) -> list[tuple[object, ...]]:
    """Returns the names of the tables."""
    return query(database.url, "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_missing_create_right_is_reported(database: Database, tmp_path: Path, workers: str) -> None:
    """In PostgreSQL 15 and later only the owner has it."""
    for command in ("check", "migrate", "serve"):
        line = refused_by(command, database, tmp_path, STORE_WORKERS=workers)
        assert f"role {database.role} lacks the privilege CREATE on schema public" in line
    assert tables(database) == []


def test_role_that_owns_no_tables_cannot_upgrade(database: Database, tmp_path: Path) -> None:
    legacy_database.fill(database.url)
    database.grant("GRANT CREATE ON SCHEMA public TO {role}", GRANT_ALL)
    for command in ("check", "migrate", "serve"):
        line = refused_by(command, database, tmp_path)
        assert f"role {database.role} is not the owner of comments, posts" in line
    assert tables(database) == [("comments",), ("posts",)]


def test_missing_schema_right_is_reported(database: Database, tmp_path: Path) -> None:
    """PostgreSQL would report missing tables."""
    schema.upgrade(database.url)
    database.grant("REVOKE USAGE ON SCHEMA public FROM PUBLIC", GRANT_ALL)
    for command in ("check", "migrate", "serve"):
        line = refused_by(command, database, tmp_path)
        assert f'role {database.role} may not use any schema of its search_path, "$user", public' in line


@pytest.mark.parametrize("right", privileges.TO_WRITE)
def test_missing_table_right_is_reported(database: Database, tmp_path: Path, right: str) -> None:
    """The message names the privilege and the table."""
    schema.upgrade(database.url)
    database.grant(GRANT_ALL, f"REVOKE {right} ON comments, changes FROM {{role}}")
    for command in ("check", "serve"):
        line = refused_by(command, database, tmp_path)
        assert f"role {database.role} lacks the privilege {right} on comments, changes, and so" in line


def test_a_role_that_may_not_truncate_the_changes_is_refused(database: Database, tmp_path: Path) -> None:
    """A service clears the change feed of a dump that was restored into another server."""
    schema.upgrade(database.url)
    database.grant(GRANT_ALL, "REVOKE TRUNCATE ON changes FROM {role}")

    for command in ("check", "serve"):
        line = refused_by(command, database, tmp_path)
        assert f"role {database.role} lacks the privilege TRUNCATE on changes, and so" in line


def test_all_missing_rights_are_reported_at_once(database: Database, tmp_path: Path) -> None:
    """One message names all of them."""
    schema.upgrade(database.url)
    line = refused_by("check", database, tmp_path)

    for right in privileges.TO_WRITE:
        assert f"lacks the privilege {right} on posts, comments, " in line
    assert "alembic_version" in line


def test_hiding_row_level_security_is_reported(database: Database, tmp_path: Path) -> None:
    """Row level security without a policy hides all rows without an error."""
    schema.upgrade(database.url)
    database.grant(GRANT_ALL, "ALTER TABLE posts ENABLE ROW LEVEL SECURITY")

    assert "row level security" in refused_by("serve", database, tmp_path)


def test_read_only_database_is_not_upgraded(database: Database, tmp_path: Path) -> None:
    """The message names the reason."""
    database.grant(
        "GRANT CREATE ON SCHEMA public TO {role}", "ALTER ROLE {role} SET default_transaction_read_only = on"
    )
    for command in ("migrate", "serve"):
        assert "the database accepts no writes" in refused_by(command, database, tmp_path)


def test_read_only_service_needs_only_select(database: Database, tmp_path: Path) -> None:
    """SELECT is enough."""
    schema.upgrade(database.url)
    database.grant("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    environment = {
        "DATABASE_URL": database.role_url,
        "STORE_LISTEN": "127.0.0.1:0",
        "STORE_READ_ONLY": "true",
    }

    assert run_command("check", folder=tmp_path, settings=environment).returncode == 0


async def test_right_revoked_later_is_unavailable(database: Database) -> None:
    """Reads continue."""
    schema.upgrade(database.url)
    database.grant(GRANT_ALL)
    config = settings.load(DATABASE_URL=database.role_url, listen="127.0.0.1:0")
    async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
        stubs = Stubs(channel)
        post = await stubs.create_post()
        database.grant("REVOKE INSERT ON posts FROM {role}")
        seen = await expect_error(stubs.create_post())

        assert (seen.code, seen.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        assert (await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id))).id == post.id
        database.grant(GRANT_ALL)
        assert (await stubs.create_post()).id > post.id


def test_checked_rights_cover_every_table(database: Database) -> None:
    """TABLES includes each new table, unless only an upgrade uses it."""
    schema.upgrade(database.url)
    names = {str(name) for (name,) in tables(database)}

    assert set(privileges.TABLES) < names
    with psycopg.connect(database.url) as connection:
        for name in names - set(privileges.TABLES) - {"alembic_version"}:
            assert re.fullmatch(r"orphaned_comments|undecodable_bodies|renumbered_resources", name)
            connection.execute(f"SELECT 1 FROM {name}")  # type: ignore[arg-type]
