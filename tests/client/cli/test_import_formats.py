"""`storeapi import --format`, with a real server on each engine."""

import json
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storeapi import Comment, Post, StoreClient
from storeapi.formats import ImportedRecord

from tests.support.engines import SQLITE_ONLY
from tests.support.foreign_files import WRITERS
from tests.support.imported_files import read_file
from tests.support.polling import wait_until
from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess
from tests.support.storeapi_command import StoreapiCommand
from tests.support.timeouts import scaled_timeout

FILES = ROOT / "tests/client/formats/files"

COMMENTS = 6_000
"""In a file whose import takes long enough to be interrupted."""

Keep = Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]


@pytest.fixture
def settings() -> dict[str, str]:
    """Settings of the server; tests can add some."""
    return {}


@pytest.fixture
def address(server_process: ServerProcess, database_url: str, settings: dict[str, str]) -> str:
    """A server of the test's own, on each engine."""
    server_process.settings |= {"DATABASE_URL": database_url, **settings}
    return server_process.start().address


@pytest.fixture
def storeapi(address: str, tmp_path: Path) -> StoreapiCommand:
    """The command, with deadlines for a busy machine."""
    return StoreapiCommand(address, tmp_path, {"STOREAPI_TIMEOUT": str(scaled_timeout())})


@pytest.fixture
def store(address: str) -> Iterator[StoreClient]:
    """The client of the same server."""
    with StoreClient(address, timeout=scaled_timeout()) as client:
        yield client


def has_comments(store: StoreClient) -> bool:
    return next(iter(store.comments.list(page_size=1)), None) is not None


def file_of(name: str, folder: Path) -> Path:
    """The small file of a format."""
    if name != "isso":
        return next(FILES.glob(f"{name}.*"))
    path = folder / "comments.db"
    if not path.exists():
        database = sqlite3.connect(path)
        database.executescript((FILES / "isso.sql").read_text())
        database.close()
    return path


def stored(store: StoreClient) -> list[Post | Comment]:
    """Everything, posts first."""
    return [*store.posts.list(page_size=1000), *store.comments.list(page_size=1000)]


def numbers(storeapi: StoreapiCommand, *arguments: str | Path) -> dict[str, dict[str, int]]:
    """The numbers in the report of an import."""
    (report,) = storeapi.json("import", *map(str, arguments))
    counts: dict[str, dict[str, int]] = report["counts"]
    return counts


def as_imported(resources: list[Post | Comment], records: list[ImportedRecord]) -> list[ImportedRecord]:
    """What is stored, in the form of the records; times that a record does not have are not compared."""
    names = {(type(it), it.id): it.external_id for it in resources}
    found = []
    for it, record in zip(resources, records, strict=True):
        assert it.create_time is not None
        changed = it.update_time if record.update_time else None
        found.append(
            ImportedRecord(
                kind="comment" if isinstance(it, Comment) else "post",
                external_id=it.external_id,
                place=record.place,
                body=it.body,
                author=it.author,
                labels=dict(it.labels),
                create_time=it.create_time if record.create_time else None,
                update_time=changed,
                post_external_id=names[Post, it.post_id] if isinstance(it, Comment) else "",
                reply_to_external_id=names[Comment, it.reply_to_id]
                if isinstance(it, Comment) and it.reply_to_id
                else "",
            )
        )
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_everything_is_stored_once(
    name: str, storeapi: StoreapiCommand, store: StoreClient, tmp_path: Path
) -> None:
    path = file_of(name, tmp_path)
    records, _ = read_file(name, path)
    first = numbers(storeapi, "--format", name, path)
    resources = stored(store)
    assert as_imported(resources, records) == records
    assert sum(first["created"].values()) == len(records)

    second = numbers(storeapi, "--format", name, path)
    assert stored(store) == resources
    assert second["created"] == {"post": 0, "comment": 0}
    assert second["already there"] == first["created"]
    assert second["left out"] == first["left out"]


