"""Errors that depend on what is stored."""

import json
from collections.abc import Sequence

from store_service.errors.base import ServiceError


class NotFound(ServiceError):
    """Resources that the request names do not exist."""

    kind: str
    """The type of the resources, in lower case."""

    def __init__(
        self, *, ids: Sequence[int] = (), fields: Sequence[str] = (), external_ids: Sequence[str] = ()
    ) -> None:
        """Takes the missing ids and, if they are not the resources of the call, the field that names each.

        Args:
            ids: The missing ids.
            fields: The fields of the request that name them.
            external_ids: The missing external ids.
        """
        missing = [*map(str, ids[:10]), *[json.dumps(it[:40]) for it in external_ids[: 10 - len(ids[:10])]]]
        named = ", ".join(missing) + (", ..." if len(ids) + len(external_ids) > 10 else "")
        others = ", ..." if len(fields) > 1 else ""
        super().__init__(
            f"there is no {self.kind} {named}" + (f" (named by {fields[0]}{others})" if fields else "")
        )
        self.ids = tuple(ids)
        self.fields = tuple(fields)
        self.external_ids = tuple(external_ids)


class PostNotFound(NotFound):
    """Posts do not exist."""

    kind = "post"


class CommentNotFound(NotFound):
    """Comments do not exist."""

    kind = "comment"


def comments(count: int) -> str:
    """Returns a number of comments in words."""
    return "1 comment" if count == 1 else f"{count} comments"


class PostHasComments(ServiceError):
    """Posts with comments are deleted only with force."""

    def __init__(self, *, comment_counts: dict[int, int]) -> None:
        """Takes the number of comments of each refused post, by post id."""
        post_id, count = next(iter(comment_counts.items()))
        others = f" (and {len(comment_counts) - 1} other posts have some)" if len(comment_counts) > 1 else ""
        super().__init__(f"post {post_id} has {comments(count)}{others}; set force to delete them too")
        self.comment_counts = comment_counts


class ExternalIdTaken(ServiceError):
    """A resource with this external id exists."""

    def __init__(self, *, resource_type: str, id: int, external_id: str, by_undelete: bool = False) -> None:
        """Takes the existing resource, and whether a deleted resource with the same external id was to be
        restored."""
        advice = (
            "delete it before you restore the other"
            if by_undelete
            else "set return_existing to get it instead"
        )
        super().__init__(f"{resource_type.lower()} {id} has this external_id; {advice}")
        self.resource_type = resource_type
        self.id = id
        self.external_id = external_id


class NotDeleted(ServiceError):
    """The resource is not deleted, so it cannot be restored."""

    def __init__(self, *, resource_type: str, id: int) -> None:
        """Takes the resource."""
        super().__init__(f"{resource_type.lower()} {id} is not deleted")
        self.resource_type = resource_type
        self.id = id


class ReplyTooDeep(ServiceError):
    """The reply would be deeper in its thread than the server allows."""

    def __init__(self, *, reply_to_id: int, max_depth: int, field: str) -> None:
        """Takes the comment that is replied to, the maximum depth, and the field that names the comment."""
        super().__init__(
            f"a reply to comment {reply_to_id} would have a depth of more than {max_depth};"
            " reply to a comment above it"
        )
        self.reply_to_id = reply_to_id
        self.max_depth = max_depth
        self.field = field


class ReplyPostMismatch(ServiceError):
    """The comment that is replied to belongs to another post."""

    def __init__(self, *, reply_to_id: int, post_id: int, field: str) -> None:
        """Takes the comment that is replied to, its post, and the field that names the comment."""
        super().__init__(f"comment {reply_to_id} belongs to post {post_id}; a reply must be on the same post")
        self.reply_to_id = reply_to_id
        self.post_id = post_id
        self.field = field


class EtagMismatch(ServiceError):
    """The resource has changed since the caller read it."""

    def __init__(self, *, resource_type: str, id: int, current_etag: str) -> None:
        """Takes the resource, and its current etag."""
        super().__init__(
            f"{resource_type.lower()} {id} has changed since it was read; read it again before you retry"
        )
        self.resource_type = resource_type
        self.id = id
        self.current_etag = current_etag


class ResponseTooLarge(ServiceError):
    """The response of a batch would exceed the maximum size of a message; nothing was done."""

    def __init__(self, *, max_bytes: int) -> None:
        """Takes the maximum size of a response."""
        super().__init__(f"the response would be larger than {max_bytes} bytes; send a smaller batch")
        self.max_bytes = max_bytes


class ResumeTokenExpired(ServiceError):
    """Changes after resume_token have been deleted, so a watch from it would have a gap."""

    def __init__(self, *, earliest_resume_token: str) -> None:
        """Takes the token from which a watch receives the oldest change that is kept."""
        super().__init__(
            "changes after this resume_token are no longer kept; start again with initial_state or earliest"
        )
        self.earliest_resume_token = earliest_resume_token
