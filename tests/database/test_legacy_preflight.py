"""Obstacles of an upgrade, and legacy data that the service could not serve. See test_upgrade.py for the
rest.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
import structlog

from store_service.database import connect, legacy_preflight, own_objects, schema, schema_objects
from store_service.errors import SchemaMismatch
from store_service.model import (
    CommentDraft,
    Deletion,
    Position,
    PostDraft,
    ResourceKind,
    ResumePoint,
    SnapshotCursor,
    WatchFilter,
)
from store_service.service.comments import Comments
from store_service.service.posts import Posts
from store_service.service.snapshot import Snapshot
from tests.support import legacy_database
from tests.support.database import database_connection, execute, query
from tests.support.postgresql import new_database
from tests.support.server_process import run_command

LARGEST = 2**62
END = 2**63 - 1


on_sqlite = pytest.mark.parametrize("bare_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("bare_url", ["postgresql"], indirect=True)


def warnings_of_upgrade(database_url: str) -> list[dict[str, object]]:
    """Upgrades, and returns the warnings in the log."""
    with structlog.testing.capture_logs() as lines:
        schema.upgrade(database_url)
    return [dict(line) for line in lines if line["log_level"] == "warning"]


async def everything(database_url: str) -> list[tuple[str, int, int, str]]:
    """The initial state: kind, id, post and body of each resource."""
    async with connect.open_database(database_url, readers=1) as store:
        start = ResumePoint(position=Position(xid=0, seq=0), snapshot=SnapshotCursor(kind=ResourceKind.POST))
        pages = [page async for page in Snapshot(store).pages(start, WatchFilter())]
    return [
        (change.kind.name, change.resource.id, change.post_id, change.resource.body)
        for page in pages
        for change in page.changes
        if change.resource is not None
    ]


# Bodies that are not text

BAD = {
    1: "CAST(x'ff6162' AS TEXT)",
    2: "x'ff00'",
    3: "CAST(x'eda080' AS TEXT)",
    4: "x'67c3bc'",
    5: "12",
}
"""SQL of bodies by id: three that are not UTF-8, then two that become text without loss."""


def fill_with_bad_bodies(database_url: str) -> None:
    legacy_database.fill(database_url, post_rows=[], comment_rows=[])
    for id, body in BAD.items():
        execute(database_url, f"INSERT INTO posts VALUES ({id}, {body})")
    execute(
        database_url,
        "INSERT INTO comments VALUES (1, x'80', 1), (2, x'616280', 99), (3, 'fine', 1)",
    )


@on_sqlite
async def test_undecodable_bodies_become_readable_text(bare_url: str) -> None:
    """Each invalid byte becomes U+FFFD."""
    fill_with_bad_bodies(bare_url)
    schema.upgrade(bare_url)

    assert await everything(bare_url) == [
        ("POST", 1, 1, "\ufffdab"),
        ("POST", 2, 2, "\ufffd\0"),
        ("POST", 3, 3, "\ufffd\ufffd\ufffd"),
        ("POST", 4, 4, "gü"),
        ("POST", 5, 5, "12"),
        ("COMMENT", 1, 1, "\ufffd"),
        ("COMMENT", 3, 1, "fine"),
    ]
    assert query(bare_url, "SELECT id, body, post_id FROM orphaned_comments") == [(2, "ab\ufffd", 99)]


@on_sqlite
def test_undecodable_bytes_are_kept_and_counted(bare_url: str) -> None:
    fill_with_bad_bodies(bare_url)
    warnings = warnings_of_upgrade(bare_url)

    (warning,) = [it for it in warnings if "undecodable_bodies" in str(it["event"])]
    assert warning["count"] == 5
    assert query(bare_url, "SELECT kind, id, body FROM undecodable_bodies ORDER BY kind, id") == [
        ("comment", 1, b"\x80"),
        ("comment", 2, b"ab\x80"),
        ("post", 1, b"\xffab"),
        ("post", 2, b"\xff\0"),
        ("post", 3, b"\xed\xa0\x80"),
    ]


@on_sqlite
async def test_utf_16_file_keeps_its_bodies(bare_url: str, tmp_path: Path) -> None:
    """The bytes in the file are not UTF-8, but the text is valid."""
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection, connection:
        connection.execute("PRAGMA encoding = 'UTF-16le'")
        connection.execute("CREATE TABLE made_by (somebody TEXT)")
    legacy_database.fill(bare_url, post_rows=[(1, "grüße, 😀")], comment_rows=[])
    execute(bare_url, "INSERT INTO posts VALUES (2, CAST(x'00d84100' AS TEXT))")
    schema.upgrade(bare_url)

    assert query(bare_url, "PRAGMA encoding") == [("UTF-16le",)]
    first, second = await everything(bare_url)
    assert first == ("POST", 1, 1, "grüße, 😀")
    assert "\ud800" not in second[3]
    assert query(bare_url, "SELECT count(*) FROM undecodable_bodies WHERE id = 1") == [(0,)]


# Invalid ids


def old_with_ids(database_url: str, post_ids: list[int]) -> None:
    """Posts with these ids, and a comment of each with the same id."""
    legacy_database.fill(database_url, post_rows=[], comment_rows=[])
    if not connect.is_sqlite(database_url):
        execute(
            database_url,
            "ALTER TABLE posts ALTER id TYPE BIGINT",
            "ALTER TABLE comments ALTER id TYPE BIGINT, ALTER post_id TYPE BIGINT",
        )
    for id in post_ids:
        execute(
            database_url,
            f"INSERT INTO posts VALUES ({id}, 'p {id}')",
            f"INSERT INTO comments VALUES ({id}, 'c {id}', {id})",
        )


async def test_invalid_and_largest_ids_are_replaced(bare_url: str) -> None:
    """The new ids follow all others. Comments refer to the new ids."""
    old_with_ids(bare_url, [-5, 0, 3, 7, LARGEST + 1, END])
    warnings = warnings_of_upgrade(bare_url)

    new = {-5: 8, 0: 9, 3: 3, 7: 7, LARGEST + 1: 10, END: 11}
    in_order = sorted(new, key=lambda old: new[old])
    assert await everything(bare_url) == [
        *(("POST", new[old], new[old], f"p {old}") for old in in_order),
        *(("COMMENT", new[old], new[old], f"c {old}") for old in in_order),
    ]
    assert query(
        bare_url, "SELECT kind, old_id, new_id FROM renumbered_resources ORDER BY kind DESC, old_id"
    ) == [(kind, old, id) for kind in ("post", "comment") for old, id in new.items() if old != id]
    (warning,) = warnings
    assert "renumbered_resources" in str(warning["event"])
    assert warning["count"] == 8


async def test_ids_continue_after_the_largest_ids(bare_url: str) -> None:
    old_with_ids(bare_url, [1, END])
    execute(bare_url, "DELETE FROM comments")
    schema.upgrade(bare_url)
    async with connect.open_database(bare_url, readers=1) as store:
        (post,) = await Posts(store).create([PostDraft(body="new")])
        (comment,) = await Comments(store).create([CommentDraft(body="new", post_id=post.id)])
        await Posts(store).delete(Deletion(ids=(2, post.id), force=True))
        (next_post,) = await Posts(store).create([PostDraft(body="newer")])

    assert (post.id, comment.id, next_post.id) == (3, 1, 4)


async def test_largest_valid_id_is_kept(bare_url: str) -> None:
    old_with_ids(bare_url, [0, LARGEST])
    schema.upgrade(bare_url)
    async with connect.open_database(bare_url, readers=1) as store:
        (post,) = await Posts(store).create([PostDraft(body="new")])

    assert query(bare_url, "SELECT id, body FROM posts ORDER BY id LIMIT 2") == [
        (LARGEST, f"p {LARGEST}"),
        (LARGEST + 1, "p 0"),
    ]
    assert post.id == LARGEST + 2


async def test_ids_continue_after_orphans_with_such_ids(bare_url: str) -> None:
    old_with_ids(bare_url, [1, END])
    if not connect.is_sqlite(bare_url):
        execute(bare_url, "ALTER TABLE comments DROP CONSTRAINT comments_post_id_fkey")
    execute(bare_url, f"DELETE FROM posts WHERE id = {END}")
    schema.upgrade(bare_url)
    async with connect.open_database(bare_url, readers=1) as store:
        (post,) = await Posts(store).create([PostDraft(body="new")])

    assert post.id == 2
    assert query(bare_url, "SELECT id, post_id FROM orphaned_comments") == [(END, END)]


@on_sqlite
def test_undecodable_bytes_are_found_by_the_new_id(bare_url: str) -> None:
    legacy_database.fill(bare_url, post_rows=[], comment_rows=[])
    execute(bare_url, "INSERT INTO posts VALUES (0, x'ff')")
    schema.upgrade(bare_url)

    assert query(bare_url, "SELECT id, body FROM undecodable_bodies") == [(1, b"\xff")]
    assert query(bare_url, "SELECT id, body FROM posts") == [(1, "\ufffd")]


def test_comments_without_a_post_id_become_orphans(bare_url: str) -> None:
    """Some legacy tables accept NULL as post_id."""
    execute(
        bare_url,
        "CREATE TABLE posts (id INTEGER PRIMARY KEY, body VARCHAR)",
        "CREATE TABLE comments (id INTEGER PRIMARY KEY, body VARCHAR, post_id INTEGER REFERENCES posts (id))",
        "INSERT INTO posts VALUES (1, 'a post')",
        "INSERT INTO comments VALUES (4, 'of none', NULL)",
    )
    schema.upgrade(bare_url)

    assert query(bare_url, "SELECT id, body, post_id FROM orphaned_comments") == [(4, "of none", None)]
    assert query(bare_url, "SELECT count(*) FROM comments") == [(0,)]


@on_postgresql
@pytest.mark.parametrize("how", ["ALWAYS", "BY DEFAULT"])
async def test_identity_columns_continue_after_all_given_ids(bare_url: str, how: str) -> None:
    id = f"id INTEGER GENERATED {how} AS IDENTITY PRIMARY KEY"
    execute(
        bare_url,
        f"CREATE TABLE posts ({id}, body VARCHAR)",
        f"CREATE TABLE comments ({id}, body VARCHAR, post_id INTEGER REFERENCES posts (id))",
        "INSERT INTO posts (id, body) OVERRIDING SYSTEM VALUE VALUES (0, 'too small')",
        "INSERT INTO posts (body) VALUES ('first'), ('gone')",
        "INSERT INTO comments (body, post_id) VALUES ('of the one too small', 0)",
        "DELETE FROM posts WHERE body = 'gone'",
    )
    schema.upgrade(bare_url)
    async with connect.open_database(bare_url, readers=1) as store:
        (post,) = await Posts(store).create([PostDraft(body="new")])

    assert query(bare_url, "SELECT id, body FROM posts ORDER BY id") == [
        (1, "first"),
        (3, "too small"),
        (4, "new"),
    ]
    assert query(bare_url, "SELECT id, post_id FROM comments") == [(1, 3)]
    assert post.id == 4


# Obstacles of an upgrade


def catalogue(database_url: str) -> object:
    """Returns the bytes of a file; for PostgreSQL, the names and columns."""
    if connect.is_sqlite(database_url):
        return connect.sqlite_file.database_path(database_url).read_bytes()
    return query(
        database_url,
        "SELECT relname::text, relkind::text, attname::text, atttypid FROM pg_class"
        " JOIN pg_attribute ON attrelid = pg_class.oid"
        " WHERE relnamespace = 'public'::regnamespace AND attnum > 0 ORDER BY 1, 3",
    )


def assert_refused(database_url: str, *words: str) -> None:
    """Checks that upgrade and check fail with the same line and do not change the database."""
    before = catalogue(database_url)
    for attempt in (schema.upgrade, schema.check):
        with pytest.raises(schema.ForeignSchema) as caught:
            attempt(database_url)
        text = str(caught.value)
        assert "\n" not in text
        for word in words:
            assert word in text
    assert catalogue(database_url) == before


NAMES = ["changes", "feed", "requests", "orphaned_comments", "undecodable_bodies", "renumbered_resources"]


@pytest.mark.parametrize("name", NAMES)
def test_table_with_a_needed_name_is_reported(bare_url: str, name: str) -> None:
    """The message names the remedy."""
    legacy_database.fill(bare_url)
    execute(bare_url, f"CREATE TABLE {name} (something INTEGER)")

    assert_refused(bare_url, f"table {name}", "rename or drop it")


def test_all_obstacles_are_reported_at_once(bare_url: str) -> None:
    legacy_database.fill(bare_url)
    execute(
        bare_url,
        "CREATE TABLE other (id INTEGER)",
        "CREATE VIEW feed AS SELECT id FROM other",
        "CREATE INDEX comments_post_id_id_idx ON other (id)",
        "CREATE VIEW new_posts AS SELECT id FROM other",
    )

    assert_refused(bare_url, "view feed", "index comments_post_id_id_idx", "view new_posts")


@on_sqlite
def test_name_in_capitals_is_an_obstacle_on_sqlite(bare_url: str) -> None:
    """Names are case-insensitive in SQLite."""
    legacy_database.fill(bare_url)
    execute(bare_url, "CREATE TABLE Changes (id INTEGER)")

    assert_refused(bare_url, "table Changes")


def test_every_name_created_by_an_upgrade_is_checked(bare_url: str) -> None:
    schema.upgrade(bare_url)
    known = {name for names in schema_objects.MADE_BY.values() for name in names} | {"alembic_version"}
    with database_connection(bare_url) as connection:
        inspector = sqlalchemy.inspect(connection)
        tables = set(inspector.get_table_names())
        indexes = set(
            connection.exec_driver_sql(
                "SELECT name FROM sqlite_master WHERE type = 'index' AND name NOT LIKE 'sqlite_%%'"
                if connect.is_sqlite(bare_url)
                else "SELECT indexname FROM pg_indexes"
                " WHERE schemaname = current_schema() AND indexname NOT LIKE '%%_pk%%'"
            ).scalars()
        )

    assert tables | indexes <= known


def test_table_that_references_posts_is_reported(bare_url: str) -> None:
    legacy_database.fill(bare_url)
    execute(bare_url, "CREATE TABLE likes (id INTEGER PRIMARY KEY, post_id INTEGER REFERENCES posts (id))")

    assert_refused(bare_url, "table likes, which refers to posts", "drop the foreign key, or the table")


def test_trigger_with_the_name_of_a_new_one_is_reported(bare_url: str) -> None:
    """An upgrade from a later revision than that of a legacy database refuses it too."""
    schema.upgrade(bare_url)
    with database_connection(bare_url) as connection:
        found = legacy_preflight.obstacles(connection, "0007")
    named = [it.partition(" trigger ")[2].partition(",")[0] for it in found if " trigger " in it]
    # PostgreSQL keeps the names of triggers by table, and a table of that name is reported itself.
    expected = [
        it
        for it in own_objects.LABEL_TRIGGERS["sqlite"]
        if connect.is_sqlite(bare_url) or not it.startswith("deleted_")
    ]
    assert sorted(named) == sorted(expected)


def test_schema_without_a_trigger_is_refused(bare_url: str) -> None:
    """Filters of labels would not find what is written without it."""
    schema.upgrade(bare_url)
    is_sqlite = connect.is_sqlite(bare_url)
    text = "SELECT sql FROM sqlite_master" if is_sqlite else "SELECT pg_get_triggerdef(oid) FROM pg_trigger"
    for name in sorted(own_objects.LABEL_TRIGGERS["sqlite"]):
        schema.check(bare_url)
        ((definition,),) = query(bare_url, f"{text} WHERE {'name' if is_sqlite else 'tgname'} = '{name}'")
        table = name.partition("_labels_")[0]
        execute(bare_url, f"DROP TRIGGER {name}" + ("" if is_sqlite else f" ON {table}"))

        with pytest.raises(schema.ForeignSchema, match=f"trigger {name} is missing"):
            schema.check(bare_url)
        execute(bare_url, str(definition))


@on_sqlite
def test_trigger_is_reported(bare_url: str) -> None:
    legacy_database.fill(bare_url)
    execute(
        bare_url,
        "CREATE TRIGGER shout AFTER INSERT ON posts"
        " BEGIN UPDATE posts SET body = upper(body) WHERE id = new.id; END",
    )

    assert_refused(bare_url, "trigger shout on posts", "drop it")


@on_postgresql
def test_postgresql_trigger_or_rule_is_reported(bare_url: str) -> None:
    legacy_database.fill(bare_url)
    execute(
        bare_url,
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
        "CREATE TRIGGER shout BEFORE INSERT ON posts FOR EACH ROW EXECUTE FUNCTION shout()",
        "CREATE RULE keep AS ON DELETE TO comments DO INSTEAD NOTHING",
    )

    assert_refused(bare_url, "trigger shout on posts", "rule keep on comments")


@pytest.mark.parametrize(
    ("id", "post_id", "problem"),
    [
        ("INTEGER", "INTEGER", "table posts has no INTEGER PRIMARY KEY id"),
        ("VARCHAR(9) PRIMARY KEY", "INTEGER", "table comments has no INTEGER PRIMARY KEY id"),
        ("INTEGER PRIMARY KEY", "VARCHAR(9)", "column post_id of comments is not an INTEGER"),
    ],
)
def test_table_without_its_primary_key_is_reported(
    bare_url: str, id: str, post_id: str, problem: str
) -> None:
    """Its ids may be duplicate or not numbers."""
    execute(
        bare_url,
        f"CREATE TABLE posts (id {id}, body VARCHAR)",
        f"CREATE TABLE comments (id {id}, body VARCHAR, post_id {post_id})",
    )

    assert_refused(bare_url, problem, "create the table as storeapi does")


def test_check_constraint_on_bodies_is_reported(bare_url: str) -> None:
    execute(
        bare_url,
        "CREATE TABLE posts (id INTEGER PRIMARY KEY, body VARCHAR UNIQUE)",
        "CREATE TABLE comments (id INTEGER PRIMARY KEY, body VARCHAR, post_id INTEGER,"
        " CONSTRAINT short CHECK (length(body) < 9))",
        "CREATE UNIQUE INDEX once ON comments (body)",
    )

    assert_refused(bare_url, "of posts may refuse", "unique index once of comments", "CHECK constraint short")


@on_postgresql
def test_view_of_posts_is_reported_on_postgresql(bare_url: str) -> None:
    legacy_database.fill(bare_url)
    execute(
        bare_url,
        "CREATE VIEW bodies AS SELECT body FROM posts",
        "CREATE VIEW one AS SELECT 1 AS one",
    )

    assert_refused(bare_url, "view bodies")


@on_postgresql
def test_other_dependents_of_columns_are_reported_on_postgresql(bare_url: str) -> None:
    """A publication of whole tables is no obstacle."""
    legacy_database.fill(bare_url)
    execute(bare_url, "CREATE PUBLICATION whole FOR TABLE posts, comments")
    users = [
        "CREATE PUBLICATION few FOR TABLE posts WHERE (id > 5)",
        "CREATE PUBLICATION parts FOR TABLE comments (id, body)",
        "CREATE FUNCTION latest() RETURNS VARCHAR BEGIN ATOMIC SELECT body FROM posts LIMIT 1; END",
        "CREATE TABLE drafts (draft comments)",
        "CREATE TABLE lists (listed posts[])",
    ]
    execute(bare_url, *users)

    assert_refused(
        bare_url,
        "publication few, which names columns of posts",
        "publication parts, which names columns of comments",
        "function latest()",
        "table drafts, which has rows of comments in a column",
        "table lists, which has rows of posts in a column",
        "drop it, and create it again afterwards",
    )
    execute(bare_url, "DROP PUBLICATION few, parts", "DROP FUNCTION latest", "DROP TABLE drafts, lists")
    schema.upgrade(bare_url)
    assert query(bare_url, "SELECT pubname FROM pg_publication") == [("whole",)]


@on_postgresql
def test_row_level_policies_are_reported(bare_url: str) -> None:
    legacy_database.fill(bare_url)
    execute(
        bare_url,
        "ALTER TABLE posts ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY decent ON posts USING (body <> 'secret')",
        "ALTER TABLE comments FORCE ROW LEVEL SECURITY",
    )

    assert_refused(bare_url, "policy decent of posts", "FORCE ROW LEVEL SECURITY of comments")


@on_postgresql
def test_exclusion_constraint_is_reported(bare_url: str) -> None:
    legacy_database.fill(bare_url)
    execute(
        bare_url, "ALTER TABLE comments ADD CONSTRAINT once EXCLUDE USING btree (post_id WITH =, id WITH =)"
    )

    assert_refused(bare_url, "EXCLUDE constraint once of comments may refuse")


@on_sqlite
def test_views_are_kept_on_sqlite(bare_url: str) -> None:
    """This includes broken views."""
    legacy_database.fill(bare_url)
    execute(
        bare_url,
        "CREATE VIEW bodies AS SELECT body FROM posts",
        "CREATE VIEW broken AS SELECT * FROM nowhere",
        "CREATE TABLE other (id INTEGER)",
        "CREATE TRIGGER posting AFTER INSERT ON other BEGIN INSERT INTO posts (body) VALUES ('x'); END",
    )
    schema.upgrade(bare_url)

    assert query(bare_url, "SELECT count(*) FROM bodies") == [(len(legacy_database.POSTS),)]
    execute(bare_url, "INSERT INTO other VALUES (1)")
    assert query(bare_url, "SELECT count(*) FROM bodies") == [(len(legacy_database.POSTS) + 1,)]


def test_foreign_indexes_are_recreated(bare_url: str) -> None:
    """This includes indexes with conditions and expressions."""
    legacy_database.fill(bare_url)
    statements = [
        "CREATE INDEX by_body ON posts (body)",
        "CREATE INDEX by_length ON comments (length(body)) WHERE body <> ':none 100%'",
    ]
    execute(bare_url, "DROP INDEX IF EXISTS by_body", statements[0], statements[1].replace("%", "%%"))
    if connect.is_sqlite(bare_url):
        made = "SELECT name, sql FROM sqlite_master WHERE name LIKE 'by_%' ORDER BY name"
    else:
        made = (
            "SELECT indexname::text, tablename::text FROM pg_indexes WHERE indexname LIKE 'by_%' ORDER BY 1"
        )
    before = query(bare_url, made)
    schema.upgrade(bare_url)

    assert len(before) == 2
    assert query(bare_url, made) == before


@on_sqlite
def test_index_that_cannot_be_recreated_is_reported(bare_url: str) -> None:
    """The index accepts NULL, but not the empty body that replaces NULL. It is removed with a warning."""
    legacy_database.fill(bare_url, post_rows=[(1, None)], comment_rows=[])
    fails_if_empty = "abs(iif(body = '', -9223372036854775807 - 1, 0))"
    execute(bare_url, f"CREATE INDEX by_tag ON posts ({fails_if_empty})")
    (warning,) = warnings_of_upgrade(bare_url)

    assert warning["index"] == "by_tag"
    schema.check(bare_url)


@pytest.mark.parametrize("revision", ["abc123", "0001abc"])
def test_revision_of_another_application_is_not_upgraded(bare_url: str, revision: str) -> None:
    legacy_database.fill(bare_url)
    execute(
        bare_url,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)",
        f"INSERT INTO alembic_version VALUES ('{revision}')",
    )
    for attempt in (schema.upgrade, schema.check):
        with pytest.raises(SchemaMismatch, match=revision):
            attempt(bare_url)


def test_version_table_not_of_alembic_is_reported(bare_url: str) -> None:
    """Otherwise the service would read and write it."""
    legacy_database.fill(bare_url)
    execute(bare_url, "CREATE TABLE alembic_version (something INTEGER)")

    assert_refused(bare_url, "alembic_version")


# Unsupported encodings


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_database_encoding_other_than_utf8_is_refused(postgres: str, tmp_path: Path, encoding: str) -> None:
    """All commands refuse it, for an empty, a legacy and an upgraded database."""
    options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with new_database(postgres, options) as url:
        assert_wrong_encoding(url, encoding)
        legacy_database.fill(url, post_rows=[(1, "a post")], comment_rows=[])
        assert_wrong_encoding(url, encoding)
        execute(
            url,
            "CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)",
            f"INSERT INTO alembic_version VALUES ('{schema.HEAD}')",
        )
        assert_wrong_encoding(url, encoding)
        for command in ("check", "migrate", "serve"):
            done = run_command(
                command, folder=tmp_path, settings={"DATABASE_URL": url, "STORE_LISTEN": "127.0.0.1:0"}
            )
            assert done.returncode == 1
            (line,) = done.stderr.splitlines()
            assert f"the database has the encoding {encoding}" in line


def assert_wrong_encoding(database_url: str, encoding: str) -> None:
    """Checks that upgrade and check name the encoding and the remedy."""
    for attempt in (schema.upgrade, schema.check):
        with pytest.raises(schema.WrongEncoding, match=f"{encoding}.*create one with ENCODING 'UTF8'"):
            attempt(database_url)
