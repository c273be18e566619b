"""`storeapi export` and `storeapi import`, a lossless round trip without duplicates."""

import io
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storeapi import CommentDraft, PostDraft, StoreClient
from storeapi.cli.batches import BATCH_ITEMS, FULL_BYTES, batches
from storeapi.cli.exporting import write_all
from storeapi.cli.files import whole_file
from storeapi.cli.lines import Line

from tests.support.storeapi_command import StoreapiCommand
from tests.support.timeouts import scaled_timeout

Keep = Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]

Threads = list[tuple[str, list[str]]]


def threads(store: StoreClient) -> Threads:
    """All bodies: of each post, and of the comments on it, in the order in which they were added."""
    found: dict[int, tuple[str, list[str]]] = {post.id: (post.body, []) for post in store.posts.list()}
    for comment in store.comments.list(page_size=1000):
        found[comment.post_id][1].append(comment.body)
    return list(found.values())


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
    assert imported.stderr.startswith("imported 0 posts and 0 comments")


def test_no_comment_is_exported_without_its_post(empty_store: StoreClient) -> None:
    """Also when a post and a comment on it are added after the posts were read."""
    empty_store.posts.create(body="before")
    added: list[int] = []

    def add(phase: str, done: int, part: float | None) -> None:
        if done and not added:
            added.append(empty_store.posts.create(body="after").id)
            empty_store.comments.create(post_id=added[0], body="after")

    target = io.BytesIO()
    counts = write_all(empty_store, target, add)

    assert counts == (1, 0)
    assert target.getvalue().count(b"\n") == 1


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


def test_export_and_import_round_trip(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """3,000 posts and 2,000 comments: every text, every comment on its post, in the same order."""
    fill(empty_store, 3000)
    before = threads(empty_store)
    exported = storeapi.process("export", str(file))
    empty(empty_store)
    imported = storeapi.process("import", str(file))

    assert (exported[0], imported[0]) == (0, 0)
    assert exported[2] == "exported 3000 posts and 2000 comments\n"
    assert imported[2].startswith("imported 3000 posts and 2000 comments (import id ")
    assert threads(empty_store) == before


def test_import_prints_new_ids(storeapi: StoreapiCommand, empty_store: StoreClient) -> None:
    """As a table and as lines. A comment may precede its post."""
    content = "\n\n".join([comment_line(7, 10**12), post_line(10**12), post_line(3, "c", etag="x")])
    as_text = storeapi("import", stdin=content)
    as_json = storeapi("--json", "import", "-", stdin=content)
    first, second = (post.id for post in empty_store.posts.list())
    (comment,) = empty_store.comments.list()

    assert as_text.stdout == f"post\t{10**12}\t{first}\npost\t3\t{second}\ncomment\t7\t{comment.id}\n"
    assert [json.loads(line) for line in as_json.stdout.splitlines()] == [
        {"kind": "post", "old_id": 10**12, "new_id": first},
        {"kind": "post", "old_id": 3, "new_id": second},
        {"kind": "comment", "old_id": 7, "new_id": comment.id},
    ]
    assert comment.post_id == first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_repeated_import_after_interruption_creates_no_duplicates(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path, started: Keep, number: int
) -> None:
    """At whatever point it was interrupted, the second run completes it."""
    fill(empty_store, 3000)
    before = threads(empty_store)
    storeapi("export", str(file))
    empty(empty_store)

    # The output is larger than the buffer of a pipe, so the process cannot end before the test reads it.
    process = started(storeapi.start("--json", "import", str(file), "--import-id", f"by {number}"))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=scaled_timeout())
    after_first = threads(empty_store)
    again = storeapi("import", str(file), "--import-id", f"by {number}")

    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert b"Traceback" not in stderr
    assert (number == signal.SIGINT) == (f"--import-id by {number}" in stderr.decode())
    assert len(after_first) > 0
    assert after_first != before
    assert again.exit_code == 0
    assert threads(empty_store) == before


