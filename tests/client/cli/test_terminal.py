"""What the command prints on a terminal, which is a real one here."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from rich.cells import cell_len
from storeapi import CommentDraft, Post, StoreClient
from storeapi.cli import tables
from storeapi.cli.tables import ROWS_AT_ONCE
from storeapi.cli.text import lines as escaped_lines

from tests.client.cli.conftest import Command

Keep = Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]


@pytest.fixture
def on_terminal(storeapi: Command, started: Keep) -> Callable[..., str]:
    """Runs the command on a terminal, and returns what is on it without colours."""

    def run(*arguments: str, columns: int = 100, lines: int = 24, stream: str = "stdout") -> str:
        ours, theirs = os.openpty()
        storeapi.environment |= {"COLUMNS": str(columns), "LINES": str(lines), "TERM": "xterm"}
        process = started(storeapi.start(*arguments, **{stream: theirs}))
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
        assert process.wait(30) == 0
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r\n", "\n")

    return run


def test_people_see_a_table(on_terminal: Callable[..., str], store: StoreClient) -> None:
    """With names of the columns, and a body over as many lines as it has."""
    post = store.posts.create(body="one\ntwo")
    table = on_terminal("posts", "get", str(post.id))

    assert table.splitlines()[0].split() == ["ID", "CREATED", "UPDATED", "ETAG", "BODY"]
    assert re.search(rf"^{post.id} .* one\n +two$", table, re.MULTILINE)


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
    """No line is wider than the terminal, nothing is cut off, and a wide terminal is used."""
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


def test_times_are_shown_where_there_is_room_for_them(
    on_terminal: Callable[..., str], store: StoreClient
) -> None:
    """To the second, in UTC; otherwise how long ago they were."""
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
    """Also of one that is not known, and of one that the service's clock has set ahead."""
    now = datetime(2026, 11, 1, tzinfo=UTC)
    time = None if ago_seconds is None else now - timedelta(seconds=ago_seconds)

    assert tables._age(time, now) == told


def test_list_stops_at_a_screenful(
    on_terminal: Callable[..., str], storeapi: Command, store: StoreClient
) -> None:
    """On a terminal, with a line that tells how to get more; --all and --limit print more, pipes get all."""
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


def test_list_that_fits_the_screen_is_whole(
    on_terminal: Callable[..., str], empty_store: StoreClient
) -> None:
    """Without a line about more of it; and one post is shown however long it is."""
    assert on_terminal("posts", "list") == ""

    empty_store.posts.create_many(["a", "b"])
    assert len(on_terminal("posts", "list", lines=24).splitlines()) == 3
    assert len(on_terminal("posts", "list", lines=5).splitlines()) == 3
    cut = on_terminal("posts", "list", lines=4).splitlines()
    assert (len(cut), cut[-1][:5]) == (3, "More:")
    empty_store.posts.create(body="line\n" * 99)
    newest = on_terminal("posts", "list", "--order-by", "id-desc", lines=24).splitlines()
    assert (len([line for line in newest if "line" in line]), newest[-1][:5]) == (99, "More:")


def test_a_body_cannot_steer_the_terminal(on_terminal: Callable[..., str], store: StoreClient) -> None:
    """Nor can it be taken for markup: control characters are shown as escapes, brackets as brackets."""
    post = store.posts.create(body="\x1b]0;title\x07 [bold]x[/bold] \u202edlrow")
    table = on_terminal("posts", "get", str(post.id))

    assert "\x07" not in table
    assert "\u202e" not in table
    assert "\\x1b]0;title\\x07 [bold]x[/bold]" in " ".join(table.split())


@pytest.mark.parametrize("command", ["--json posts get", "--json watch", "export"])
def test_json_cannot_steer_the_terminal(
    on_terminal: Callable[..., str], storeapi: Command, empty_store: StoreClient, command: str
) -> None:
    """It has escapes and means the same; where no terminal is, the text stays as it is."""
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


def test_a_long_list_shows_before_all_of_it_is_there(
    on_terminal: Callable[..., str], empty_store: StoreClient
) -> None:
    """The names of the columns are shown once, and again when they have become wider."""
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


def test_the_progress_of_an_export_is_shown(on_terminal: Callable[..., str], store: StoreClient) -> None:
    """On stderr, if that is a terminal."""
    store.posts.create(body="a")

    shown = on_terminal("export", "all.jsonl", stream="stderr")

    assert "0:00:0" in shown
