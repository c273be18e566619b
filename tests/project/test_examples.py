"""The examples do what their docstrings say."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from storeapi.v1 import comments_pb2, comments_pb2_grpc, posts_pb2, posts_pb2_grpc

from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

EXAMPLE = Path(__file__).parents[2] / "examples" / "search_index.py"


@contextmanager
def following(address: str, index: Path) -> Iterator["subprocess.Popen[str]"]:
    """A consumer that runs until the end of the block and then dies without a word."""
    command = [sys.executable, str(EXAMPLE), "follow", "--server", address, "--index", str(index)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=scaled_timeout())


def found(index: Path, words: str) -> list[str]:
    """What a search prints."""
    command = [sys.executable, str(EXAMPLE), "search", words, "--index", str(index)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=scaled_timeout()
    ).stdout.splitlines()


def test_search_index_follows_every_change(tmp_path: Path) -> None:
    """Existing resources, creates, updates and deletes, also while the consumer is down."""
    index = tmp_path / "search.db"
    server = ServerProcess(tmp_path, {"DATABASE_URL": "sqlite:///store.db"})
    try:
        address = server.start().address
        with grpc.insecure_channel(address) as channel:
            posts = posts_pb2_grpc.PostServiceStub(channel)

            def create(body: str) -> int:
                return posts.CreatePost(posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body))).id

            def comment(post_id: int, count: int) -> None:
                requests = [
                    comments_pb2.CreateCommentRequest(
                        comment=comments_pb2.Comment(post_id=post_id, body=f"a cherry {n}")
                    )
                    for n in range(count)
                ]
                comments_pb2_grpc.CommentServiceStub(channel).BatchCreateComments(
                    comments_pb2.BatchCreateCommentsRequest(requests=requests)
                )

            create("an apple from before")
            with following(address, index):
                wait_until(lambda: found(index, "apple") == ["post 1: an apple from before"])
                create("a pear that comes")
                wait_until(lambda: found(index, "pear") == ["post 2: a pear that comes"])
            posts.UpdatePost(posts_pb2.UpdatePostRequest(post=posts_pb2.Post(id=2, body="a plum instead")))
            posts.DeletePost(posts_pb2.DeletePostRequest(id=1))
            with following(address, index):
                wait_until(lambda: found(index, "plum") == ["post 2: a plum instead"])

            assert found(index, "apple OR pear") == []

            # More comments than one transaction removes: the feed tells of the post before them.
            comment(2, 1000)
            comment(2, 1)
            with following(address, index):
                wait_until(lambda: found(index, "cherry"))
                posts.DeletePost(posts_pb2.DeletePostRequest(id=2, force=True))
                wait_until(lambda: found(index, "plum OR cherry") == [])
    finally:
        server.kill()


@pytest.mark.parametrize("arguments", [["--help"], ["follow", "--help"], ["search", "--help"]])
def test_example_prints_its_usage(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments], capture_output=True, text=True, timeout=scaled_timeout()
    )

    assert run.returncode == 0
    assert "--index" in run.stdout
