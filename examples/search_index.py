"""Keeps a full-text index of all posts and comments in a SQLite file of its own, exactly once.

    python examples/search_index.py follow  [--server localhost:50051] [--index search.db]
    python examples/search_index.py search "some words"  [--index search.db]

`follow` runs until it is interrupted, and can be killed and started again at any time: what it has made of a
response and the token to go on from are one transaction.
"""

import argparse
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from storeapi.v1 import changes_pb2 as pb
from storeapi.v1 import changes_pb2_grpc

HEARTBEAT_SECONDS = 5
PAUSE_SECONDS = 1.0

START_AGAIN = {"RESUME_TOKEN_EXPIRED", "RESUME_TOKEN_FOREIGN"}
"""Reasons for which the index has to be built anew."""


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
    """Forgets everything: the service no longer has all changes since the token."""
    with index:
        index.execute("DELETE FROM texts")
        index.execute("DELETE FROM documents")
        index.execute("DELETE FROM position")


def apply(index: sqlite3.Connection, response: pb.WatchResponse) -> None:
    """Takes a response into the index, and its token with it, in one transaction."""
    with index:
        for change in response.changes:
            key = (pb.ResourceKind.Name(change.kind), change.id)
            index.execute("INSERT OR IGNORE INTO documents (kind, id) VALUES (?, ?)", key)
            (document,) = index.execute(
                "SELECT document FROM documents WHERE kind = ? AND id = ?", key
            ).fetchone()
            index.execute("DELETE FROM texts WHERE rowid = ?", (document,))
            if change.action == pb.ACTION_DELETE:
                index.execute("DELETE FROM documents WHERE document = ?", (document,))
            else:
                body = change.post.body if change.HasField("post") else change.comment.body
                index.execute("INSERT INTO texts (rowid, body) VALUES (?, ?)", (document, body))
        index.execute("DELETE FROM position")
        index.execute("INSERT INTO position VALUES (?)", (response.resume_token,))


def watch(channel: grpc.Channel, token: str | None) -> Iterator[pb.WatchResponse]:
    """The responses from a token on, or from the initial state."""
    request = pb.WatchRequest()
    request.heartbeat_interval.seconds = HEARTBEAT_SECONDS
    if token is None:
        request.initial_state = True
    else:
        request.resume_token = token
    return changes_pb2_grpc.ChangeServiceStub(channel).Watch(request)


def reason_of(error: grpc.RpcError) -> str:
    """The service's reason for an error; empty if the error is not the service's."""
    info = error_details_pb2.ErrorInfo()
    pairs: Any = error.trailing_metadata() or ()
    status = status_pb2.Status.FromString(dict(pairs).get("grpc-status-details-bin", b""))
    return info.reason if any(detail.Unpack(info) for detail in status.details) else ""


def follow(server: str, path: str) -> None:
    """Keeps the index up to date until it is interrupted."""
    # A dead connection is noticed by its missing answers to pings, and shows as UNAVAILABLE.
    options = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000)]
    with closing(open_index(path)) as index, grpc.insecure_channel(server, options=options) as channel:
        while True:
            try:
                for response in watch(channel, stored_token(index)):
                    apply(index, response)
                    if response.changes or response.initial_state_complete:
                        print(f"{len(response.changes)} changes taken in", flush=True)
            except grpc.RpcError as error:
                print(f"{error.code().name}: {error.details()}", flush=True)
                if reason_of(error) in START_AGAIN:
                    start_again(index)
                elif error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    raise
            time.sleep(PAUSE_SECONDS)


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
    if arguments.command == "follow":
        try:
            follow(arguments.server, arguments.index)
        except KeyboardInterrupt:
            return
    for kind, id, body in search(arguments.index, arguments.words):
        print(f"{kind.removeprefix('RESOURCE_KIND_').lower()} {id}: {body}")


if __name__ == "__main__":
    main()
