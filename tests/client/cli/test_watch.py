"""`storeapi watch`, against a real server."""

import json
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from storeapi import StoreClient

from tests.support.polling import wait_until
from tests.support.storeapi_command import StoreapiCommand
from tests.support.timeouts import scaled_timeout

Keep = Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]


def seen(changes: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(it["action"], it["kind"], it["id"]) for it in changes]


def now(store: StoreClient) -> str:
    """A resume token after all changes so far."""
    return next(store.posts.list().pages()).resume_token


def output_lines(process: subprocess.Popen[bytes], count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def test_changes_are_printed_until_ctrl_c(
    storeapi: StoreapiCommand, store: StoreClient, started: Keep
) -> None:
    """The command then exits with 130 without output."""
    token_file = storeapi.folder / "token"
    process = started(storeapi.start("--json", "watch", "--token-file", str(token_file)))
    # The first response has the token from which nothing is missed.
    wait_until(token_file.exists)
    post = store.posts.create(body="ü\n")
    (created,) = output_lines(process, 1)
    comment = store.comments.create(post_id=post.id, body="b")
    store.posts.delete(post.id, force=True)
    after = output_lines(process, 3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=scaled_timeout())

    assert created["post"]["body"] == post.body
    assert created["post"]["etag"] == post.etag
    assert seen([created]) == [("create", "post", post.id)]
    assert sorted(seen(after)) == [
        ("create", "comment", comment.id),
        ("delete", "comment", comment.id),
        ("delete", "post", post.id),
    ]
    assert (process.returncode, stdout, stderr) == (130, b"", b"")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--author", "ann"], ["create post", "update post"]),
        (["--label", "status=new"], ["create post", "update post", "create comment"]),
        (["--reply-to", "0", "--kind", "comment"], ["create comment"]),
        (["--created-before", "2999-01-01", "--kind", "post"], ["create post", "update post"]),
    ],
)
def test_changes_are_selected_by_filters(
    storeapi: StoreapiCommand, store: StoreClient, options: list[str], names: list[str]
) -> None:
    """Of posts and comments, by their state before or after the change."""
    token = now(store)
    post = store.posts.create("a", author="ann", labels={"status": "new"})
    store.posts.update(post.id, author="", labels={})
    comment = store.comments.create(post_id=post.id, body="b", labels={"status": "new"})
    store.comments.create(post_id=post.id, body="c", reply_to_id=comment.id)
    if "comment" in options:
        last = store.comments.create(post_id=post.id, body="z").id
    else:
        last = store.posts.create("z", author="ann", labels={"status": "new"}).id
    count = str(len(names) + 1)
    changes = storeapi.json("watch", "--resume-token", token, *options, "--exit-after", count)

    assert [f"{it['action']} {it['kind']}" for it in changes[:-1]] == names
    assert changes[-1]["id"] == last


def test_initial_state_is_printed_first(storeapi: StoreapiCommand, empty_store: StoreClient) -> None:
    """With --from initial-state."""
    posts = empty_store.posts.create_many(["a", "b"])
    changes = storeapi.json("watch", "--from", "initial-state", "--exit-after", "2")

    assert seen(changes) == [("snapshot", "post", post.id) for post in posts]


def test_watch_can_be_filtered(storeapi: StoreapiCommand, empty_store: StoreClient) -> None:
    """With --kind and --post."""
    first, second = empty_store.posts.create_many(["a", "b"])
    comment = empty_store.comments.create(post_id=second.id, body="c")
    start = ["watch", "--from", "initial-state", "--exit-after", "1"]

    assert seen(storeapi.json(*start, "--kind", "comment")) == [("snapshot", "comment", comment.id)]
    of_one = storeapi.json(*start, "--kind", "post", "--post", str(second.id))
    assert seen(of_one) == [("snapshot", "post", second.id)]
    assert first.id != second.id


def test_next_run_continues_after_the_last_one(storeapi: StoreapiCommand, empty_store: StoreClient) -> None:
    """The token file stores the position. Nothing is printed twice or lost."""
    token_file = storeapi.folder / "token"
    token_file.touch()
    watch = ["watch", "--resume-token", now(empty_store), "--token-file", str(token_file), "--exit-after"]
    first = empty_store.posts.create(body="a")
    in_first_run = storeapi.json(*watch, "1")
    second, third = empty_store.posts.create(body="b"), empty_store.posts.create(body="c")
    in_second_run = storeapi.json(*watch, "2")

    assert seen(in_first_run) == [("create", "post", first.id)]
    assert seen(in_second_run) == [("create", "post", second.id), ("create", "post", third.id)]
    assert token_file.read_text().strip() == in_second_run[-1]["resume_token"]
    assert list(storeapi.folder.iterdir()) == [token_file]


def test_last_change_of_a_batch_has_the_resume_token(
    storeapi: StoreapiCommand, empty_store: StoreClient
) -> None:
    """A script can store it as its position; earlier changes of the batch have null."""
    start = now(empty_store)
    empty_store.posts.create_many(["a", "b", "c"])
    changes = storeapi.json("watch", "--resume-token", start, "--exit-after", "1")
    post = empty_store.posts.create(body="d")
    after = storeapi.json("watch", "--resume-token", changes[-1]["resume_token"], "--exit-after", "1")

    assert [it["resume_token"] is None for it in changes] == [True, True, False]
    assert seen(after) == [("create", "post", post.id)]


def test_terminal_prints_one_line_per_change(storeapi: StoreapiCommand, empty_store: StoreClient) -> None:
    """Whatever the body contains."""
    post = empty_store.posts.create(body="two\nlines\\\x1b[2J")
    comment = empty_store.comments.create(post_id=post.id, body="c")
    done = storeapi("watch", "--from", "initial-state", "--exit-after", "2")
    first, second = (line.split("\t") for line in done.stdout.splitlines())

    assert first[1:] == [f"snapshot post {post.id}", "two\\nlines\\\\\\x1b[2J"]
    assert second[1:] == [f"snapshot comment {comment.id} on post {post.id}", "c"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--resume-token", "nonsense"], 1, "RESUME_TOKEN_INVALID"),
        (["--from", "yesterday"], 2, "yesterday"),
        (["--token-file", "missing/token"], 2, "missing/token"),
        (["--token-file", "two\nlines/token"], 2, "two\\nlines"),
        (["--exit-after", "0"], 2, "--exit-after"),
    ],
)
def test_watch_that_cannot_start_prints_why(
    storeapi: StoreapiCommand, arguments: list[str], code: int, words: str
) -> None:
    """In one line."""
    found, stdout, stderr = storeapi.process("watch", *arguments)

    assert (found, stdout, stderr.count("\n")) == (code, "", 1)
    assert words in stderr