def test_same_file_is_imported_twice_only_with_import_id(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """The content identifies the import, unless --import-id is given."""
    write(file, post_line(1), comment_line(1, 1))
    storeapi("import", str(file))
    storeapi("import", str(file))
    storeapi("import", "-", stdin=file.read_bytes())
    once = threads(empty_store)
    storeapi("import", str(file), "--import-id", "once more")

    assert once == [("a", ["b"])]
    assert threads(empty_store) == 2 * once


def test_replayed_import_does_not_report_deleted_resources_as_imported(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """The service replays the first response although the resources were deleted since."""
    write(file, *(post_line(n) for n in range(1, 4)), comment_line(1, 1))
    storeapi("import", str(file), "--import-id", "deleted since")
    empty(empty_store)
    done = storeapi("import", str(file), "--import-id", "deleted since")

    assert done.exit_code == 4
    assert done.stderr.startswith("error: 4 of 4 posts and comments")
    assert "--import-id" in done.stderr
    assert threads(empty_store) == []


def test_import_id_belongs_to_one_content(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """Another file with the same id is refused and nothing of it is stored."""
    write(file, post_line(1, "one"))
    storeapi("import", str(file), "--import-id", "one content")
    write(file, post_line(1, "another"))
    done = storeapi("--json", "import", str(file), "--import-id", "one content")
    error = json.loads(done.stderr)["error"]

    assert done.exit_code == error["exit_code"] == 4
    assert error["reason"] == "REQUEST_ID_REUSED"
    assert "one content belongs to an import with another content" in error["message"]
    assert threads(empty_store) == [("one", [])]


def test_refused_line_is_named_and_can_be_corrected(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """With the import id from the error, the second run imports the rest without duplicates."""
    count = BATCH_ITEMS + 10
    lines = [post_line(n, str(n)) for n in range(1, count)]
    write(file, *lines, "", post_line(count, "x" * 70_000), comment_line(1, 1))
    refused = storeapi("import", str(file))
    stored = len(threads(empty_store))
    import_id = refused.stderr.split("--import-id ")[1].split(";")[0]
    write(file, *lines, "", post_line(count, "shorter"), comment_line(1, 1))
    done = storeapi("import", str(file), "--import-id", import_id)

    assert refused.exit_code == 1
    assert f"line {count + 1}: body must not be longer than" in refused.stderr
    assert stored == BATCH_ITEMS
    assert done.exit_code == 0
    assert [body for body, _ in threads(empty_store)] == [*(str(n) for n in range(1, count)), "shorter"]


@pytest.mark.parametrize("number", [53, 54, 105, 106])
def test_refused_line_may_start_a_batch(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path, number: int
) -> None:
    """It is named wherever the batches before it end, and stays in its own batch when it gets shorter."""
    lines = [post_line(n, "b" * 10_000) for n in range(1, number)]
    write(file, *lines, post_line(number, "c" * 70_000), post_line(number + 1, "end"))
    refused = storeapi("import", str(file), "--import-id", f"long {number}")
    write(file, *lines, post_line(number, "c"), post_line(number + 1, "end"))
    done = storeapi("import", str(file), "--import-id", f"long {number}")

    assert f"line {number}: body must not be longer than" in refused.stderr
    assert done.exit_code == 0
    bodies = [body for body, _ in threads(empty_store)]
    assert bodies == ["b" * 10_000] * (number - 1) + ["c", "end"]


def test_line_larger_than_a_message_is_named(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """The service cannot name it because it does not read such a message."""
    write(file, post_line(1), post_line(2, "x" * 5_000_000), post_line(3))
    refused = storeapi("import", str(file))

    assert refused.exit_code == 1
    assert "line 2, the longest" in refused.stderr
    assert "--import-id" in refused.stderr
    assert threads(empty_store) == []


def test_comments_of_a_post_deleted_since_are_named(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """By the id of the post in the file, which is what the user can change."""
    lines = [post_line(10**12), post_line(2)]
    too_long = comment_line(7, 2, "x" * 70_000)
    write(file, *lines, comment_line(6, 10**12), too_long)
    first = storeapi("import", str(file), "--import-id", "halfway")
    empty_store.posts.delete(next(iter(empty_store.posts.list())).id)
    write(file, *lines, comment_line(6, 10**12), comment_line(7, 2))
    done = storeapi("import", str(file), "--import-id", "halfway")

    assert (first.exit_code, done.exit_code) == (1, 3)
    assert f"have been deleted since: {10**12} of the file" in done.stderr
    assert "from line 3" in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"kind": "post", "id": 2, "bo', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("3", "not a JSON object"),
        ("{}", "kind"),
        ('{"kind": ["post"]}', "kind"),
        (post_line(0), "id"),
        ('{"kind": "post", "id": true, "body": "a"}', "id"),
        (comment_line(1, -1), "post_id"),
        (post_line(2, ""), "body"),
        ('{"kind": "post", "id": 2}', "body"),
        (post_line(2, "\0"), "character"),
        (post_line(2, "\ud800"), "character"),
        (post_line(2, title="b"), "title"),
        (post_line(2, author=5), "author must be a text"),
        (post_line(2, labels=["a"]), "labels must be an object"),
        (post_line(2, labels={"a": 5}), "labels.a must be a text"),
        (post_line(2, labels={"a": "\0"}), "character"),
        (post_line(2, external_id=None), "external_id must be a text"),
        (post_line(2, return_existing=True), "return_existing"),
        (comment_line(1, 1, reply_to_id=-1), "reply_to_id must be a positive integer"),
        (comment_line(1, 1, reply_to_id=False), "reply_to_id must be a positive integer"),
        (post_line(1), "duplicate post 1"),
        (comment_line(1, 9), "post 9"),
    ],
)
def test_damaged_file_is_refused_before_anything_is_stored(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path, line: str, words: str
) -> None:
    """With the line number."""
    file.write_text(f"{post_line(1)}\n{line}\n", errors="surrogateescape")
    done = storeapi("import", str(file))

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: line 2: ")
    assert words in done.stderr
    assert threads(empty_store) == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            [post_line(1, external_id="a"), post_line(2, external_id="a")],
            "line 2: duplicate external_id 'a' of a post",
        ),
        (
            [post_line(1), comment_line(2, 1, reply_to_id=1), comment_line(1, 1)],
            "line 2: comment 1 must come before the replies to it",
        ),
        (
            [post_line(1), comment_line(1, 1, reply_to_id=1)],
            "line 2: comment 1 must come before the replies to it",
        ),
        (
            [post_line(1), post_line(2), comment_line(1, 1), comment_line(2, 2, reply_to_id=1)],
            "line 4: comment 1, which it replies to, is on another post",
        ),
    ],
)
def test_lines_that_contradict_each_other_are_refused(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path, lines: list[str], words: str
) -> None:
    """Before anything is stored."""
    write(file, *lines)
    done = storeapi("import", str(file))

    assert done.exit_code == 1
    assert words in done.stderr
    assert threads(empty_store) == []


def described(store: StoreClient) -> tuple[list[Any], list[Any]]:
    """All posts and comments without what is new after an import; replies by the text of their comment."""
    posts = list(store.posts.list())
    comments = list(store.comments.list())
    bodies = {0: None} | {it.id: it.body for it in comments}
    by_id = {it.id: it.body for it in posts}
    return (
        [(it.body, it.author, dict(it.labels), it.external_id) for it in posts],
        [
            (
                *(it.body, it.author, dict(it.labels), it.external_id),
                *(by_id[it.post_id], bodies[it.reply_to_id], it.depth),
            )
            for it in comments
        ],
    )


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


def test_round_trip_keeps_every_field_and_every_reply(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """Authors, labels, external ids, and threads with their depths, in the same order."""
    fill_with_replies(empty_store)
    before = described(empty_store)
    exported = storeapi("export", str(file))
    empty(empty_store)
    imported = storeapi("import", str(file), "--import-id", "with replies")
    again = storeapi("import", str(file), "--import-id", "with replies")

    assert (exported.exit_code, imported.exit_code, again.exit_code) == (0, 0, 0)
    assert again.stdout == imported.stdout
    assert described(empty_store) == before


def test_tombstones_keep_their_places(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """Also if the import runs twice. One without replies in the file disappears."""
    post = empty_store.posts.create("a")
    deleted = empty_store.comments.create(post_id=post.id, body="too early", author="ann", external_id="t")
    reply = empty_store.comments.create(post_id=post.id, body="too late", reply_to_id=deleted.id)
    empty_store.comments.create(post_id=post.id, body="below", reply_to_id=reply.id)
    empty_store.comments.delete_many([deleted.id, reply.id])
    before = described(empty_store)
    exported = storeapi("export", str(file))
    text = file.read_text()
    write(file, text.rstrip("\n"), comment_line(10**9, post.id, "", delete_time="2026-11-22T12:00:00Z"))
    empty(empty_store)
    imported = storeapi("import", str(file), "--import-id", "tombstones")
    after = described(empty_store)
    again = storeapi("import", str(file), "--import-id", "tombstones")

    assert "too early" not in text
    assert (exported.exit_code, imported.exit_code, again.exit_code) == (0, 0, 0)
    assert exported.stderr == "exported 1 posts and 3 comments\n"
    assert [it[0] for it in before[1]] == ["", "", "below"]
    assert [it[-1] for it in before[1]] == [0, 1, 2]
    assert before == after == described(empty_store)
    assert again.stdout == imported.stdout


def test_post_of_an_erased_author_is_imported_with_a_placeholder(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """A line with an empty body that was not exported is still refused."""
    post = empty_store.posts.create("of ann", author="ann")
    empty_store.comments.create(post_id=post.id, body="of bob", author="bob")
    assert list(empty_store.admin.erase_author("ann", mode="anonymize", skip_rewrite=True))[-1].complete
    exported = storeapi("export", str(file))
    empty(empty_store)
    imported = storeapi("import", str(file), "--import-id", "erased")
    write(file, post_line(1, body=""))
    refused = storeapi("import", str(file))

    assert (exported.exit_code, imported.exit_code) == (0, 0)
    assert described(empty_store) == (
        [("deleted", "", {}, "")],
        [("of bob", "bob", {}, "", "deleted", None, 0)],
    )
    assert "line 1: body must not be empty" in refused.stderr


@pytest.mark.parametrize("line", [post_line(2, delete_time="x"), comment_line(2, 1, delete_time="x")])
def test_deleted_resource_with_content_is_refused(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path, line: str
) -> None:
    """An import would restore it. Such a line comes from a list with --show-deleted."""
    write(file, post_line(1), line)
    done = storeapi("import", str(file))

    assert done.exit_code == 1
    assert "is deleted; without delete_time it is imported as it was" in done.stderr
    assert threads(empty_store) == []


def test_replies_to_comments_outside_of_the_file_are_imported_at_the_top_level(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """The command reports their number. The replies to them stay below them."""
    write(
        file,
        post_line(1),
        comment_line(2, 1, "reply", reply_to_id=9),
        comment_line(3, 1, "below", reply_to_id=2),
    )
    done = storeapi("import", str(file))

    assert done.exit_code == 0
    assert done.stderr.startswith("1 replies to comments that are not in the file are comments at the top")
    _, comments = described(empty_store)
    assert [it[0] for it in comments] == ["reply", "below"]
    assert [it[5:] for it in comments] == [(None, 0), ("reply", 1)]


def test_file_of_an_older_version_is_imported(
    storeapi: StoreapiCommand, empty_store: StoreClient, file: Path
) -> None:
    """The fields that it does not have are empty."""
    old = {"create_time": None, "update_time": "2026-01-01T00:00:00Z", "etag": "v1"}
    write(file, post_line(5, **old), comment_line(7, 5, **old))
    done = storeapi("import", str(file))

    assert done.exit_code == 0
    assert described(empty_store) == ([("a", "", {}, "")], [("b", "", {}, "", "a", None, 0)])


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
    assert threads(empty_store) == [("a", [])]


def test_import_without_service_prints_how_to_continue(storeapi: StoreapiCommand, file: Path) -> None:
    """With the exit code of UNAVAILABLE."""
    write(file, post_line(1))
    done = storeapi("--target", "127.0.0.1:1", "--no-retries", "import", str(file))

    assert done.exit_code == 5
    assert "--import-id" in done.stderr
    assert done.stderr.count("\n") == 1


def test_missing_file_is_a_usage_error(storeapi: StoreapiCommand) -> None:
    """For an import."""
    assert storeapi("import", "missing.jsonl").exit_code == 2


def test_batches_always_end_at_the_same_lines() -> None:
    """By count and by size. Each ends after the line that fills it, whatever follows."""

    def sizes(*bodies: str) -> list[int]:
        lines = [
            Line(number=n, kind="post", id=n, draft=PostDraft(body=it)) for n, it in enumerate(bodies, 1)
        ]
        return [len(batch) for batch in batches(lines)]

    assert sizes() == []
    assert sizes(*["a"] * (2 * BATCH_ITEMS + 1)) == [BATCH_ITEMS, BATCH_ITEMS, 1]
    assert sizes("a", "ü" * (FULL_BYTES // 2), "b", "c") == [2, 2]
    assert sizes("a", "a" * (FULL_BYTES - 1), "b") == [2, 1]
    assert sizes("a", "a" * (FULL_BYTES - 2), "b", "c") == [3, 1]
    assert sizes("a" * (FULL_BYTES + 1), "b") == [1, 1]


def test_batch_ends_before_a_reply_to_one_of_its_comments() -> None:
    """The reply needs the new id of the comment. Labels count for the size."""

    def sizes(*drafts: CommentDraft) -> list[int]:
        lines = [Line(number=n, kind="comment", id=n, draft=it) for n, it in enumerate(drafts, 1)]
        return [len(batch) for batch in batches(lines)]

    def reply(to: int) -> CommentDraft:
        return CommentDraft(post_id=1, body="a", reply_to_id=to)

    assert sizes(reply(0), reply(0), reply(1), reply(2), reply(4)) == [2, 2, 1]
    assert sizes(reply(0), reply(1), reply(2)) == [1, 1, 1]
    assert sizes(reply(9), reply(9), reply(9)) == [3]
    large = CommentDraft(post_id=1, body="a", labels={"a": "x" * FULL_BYTES})
    assert sizes(large, reply(0)) == [1, 1]
