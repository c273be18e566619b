"""Keeps a full-text index of all posts and comments in a SQLite file of its own, exactly once.

    python examples/search_index.py follow  [--server localhost:50051] [--index search.db]
    python examples/search_index.py search "some words"  [--index search.db]

`follow` runs until it is interrupted, and can be killed and started again at any time: what it has made of a
response and the token to go on from are one transaction.
"""

import argparse
import logging
import sqlite3
from contextlib import closing

import storeapi
from storeapi import ChangeBatch


def open_index(path: str) -> sqlite3.Connection:
    """The index: the texts by kind and id, and the token up to which they are complete."""
    index = sqlite3.connect(path)
    with index:
        index.execute(
            "CREATE TABLE IF NOT EXISTS documents"
            " (document INTEGER PRIMARY KEY, kind TEXT NOT NULL, id INTEGER NOT NULL, UNIQUE (kind, id))"
        )
        # The rowid of a text is the document's number.
        index.execute("CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5 (body)")
        index.execute("CREATE TABLE IF NOT EXISTS position (resume_token TEXT NOT NULL)")
    return index


def stored_token(index: sqlite3.Connection) -> str | None:
    """The token to go on from; None before the first response."""
    row = index.execute("SELECT resume_token FROM position").fetchone()
    return None if row is None else row[0]


def start_again(index: sqlite3.Connection) -> None:
    """Deletes the index: the service no longer has all changes since the token."""
    with index:
        index.execute("DELETE FROM texts")
        index.execute("DELETE FROM documents")
        index.execute("DELETE FROM position")


def apply(index: sqlite3.Connection, batch: ChangeBatch) -> None:
    """Stores changes in the index, and the token after them, in one transaction."""
    with index:
        for change in batch:
            key = (change.kind, change.id)
            index.execute("INSERT OR IGNORE INTO documents (kind, id) VALUES (?, ?)", key)
            (document,) = index.execute(
                "SELECT document FROM documents WHERE kind = ? AND id = ?", key
            ).fetchone()
            index.execute("DELETE FROM texts WHERE rowid = ?", (document,))
            if change.action == "delete" or change.resource is None or change.resource.is_deleted:
                index.execute("DELETE FROM documents WHERE document = ?", (document,))
            else:
                index.execute(
                    "INSERT INTO texts (rowid, body) VALUES (?, ?)", (document, change.resource.body)
                )
        index.execute("DELETE FROM position")
        index.execute("INSERT INTO position VALUES (?)", (batch.resume_token,))


def follow(server: str, path: str) -> None:
    """Keeps the index up to date until it is interrupted."""
    # Without a timeout, the program waits until the server starts.
    with closing(open_index(path)) as index, storeapi.connect(server, timeout=None) as client:
        while True:
            watch = client.changes.watch(resume_token=stored_token(index), start="initial_state")
            try:
                for batch in watch.batches():
                    apply(index, batch)
                    if batch.changes or batch.initial_state_complete:
                        print(f"{len(batch)} changes taken in", flush=True)
            except (storeapi.ResumeTokenExpired, storeapi.ResumeTokenForeign) as error:
                print(f"starting again: {error}", flush=True)
                start_again(index)


def search(path: str, words: str) -> list[tuple[str, int, str]]:
    """Kind, id and text of what holds the words, the best first."""
    query = (
        "SELECT kind, id, body FROM texts JOIN documents ON document = texts.rowid"
        " WHERE texts MATCH ? ORDER BY rank LIMIT 20"
    )
    with closing(open_index(path)) as index:
        return index.execute(query, (words,)).fetchall()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    following = commands.add_parser("follow", help="keep the index up to date")
    following.add_argument("--server", default="localhost:50051")
    searching = commands.add_parser("search", help="look for words")
    searching.add_argument("words")
    for command in (following, searching):
        command.add_argument("--index", default="search.db")
    arguments = parser.parse_args()
    # The client says here when its connection is interrupted.
    logging.basicConfig(format="%(message)s")
    if arguments.command == "follow":
        try:
            follow(arguments.server, arguments.index)
        except KeyboardInterrupt:
            return
    for kind, id, body in search(arguments.index, arguments.words):
        print(f"{kind} {id}: {body}")


if __name__ == "__main__":
    main()
