"""What the command prints on a terminal, which is a real one here."""

import json
import os
import re
import subprocess
from collections.abc import Callable

import pytest
from storeapi import StoreClient

from tests.client.cli.conftest import Command

Keep = Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]


@pytest.fixture
def on_terminal(storeapi: Command, started: Keep) -> Callable[..., str]:
    """Runs the command on a terminal, and returns what is on it without colours."""

    def run(*arguments: str, columns: int = 100, stream: str = "stdout") -> str:
        ours, theirs = os.openpty()
        storeapi.environment |= {"COLUMNS": str(columns), "TERM": "xterm"}
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

    assert all(name in table for name in ("id", "create_time", "update_time", "etag", "body"))
    assert re.search(rf"^ *{post.id} .* one *\n +two *$", table, re.MULTILINE)


def test_nothing_is_cut_off_on_a_narrow_terminal(on_terminal: Callable[..., str], store: StoreClient) -> None:
    """Ids, times and etags stay whole, and so does every word of a body."""
    words = [f"word{n}" for n in range(30)]
    post = store.posts.create(body=" ".join(words))
    table = on_terminal("posts", "get", str(post.id), columns=30)

    assert str(post.id) in table.split()
    assert post.etag in table.split()
    assert all(word in table.split() for word in words)
    assert "…" not in table


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
    on_terminal: Callable[..., str], store: StoreClient
) -> None:
    """A table ends after 200 rows, and another begins."""
    store.posts.create_many([f"body-{n}" for n in range(201)])
    tables = on_terminal("posts", "list", "--limit", "201", "--order-by", "id desc")

    assert len(re.findall(r"body-\d+", tables)) == 201
    assert tables.count("create_time") == 2


def test_the_progress_of_an_export_is_shown(on_terminal: Callable[..., str], store: StoreClient) -> None:
    """On stderr, if that is a terminal."""
    store.posts.create(body="a")

    shown = on_terminal("export", "all.jsonl", stream="stderr")

    assert "0:00:0" in shown
