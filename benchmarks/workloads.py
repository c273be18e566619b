"""The workloads: their requests, the number of calls in flight, and the calls for each contender.

h2load sends one request repeatedly. `benchmarks.varied_load` makes the calls of workloads with different
requests (`varied`).
"""

import json
import struct
from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import Message
from storeapi.v1 import comments_pb2
from storeapi.v1 import posts_pb2 as pb

BODY = "x" * 100
"""The body of every post."""

SEEDED_POSTS = 10_000
"""Posts in each database before the first call."""

LIST_POSTS = 50
BATCH_POSTS = 100

Mix = Literal["get", "batch_get", "mixed"]
"""Different calls: GetPost or BatchGetPosts of random posts, or 9 such GetPost for each CreatePost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCall:
    """The same call as JSON over HTTP/1.1."""

    path: str
    body: bytes = b""
    """Empty: GET; otherwise POST."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kind of load."""

    name: str
    title: str
    service: str = "PostService"
    method: str
    request: Message | None = None
    """The request that h2load sends; None if `varied` is set."""
    varied: Mix | None = None
    """The mix of different calls."""
    connections: int = 1
    streams: int = 1
    """Calls in flight on each connection."""
    posts: int = 1
    """Posts that one call requests or stores."""
    http: HttpCall | None = None
    """The same for the old stack."""
    only_ours: bool = False
    """Whether only this service has such calls."""

    @property
    def in_flight(self) -> int:
        """Calls in flight at a time."""
        return self.connections * self.streams

    @property
    def writes(self) -> bool:
        """Whether each call stores posts."""
        return "Create" in self.method

    @property
    def over_http(self) -> bool:
        """Whether the old stack has such calls."""
        return self.http is not None or self.varied in ("get", "mixed")

    @property
    def path(self) -> str:
        """The path of the method."""
        return f"/storeapi.v1.{self.service}/{self.method}"


def framed(message: Message) -> bytes:
    """Returns a message as gRPC sends it: a flag for compression, its length, its bytes."""
    data = message.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data


GET = pb.GetPostRequest(id=1)
CREATE = pb.CreatePostRequest(post=pb.Post(body=BODY))
LIST = pb.ListPostsRequest(page_size=LIST_POSTS)
BATCH_GET = pb.BatchGetPostsRequest(ids=range(1, BATCH_POSTS + 1))
COMMENT = comments_pb2.Comment(post_id=1, body=BODY)
REPLY = comments_pb2.Comment(
    post_id=1,
    body=BODY,
    author="user:12345",
    labels={"lang": "en", "status": "visible"},
    reply_to_id=1,
)
BATCH_CREATE = pb.BatchCreatePostsRequest(requests=[CREATE] * BATCH_POSTS)

HTTP_GET = HttpCall(path="/post/1")
HTTP_CREATE = HttpCall(path="/post", body=json.dumps({"body": BODY}).encode())

WORKLOADS = (
    Workload(name="get_1", title="Get, 1 in flight", method="GetPost", request=GET, http=HTTP_GET),
    Workload(
        name="get_256",
        title="Get, 256 in flight",
        method="GetPost",
        request=GET,
        connections=8,
        streams=32,
        http=HTTP_GET,
    ),
    Workload(
        name="create_1", title="Create, 1 in flight", method="CreatePost", request=CREATE, http=HTTP_CREATE
    ),
    Workload(
        name="create_256",
        title="Create, 256 in flight",
        method="CreatePost",
        request=CREATE,
        connections=8,
        streams=32,
        http=HTTP_CREATE,
    ),
    Workload(
        name="get_varied_256",
        title="Get of random posts, 256 in flight",
        method="GetPost",
        varied="get",
        connections=8,
        streams=32,
    ),
    Workload(
        name="mixed_256",
        title="9 Get of random posts : 1 Create, 256 in flight",
        method="GetPost",
        varied="mixed",
        connections=8,
        streams=32,
    ),
    Workload(
        name="list_50",
        title="List of 50, 32 in flight",
        method="ListPosts",
        request=LIST,
        connections=8,
        streams=4,
        posts=LIST_POSTS,
        http=HttpCall(path=f"/post?limit={LIST_POSTS}"),
    ),
    Workload(
        name="batch_get_100",
        title="BatchGet of 100, 32 in flight",
        method="BatchGetPosts",
        request=BATCH_GET,
        connections=8,
        streams=4,
        posts=BATCH_POSTS,
    ),
    Workload(
        name="batch_get_varied_100",
        title="BatchGet of 100 random posts, 32 in flight",
        method="BatchGetPosts",
        varied="batch_get",
        connections=8,
        streams=4,
        posts=BATCH_POSTS,
    ),
    Workload(
        name="batch_create_100",
        title="BatchCreate of 100, 32 in flight",
        method="BatchCreatePosts",
        request=BATCH_CREATE,
        connections=8,
        streams=4,
        posts=BATCH_POSTS,
    ),
    Workload(
        name="create_comment_256",
        title="Create of a comment, 256 in flight",
        service="CommentService",
        method="CreateComment",
        request=comments_pb2.CreateCommentRequest(comment=COMMENT),
        connections=8,
        streams=32,
        only_ours=True,
    ),
    Workload(
        name="create_reply_256",
        title="Create of a reply with author and 2 labels, 256 in flight",
        service="CommentService",
        method="CreateComment",
        request=comments_pb2.CreateCommentRequest(comment=REPLY),
        connections=8,
        streams=32,
        only_ours=True,
    ),
)

BY_NAME = {workload.name: workload for workload in WORKLOADS}
