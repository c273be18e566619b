"""The service called with grpcurl, which only uses reflection."""

import json
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2

from store_service.database import schema
from store_service.rpc.reflection import shipped_descriptors
from store_service.server import service_descriptors
from tests.support.legacy_database import damage
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

GRPCURL = Path(sys.executable).with_name("grpcurl")

POSTS = "storeapi.v1.PostService"
COMMENTS = "storeapi.v1.CommentService"
CHANGES = "storeapi.v1.ChangeService"
ADMIN = "storeapi.v1.AdminService"
TRANSFERS = "storeapi.v1.TransferService"

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for the whole module."""
    process = ServerProcess(tmp_path_factory.mktemp("server"), {"STORE_UNDELETE_HOURS": "1"})
    process.start()
    yield process
    process.kill()


def grpcurl(
    server: ServerProcess, *arguments: str, data: Answer | None = None, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs grpcurl against a server: options, then the address, then what to do."""
    options = ["-plaintext", *options, *(["-d", json.dumps(data)] if data is not None else [])]
    return subprocess.run(
        [GRPCURL, *options, server.address, *arguments],
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
        check=False,
    )


def call(server: ServerProcess, service: str, method: str, data: Answer) -> Answer:
    """A call that succeeds, and its answer."""
    done = grpcurl(server, f"{service}/{method}", data=data)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    answer: Answer = json.loads(done.stdout)
    return answer


