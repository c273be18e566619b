"""Posts and comments, and the behavior of their fields."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import IntEnum
from typing import Any

from store_service.compiled import compiled, fast_init


class ResourceKind(IntEnum):
    """The type of a resource. The contract and the tables use the same numbers."""

    POST = 1
    COMMENT = 2


def format_etag(version: int) -> str:
    """Returns the etag of a version."""
    return f"v{version:x}"


TOMBSTONE_ETAG = "-t"
"""The end of the etag of a tombstone. Its version is that of the comment with content."""


IMMUTABLE: Mapping[str, str] = {"behavior": "immutable"}
"""Metadata of a field that a caller sets on create. It never changes."""

OUTPUT_ONLY: Mapping[str, str] = {"behavior": "output_only"}
"""Metadata of a field that the server sets."""

DERIVED: Mapping[str, str] = {"behavior": "derived"}
"""Metadata of a field that the server derives from others on create. It is stored, and not in messages."""

DELETION_FIELDS = ("delete_time", "purge_time")
"""The fields that only deleted resources have."""

CONTENT_TEXTS = ("body", "author", "labels", "external_id")
"""The texts that a caller gives. A tombstone has none of them."""

LEVEL_DIGITS = 16
"""Hexadecimal digits of one level of `Comment.path`: an id of 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostContent:
    """The fields of a post that a caller sets."""

    body: str
    author: str = ""
    labels: str = ""
    """The labels as a JSON object with sorted keys; an empty text without labels. See `labels_to_text`."""
    external_id: str = field(default="", metadata=IMMUTABLE)


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class Post(PostContent):
    """A stored post."""

    id: int = field(metadata=OUTPUT_ONLY)
    create_time: int | None = field(metadata=OUTPUT_ONLY)
    update_time: int | None = field(metadata=OUTPUT_ONLY)
    version: int = field(metadata=OUTPUT_ONLY)
    """Counts the changes of this row, from 1."""
    delete_time: int | None = field(default=None, metadata=OUTPUT_ONLY)
    purge_time: int | None = field(default=None, metadata=OUTPUT_ONLY)
    """The time until which a deleted post can be restored; None: it cannot be restored."""


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class PostDraft(PostContent):
    """A post to create."""

    return_existing: bool = False
    """Whether the resource with the same external id is returned if it exists. Otherwise it is an error."""
    field: str = "post"
    """Path of the post in the request, for errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommentContent:
    """The fields of a comment that a caller sets."""

    body: str
    post_id: int = field(metadata=IMMUTABLE)
    author: str = ""
    labels: str = ""
    """Same as `PostContent.labels`."""
    external_id: str = field(default="", metadata=IMMUTABLE)
    reply_to_id: int = field(default=0, metadata=IMMUTABLE)
    path: str = field(default="", metadata=DERIVED)
    """The ids of the comments above this one in its thread, LEVEL_DIGITS each; empty at the top level."""


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class Comment(CommentContent):
    """A stored comment."""

    id: int = field(metadata=OUTPUT_ONLY)
    create_time: int | None = field(metadata=OUTPUT_ONLY)
    update_time: int | None = field(metadata=OUTPUT_ONLY)
    version: int = field(metadata=OUTPUT_ONLY)
    """Counts the changes of this row, from 1."""
    delete_time: int | None = field(default=None, metadata=OUTPUT_ONLY)
    purge_time: int | None = field(default=None, metadata=OUTPUT_ONLY)
    """Same as `Post.purge_time`."""

    @property
    def depth(self) -> int:
        """The number of comments above this one in its thread."""
        return len(self.path) // LEVEL_DIGITS

    @property
    def thread_key(self) -> str:
        """The position of the comment in thread order: each comment sorts directly before its replies."""
        return path_below(self.path, self.id)


@fast_init
@dataclass(frozen=True, slots=True, kw_only=True)
class CommentDraft(CommentContent):
    """A comment to create."""

    return_existing: bool = False
    """Same as `PostDraft.return_existing`."""
    field: str = "comment"
    """Path of the comment in the request, for errors."""


def path_below(path: str, id: int) -> str:
    """Returns the path of the replies to the comment that has this path and id."""
    return f"{path}{id:0{LEVEL_DIGITS}x}"


def labels_to_text(labels: Mapping[str, str]) -> str:
    """Returns labels as they are stored. Equal labels have equal texts."""
    return _encode(dict(labels)) if labels else ""


def labels_from_text(text: str) -> dict[str, str]:
    """Returns stored labels."""
    labels: dict[str, str] = json.loads(text) if text else {}
    return labels


def has_label(text: str, key: str, value: str) -> bool:
    """Whether stored labels have a label. Faster than to decode them.

    A key begins with a letter and needs no escapes, so its quoted form occurs only where a key begins.
    """
    return f'"{key}":{_encode(value)}' in text


# Created once: with these options, json.dumps would create an encoder for each call.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


class ResourceFields:
    """The fields of a resource by behavior: mutable, immutable or output only."""

    def __init__(self, model: type[Post] | type[Comment]) -> None:
        """Takes the dataclass of the resource and reads the metadata of its fields."""
        behavior = {it.name: it.metadata.get("behavior", "mutable") for it in fields(model)}
        self.names = tuple(behavior)
        self.mutable = tuple(name for name, it in behavior.items() if it == "mutable")
        """Set by a caller on create and update."""
        self.immutable = tuple(name for name, it in behavior.items() if it == "immutable")
        """Set by a caller on create."""
        self.content = (*self.mutable, *self.immutable)
        """Set by a caller: mutable and immutable fields."""
        self.derived = tuple(name for name, it in behavior.items() if it == "derived")
        """Derived by the server on create, and not in messages."""
        self.output_only = tuple(name for name, it in behavior.items() if it == "output_only")
        """Set by the server."""
        optional = tuple(
            it.name for it in fields(model) if it.default is not MISSING and it.name not in DELETION_FIELDS
        )
        self.required = tuple(name for name in self.content if name not in optional)
        """Set by a caller on every create."""
        checks = " or ".join([f"it.{name}" for name in optional])
        self.has_optional: Callable[[Any], bool] = compiled(["it"], [f"return bool({checks})"])
        """Whether a resource or a draft has a value in a field with a default."""


def _concatenation(content: type[PostContent] | type[CommentContent]) -> Callable[[Any], str]:
    texts = [f"it.{it.name}" for it in fields(content) if it.type in (str, "str")]
    # Most texts are empty, and adding an empty text costs less than joining all.
    function: Callable[[Any], str] = compiled(["it"], [f"return {' + '.join(texts)}"])
    return function


_TEXTS: dict[type, Callable[[Any], str]] = {
    **dict.fromkeys((Post, PostDraft), _concatenation(PostContent)),
    **dict.fromkeys((Comment, CommentDraft), _concatenation(CommentContent)),
}


def concatenated_texts(resource: Post | Comment | PostDraft | CommentDraft) -> str:
    """Returns all texts of a resource as one string, for estimates of its size."""
    return _TEXTS[type(resource)](resource)
