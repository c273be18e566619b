"""ChangeService on the wire: check, call, convert."""

import builtins
from collections.abc import AsyncGenerator, Iterable, Iterator
from itertools import islice

from storeapi.v1 import changes_pb2 as pb

from store_service.model import Change, Post, WatchFilter, concatenated_texts
from store_service.rpc.call import Context
from store_service.rpc.convert import comment_to_message, post_to_message, set_time
from store_service.rpc.responses import LazyResponse, utf8_size
from store_service.rpc.validation import Validation
from store_service.service.changes import ChangeBatch
from store_service.service.feed import Feed, WatchEvent

PART_COUNT = 500
"""Changes that are encoded without letting the event loop run."""


class ChangeService:
    """The methods of storeapi.v1.ChangeService; protos/storeapi/v1/changes.proto is their manual."""

    def __init__(self, feed: Feed, validation: Validation) -> None:
        """Takes the feed and the limits."""
        self._feed = feed
        self._validation = validation

    async def Watch(
        self, request: pb.WatchRequest, _: Context
    ) -> AsyncGenerator[pb.WatchResponse | LazyResponse, None]:
        start, filter, heartbeat_seconds = self._validation.watch(request)
        async for sent in self._feed.watch(start, filter, heartbeat_seconds=heartbeat_seconds):
            if sent.piece is not None:
                yield _piece(sent.piece, filter, sent.resume_token)
            elif sent.snapshot:
                yield _snapshot(sent)
            else:
                yield _to_message(sent)


def _to_message(sent: WatchEvent) -> pb.WatchResponse:
    return pb.WatchResponse(
        changes=_messages(sent.snapshot),
        resume_token=sent.resume_token,
        initial_state_complete=sent.snapshot_complete,
        heartbeat=not sent.snapshot and not sent.snapshot_complete,
    )


def _snapshot(sent: WatchEvent) -> LazyResponse:
    return LazyResponse(
        result=sent,
        parts=lambda: (_to_message(sent),),
        count=len(sent.snapshot),
        size=sum([utf8_size(concatenated_texts(change.resource)) for change in sent.snapshot]),
    )


def _piece(piece: ChangeBatch, filter: WatchFilter, resume_token: str) -> LazyResponse:
    """The response with what a filter leaves of a piece, the same for all watches with an equal filter."""

    def parts() -> Iterator[pb.WatchResponse]:
        changes = builtins.filter(filter.matches, piece.changes)
        while some := _messages(islice(changes, PART_COUNT)):
            yield pb.WatchResponse(changes=some)
        yield pb.WatchResponse(resume_token=resume_token, partial=piece.partial)

    return LazyResponse(result=piece, parts=parts, count=len(piece.changes), size=piece.size, variant=filter)


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
