"""What the service must answer: posts and comments in two dictionaries, and nothing else.

Every method returns the reason that the server must give, or None when the call must succeed. It is written
from the comments in protos/, not from the server's code.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from storeapi.v1 import comments_pb2, posts_pb2

MAX_BODY_BYTES = 100
"""What the server is set to, so that texts at the limit are easily made, and read in a report."""


@dataclass
class ResourceModel:
    """All posts, or all comments."""

    name: str
    """What a request calls one: post, comment."""
    message: Any
    stored: dict[int, Any] = field(default_factory=dict)
    """As they were last answered, by id."""
    etags: dict[int, list[str]] = field(default_factory=dict)
    """Every etag that each has ever had, oldest first; also of those that are gone."""

    @property
    def not_found(self) -> str:
        return f"{self.name.upper()}_NOT_FOUND"

    def remember(self, resource: Any) -> None:
        """Takes over what the server stored, after checking what the server chose by itself."""
        earlier = self.etags.setdefault(resource.id, [])
        assert resource.etag
        assert resource.etag not in earlier, "a changed resource has an etag that it had before"
        earlier.append(resource.etag)
        self.stored[resource.id] = resource

    def check_new(self, resource: Any, **given: object) -> None:
        """Checks a created resource."""
        assert resource.id > max(self.etags, default=0), "an id is not larger than all that were given"
        self.remember(resource)
        assert {name: getattr(resource, name) for name in given} == given
        assert resource.HasField("create_time")
        assert resource.update_time == resource.create_time

    def found(self, ids: Iterable[int]) -> tuple[list[Any], list[int]]:
        """What a batch of ids finds and misses, in order."""
        ids = list(ids)
        return [self.stored[id] for id in ids if id in self.stored], [
            id for id in ids if id not in self.stored
        ]


def body_error(body: str) -> str | None:
    """What is wrong with a text."""
    return None if 0 < len(body.encode()) <= MAX_BODY_BYTES and "\0" not in body else "FIELD_INVALID"


def ids_error(ids: Sequence[int], *, unique: bool = False) -> str | None:
    """What is wrong with a batch of ids, whatever is stored."""
    if not ids:
        return "BATCH_EMPTY"
    if len(ids) > 1000:
        return "BATCH_TOO_LARGE"
    for index, id in enumerate(ids):
        if id <= 0:
            return "FIELD_INVALID"
        if unique and id in ids[:index]:
            return "BATCH_DUPLICATE"
    return None


class Model:
    """The rules of both services."""

    def __init__(self) -> None:
        self.posts = ResourceModel("post", posts_pb2.Post)
        self.comments = ResourceModel("comment", comments_pb2.Comment)

    def comments_of(self, post_ids: Iterable[int]) -> list[int]:
        """Ids of the comments of posts."""
        wanted = set(post_ids)
        return [id for id, comment in self.comments.stored.items() if comment.post_id in wanted]

    def problem_of_creating_comments(self, drafts: Sequence[Any]) -> str | None:
        """Why comments cannot be added."""
        if any(body_error(draft.body) or draft.post_id <= 0 for draft in drafts):
            return "FIELD_INVALID"
        return None if all(draft.post_id in self.posts.stored for draft in drafts) else "POST_NOT_FOUND"

    def problem_of_update(self, kind: ResourceModel, request: Any) -> str | None:
        """Why an update cannot be made."""
        wanted, paths = getattr(request, kind.name), set(request.update_mask.paths)
        everything = "*" in paths
        if wanted.id <= 0:
            return "FIELD_INVALID"
        if paths - {"*", "body", *(["post_id"] if kind is self.comments else [])}:
            return "FIELD_MASK_INVALID"
        if changes_body(request, wanted):
            if body_error(wanted.body):
                return "FIELD_INVALID"
        elif not paths:
            return "FIELD_INVALID"  # nothing to change

        stored = kind.stored.get(wanted.id)
        if stored is None:
            return kind.not_found
        if wanted.etag and wanted.etag != stored.etag:
            return "ETAG_MISMATCH"
        looks_at_what_is_set = everything or not paths
        for time in ("create_time", "update_time"):
            if (
                looks_at_what_is_set
                and wanted.HasField(time)
                and getattr(wanted, time) != getattr(stored, time)
            ):
                return "FIELD_IMMUTABLE"
        if kind is self.comments:
            looks = "post_id" in paths or (looks_at_what_is_set and wanted.post_id)
            if looks and wanted.post_id != stored.post_id:
                return "FIELD_IMMUTABLE"
        return None

    def problem_of_deletion(
        self,
        kind: ResourceModel,
        ids: Sequence[int],
        *,
        etag: str = "",
        force: bool = False,
        allow_missing: bool,
    ) -> str | None:
        """Why resources cannot be deleted, once the request is known to be valid."""
        found, missing = kind.found(ids)
        if missing and not allow_missing:
            return kind.not_found
        if etag and any(etag != resource.etag for resource in found):
            return "ETAG_MISMATCH"
        if kind is self.posts and not force and self.comments_of(ids):
            return "POST_HAS_COMMENTS"
        return None

    def delete(self, kind: ResourceModel, ids: Iterable[int]) -> None:
        """Takes resources away, and the comments of posts with them."""
        for id in list(ids):
            kind.stored.pop(id, None)
            if kind is self.posts:
                self.delete(self.comments, self.comments_of([id]))


def changes_body(request: Any, wanted: Any) -> bool:
    """Whether an update looks at the body."""
    paths = request.update_mask.paths
    return "body" in paths or "*" in paths if paths else bool(wanted.body)
