"""The instructions of docs/operations.md and docs/postgresql.md work, and name what exists."""

import re
import shlex
import uuid
from pathlib import Path

import psycopg
import pytest
import storeapi
from sqlalchemy.engine import make_url

from store_service import cli
from tests.support.postgresql import new_database
from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess, run_command

PAGE = "".join((ROOT / "docs" / name).read_text() for name in ("operations.md", "postgresql.md"))


def test_page_names_existing_commands() -> None:
    """Every command that changes data is described."""
    code = re.findall(r"```sh\n.*?```|`[^`]+`", PAGE, re.DOTALL)
    named = {name for it in code for name in re.findall(r"store-service (\w+)", it)}

    assert named <= set(cli.main.commands)
    assert {"backup", "restore", "health", "migrate", "check"} <= named


def test_documented_commands_run_as_in_the_unit() -> None:
    """As its user, in its directory, with its settings and its database."""
    unit = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", (ROOT / "deploy/store-service.service").read_text(), re.M):
        unit.setdefault(name, value)  # of Environment the first, which is DATABASE_URL
    (script,) = re.findall(r"<!-- as the unit -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    words = shlex.split(script)

    program = unit["ExecStart"].split()[0]
    assert words[0] == "systemd-run"
    assert words[-2:] == [program, "check"]
    assert f"--uid={unit['User']}" in words
    assert unit["Environment"].startswith("DATABASE_URL=")
    assert f"--setenv={unit['Environment']}" in words
    for name in ("EnvironmentFile", "WorkingDirectory", "UMask"):
        assert f"--property={name}={unit[name]}" in words


def test_statements_for_two_roles_are_sufficient(postgres: str, tmp_path: Path) -> None:
    """One role migrates; the other serves and cannot change the schema."""
    first, second = re.findall(r"<!-- two roles -->\n```sql\n(.*?)```", PAGE, re.DOTALL)
    with new_database(postgres) as url:
        name = f"store_{make_url(url).database}"
        owner, app = f"{name}_owner", f"{name}_app"

        def run(database_url: str, script: str) -> None:
            script = script.replace("store_owner", owner).replace("store_app", app)
            script = re.sub(r"DATABASE store\b", f"DATABASE {name}", script)
            with psycopg.connect(database_url, autocommit=True) as connection:
                for statement in script.split(";"):
                    if statement.strip():
                        connection.execute(statement)  # type: ignore[call-overload]

        def of(role: str) -> str:
            return make_url(url).set(database=name, username=role).render_as_string(hide_password=False)

        run(url, first)
        try:
            run(make_url(url).set(database=name).render_as_string(hide_password=False), second)
            assert (
                run_command("migrate", folder=tmp_path, settings={"DATABASE_URL": of(owner)}).returncode == 0
            )
            settings = {"DATABASE_URL": of(app), "STORE_AUTO_MIGRATE": "false"}
            checked = run_command(
                "check", folder=tmp_path, settings={**settings, "STORE_LISTEN": "127.0.0.1:0"}
            )
            assert (checked.returncode, checked.stderr) == (0, "")
            server = ServerProcess(tmp_path, settings).start()
            try:
                write_everything(server.address)
                run(of(owner), "REVOKE UPDATE ON SEQUENCE store.posts_id_seq FROM store_app")
                refuse_import(server.address)
                assert server.stop() == 0
                assert "cannot delete" not in server.stderr()
            finally:
                server.kill()
            # As if a dump had been restored into another server, whose transaction numbers are lower.
            with psycopg.connect(make_url(url).set(database=name).render_as_string(False)) as connection:
                connection.execute("SET search_path = store")
                connection.execute("UPDATE changes SET xid = xid + 1000000")
            server = ServerProcess(tmp_path, settings).start()
            try:
                assert server.stop() == 0
                assert "change feed restarted" in server.stderr()
            finally:
                server.kill()
            with psycopg.connect(of(app)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("DROP TABLE posts")
        finally:
            run(
                url,
                "DROP DATABASE store WITH (FORCE); DROP ROLE store_owner; DROP ROLE store_app",
            )


def refuse_import(address: str) -> None:
    """Tries an import without the privilege on the sequences; other writes work."""
    with storeapi.StoreClient(address) as client:
        record = storeapi.Record(resource=storeapi.Post(id=10**6, body="imported"))
        with pytest.raises(storeapi.SchemaMismatch, match="privilege UPDATE on the sequences"):
            list(client.transfer.import_records([record]))
        assert client.posts.create(body="later").id < 10**6


def write_everything(address: str) -> None:
    """Writes to every table, and waits for the notifications."""
    with storeapi.StoreClient(address) as client, client.changes.watch(start="earliest") as watch:
        post = client.posts.create(body="a post", request_id=str(uuid.uuid4()))
        client.comments.create(post_id=post.id, body="a comment")
        client.posts.update(post.id, body="another")
        client.posts.delete(post.id, force=True)

        assert len([next(watch) for _ in range(5)]) == 5
        # An import sets the sequences.
        imported = storeapi.Record(resource=storeapi.Post(id=post.id + 100, body="imported"))
        (progress,) = client.transfer.import_records([imported])
        assert progress.created == 1
        assert client.posts.create(body="later").id > post.id + 100
