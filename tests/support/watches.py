"""A watch that is read one response at a time, with a timeout."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2
from storeapi.v1 import changes_pb2 as pb
from storeapi.v1 import changes_pb2_grpc, comments_pb2, posts_pb2

from tests.support import errors
from tests.support.errors import ReceivedError, received_error
from tests.support.stubs import Stubs
from tests.support.timeouts import scaled_timeout

POST = pb.RESOURCE_KIND_POST
COMMENT = pb.RESOURCE_KIND_COMMENT
SNAPSHOT = pb.ACTION_SNAPSHOT
CREATE = pb.ACTION_CREATE
UPDATE = pb.ACTION_UPDATE
DELETE = pb.ACTION_DELETE

errors.DETAIL_TYPES.setdefault(
    error_details_pb2.QuotaFailure.DESCRIPTOR.full_name, error_details_pb2.QuotaFailure
)

Key = tuple[int, int, str, int]
"""Kind, id, etag and action: the identity of a change."""


class Watch:
    """A running watch."""

    def __init__(self, channel: grpc.aio.Channel, **request: Any) -> None:
        """Starts the watch."""
        self._call = changes_pb2_grpc.ChangeServiceStub(channel).Watch(pb.WatchRequest(**request))
        self.token = ""
        """The resume token of the last response."""

    async def read(self) -> pb.WatchResponse:
        """Returns the next response, or raises the error that ended the watch."""
        async with asyncio.timeout(scaled_timeout()):
            response = await self._call.read()
        assert isinstance(response, pb.WatchResponse), "a watch never ends without an error"
        assert response.resume_token
        # The last response of a split transaction is not a heartbeat, even without changes.
        assert not (response.heartbeat and (response.changes or response.initial_state_complete))
        self.token = response.resume_token
        return response

    async def response(self) -> pb.WatchResponse:
        """Returns the next response with changes."""
        while True:
            response = await self.read()
            if response.changes:
                return response

    async def changes(self, count: int) -> list[pb.Change]:
        """Reads at least `count` changes; more if the last response contains more."""
        found: list[pb.Change] = []
        async with asyncio.timeout(scaled_timeout()):
            while len(found) < count:
                found += (await self.read()).changes
        return found

    async def until(self, id: int, *, kind: int = POST) -> list[pb.Change]:
        """Reads up to the response with the first change of a resource, and returns all changes."""
        found: list[pb.Change] = []
        async with asyncio.timeout(scaled_timeout()):
            while not any((it.kind, it.id) == (kind, id) for it in found):
                found += (await self.read()).changes
        return found

    async def initial_state(self) -> list[pb.Change]:
        """Reads the rest of the initial state."""
        found: list[pb.Change] = []
        while True:
            response = await self.read()
            assert {it.action for it in response.changes} <= {SNAPSHOT}
            found += response.changes
            if response.initial_state_complete:
                return found

    async def end(self) -> ReceivedError:
        """Reads until the watch ends and returns its error."""
        return (await self.rest())[1]

    async def rest(self) -> tuple[list[int], ReceivedError]:
        """Reads until the watch ends. Returns the ids of all changes, and the error."""
        ids: list[int] = []
        try:
            while True:
                ids += [it.id for it in (await self.read()).changes]
        except grpc.RpcError as error:
            return ids, received_error(error)

    def close(self) -> None:
        """Cancels the call."""
        self._call.cancel()


@asynccontextmanager
async def open_watch(channel: grpc.aio.Channel, **request: Any) -> AsyncIterator[Watch]:
    """A watch that is closed at the end of the block. No response has been read."""
    watch = Watch(channel, **request)
    try:
        yield watch
    finally:
        watch.close()


@asynccontextmanager
async def watch_from_now(channel: grpc.aio.Channel, **request: Any) -> AsyncIterator[Watch]:
    """A watch that receives every change from now on. Its first response has been read."""
    async with open_watch(channel, **request) as watch:
        first = await watch.read()
        assert first.heartbeat
        yield watch


async def watch_error(channel: grpc.aio.Channel, **request: Any) -> ReceivedError:
    """Returns the error of a watch that must not send a response."""
    async with open_watch(channel, **request) as watch:
        try:
            response = await watch.read()
        except grpc.RpcError as error:
            return received_error(error)
    raise AssertionError(f"the watch began with {response}")


async def current_token(channel: grpc.aio.Channel) -> str:
    """Returns a resume token after all changes so far."""
    async with watch_from_now(channel) as watch:
        return watch.token


def token_position(token: str) -> tuple[int, int]:
    """Decodes the position in a resume token. Later positions are larger."""
    xid, seq = struct.unpack(">10xqq40x", base64.urlsafe_b64decode(token))
    return xid, seq


def changed_resource(change: pb.Change) -> posts_pb2.Post | comments_pb2.Comment:
    """Returns the post or comment in a change, and checks its kind."""
    if change.kind == POST:
        assert change.HasField("post")
        return change.post
    assert change.HasField("comment")
    return change.comment


def change_key(change: pb.Change) -> Key:
    """Returns the identity of a change."""
    return change.kind, change.id, changed_resource(change).etag, change.action


def summaries(changes: Iterable[pb.Change]) -> list[tuple[int, int, int]]:
    """Returns the action, kind and id of each change."""
    return [(it.action, it.kind, it.id) for it in changes]


@dataclass
class Replica:
    """The state of a client that applies changes."""

    posts: dict[int, posts_pb2.Post] = field(default_factory=dict)
    comments: dict[int, comments_pb2.Comment] = field(default_factory=dict)

    def apply(self, changes: Iterable[pb.Change]) -> None:
        """Applies changes in order."""
        for change in changes:
            held: dict[int, Any] = self.posts if change.kind == POST else self.comments
            if change.action == DELETE:
                held.pop(change.id, None)
            else:
                held[change.id] = changed_resource(change)


async def list_everything(stubs: Stubs) -> Replica:
    """Lists all posts and comments."""
    replica = Replica()
    token = ""
    while True:
        posts = await stubs.posts.ListPosts(posts_pb2.ListPostsRequest(page_size=1000, page_token=token))
        replica.posts |= {post.id: post for post in posts.posts}
        token = posts.next_page_token
        if not token:
            break
    while True:
        request = comments_pb2.ListCommentsRequest(page_size=1000, page_token=token)
        comments = await stubs.comments.ListComments(request)
        replica.comments |= {comment.id: comment for comment in comments.comments}
        token = comments.next_page_token
        if not token:
            return replica
