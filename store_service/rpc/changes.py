"""ChangeService on the wire: check, call, convert."""

from collections.abc import AsyncGenerator, Iterable

from storeapi.v1 import changes_pb2 as pb

from store_service.model import Change, Filter, Post
from store_service.rpc.call import Context
from store_service.rpc.convert import comment_to_message, post_to_message, set_time
from store_service.rpc.validation import Validation
from store_service.store.changes import Piece
from store_service.store.feed import Feed, Sent

MAX_ENCODED = 8
"""For so many different filters the encoding of a piece is kept for others who have the same."""


class ChangeService:
    """The methods of storeapi.v1.ChangeService; protos/storeapi/v1/changes.proto is their manual."""

    def __init__(self, feed: Feed, validation: Validation) -> None:
        """Takes the feed and the limits."""
        self._feed = feed
        self._validation = validation

    async def Watch(
        self, request: pb.WatchRequest, _: Context
    ) -> AsyncGenerator[bytes | pb.WatchResponse, None]:
        start, filter, heartbeat_seconds = self._validation.watch(request)
        async for sent in self._feed.watch(start, filter, heartbeat_seconds=heartbeat_seconds):
            yield _to_message(sent) if sent.piece is None else _encoded(sent.piece, filter, sent.resume_token)


def _to_message(sent: Sent) -> pb.WatchResponse:
    return pb.WatchResponse(
        changes=_messages(sent.snapshot),
        resume_token=sent.resume_token,
        initial_state_complete=sent.snapshot_complete,
        heartbeat=not sent.snapshot and not sent.snapshot_complete,
    )


def _encoded(piece: Piece, filter: Filter, resume_token: str) -> bytes:
    """The response with what a filter leaves of a piece, encoded once for all who want the same."""
    data = piece.encoded.get(filter)
    if data is None:
        changes = _messages(change for change in piece.changes if filter.matches(change))
        response = pb.WatchResponse(changes=changes, resume_token=resume_token, partial=piece.partial)
        data = response.SerializeToString()
        if len(piece.encoded) < MAX_ENCODED:
            piece.encoded[filter] = data
    return data


def _messages(changes: Iterable[Change]) -> list[pb.Change]:
    return [_change_to_message(change) for change in changes]


def _change_to_message(change: Change) -> pb.Change:
    resource = change.resource
    message = pb.Change(
        action=pb.Action.ValueType(change.action),
        kind=pb.ResourceKind.ValueType(change.kind),
        id=resource.id,
        post_id=change.post_id,
        request_id=change.request_id,
    )
    if isinstance(resource, Post):
        message.post.CopyFrom(post_to_message(resource))
    else:
        message.comment.CopyFrom(comment_to_message(resource))
    if change.commit_time is not None:
        set_time(message.commit_time, change.commit_time)
    return message