def output(server: ServerProcess, *arguments: str) -> str:
    """What grpcurl prints."""
    done = grpcurl(server, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# Every RPC


class Driver:
    """Something to call with: a post, a comment, and what each RPC must answer."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server

    def posts(self, method: str, **data: Any) -> Answer:
        return call(self._server, POSTS, method, data)

    def comments(self, method: str, **data: Any) -> Answer:
        return call(self._server, COMMENTS, method, data)

    def admin(self, method: str, **data: Any) -> list[Answer]:
        """The responses of a method of AdminService."""
        return self.stream(f"{ADMIN}/{method}", json.dumps(data))

    def stream(self, method: str, data: str) -> list[Answer]:
        """The responses to one or more messages."""
        done = grpcurl(self._server, method, options=["-d", data])
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        responses: list[Answer] = json.loads("[" + done.stdout.replace("}\n{", "},{") + "]")
        return responses

    def watch(self, change_count: int, **data: Any) -> list[Answer]:
        """Reads a watch of grpcurl until it has `count` changes, and stops grpcurl."""
        options = ["-plaintext", "-max-time", "60", "-d", json.dumps(data)]
        command = [GRPCURL, *options, self._server.address, f"{CHANGES}/Watch"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            responses: list[Answer] = []
            text = ""
            for line in process.stdout:
                text += line
                # grpcurl indents what is inside of a message.
                if line == "}\n":
                    responses.append(json.loads(text))
                    text = ""
                    if sum(len(it.get("changes", [])) for it in responses) >= change_count:
                        break
            process.terminate()
        assert all(it["resumeToken"] for it in responses)
        return responses

    def post(self, body: str = "a post") -> Answer:
        return self.posts("CreatePost", post={"body": body})

    def comment(self, post_id: str, body: str = "a comment") -> Answer:
        return self.comments("CreateComment", comment={"body": body, "postId": post_id})


def before_deletion(deleted: Answer) -> Answer:
    """A deleted resource without the times of its deletion."""
    assert deleted["deleteTime"] < deleted["purgeTime"]
    return {name: value for name, value in deleted.items() if name not in ("deleteTime", "purgeTime")}


def create_post(drive: Driver) -> None:
    post = drive.post("grüße 😀")
    assert post.keys() == {"id", "body", "createTime", "updateTime", "etag"}
    assert post["body"] == "grüße 😀"


def get_post(drive: Driver) -> None:
    post = drive.post()
    assert drive.posts("GetPost", id=post["id"]) == post


def list_posts(drive: Driver) -> None:
    wanted = [drive.post(str(n)) for n in range(2)][::-1]
    first = drive.posts("ListPosts", page_size=1, order_by="id desc")
    second = drive.posts("ListPosts", pageSize=1, orderBy="id desc", pageToken=first["nextPageToken"])
    assert first["posts"] + second["posts"] == wanted
    assert (bool(first["resumeToken"]), "resumeToken" in second) == (True, False)


def update_post(drive: Driver) -> None:
    post = drive.post()
    # grpcurl wants a FieldMask written out.
    updated = drive.posts(
        "UpdatePost", post={"id": post["id"], "body": "new"}, update_mask={"paths": ["body"]}
    )
    assert updated["body"] == "new"
    assert updated["etag"] != post["etag"]


def delete_post(drive: Driver) -> None:
    post = drive.post()
    drive.comment(post["id"])
    assert before_deletion(drive.posts("DeletePost", id=post["id"], force=True)) == post
    assert drive.posts("DeletePost", id=post["id"], allow_missing=True) == {"id": post["id"]}


def undelete_post(drive: Driver) -> None:
    post = drive.post()
    drive.posts("DeletePost", id=post["id"])
    restored = drive.posts("UndeletePost", id=post["id"])
    assert restored == post | {"etag": restored["etag"]}


def list_post_revisions(drive: Driver) -> None:
    post = drive.post()
    drive.posts("UpdatePost", post={"id": post["id"], "body": "new"})
    assert drive.posts("ListPostRevisions", id=post["id"]) == {"posts": [post]}


def batch_get_posts(drive: Driver) -> None:
    post = drive.post()
    answer = drive.posts("BatchGetPosts", ids=[post["id"], "999999"], allow_missing=True)
    assert answer == {"posts": [post], "missingIds": ["999999"]}


def batch_create_posts(drive: Driver) -> None:
    answer = drive.posts("BatchCreatePosts", requests=[{"post": {"body": "a"}}, {"post": {"body": "b"}}])
    assert [post["body"] for post in answer["posts"]] == ["a", "b"]


def batch_delete_posts(drive: Driver) -> None:
    posts = [drive.post("a"), drive.post("b")]
    answer = drive.posts("BatchDeletePosts", ids=[post["id"] for post in posts])
    assert [before_deletion(it) for it in answer["posts"]] == posts


def create_comment(drive: Driver) -> None:
    post = drive.post()
    comment = drive.comment(post["id"])
    assert comment.keys() == {"id", "body", "postId", "createTime", "updateTime", "etag"}
    assert comment["postId"] == post["id"]


def get_comment(drive: Driver) -> None:
    comment = drive.comment(drive.post()["id"])
    assert drive.comments("GetComment", id=comment["id"]) == comment


def list_comments(drive: Driver) -> None:
    post = drive.post()
    comments = [drive.comment(post["id"], str(n)) for n in range(2)]
    answer = drive.comments("ListComments", post_id=post["id"])
    assert answer.pop("resumeToken")
    assert answer == {"comments": comments}


def update_comment(drive: Driver) -> None:
    comment = drive.comment(drive.post()["id"])
    # Read, changed, and sent back whole.
    assert drive.comments("UpdateComment", comment={**comment, "body": "new"})["body"] == "new"


def delete_comment(drive: Driver) -> None:
    comment = drive.comment(drive.post()["id"])
    deleted = drive.comments("DeleteComment", id=comment["id"], etag=comment["etag"])
    assert before_deletion(deleted) == comment


def undelete_comment(drive: Driver) -> None:
    comment = drive.comment(drive.post()["id"])
    drive.comments("DeleteComment", id=comment["id"])
    restored = drive.comments("UndeleteComment", id=comment["id"])
    assert restored == comment | {"etag": restored["etag"]}


def list_comment_revisions(drive: Driver) -> None:
    comment = drive.comment(drive.post()["id"])
    drive.comments("UpdateComment", comment={**comment, "body": "new"})
    assert drive.comments("ListCommentRevisions", id=comment["id"]) == {"comments": [comment]}


def batch_get_comments(drive: Driver) -> None:
    comment = drive.comment(drive.post()["id"])
    assert drive.comments("BatchGetComments", ids=[comment["id"]]) == {"comments": [comment]}


def batch_create_comments(drive: Driver) -> None:
    drafts = [{"comment": {"body": body, "post_id": drive.post()["id"]}} for body in ("a", "b")]
    answer = drive.comments("BatchCreateComments", requests=drafts)
    assert [comment["body"] for comment in answer["comments"]] == ["a", "b"]


def batch_delete_comments(drive: Driver) -> None:
    comment = drive.comment(drive.post()["id"])
    answer = drive.comments("BatchDeleteComments", ids=[comment["id"], "999999"], allowMissing=True)
    assert [before_deletion(it) for it in answer["comments"]] == [comment]
    assert answer["missingIds"] == ["999999"]


def count_comments(drive: Driver) -> None:
    post = drive.post()
    drive.comment(post["id"])
    answer = drive.comments("CountComments", post_ids=[post["id"], "999999"])
    assert answer == {"counts": {post["id"]: "1", "999999": "0"}, "total": "1"}
    of_nobody = {"author": str(uuid.uuid4())}
    assert drive.comments("CountComments", all_posts=True, filter=of_nobody) == {}


def count_replies(drive: Driver) -> None:
    comment = drive.comment(drive.post()["id"])
    reply = {"body": "a reply", "postId": comment["postId"], "replyToId": comment["id"]}
    assert drive.comments("CreateComment", comment=reply)["depth"] == 1
    answer = drive.comments("CountReplies", comment_ids=[comment["id"]])
    assert answer == {"counts": {comment["id"]: "1"}}


def count_posts(drive: Driver) -> None:
    author = str(uuid.uuid4())
    drive.posts("CreatePost", post={"body": "a", "author": author})
    assert drive.posts("CountPosts", filter={"author": author}) == {"count": "1"}


def batch_update_posts(drive: Driver) -> None:
    posts = [drive.post(), drive.post()]
    requests = [
        {"post": {"id": post["id"], "labels": {"status": "new"}}, "updateMask": {"paths": ["labels.status"]}}
        for post in posts
    ]
    answer = drive.posts("BatchUpdatePosts", requests=requests)
    assert [post["labels"] for post in answer["posts"]] == [{"status": "new"}] * 2


def batch_update_comments(drive: Driver) -> None:
    comment = drive.comment(drive.post()["id"])
    answer = drive.comments("BatchUpdateComments", requests=[{"comment": {**comment, "author": "ann"}}])
    assert [it["author"] for it in answer["comments"]] == ["ann"]


def watch(drive: Driver) -> None:
    before = drive.posts("ListPosts", page_size=1)["resumeToken"]
    request_id = str(uuid.uuid4())
    post = drive.posts("CreatePost", post={"body": "seen"}, request_id=request_id)
    comment = drive.comment(post["id"])
    told = [
        change
        for response in drive.watch(2, resume_token=before, post_ids=[post["id"]])
        for change in response.get("changes", [])
    ]
    assert all(change.pop("commitTime") for change in told)
    of_the_post = {"postId": post["id"], "action": "ACTION_CREATE"}
    assert told == [
        of_the_post | {"kind": "RESOURCE_KIND_POST", "id": post["id"], "post": post, "requestId": request_id},
        of_the_post | {"kind": "RESOURCE_KIND_COMMENT", "id": comment["id"], "comment": comment},
    ]


def erase_author(drive: Driver) -> None:
    author = str(uuid.uuid4())
    drive.posts("CreatePost", post={"body": "a", "author": author})
    *_, last = drive.admin("EraseAuthor", author=author, mode="ERASE_MODE_DELETE")
    assert last["complete"]
    assert last["posts"] == "1"
    assert drive.posts("CountPosts", filter={"author": author, "showDeleted": True}) == {}


def search_posts(drive: Driver) -> None:
    post = drive.post("a rare Aardvark")
    answer = drive.posts("SearchPosts", query="aardvark", page_size=1)
    assert answer["results"] == [{"post": post, "snippet": answer["results"][0]["snippet"]}]
    assert answer["results"][0]["snippet"][-1] == {"text": "Aardvark", "isMatch": True}


def search_comments(drive: Driver) -> None:
    post = drive.post()
    comment = drive.comment(post["id"], "a rare Aardvark")
    answer = drive.comments("SearchComments", query='"rare aardvark" -common', postId=post["id"])
    assert [result["comment"] for result in answer["results"]] == [comment]


def rebuild_search_index(drive: Driver) -> None:
    *_, last = drive.admin("RebuildSearchIndex")
    assert last == {"progress": 1, "complete": True}


def set_write_mode(drive: Driver) -> None:
    for mode in ("WRITE_MODE_RECORDED", "WRITE_MODE_NORMAL"):
        assert drive.admin("SetWriteMode", mode=mode) == [{}]
        drive.post()


def export(drive: Driver) -> None:
    post = drive.post()
    *_, last = responses = drive.stream(f"{TRANSFERS}/Export", "{}")
    assert last["resumeToken"]
    assert {"post": post} in [record for response in responses for record in response.get("records", [])]


def import_(drive: Driver) -> None:
    external_id = str(uuid.uuid4())
    batch = {"batch": 1, "records": [{"post": {"body": "a", "external_id": external_id}}]}
    messages = json.dumps({"options": {"on_conflict": "CONFLICT_POLICY_FAIL"}}) + json.dumps(batch)
    assert drive.stream(f"{TRANSFERS}/Import", messages) == [{"batch": "1", "result": {"created": 1}}]
    assert drive.posts("GetPost", external_id=external_id)["body"] == "a"


def import_records(drive: Driver) -> None:
    post = drive.post()
    request = {"on_conflict": "CONFLICT_POLICY_OVERWRITE", "records": [{"post": {**post, "body": "new"}}]}
    (answer,) = drive.stream(f"{TRANSFERS}/ImportRecords", json.dumps(request))
    assert answer == {"result": {"overwritten": 1}}


RPCS: dict[tuple[str, str], Callable[[Driver], None]] = {
    (POSTS, "CreatePost"): create_post,
    (POSTS, "GetPost"): get_post,
    (POSTS, "ListPosts"): list_posts,
    (POSTS, "UpdatePost"): update_post,
    (POSTS, "DeletePost"): delete_post,
    (POSTS, "UndeletePost"): undelete_post,
    (POSTS, "ListPostRevisions"): list_post_revisions,
    (POSTS, "BatchGetPosts"): batch_get_posts,
    (POSTS, "BatchCreatePosts"): batch_create_posts,
    (POSTS, "BatchUpdatePosts"): batch_update_posts,
    (POSTS, "BatchDeletePosts"): batch_delete_posts,
    (POSTS, "CountPosts"): count_posts,
    (POSTS, "SearchPosts"): search_posts,
    (COMMENTS, "CreateComment"): create_comment,
    (COMMENTS, "GetComment"): get_comment,
    (COMMENTS, "ListComments"): list_comments,
    (COMMENTS, "UpdateComment"): update_comment,
    (COMMENTS, "DeleteComment"): delete_comment,
    (COMMENTS, "UndeleteComment"): undelete_comment,
    (COMMENTS, "ListCommentRevisions"): list_comment_revisions,
    (COMMENTS, "BatchGetComments"): batch_get_comments,
    (COMMENTS, "BatchCreateComments"): batch_create_comments,
    (COMMENTS, "BatchUpdateComments"): batch_update_comments,
    (COMMENTS, "BatchDeleteComments"): batch_delete_comments,
    (COMMENTS, "CountComments"): count_comments,
    (COMMENTS, "CountReplies"): count_replies,
    (COMMENTS, "SearchComments"): search_comments,
    (CHANGES, "Watch"): watch,
    (ADMIN, "EraseAuthor"): erase_author,
    (ADMIN, "RebuildSearchIndex"): rebuild_search_index,
    (ADMIN, "SetWriteMode"): set_write_mode,
    (TRANSFERS, "Export"): export,
    (TRANSFERS, "Import"): import_,
    (TRANSFERS, "ImportRecords"): import_records,
}
"""Every RPC, and how it is called by hand."""


def test_every_rpc_is_in_the_table() -> None:
    """Fails for a new RPC without a grpcurl example."""
    assert set(RPCS) == {
        (service.full_name, method.name) for service in service_descriptors() for method in service.methods
    }


@pytest.mark.parametrize(("service", "method"), RPCS)
def test_rpc_is_called_with_grpcurl(running: ServerProcess, service: str, method: str) -> None:
    """With one line of JSON, in either spelling of the names, and only the address."""
    RPCS[service, method](Driver(running))


# Looking around


def test_grpcurl_lists_the_services(running: ServerProcess) -> None:
    """All services, and the methods of each."""
    assert output(running, "list").split() == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        ADMIN,
        CHANGES,
        COMMENTS,
        POSTS,
        TRANSFERS,
    ]
    for service in service_descriptors():
        assert set(output(running, "list", service.full_name).split()) == {
            method.full_name for method in service.methods
        }


def test_grpcurl_calls_the_health_of_every_service(running: ServerProcess) -> None:
    """Of the server, of search and of each service; an unknown service is an error."""
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    services = {"", "live", "search", POSTS, COMMENTS, CHANGES, ADMIN, TRANSFERS}
    for data in ({}, *({"service": name} for name in services)):
        assert call(running, health, "Check", data) == {"status": "SERVING"}
    assert call(running, health, "List", {})["statuses"].keys() == services
    assert "Code: NotFound" in grpcurl(running, f"{health}/Check", data={"service": "nothing"}).stderr


def comments_in(file: FileDescriptorProto) -> dict[str, list[str]]:
    """What the .proto file says of everything that `grpcurl describe` prints, by service, message or enum."""
    found: dict[str, list[str]] = {}
    for location in file.source_code_info.location:
        kind, index, *rest = (*location.path, None, None)[:4]
        if not location.leading_comments or index is None or len(location.path) % 2:
            continue
        holders = {4: file.message_type, 5: file.enum_type, 6: file.service}.get(kind, ())
        if holders and rest[0] in (None, 2):  # itself, or one of its fields, values or methods
            found.setdefault(f"{file.package}.{holders[index].name}", []).append(location.leading_comments)
    return found


COMMENTED = {
    symbol: texts
    for file in shipped_descriptors()
    if file.package == "storeapi.v1"
    for symbol, texts in comments_in(file).items()
}


def without_slashes(described: str) -> list[str]:
    """The lines of a description; of comments, their text."""
    return [line.strip().removeprefix("//").strip() for line in described.splitlines()]


def is_part_of(text: str, lines: Sequence[str]) -> bool:
    """Whether the lines of a comment are there, one after the other."""
    wanted = [line.strip() for line in text.strip().splitlines()]
    return any(lines[start : start + len(wanted)] == wanted for start in range(len(lines)))


@pytest.mark.parametrize("symbol", COMMENTED)
def test_describe_prints_the_comments(running: ServerProcess, symbol: str) -> None:
    """Every comment of the .proto file, of the element and of everything in it."""
    lines = without_slashes(output(running, "describe", symbol))

    assert [text for text in COMMENTED[symbol] if not is_part_of(text, lines)] == []


def test_every_proto_element_has_a_comment() -> None:
    """Services with methods, messages with fields, enums with values."""
    for file in shipped_descriptors():
        if file.package == "storeapi.v1":
            for message in file.message_type:
                assert len(COMMENTED[f"storeapi.v1.{message.name}"]) == 1 + len(message.field)
            for enum in file.enum_type:
                assert len(COMMENTED[f"storeapi.v1.{enum.name}"]) == 1 + len(enum.value)
            for service in file.service:
                assert len(COMMENTED[f"storeapi.v1.{service.name}"]) == 1 + len(service.method)


@pytest.mark.parametrize(
    ("symbol", "line"),
    [
        (f"{POSTS}.CreatePost", "Creates a post and returns it."),
        (f"{COMMENTS}.CountComments", "Counts the comments of up to 1000 posts, or of all posts together."),
        ("storeapi.v1.Post.id", "Output only. A positive number that is never reused."),
        ("storeapi.v1.CountCommentsResponse.counts", "The number of comments of each requested post,"),
    ],
)
def test_describe_prints_one_method_or_field(running: ServerProcess, symbol: str, line: str) -> None:
    """Without the rest of the service or message."""
    lines = without_slashes(output(running, "describe", symbol))

    assert lines[0].startswith(f"{symbol} is ")
    assert [it for it in lines if it.startswith(line)]


# Errors


def details_of(
    server: ServerProcess, service: str, method: str, data: Answer
) -> tuple[str, dict[str, Answer]]:
    """The code of a call that fails, and its details as text, by the name of their type."""
    done = grpcurl(server, f"{service}/{method}", data=data)
    assert done.returncode != 0
    # "  1)\t{...}" is what grpcurl makes of a detail; of a type that it does not know it prints bytes.
    details = [json.loads(line.partition("\t")[2]) for line in done.stderr.splitlines() if "\t{" in line]
    (code,) = [line.split()[1] for line in done.stderr.splitlines() if line.strip().startswith("Code:")]
    assert "@value" not in done.stderr
    assert "@error" not in done.stderr
    return code, {it.pop("@type").rpartition("google.rpc.")[2]: it for it in details}


def test_invalid_request_is_readable(running: ServerProcess) -> None:
    """ErrorInfo and BadRequest, with every violation."""
    code, details = details_of(running, POSTS, "CreatePost", {"post": {"id": 5, "body": ""}})

    assert code == "InvalidArgument"
    assert details["ErrorInfo"] == {"reason": "FIELD_INVALID", "domain": "storeapi"}
    violations = details["BadRequest"]["fieldViolations"]
    assert {it["field"] for it in violations} == {"post.id", "post.body"}
    assert all(it["description"] for it in violations)


def test_not_found_is_readable(running: ServerProcess) -> None:
    """ErrorInfo with its metadata, and ResourceInfo."""
    code, details = details_of(running, COMMENTS, "GetComment", {"id": 999_999})

    assert code == "NotFound"
    assert details["ErrorInfo"]["reason"] == "COMMENT_NOT_FOUND"
    assert details["ErrorInfo"]["metadata"]["comment_id"] == "999999"
    assert details["ResourceInfo"] == {"resourceType": "storeapi.v1.Comment", "resourceName": "999999"}


def test_failed_precondition_is_readable(running: ServerProcess) -> None:
    """PreconditionFailure."""
    post = Driver(running).post()
    Driver(running).comment(post["id"])
    code, details = details_of(running, POSTS, "DeletePost", {"id": post["id"]})

    assert code == "FailedPrecondition"
    assert details["ErrorInfo"]["metadata"] == {"post_id": post["id"], "comment_count": "1"}
    (violation,) = details["PreconditionFailure"]["violations"]
    assert violation["type"] == "POST_HAS_COMMENTS"
    assert violation["subject"] == f"storeapi.v1.Post/{post['id']}"


def test_etag_mismatch_is_readable(running: ServerProcess) -> None:
    """The current etag is in the metadata."""
    post = Driver(running).post()
    code, details = details_of(running, POSTS, "DeletePost", {"id": post["id"], "etag": "stale"})

    assert code == "Aborted"
    assert details["ErrorInfo"]["reason"] == "ETAG_MISMATCH"
    assert details["ErrorInfo"]["metadata"] == {"current_etag": post["etag"]}
    assert details["ResourceInfo"]["resourceName"] == post["id"]


def test_damaged_token_is_readable(running: ServerProcess) -> None:
    """A refused stream has the same details as a unary call."""
    code, details = details_of(running, CHANGES, "Watch", {"resume_token": "made up"})

    assert code == "InvalidArgument"
    assert details["ErrorInfo"] == {"reason": "RESUME_TOKEN_INVALID", "domain": "storeapi"}
    assert [it["field"] for it in details["BadRequest"]["fieldViolations"]] == ["resume_token"]


def test_reused_request_id_is_readable(running: ServerProcess) -> None:
    request_id = str(uuid.uuid4())
    first = {"post": {"body": "a"}, "request_id": request_id}
    post = call(running, POSTS, "CreatePost", first)
    again = call(running, POSTS, "CreatePost", first)
    code, details = details_of(running, POSTS, "CreatePost", {**first, "post": {"body": "b"}})

    assert again == post
    assert code == "InvalidArgument"
    assert details["ErrorInfo"] == {"reason": "REQUEST_ID_REUSED", "domain": "storeapi"}
    assert [it["field"] for it in details["BadRequest"]["fieldViolations"]] == ["request_id"]


def test_watch_limit_is_readable(tmp_path: Path) -> None:
    """QuotaFailure, and RetryInfo, because another watch may end."""
    server = ServerProcess(tmp_path, {"STORE_MAX_WATCHES": "0"}).start()
    try:
        code, details = details_of(server, CHANGES, "Watch", {})
    finally:
        server.kill()

    assert code == "ResourceExhausted"
    assert details["ErrorInfo"]["reason"] == "WATCH_LIMIT"
    assert details["ErrorInfo"]["metadata"] == {"limit": "0"}
    (violation,) = details["QuotaFailure"]["violations"]
    assert violation["subject"]
    assert violation["description"]
    assert details["RetryInfo"] == {"retryDelay": "0.500s"}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose table of comments is damaged, and whose table of posts causes an unhandled exception."""
    folder = tmp_path_factory.mktemp("broken")
    path = folder / "store.db"
    schema.upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON posts BEGIN SELECT RAISE(ABORT, 'broken'); END"
        )
    damage(path, "comments")
    process = ServerProcess(folder)
    process.start()
    yield process
    process.kill()


def test_retry_info_is_readable(broken: ServerProcess) -> None:
    """RetryInfo."""
    code, details = details_of(broken, COMMENTS, "GetComment", {"id": 1})

    assert code == "Unavailable"
    assert details["ErrorInfo"] == {"reason": "DATABASE_UNAVAILABLE", "domain": "storeapi"}
    assert details["RetryInfo"] == {"retryDelay": "0.500s"}


def test_internal_error_has_a_call_id(broken: ServerProcess) -> None:
    """RequestInfo, with the id in the log."""
    code, details = details_of(broken, POSTS, "CreatePost", {"post": {"body": "a"}})

    assert code == "Internal"
    assert details["ErrorInfo"] == {"reason": "INTERNAL", "domain": "storeapi"}
    assert details["RequestInfo"]["requestId"] in broken.stderr()
