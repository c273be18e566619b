"""A watch as tests read it: one response at a time, never waiting for ever."""

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

from tests import support
from tests.patience import patience
from tests.support import ErrorSeen, Stubs, error_seen

POST = pb.RESOURCE_KIND_POST
COMMENT = pb.RESOURCE_KIND_COMMENT
SNAPSHOT = pb.ACTION_SNAPSHOT
CREATE = pb.ACTION_CREATE
UPDATE = pb.ACTION_UPDATE
DELETE = pb.ACTION_DELETE

support.DETAIL_TYPES.setdefault(
    error_details_pb2.QuotaFailure.DESCRIPTOR.full_name, error_details_pb2.QuotaFailure
)

Key = tuple[int, int, str, int]
"""Kind, id, etag and action: no two changes have the same."""


class Watch:
    """A running watch."""

    def __init__(self, channel: grpc.aio.Channel, **request: Any) -> None:
        """Begins to watch."""
        self._call = changes_pb2_grpc.ChangeServiceStub(channel).Watch(pb.WatchRequest(**request))
        self.token = ""
        """Of the last response that was read."""

    async def read(self) -> pb.WatchResponse:
        """The next response; raises the error with which the watch has ended."""
        async with asyncio.timeout(patience()):
            response = await self._call.read()
        assert isinstance(response, pb.WatchResponse), "a watch never ends without an error"
        assert response.resume_token
        # The end of a transaction that was begun to be told is no heartbeat, though it may have no changes.
        assert not (response.heartbeat and (response.changes or response.initial_state_complete))
        self.token = response.resume_token
        return response

    async def response(self) -> pb.WatchResponse:
        """The next response that holds changes."""
        while True:
            response = await self.read()
            if response.changes:
                return response

    async def changes(self, count: int) -> list[pb.Change]:
        """The next so many changes, or a few more when they come together."""
        found: list[pb.Change] = []
        async with asyncio.timeout(patience()):
            while len(found) < count:
                found += (await self.read()).changes
        return found

    async def until(self, id: int, *, kind: int = POST) -> list[pb.Change]:
        """Every change up to the last in the response that tells of a resource for the first time."""
        found: list[pb.Change] = []
        async with asyncio.timeout(patience()):
            while not any((it.kind, it.id) == (kind, id) for it in found):
                found += (await self.read()).changes
        return found

    async def initial_state(self) -> list[pb.Change]:
        """What is left of the initial state."""
        found: list[pb.Change] = []
        while True:
            response = await self.read()
            assert {it.action for it in response.changes} <= {SNAPSHOT}
            found += response.changes
            if response.initial_state_complete:
                return found

    async def end(self) -> ErrorSeen:
        """Reads up to the error with which the watch ends."""
        return (await self.rest())[1]

    async def rest(self) -> tuple[list[int], ErrorSeen]:
        """The ids of all changes up to the error with which the watch ends, and that error."""
        ids: list[int] = []
        try:
            while True:
                ids += [it.id for it in (await self.read()).changes]
        except grpc.RpcError as error:
            return ids, error_seen(error)

    def close(self) -> None:
        """Ends it as a caller does who wants no more."""
        self._call.cancel()


@asynccontextmanager
async def watching(channel: grpc.aio.Channel, **request: Any) -> AsyncIterator[Watch]:
    """A watch that is closed at the end of the block; what it sends first is still to be read."""
    watch = Watch(channel, **request)
    try:
        yield watch
    finally:
        watch.close()


@asynccontextmanager
async def begun(channel: grpc.aio.Channel, **request: Any) -> AsyncIterator[Watch]:
    """A watch that tells of everything from now on: its first response has been read."""
    async with watching(channel, **request) as watch:
        first = await watch.read()
        assert first.heartbeat
        yield watch


async def refusal(channel: grpc.aio.Channel, **request: Any) -> ErrorSeen:
    """The error of a watch that must not send anything."""
    async with watching(channel, **request) as watch:
        try:
            response = await watch.read()
        except grpc.RpcError as error:
            return error_seen(error)
    raise AssertionError(f"the watch began with {response}")


async def token_of_now(channel: grpc.aio.Channel) -> str:
    """A token behind everything so far."""
    async with begun(channel) as watch:
        return watch.token


def position_of(token: str) -> tuple[int, int]:
    """The place in the feed that a token names; of two places the later is the larger."""
    xid, seq = struct.unpack(">10xqq40x", base64.urlsafe_b64decode(token))
    return xid, seq


def resource_of(change: pb.Change) -> posts_pb2.Post | comments_pb2.Comment:
    """The post or comment in a change; it is of the kind that the change names."""
    if change.kind == POST:
        assert change.HasField("post")
        return change.post
    assert change.HasField("comment")
    return change.comment


def key_of(change: pb.Change) -> Key:
    """What no other change has."""
    return change.kind, change.id, resource_of(change).etag, change.action


def briefly(changes: Iterable[pb.Change]) -> list[tuple[int, int, int]]:
    """Action, kind and id of each."""
    return [(it.action, it.kind, it.id) for it in changes]


@dataclass
class Replica:
    """What somebody holds who applies changes as they come."""

    posts: dict[int, posts_pb2.Post] = field(default_factory=dict)
    comments: dict[int, comments_pb2.Comment] = field(default_factory=dict)

    def apply(self, changes: Iterable[pb.Change]) -> None:
        """Does what is told."""
        for change in changes:
            held: dict[int, Any] = self.posts if change.kind == POST else self.comments
            if change.action == DELETE:
                held.pop(change.id, None)
            else:
                held[change.id] = resource_of(change)


async def listed(stubs: Stubs) -> Replica:
    """What is stored now."""
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
