"""`storeapi` with a server that keeps deleted posts and comments."""

import json
from collections.abc import Iterator

import pytest
from storeapi import StoreClient

from tests.support.server_process import ServerProcess
from tests.support.storeapi_command import StoreapiCommand


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process = ServerProcess(tmp_path_factory.mktemp("server"), {"STORE_UNDELETE_HOURS": "24"})
    yield process.start().address
    process.kill()


@pytest.fixture(params=["posts", "comments"])
def created(request: pytest.FixtureRequest, storeapi: StoreapiCommand) -> tuple[str, str]:
    """A command and the id of a resource."""
    (post,) = storeapi.json("posts", "create", "first", "--author", "ann")
    if request.param == "posts":
        return "posts", str(post["id"])
    (comment,) = storeapi.json("comments", "create", str(post["id"]), "first", "--author", "ann")
    return "comments", str(comment["id"])


def test_deleted_resource_is_shown_and_restored(storeapi: StoreapiCommand, created: tuple[str, str]) -> None:
    """With its former versions. A second undelete is a conflict."""
    command, id = created
    storeapi.json(command, "update", id, "second")
    (deleted,) = storeapi.json(command, "delete", id)
    assert deleted["delete_time"] < deleted["purge_time"]
    assert storeapi(command, "get", id).exit_code == storeapi(command, "revisions", id).exit_code == 3
    assert storeapi.json(command, "get", id, "--show-deleted") == [deleted]
    assert deleted not in storeapi.json(command, "list")
    assert deleted in storeapi.json(command, "list", "--show-deleted", "--author", "ann")
    shown, visible = (int(storeapi(command, "count", *it).stdout) for it in (["--show-deleted"], []))
    assert shown == visible + 1
    assert [it["body"] for it in storeapi.json(command, "revisions", id, "--show-deleted")] == ["first"]

    (restored,) = storeapi.json(command, "undelete", id)

    assert (restored["body"], restored["delete_time"]) == ("second", None)
    assert storeapi.json(command, "get", id) == [restored]
    assert [it["body"] for it in storeapi.json(command, "revisions", id)] == ["first"]
    again = storeapi(command, "undelete", id)
    assert again.exit_code == 4
    assert again.stderr.startswith("error: NOT_DELETED: ")


def test_force_deletes_replies(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """Without it, the comment is a tombstone: a line with an empty body, and the times at its end."""
    post = store.posts.create("a")
    top = store.comments.create(post_id=post.id, body="top")
    store.comments.create(post_id=post.id, body="reply", reply_to_id=top.id)
    storeapi("comments", "delete", str(top.id))
    lines = storeapi("comments", "list", "--post", str(post.id)).stdout.splitlines()
    assert [line.split("\t")[5] for line in lines] == ["", "reply"]
    assert [bool(line.split("\t")[-2]) for line in lines] == [True, False]
    storeapi("comments", "undelete", str(top.id))

    storeapi("comments", "delete", str(top.id), "--force")

    assert storeapi.json("comments", "list", "--post", str(post.id)) == []


def test_watch_prints_undelete(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """As a line and as JSON."""
    token = next(store.posts.pages()).resume_token
    post = store.posts.create("a")
    store.posts.delete(post.id)
    store.posts.undelete(post.id)
    watch = ["watch", "--resume-token", token, "--exit-after", "3"]

    lines = storeapi(*watch).stdout.splitlines()
    assert [line.split("\t")[1] for line in lines] == [
        f"{it} post {post.id}" for it in ("create", "delete", "undelete")
    ]
    changes = [json.loads(line) for line in storeapi("--json", *watch).stdout.splitlines()]
    assert [bool(it["post"]["purge_time"]) for it in changes] == [False, True, False]
