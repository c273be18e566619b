"""The RPC method of ChangeService."""

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
"""Maximum number of changes that are encoded before the event loop runs again."""


class ChangeService:
    """Implements storeapi.v1.ChangeService. protos/storeapi/v1/changes.proto documents the methods."""

    def __init__(self, feed: Feed, validation: Validation) -> None:
        """Takes the change feed, and the validation of requests."""
        self._feed = feed
        self._validation = validation

    async def Watch(
        self, request: pb.WatchRequest, _: Context
    ) -> AsyncGenerator[pb.WatchResponse | LazyResponse, None]:
        start, filter, heartbeat_seconds = self._validation.watch(request)
        async for event in self._feed.watch(start, filter, heartbeat_seconds=heartbeat_seconds):
            if event.batch is not None:
                yield _batch_response(event.batch, filter, event.resume_token)
            elif event.snapshot:
                yield _snapshot_response(event)
            else:
                yield _event_to_message(event)


def _event_to_message(event: WatchEvent) -> pb.WatchResponse:
    return pb.WatchResponse(
        changes=_changes_to_messages(event.snapshot),
        resume_token=event.resume_token,
        initial_state_complete=event.snapshot_complete,
        heartbeat=not event.snapshot and not event.snapshot_complete,
    )


def _snapshot_response(event: WatchEvent) -> LazyResponse:
    return LazyResponse(
        result=event,
        parts=lambda: (_event_to_message(event),),
        count=len(event.snapshot),
        size=sum([utf8_size(concatenated_texts(change.resource)) for change in event.snapshot]),
    )


def _batch_response(batch: ChangeBatch, filter: WatchFilter, resume_token: str) -> LazyResponse:
    """Returns the response with the changes that match a filter. Watches with an equal filter share it."""

    def parts() -> Iterator[pb.WatchResponse]:
        changes = builtins.filter(filter.matches, batch.changes)
        while messages := _changes_to_messages(islice(changes, PART_COUNT)):
            yield pb.WatchResponse(changes=messages)
        yield pb.WatchResponse(resume_token=resume_token, partial=batch.partial)

    return LazyResponse(result=batch, parts=parts, count=len(batch.changes), size=batch.size, variant=filter)


def _changes_to_messages(changes: Iterable[Change]) -> list[pb.Change]:
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