@pytest.mark.parametrize("name", WRITERS)
@SQLITE_ONLY
def test_a_later_file_adds_what_is_new(
    name: str, storeapi: StoreapiCommand, store: StoreClient, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    WRITERS[name](old, 101)
    WRITERS[name](new, 103)
    assert numbers(storeapi, "--format", name, old)["created"] == {"post": 2, "comment": 101}
    before = stored(store)
    # Changes that were made since the first import stay.
    store.comments.update(before[-1].id, body="changed")
    report = numbers(storeapi, "--format", name, new)
    assert report["created"] == {"post": 0, "comment": 2}
    assert report["already there"] == {"post": 2, "comment": 101}
    assert store.comments.get(before[-1].id).body == "changed"
    assert len(stored(store)) == len(before) + 2


@SQLITE_ONLY
def test_the_report_is_that_of_the_documentation(storeapi: StoreapiCommand) -> None:
    done = storeapi("import", "--format", "disqus", str(FILES / "disqus.xml"))
    assert (done.exit_code, done.stderr) == (0, "")
    assert f".xml.gz\n{done.stdout}```" in (ROOT / "docs/importing.md").read_text()


@SQLITE_ONLY
def test_validate_only_stores_nothing(storeapi: StoreapiCommand, store: StoreClient) -> None:
    path = str(FILES / "wordpress.xml")
    done = storeapi("import", "--format", "wordpress", "--validate-only", path)
    assert done.exit_code == 0
    assert done.stdout.endswith("\nNothing was stored (--validate-only).\n")
    assert stored(store) == []
    report = numbers(storeapi, "--format", "wordpress", "--validate-only", path)
    assert report["created"] == {"post": 3, "comment": 4}


@pytest.mark.parametrize("name", ["disqus", "isso"])
@SQLITE_ONLY
def test_stdin_is_read(name: str, storeapi: StoreapiCommand, store: StoreClient, tmp_path: Path) -> None:
    content = file_of(name, tmp_path).read_bytes()
    (report,) = storeapi.json("import", "--format", name, stdin=content)
    assert report["counts"]["created"]["comment"] == len(list(store.comments.list())) > 0


@SQLITE_ONLY
def test_a_second_site_has_another_prefix(storeapi: StoreapiCommand, store: StoreClient) -> None:
    path = FILES / "disqus.xml"
    numbers(storeapi, "--format", "disqus", path)
    report = numbers(storeapi, "--format", "disqus", "--prefix", "blog2", path)
    assert report["created"] == {"post": 1, "comment": 4}
    assert [it.external_id for it in store.posts.list()] == ["disqus:100", "blog2:100"]
    assert {it.labels["source"] for it in store.posts.list()} == {"disqus"}


@SQLITE_ONLY
def test_a_damaged_file_stores_nothing(storeapi: StoreapiCommand, store: StoreClient, tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    lines = (FILES / "disqus.xml").read_text().splitlines()
    path.write_text("\n".join(lines[:100]))
    done = storeapi("import", "--format", "disqus", str(path))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {path}, line 100, column ")
    assert done.stderr.endswith("expected a complete <disqus> file\n")
    assert stored(store) == []


@SQLITE_ONLY
def test_options_that_are_not_valid_name_the_option(storeapi: StoreapiCommand) -> None:
    path = str(FILES / "disqus.xml")
    done = storeapi("import", "--format", "movable-type", path)
    assert done.exit_code == 2
    assert "--format: no format has the name 'movable-type'; the formats are disqus, isso" in done.stderr
    for prefix in ("", "a\nb", "x" * 65):
        done = storeapi("import", "--format", "disqus", "--prefix", prefix, path)
        assert done.exit_code == 2
        assert "--prefix" in done.stderr
    for option in (["--on-conflict", "skip"], ["--resume", "state"], ["--ignore-unknown-fields"]):
        done = storeapi("import", "--format", "disqus", *option, path)
        assert done.exit_code == 2
        assert f"{option[0]} cannot be used with --format disqus" in done.stderr
    done = storeapi("import", "--prefix", "x", path)
    assert done.exit_code == 2
    assert "--prefix cannot be used with --format jsonl" in done.stderr


@pytest.mark.parametrize("settings", [{"STORE_MAX_BODY_BYTES": "40"}])
@SQLITE_ONLY
def test_records_that_the_service_refuses_are_reported(
    storeapi: StoreapiCommand, store: StoreClient, tmp_path: Path
) -> None:
    path = tmp_path / "export.xml"
    # The second comment is too long, and the third replies to it.
    path.write_text(
        '<disqus xmlns="http://disqus.com" xmlns:d="http://disqus.com/disqus-internals">'
        '<thread d:id="1"><title>T</title></thread>'
        '<post d:id="1"><message>short</message><thread d:id="1"/></post>'
        f'<post d:id="2"><message>{"long" * 20}</message><thread d:id="1"/></post>'
        '<post d:id="3"><message>reply</message><thread d:id="1"/><parent d:id="2"/></post></disqus>'
    )
    done = storeapi("--json", "import", "--format", "disqus", str(path))
    assert done.exit_code == 1
    assert "the service has refused 2 records; the others are imported" in done.stderr
    report = json.loads(done.stdout)
    refused = {it["reason"]: it["examples"] for it in report["left_out"]}
    assert set(refused) == {
        "refused by the service: FIELD_INVALID",
        "refused by the service: COMMENT_NOT_FOUND",
    }
    (example,) = refused["refused by the service: FIELD_INVALID"]
    assert example.startswith("disqus:2: comment.body must not be longer than 40 bytes")
    assert [it.body for it in stored(store)] == ["T", "short"]


def test_an_import_that_was_killed_is_continued(
    storeapi: StoreapiCommand, store: StoreClient, started: Keep, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    WRITERS["wordpress"](path, COMMENTS)
    process = started(storeapi.start("import", "--format", "wordpress", str(path)))
    wait_until(lambda: process.poll() is not None or has_comments(store))
    assert process.poll() is None, "the import ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait(scaled_timeout())
    numbers(storeapi, "--format", "wordpress", path)
    records, _ = read_file("wordpress", path)
    assert len(records) == COMMENTS + COMMENTS // 100
    assert as_imported(stored(store), records) == records


@SQLITE_ONLY
def test_an_interruption_says_how_to_continue(
    storeapi: StoreapiCommand, store: StoreClient, started: Keep, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    WRITERS["disqus"](path, COMMENTS)
    process = started(storeapi.start("import", "--format", "disqus", str(path)))
    wait_until(lambda: process.poll() is not None or has_comments(store))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=scaled_timeout())
    assert process.returncode == 130
    assert stderr == b"error: interrupted; to continue, run the same command again\n"


@SQLITE_ONLY
def test_nothing_is_left_in_the_folder_for_temporary_files(storeapi: StoreapiCommand, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    storeapi.environment |= {"TMPDIR": str(folder), "SQLITE_TMPDIR": str(folder)}
    path = tmp_path / "large"
    WRITERS["disqus"](path, 20_000)
    with path.open("rb") as stdin:
        process = storeapi.start("import", "--format", "disqus", "--validate-only", stdin=stdin)
        process.communicate(timeout=scaled_timeout())
    assert process.returncode == 0
    assert list(folder.iterdir()) == []


@SQLITE_ONLY
def test_the_default_format_is_an_export(
    storeapi: StoreapiCommand, store: StoreClient, tmp_path: Path
) -> None:
    post = store.posts.create("a")
    storeapi("export", str(tmp_path / "all.jsonl"))
    done = storeapi("import", "--format", "jsonl", str(tmp_path / "all.jsonl"))
    assert done.exit_code == 0
    assert store.posts.get(post.id) == post
