"""What the command prints on a terminal, which is a real one here."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.cells import cell_len
from storeapi import CommentDraft, Post, StoreClient
from storeapi.cli import tables
from storeapi.cli.tables import ROWS_AT_ONCE
from storeapi.cli.text import lines as escaped_lines
from storeapi.testing import ScriptedServer

from tests.support.storeapi_command import StoreapiCommand
from tests.support.timeouts import scaled_timeout

Keep = Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]


@pytest.fixture
def on_terminal(storeapi: StoreapiCommand, started: Keep) -> Callable[..., str]:
    """Runs the command on a terminal, and returns what is on it without colours."""

    def run(
        *arguments: str,
        columns: int = 100,
        lines: int = 24,
        stream: str = "stdout",
        code: int = 0,
        **pipes: Any,
    ) -> str:
        ours, theirs = os.openpty()
        storeapi.environment |= {"COLUMNS": str(columns), "LINES": str(lines), "TERM": "xterm"}
        process = started(storeapi.start(*arguments, **{stream: theirs}, **pipes))
        os.close(theirs)
        seen = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            # The end of a terminal whose other side was closed.
            except OSError:
                break
            if not piece:
                break
            seen += piece
        os.close(ours)
        assert process.wait(scaled_timeout()) == code
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r\n", "\n")

    return run


def test_terminal_output_is_a_table(on_terminal: Callable[..., str], store: StoreClient) -> None:
    """With column names, and bodies of several lines."""
    post = store.posts.create(body="one\ntwo")
    table = on_terminal("posts", "get", str(post.id))

    assert table.splitlines()[0].split() == ["ID", "CREATED", "UPDATED", "ETAG", "BODY"]
    assert re.search(rf"^{post.id} .* one\n +two$", table, re.MULTILINE)


def test_table_has_columns_for_fields_with_values(
    on_terminal: Callable[..., str], store: StoreClient
) -> None:
    """Each of them only if a resource has a value. On a narrow terminal they are in blocks."""
    plain = store.posts.create("plain")
    post = store.posts.create("a", author="ann", labels={"status": "new", "lang": "en"})
    comment = store.comments.create(post_id=post.id, body="first", external_id=f"c:{post.id}")
    reply = store.comments.create(post_id=post.id, body="reply", reply_to_id=comment.id)
    posts = on_terminal("posts", "get", str(plain.id), str(post.id), columns=200).splitlines()
    comments = on_terminal(
        "comments", "list", "--post", str(post.id), "--order-by", "thread", columns=200
    ).splitlines()
    narrow = on_terminal("comments", "get", str(reply.id), columns=40)

    assert posts[0].split() == ["ID", "CREATED", "UPDATED", "ETAG", "AUTHOR", "LABELS", "BODY"]
    assert posts[1].split()[-3:] == ["-", "-", "plain"]
    assert posts[2].split()[-4:] == ["ann", "lang=en", "status=new", "a"]
    assert comments[0].split()[5:] == ["EXTERNAL_ID", "REPLY_TO", "DEPTH", "BODY"]
    assert comments[1].split()[-4:] == [f"c:{post.id}", "0", "0", "first"]
    assert comments[2].split()[-4:] == ["-", str(comment.id), "1", "reply"]
    assert f"reply_to {comment.id}  depth 1" in narrow.replace("\n", "  ")


BODIES = [
    "A sentence of plain words that goes on until no terminal of the usual width can show it in one line.",
    "今日は良い天気ですね。" * 12,
    "👩‍👩‍👧 🎉 ü e\u0301 " * 15,
    "https://example.com/" + "x" * 300,
    "\x1b[31m\x9b\r\t\u202e" * 20,
    "one\n\n\nfour",
    "\n",
]


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("kind", ["posts", "comments"])
def test_table_fits_the_terminal(
    on_terminal: Callable[..., str], store: StoreClient, kind: str, columns: int
) -> None:
    """No line is wider than the terminal, nothing is truncated, and a wide terminal is used."""
    post = store.posts.create(body="a post")
    if kind == "posts":
        items = [(it.id, it.etag) for it in store.posts.create_many(BODIES)]
    else:
        drafts = [CommentDraft(post_id=post.id, body=body) for body in BODIES]
        items = [(it.id, it.etag) for it in store.comments.create_many(drafts)]
    table = on_terminal(kind, "get", *(str(id) for id, _ in items), columns=columns)

    first, *rest = table.splitlines()
    in_rows = first.startswith("ID ")
    indent = first.index("BODY") if in_rows else 2
    body_lines = [line[indent:] for line in rest if in_rows or line.startswith("  ")]
    heads = [line[:indent] if in_rows else line for line in table.splitlines()]
    assert in_rows == (columns > 40)
    assert columns - 4 < max(map(cell_len, table.splitlines())) <= columns
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", table)
    assert without_blanks(*body_lines) == without_blanks(*map(escaped_lines, BODIES))
    for id, etag in items:
        assert any(head.startswith(f"{id} " if in_rows else f"id {id} ") for head in heads)
        assert etag in " ".join(heads).split()


def without_blanks(*texts: str) -> str:
    """What is the same however a text is wrapped."""
    return re.sub(r"\s", "", "".join(texts))


def test_times_are_shown_if_there_is_room(on_terminal: Callable[..., str], store: StoreClient) -> None:
    """To the second, in UTC; otherwise as an age."""
    post = store.posts.create(body="a")
    assert post.create_time is not None
    wide = on_terminal("posts", "get", str(post.id), columns=100)
    narrow = on_terminal("posts", "get", str(post.id), columns=80)

    assert wide.count(post.create_time.strftime("%Y-%m-%dT%H:%M:%SZ")) == 2
    assert len(re.findall(r"  (now|\d+s ago) ", narrow)) == 2


@pytest.mark.parametrize(
    ("ago_seconds", "told"),
    [
        (None, "-"),
        (0.4, "now"),
        (59, "59s ago"),
        (60, "1m ago"),
        (7199, "1h ago"),
        (86_400 * 364, "364d ago"),
        (86_400 * 800, "2y ago"),
        (-90, "in 1m"),
    ],
)
def test_age_of_a_time(ago_seconds: float | None, told: str) -> None:
    """Including an unknown time and one in the future."""
    now = datetime(2026, 11, 1, tzinfo=UTC)
    time = None if ago_seconds is None else now - timedelta(seconds=ago_seconds)

    assert tables._age(time, now) == told


def test_list_stops_at_one_screen(
    on_terminal: Callable[..., str], storeapi: StoreapiCommand, store: StoreClient
) -> None:
    """On a terminal, with a hint how to get more. --all and --limit print more; pipes get everything."""
    post, *_ = store.posts.create_many([f"body-{n}" for n in range(300)])
    store.comments.create_many(CommentDraft(post_id=post.id, body="b") for _ in range(30))

    for arguments in (["posts", "list"], ["comments", "list"], ["comments", "list", "--post", str(post.id)]):
        screen = on_terminal(*arguments, lines=24).splitlines()
        assert len(screen) <= 23
        assert screen[-1].startswith("More: --limit N or --all; ")
    newest = on_terminal("posts", "list", "--order-by", "id-desc", lines=12).splitlines()
    assert [line.split()[-1] for line in newest[1:-1]] == [f"body-{n}" for n in range(299, 290, -1)]
    assert newest[-1] == "More: --limit N or --all"

    in_order = ["posts", "list", "--order-by", "id-desc"]
    limited = on_terminal(*in_order, "--limit", "250").splitlines()
    everything = on_terminal(*in_order, "--all").splitlines()
    assert len(limited) == 251
    assert len([line for line in everything if "body-" in line]) >= 300
    assert len(storeapi.process(*in_order)[1].splitlines()) >= 300
    assert len(on_terminal("--json", *in_order).splitlines()) >= 300


def test_list_reads_only_what_the_screen_shows(on_terminal: Callable[..., str], address: str) -> None:
    """A page of maximum size may have megabytes."""
    with ScriptedServer(upstream=address) as server:
        on_terminal("--target", server.target, "posts", "list", lines=24)
        on_terminal("--target", server.target, "posts", "list", "--all")

        assert [call.request.page_size for call in server.calls] == [23, 1000]


def test_list_that_fits_the_screen_is_complete(
    on_terminal: Callable[..., str], empty_store: StoreClient
) -> None:
    """Without the hint. One post is printed however long it is."""
    assert on_terminal("posts", "list") == ""

    empty_store.posts.create_many(["a", "b"])
    assert len(on_terminal("posts", "list", lines=24).splitlines()) == 3
    assert len(on_terminal("posts", "list", lines=5).splitlines()) == 3
    cut = on_terminal("posts", "list", lines=4).splitlines()
    assert (len(cut), cut[-1][:5]) == (3, "More:")
    empty_store.posts.create(body="line\n" * 99)
    newest = on_terminal("posts", "list", "--order-by", "id-desc", lines=24).splitlines()
    assert (len([line for line in newest if "line" in line]), newest[-1][:5]) == (99, "More:")


def test_body_cannot_control_the_terminal(on_terminal: Callable[..., str], store: StoreClient) -> None:
    """Control characters are escaped, and brackets are not markup."""
    post = store.posts.create(body="\x1b]0;title\x07 [bold]x[/bold] \u202edlrow")
    table = on_terminal("posts", "get", str(post.id))

    assert "\x07" not in table
    assert "\u202e" not in table
    assert "\\x1b]0;title\\x07 [bold]x[/bold]" in " ".join(table.split())


@pytest.mark.parametrize("command", ["--json posts get", "--json watch", "export"])
def test_json_cannot_control_the_terminal(
    on_terminal: Callable[..., str], storeapi: StoreapiCommand, empty_store: StoreClient, command: str
) -> None:
    """It is escaped and has the same meaning. Without a terminal the text is unchanged."""
    body = "\x7f \x9b31m \u202edlrow \u2028 é 😀"
    post = empty_store.posts.create(body=body)
    arguments = (
        command.split()
        + {
            "--json posts get": [str(post.id)],
            "--json watch": ["--from", "initial-state", "--exit-after", "1"],
            "export": [],
        }[command]
    )

    (line,) = [it for it in on_terminal(*arguments).splitlines() if it.startswith("{")]
    _, elsewhere, _ = storeapi.process(*arguments)

    seen = json.loads(line)
    assert seen.get("post", seen)["body"] == body
    assert "\\u007f \\u009b31m \\u202edlrow \\u2028 é 😀" in line
    assert body in elsewhere


def test_long_list_is_printed_before_it_is_complete(
    on_terminal: Callable[..., str], empty_store: StoreClient
) -> None:
    """The header is printed once, and again when columns become wider."""
    count = ROWS_AT_ONCE + 5
    posts = empty_store.posts.create_many([f"body-{n}" for n in range(count)])
    printed: list[str] = []
    asked: list[int] = []

    def read() -> Iterator[Post]:
        for post in posts:
            asked.append(post.id)
            yield post

    for lines in tables._lines(read()):
        printed.extend(lines)
        if len(printed) == 2:
            assert len(asked) == ROWS_AT_ONCE
    table = on_terminal("posts", "list", "--all")

    assert len(re.findall(r"body-\d+", table)) == len(printed) - 1 == count
    assert table.count("CREATED") == 1


def test_export_shows_progress(on_terminal: Callable[..., str], store: StoreClient) -> None:
    """On stderr if it is a terminal: phase, percentage, count, rate, elapsed and remaining time."""
    post = store.posts.create(body="a")
    store.comments.create(post_id=post.id, body="b")

    shown = on_terminal("export", "all.jsonl", stream="stderr")

    assert re.search(r"exporting ━+ 100% [\d,]+ [\d,]+/s +\d:\d\d:\d\d +ETA 0:00:00", shown)
    assert re.fullmatch(
        r"exported \d+ posts and \d+ comments", shown.splitlines()[-1].split("\r")[-1].strip()
    )


def test_import_shows_progress(
    on_terminal: Callable[..., str], storeapi: StoreapiCommand, empty_store: StoreClient
) -> None:
    """Input from a pipe has no bar, because its size is unknown."""
    file = storeapi.folder / "all.jsonl"
    file.write_text("".join(f'{{"kind": "post", "id": {n}, "body": "a"}}\n' for n in range(1, 2001)))

    shown = on_terminal("import", "all.jsonl", stream="stderr")
    with file.open("rb") as content:
        of_pipe = on_terminal("import", stream="stderr", stdin=content)

    assert re.search(r"importing ━+ 100% 2,000 [\d,]+/s", shown)
    assert "imported 2000 records: 2000 created" in shown
    assert "━" not in of_pipe
    assert re.search(r"importing +2,000 [\d,]+/s", of_pipe)
    assert "imported 2000 records: 2000 unchanged" in of_pipe


@pytest.mark.parametrize(
    "command", [["export"], ["--json", "import", "--on-conflict", "skip", "all.jsonl"]], ids=" ".join
)
def test_progress_is_hidden_if_results_go_to_the_same_terminal(
    on_terminal: Callable[..., str], storeapi: StoreapiCommand, store: StoreClient, command: list[str]
) -> None:
    """It would overwrite them."""
    store.posts.create(body="a")
    (storeapi.folder / "all.jsonl").write_text('{"kind": "post", "id": 1, "body": "a"}\n')

    shown = on_terminal(*command, stderr=subprocess.STDOUT)

    results, last = shown.splitlines()[:-1], shown.splitlines()[-1]
    assert all(line.startswith("{") for line in results)
    assert results
    assert re.match(r"(ex|im)ported \d+ ", last)


COMMANDS_THAT_CALL = [
    ["posts", "list"],
    ["posts", "create", "a"],
    ["comments", "get", "1"],
    ["watch"],
    ["export", "all.jsonl"],
    ["import", "one.jsonl"],
]


@pytest.mark.parametrize("command", COMMANDS_THAT_CALL, ids=" ".join)
def test_terminal_shows_what_a_call_waits_for(
    on_terminal: Callable[..., str], storeapi: StoreapiCommand, refused_address: str, command: list[str]
) -> None:
    """Once, after a second without a response, with the cause."""
    (storeapi.folder / "one.jsonl").write_text('{"kind": "post", "id": 1, "body": "a"}\n')
    shown = on_terminal(
        "--target", refused_address, "--timeout", "3", *command, stream="stderr", code=5, columns=200
    )

    line = f"waiting for {refused_address} (connection refused, retrying)"
    assert shown.count("waiting for") == shown.count(line) == 1


def test_terminal_error_names_the_cause(on_terminal: Callable[..., str], refused_address: str) -> None:
    """The error is the same as without a terminal."""
    shown = on_terminal(
        "--target", refused_address, "--timeout", "1", "posts", "list", stream="stderr", code=5, columns=200
    )

    assert (
        f"error: UNAVAILABLE: cannot connect to {refused_address}: nothing listens at {refused_address} ("
        in shown
    )


def test_waiting_is_not_reported_without_a_terminal(storeapi: StoreapiCommand, refused_address: str) -> None:
    """Only the error is printed."""
    code, stdout, stderr = storeapi.process(
        "--target", refused_address, "--timeout", "2", "export", "all.jsonl"
    )

    assert (code, stdout, stderr.count("\n")) == (5, "", 1)
    assert stderr.startswith("error: ")


def test_terminal_shows_that_a_service_does_not_respond(
    on_terminal: Callable[..., str], storeapi: StoreapiCommand, silent_server: socket.socket
) -> None:
    """It accepts connections and sends nothing."""
    address = f"127.0.0.1:{silent_server.getsockname()[1]}"
    shown = on_terminal("--target", address, "--timeout", "2", "posts", "list", stream="stderr", code=5)

    assert f"waiting for {address} (no response yet)" in shown
