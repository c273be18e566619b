"""`storeapi export` and `storeapi import`, a lossless round trip without duplicates."""

import io
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from storeapi import Comment, CommentDraft, ExportBatch, Post, PostDraft, Record, StoreClient
from storeapi.cli.files import whole_file
from storeapi.cli.partial_export import PartialExport

from tests.support.polling import wait_until
from tests.support.storeapi_command import StoreapiCommand
from tests.support.timeouts import scaled_timeout

Keep = Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]


def everything(store: StoreClient) -> list[Record]:
    """All records, in the order of an export."""
    return [record for batch in store.transfer.export() for record in batch]


def fill(store: StoreClient, post_count: int) -> None:
    """Adds posts, with two comments on each third."""
    posts = store.posts.create_many(f"Grüße 日本 🎉\r\n\t{n}\u2028\x1b" for n in range(post_count))
    drafts = [CommentDraft(post_id=post.id, body=f"„{n}“\n") for post in posts[::3] for n in range(2)]
    store.comments.create_many(drafts)


def empty(store: StoreClient) -> None:
    for page in store.posts.list(page_size=500).pages():
        if page.items:
            store.posts.delete_many([post.id for post in page.items], force=True)


def post_line(id: int, body: str = "a", **fields: Any) -> str:
    return json.dumps({"kind": "post", "id": id, "body": body, **fields})


def comment_line(id: int, post_id: int, body: str = "b", **fields: Any) -> str:
    return json.dumps({"kind": "comment", "id": id, "post_id": post_id, "body": body, **fields})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "all.jsonl"


def write(file: Path, *lines: str) -> None:
    file.write_text("".join(f"{line}\n" for line in lines))


# Export


def test_export_has_one_line_per_resource(storeapi: StoreapiCommand, empty_store: StoreClient) -> None:
    """Posts first, with the fields of --json and a kind."""
    post = empty_store.posts.create(body="ü\n")
    comment = empty_store.comments.create(post_id=post.id, body="b")
    done = storeapi("export")

    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"kind": "post", **storeapi.json("posts", "get", str(post.id))[0]},
        {"kind": "comment", **storeapi.json("comments", "get", str(comment.id))[0]},
    ]
    assert done.stderr == "exported 1 posts and 1 comments\n"


