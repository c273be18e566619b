"""What callers must see when posts and comments are deleted, restored and purged.

It knows no transactions and no steps: each deletion and restoration is complete at once.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from storeapi.v1 import comments_pb2

WITH_POST = -1
"""The comment was deleted with its post."""

NOTHING_DELETED: dict[str, int] = {}


@dataclass
class Known:
    """A post or comment that was created."""

    message: Any
    """Its last state before it was deleted."""
    state: str = "live"
    """live; deleted: it can be restored; gone: it cannot."""
    deleted_with: int = 0
    """0: deleted by itself. Otherwise WITH_POST, or the comment above it that was deleted with force."""
    has_exact_times: bool = True
    """Whether `message` has the times of the deletion that the server has stored."""
    etags: set[str] = field(default_factory=set)

    @property
    def purge_micros(self) -> int:
        return int(self.message.purge_time.ToMicroseconds())


class DeletionModel:
    """All posts and comments."""

    def __init__(self) -> None:
        self.posts: dict[int, Known] = {}
        self.comments: dict[int, Known] = {}

    # Questions

    def ids(self, of: dict[int, Known], state: str) -> list[int]:
        return sorted(id for id, it in of.items() if it.state == state)

    def path(self, id: int) -> tuple[int, ...]:
        """The comments above a comment, and the comment."""
        parent = self.comments[id].message.reply_to_id
        return (*self.path(parent), id) if parent else (id,)

    def below(self, id: int) -> list[int]:
        """The comments below a comment."""
        return [it for it in self.comments if id in self.path(it)[:-1]]

    def live_comments_of(self, post_id: int) -> list[int]:
        return [
            id for id, it in self.comments.items() if it.state == "live" and it.message.post_id == post_id
        ]

    def shown(self) -> set[int]:
        """Live comments, and those above them."""
        return {above for id, it in self.comments.items() if it.state == "live" for above in self.path(id)}

    def listed_comments(self, *, show_deleted: bool) -> dict[int, comments_pb2.Comment]:
        """What a list of all comments returns, by id."""
        shown = self.shown()
        found = {}
        for id, it in self.comments.items():
            if it.state == "live" or (show_deleted and it.state == "deleted"):
                found[id] = it.message
            elif id in shown:
                found[id] = self.tombstone(it)
        return found

    def tombstone(self, known: Known) -> comments_pb2.Comment:
        stays = ("id", "post_id", "reply_to_id", "depth", "create_time", "update_time", "etag", "delete_time")
        tombstone = comments_pb2.Comment()
        tombstone.CopyFrom(known.message)
        for name in ("body", "author", "labels", "external_id"):
            tombstone.ClearField(name)
        tombstone.etag += "-t"
        if known.state == "gone":
            tombstone.ClearField("purge_time")
        assert {it.name for it, _ in tombstone.ListFields()} <= {*stays, "purge_time"}
        return tombstone

    def listed_posts(self, *, show_deleted: bool) -> dict[int, Any]:
        wanted = ("live", "deleted") if show_deleted else ("live",)
        return {id: it.message for id, it in self.posts.items() if it.state in wanted}

    def in_order(self, ids: Iterable[int], order: str) -> list[int]:
        """Sorts ids of comments."""

        def key(id: int) -> Any:
            if order.startswith("id"):
                return id
            if order.startswith("create_time"):
                return self.comments[id].message.create_time.ToMicroseconds(), id
            path = self.path(id)
            return (-path[0] if order == "thread desc" else path[0]), path

        return sorted(ids, key=key, reverse=order in ("id desc", "create_time desc"))

    # Changes

    def add(self, of: dict[int, Known], message: Any) -> None:
        of[message.id] = Known(message, etags={message.etag})

    def update(self, of: dict[int, Known], message: Any) -> None:
        known = of[message.id]
        assert message.etag not in known.etags
        known.etags.add(message.etag)
        known.message = message

    def delete_comments(self, last: Sequence[Any], *, force: bool, is_exact: bool) -> None:
        """Takes the last states in the response."""
        named = {it.id for it in last}
        roots: list[int] = []
        for message in sorted(last, key=lambda it: self.path(it.id)):
            if force and not any(root in self.path(message.id) for root in roots):
                roots.append(message.id)
                below = [it for it in self.below(message.id) if it not in named]
                self._delete(below, message.id, message, is_exact=is_exact)
        for message in last:
            self.comments[message.id] = Known(message, "deleted", etags=self.comments[message.id].etags)

    def delete_posts(self, last: Iterable[Any], *, is_exact: bool) -> None:
        for message in last:
            known = self.posts[message.id]
            self._delete(self.live_comments_of(message.id), WITH_POST, message, is_exact=is_exact)
            self.posts[message.id] = Known(message, "deleted", etags=known.etags)

    def _delete(self, ids: Collection[int], deleted_with: int, of: Any, *, is_exact: bool) -> None:
        for id in ids:
            known = self.comments[id]
            if known.state == "live":
                known.state, known.deleted_with, known.has_exact_times = "deleted", deleted_with, is_exact
                message = comments_pb2.Comment()
                message.CopyFrom(known.message)
                message.delete_time.CopyFrom(of.delete_time)
                message.purge_time.CopyFrom(of.purge_time)
                known.message = message

    def restored_with_post(self, post_id: int) -> list[int]:
        return [id for id in self._deleted_with(WITH_POST) if self.comments[id].message.post_id == post_id]

    def restored_with_comment(self, id: int) -> list[int]:
        return self._deleted_with(id)

    def _deleted_with(self, deleted_with: int) -> list[int]:
        return [
            id
            for id, it in self.comments.items()
            if it.state == "deleted" and it.deleted_with == deleted_with
        ]

    def restore(self, known: Known, message: Any = None) -> None:
        """Makes a resource live again. Without a message, one with an unknown etag."""
        if message is None:
            message = type(known.message)()
            message.CopyFrom(known.message)
            for name in ("delete_time", "purge_time", "etag"):
                message.ClearField(name)
        else:
            assert message.etag not in known.etags
            known.etags.add(message.etag)
        known.message, known.state, known.deleted_with, known.has_exact_times = message, "live", 0, True

    def purge_times(self) -> list[int]:
        known = [*self.posts.values(), *self.comments.values()]
        return sorted({it.purge_micros for it in known if it.state == "deleted"})

    def purge(self, before: int) -> None:
        for it in [*self.posts.values(), *self.comments.values()]:
            if it.state == "deleted" and it.purge_micros < before:
                it.state = "gone"