def test_export_of_empty_store_is_an_empty_file(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """Its import adds nothing."""
    exported = storeapi("export", str(file))
    imported = storeapi("import", str(file))

    assert (exported.exit_code, imported.exit_code) == (0, 0)
    assert file.read_bytes() == b""
    assert imported.stderr == "imported 0 records: none\n"


def test_failed_export_keeps_the_old_file(storeapi: StoreapiCommand, file: Path) -> None:
    """Unchanged, without other files beside it."""
    file.write_text("old")
    done = storeapi("--target", "127.0.0.1:1", "--no-retries", "export", str(file))

    assert done.exit_code == 5
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_replaced_file_keeps_permissions_and_links(tmp_path: Path) -> None:
    """The target of a symbolic link is replaced, not the link. A new file follows the umask."""
    old, link, new = tmp_path / "old", tmp_path / "link", tmp_path / "new"
    old.touch()
    old.chmod(0o640)
    link.symlink_to(old)
    mask = os.umask(0o022)
    try:
        for path in (link, new):
            with whole_file(path) as target:
                target.write(b"content")
    finally:
        os.umask(mask)

    assert link.is_symlink()
    assert old.read_bytes() == new.read_bytes() == b"content"
    assert old.stat().st_mode & 0o777 == 0o640
    assert new.stat().st_mode & 0o777 == 0o644


def test_special_file_is_written_and_not_replaced(
    storeapi: StoreapiCommand, empty_store: StoreClient, started: Keep
) -> None:
    """Such as a named pipe or /dev/null."""
    empty_store.posts.create(body="a")
    pipe = storeapi.folder / "pipe"
    os.mkfifo(pipe)
    process = started(storeapi.start("export", str(pipe)))
    content = pipe.read_bytes()

    assert process.wait(scaled_timeout()) == 0
    assert content.count(b"\n") == 1
    assert pipe.is_fifo()


# Import


def fill_with_replies(store: StoreClient) -> None:
    """Posts with all fields, and threads whose replies reach over the ends of batches."""
    posts = store.posts.create_many(
        PostDraft(body=f"post {n}", author="ann", labels={"n": "ü="}, external_id=f"post:{n}")
        for n in range(3)
    )
    first = [
        store.comments.create_many(
            CommentDraft(post_id=post.id, body=f"first {post.id} {n}", external_id=f"c:{post.id}:{n}")
            for n in range(4)
        )
        for post in posts
    ]
    for post, comments in zip(posts, first, strict=True):
        replies = store.comments.create_many(
            CommentDraft(
                post_id=post.id,
                body=f"reply to {it.id}",
                author="bob",
                labels={"status": "new"},
                reply_to_id=it.id,
            )
            for it in comments
        )
        reply = replies[0]
        for n in range(5):
            reply = store.comments.create(post_id=post.id, body=f"chain {post.id} {n}", reply_to_id=reply.id)


def test_export_and_import_round_trip(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """1,800 posts and 1,200 comments with their ids, times and etags. A second import stores nothing."""
    fill(empty_store, 1800)
    before = everything(empty_store)
    exported = storeapi.process("export", str(file))
    empty(empty_store)
    imported = storeapi.process("import", str(file))
    again = storeapi("--json", "import", str(file))

    assert (exported[0], imported[0], again.exit_code) == (0, 0, 0)
    assert exported[2] == "exported 1800 posts and 1200 comments\n"
    assert imported[1:] == ("", "imported 3000 records: 3000 created\n")
    assert json.loads(again.stdout)["unchanged"] == 3000
    assert everything(empty_store) == before


def test_round_trip_keeps_every_field_and_every_reply(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """Authors, labels, external ids, threads, tombstones, and posts of erased authors."""
    fill_with_replies(empty_store)
    first = next(iter(empty_store.comments.list()))
    empty_store.comments.delete(first.id)
    post = empty_store.posts.create("of cat", author="cat")
    empty_store.comments.create(post_id=post.id, body="of bob")
    assert list(empty_store.admin.erase_author("cat", mode="anonymize", skip_rewrite=True))[-1].complete
    before = everything(empty_store)
    storeapi("export", str(file))
    empty(empty_store)
    done = storeapi("import", str(file))

    assert done.exit_code == 0, done.stderr
    assert everything(empty_store) == before


def test_interrupted_export_is_continued(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """From the last saved state. Nothing but the file is left."""
    fill(empty_store, 2000)
    whole = storeapi("export").stdout
    part, state = file.with_name("all.jsonl.partial"), file.with_name("all.jsonl.partial.state")
    with part.open("w+b") as partial_file, empty_store.transfer.export() as batches:
        partial = PartialExport(partial_file, state)
        for _ in range(4):
            partial.add(next(batches))
        partial.save()
        partial.add(next(batches))

    done = storeapi("export", "--resume", str(file))
    again = storeapi("export", "--resume", str(file))

    assert (done.exit_code, again.exit_code) == (0, 0)
    assert file.read_text() == whole
    assert list(file.parent.iterdir()) == [file]


def test_changed_records_replace_earlier_ones() -> None:
    """In the order of an export, so that a post stays before its comments. Removed ones disappear."""

    def post(id: int, body: str, **fields: Any) -> Record:
        return Record(resource=Post(id=id, body=body, etag="v1"), **fields)

    def comment(id: int, body: str) -> Record:
        return Record(resource=Comment(id=id, post_id=1, body=body, etag="v1"))

    partial, target = PartialExport(io.BytesIO()), io.BytesIO()
    partial.add(ExportBatch(records=(post(1, "a"), post(2, "b"), post(3, "c")), cursor="1"))
    partial.add(ExportBatch(records=(comment(1, "d"), comment(2, "e")), cursor="2"))
    partial.add(
        ExportBatch(
            records=(post(1, "new"), post(2, "gone", state="deleted"), post(4, "added")),
            cursor="3",
            changed_post_ids=(1, 2, 4),
            changed_comment_ids=(2,),
        )
    )
    partial.add(ExportBatch(records=(post(1, "newest"),), cursor="4", changed_post_ids=(1,)))
    count = partial.write_to(target)

    lines = [json.loads(line) for line in target.getvalue().splitlines()]
    assert count == len(lines)
    assert [(it["kind"], it["id"], it["body"]) for it in lines] == [
        ("post", 1, "newest"),
        ("post", 3, "c"),
        ("post", 4, "added"),
        ("comment", 1, "d"),
        ("post", 2, "gone"),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_import_is_continued(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path, started: Keep, number: int
) -> None:
    """From the last stored batch, or by storing nothing twice."""
    fill(empty_store, 3000)
    before = everything(empty_store)
    storeapi("export", str(file))
    empty(empty_store)
    lines = file.read_bytes().splitlines(keepends=True)
    state = file.with_name("state")

    process = started(storeapi.start("import", "--resume", str(state), stdin=subprocess.PIPE))
    assert process.stdin is not None
    for line in lines[:2600]:
        process.stdin.write(line)
    process.stdin.flush()
    wait_until(state.exists)
    process.send_signal(number)
    process.communicate()
    saved = json.loads(state.read_text())["records"]
    done = storeapi("--json", "import", "--resume", str(state), str(file))

    assert 0 < saved <= 2600
    assert done.exit_code == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["created"] + counts["unchanged"] == len(lines) - saved
    assert everything(empty_store) == before
    assert not state.exists()


def test_conflicts_are_handled_as_chosen(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """The line is named. A check stores nothing."""
    post = empty_store.posts.create("stored")
    write(file, post_line(post.id, "other"), post_line(post.id + 1, "new"))

    checked = storeapi("import", "--validate-only", str(file))
    assert checked.exit_code == 4
    assert len(everything(empty_store)) == 1
    failed = storeapi("import", str(file))
    skipped = storeapi("import", "--on-conflict", "skip", str(file))
    assert empty_store.posts.get(post.id) == post
    overwritten = storeapi("import", "--on-conflict", "overwrite", str(file))

    assert failed.exit_code == 4
    assert failed.stderr.splitlines() == [
        f"line 1: CONFLICT: post.id post {post.id} is stored with other values",
        "error: imported 2 records: 1 created, 1 failed",
    ]
    assert skipped.stderr == "imported 2 records: 1 unchanged, 1 skipped\n"
    assert overwritten.stderr == "imported 2 records: 1 overwritten, 1 unchanged\n"
    assert empty_store.posts.get(post.id).body == "other"


def test_lines_without_ids_are_found_by_external_id(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """The times of new resources are those of the import."""
    write(
        file,
        json.dumps({"kind": "post", "body": "a", "external_id": "p"}),
        json.dumps({"kind": "comment", "body": "b", "external_id": "c", "post_external_id": "p"}),
    )
    first, second = storeapi("import", str(file)), storeapi("import", str(file))

    assert first.stderr == "imported 2 records: 2 created\n"
    assert second.stderr == "imported 2 records: 2 unchanged\n"
    comment = empty_store.comments.get(external_id="c")
    assert comment.create_time == comment.update_time is not None
    assert comment.post_id == empty_store.posts.get(external_id="p").id


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"kind": "post", "id": 2, "bo', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("3", "not a JSON object"),
        ("{}", "kind"),
        ('{"kind": ["post"]}', "kind"),
        ('{"kind": "post", "id": true, "body": "a"}', "id must be an integer"),
        (post_line(2, "\ud800"), "character"),
        (post_line(2, title="b"), "title"),
        (post_line(2, author=5), "author must be a text"),
        (post_line(2, labels=["a"]), "labels must be an object"),
        (post_line(2, labels={"a": 5}), "labels.a must be a text"),
        (post_line(2, return_existing=True), "return_existing"),
        (post_line(2, create_time="yesterday"), "create_time must be a time"),
        (post_line(2, create_time="2026-11-22T12:00:00"), "create_time must be a time"),
        (post_line(2, state="gone"), "state must be"),
        (comment_line(1, 1, reply_to_id=False), "reply_to_id must be an integer"),
        (comment_line(1, 1, ancestor_ids=5), "ancestor_ids must be an array"),
        (post_line(0), "post.id is required"),
        (post_line(2, ""), "post.etag is required, because body is empty"),
        (post_line(2, "\0"), "post.body must not contain a NUL character"),
        (post_line(2, delete_time="2026-11-22T12:00:00Z"), "post.delete_time must be unset"),
        (comment_line(1, 9), "POST_NOT_FOUND: comment.post_id"),
        (comment_line(2, 1, reply_to_id=1), "COMMENT_NOT_FOUND: comment.reply_to_id"),
    ],
)
def test_damaged_line_is_refused(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path, line: str, words: str
) -> None:
    """With the line number."""
    file.write_text(f"{post_line(1)}\n{line}\n", errors="surrogateescape")
    done = storeapi("import", str(file))

    assert (done.exit_code, done.stdout) == (1, "")
    assert "line 2: " in done.stderr
    assert words in done.stderr
    assert len(everything(empty_store)) <= 1


def test_file_of_an_older_version_is_imported(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """The fields that it does not have are empty."""
    old = {"create_time": None, "update_time": "2026-01-01T00:00:00Z", "etag": "v1"}
    write(file, post_line(5, **old), comment_line(7, 5, **old))
    done = storeapi("import", str(file))

    assert done.exit_code == 0
    post, comment = (record.resource for record in everything(empty_store))
    assert (post.id, post.body, post.create_time, post.external_id) == (5, "a", None, "")
    assert replace(post, update_time=None) == Post(id=5, body="a", etag="v1")
    assert replace(comment, update_time=None) == Comment(id=7, post_id=5, body="b", etag="v1")


def test_unknown_fields_can_be_ignored(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """The error names the option, and the rest of the line is imported."""
    write(file, post_line(1, title="b"))
    refused = storeapi("import", str(file))
    done = storeapi("import", str(file), "--ignore-unknown-fields")

    assert "unknown field 'title' of a post" in refused.stderr
    assert "--ignore-unknown-fields" in refused.stderr
    assert done.exit_code == 0
    assert [it.resource.body for it in everything(empty_store)] == ["a"]


def test_import_without_service_is_unavailable(storeapi: StoreapiCommand, file: Path) -> None:
    """In one line."""
    write(file, post_line(1))
    done = storeapi("--target", "127.0.0.1:1", "--no-retries", "import", str(file))

    assert done.exit_code == 5
    assert done.stderr.count("\n") == 1


def test_missing_file_is_a_usage_error(storeapi: StoreapiCommand) -> None:
    """For an import, and for --resume without a file."""
    assert storeapi("import", "missing.jsonl").exit_code == 2
    assert storeapi("export", "--resume").exit_code == 2


def test_damaged_state_is_refused(storeapi: StoreapiCommand, file: Path) -> None:
    write(file, post_line(1))
    state = file.with_name("state")
    state.write_text('{"records": "many"}')

    done = storeapi("import", "--resume", str(state), str(file))

    assert done.exit_code == 1
    assert "is not the state of an import" in done.stderr
