"""Errors that do not go away by a retry: of the request, the permission or the state."""

import grpc

from storeapi.errors.base import InvalidRequest, StoreError


class RequestMalformed(InvalidRequest):
    """The server could not decode the request: it is not such a message, or a text is not UTF-8."""

    reason = "REQUEST_MALFORMED"


class FieldInvalid(InvalidRequest):
    """The values of one or more fields are not allowed; `violations` lists all of them."""

    reason = "FIELD_INVALID"


class FieldMaskInvalid(InvalidRequest):
    """The update mask names a field that does not exist or cannot be changed."""

    reason = "FIELD_MASK_INVALID"


class FieldImmutable(InvalidRequest):
    """The update would change an immutable field, such as the post_id of a comment."""

    reason = "FIELD_IMMUTABLE"


class PageTokenInvalid(InvalidRequest):
    """The page token is damaged, or not from this service."""

    reason = "PAGE_TOKEN_INVALID"


class PageTokenMismatch(InvalidRequest):
    """The page token belongs to a query with another order_by or post_id."""

    reason = "PAGE_TOKEN_MISMATCH"


class BatchEmpty(InvalidRequest):
    """The batch is empty."""

    reason = "BATCH_EMPTY"


class BatchTooLarge(InvalidRequest):
    """The batch has too many elements; send it in several calls."""

    reason = "BATCH_TOO_LARGE"

    @property
    def count(self) -> int | None:
        """The number of elements; None if unknown."""
        return self._number("count")

    @property
    def max_count(self) -> int | None:
        """The maximum number of elements; None if unknown."""
        return self._number("max_count")


class BatchDuplicate(InvalidRequest):
    """A batch contains an id or an external id twice."""

    reason = "BATCH_DUPLICATE"


class RequestIdReused(InvalidRequest):
    """The request id belongs to another request; use a new one for every request."""

    reason = "REQUEST_ID_REUSED"


class ResumeTokenInvalid(InvalidRequest):
    """The resume token is damaged, or not from this service."""

    reason = "RESUME_TOKEN_INVALID"


class ResumeTokenForeign(InvalidRequest):
    """The resume token belongs to another store; restart with the initial state."""

    reason = "RESUME_TOKEN_FOREIGN"


class ConsistencyTokenInvalid(InvalidRequest):
    """The token of `read_at_least` is damaged, or not a token."""

    reason = "CONSISTENCY_TOKEN_INVALID"


class ConsistencyTokenForeign(InvalidRequest):
    """The token of `read_at_least` belongs to another store. Later reads do not use it."""

    reason = "CONSISTENCY_TOKEN_FOREIGN"


class Unauthenticated(StoreError):
    """The caller is not authenticated."""

    code = grpc.StatusCode.UNAUTHENTICATED


class CredentialsMissing(Unauthenticated):
    """The service requires credentials, and the client has no API key."""

    reason = "CREDENTIALS_MISSING"


class CredentialsInvalid(Unauthenticated):
    """The API key or token is wrong, was deleted, or has expired."""

    reason = "CREDENTIALS_INVALID"


class PermissionDenied(StoreError):
    """The caller is authenticated, but lacks a permission."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"

    @property
    def right(self) -> str | None:
        """The missing permission: read, write, watch or admin; None if unknown."""
        return self.metadata.get("right")


class NotFound(StoreError):
    """An id in the request does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    _id_key = ""

    @property
    def missing_ids(self) -> tuple[int, ...]:
        """The ids that do not exist: one, or more after a batch. A long list has only the first ones."""
        return self._numbers("missing_ids") or self._numbers(self._id_key)


class PostNotFound(NotFound):
    """The post does not exist. Also raised if the post of a new comment does not exist."""

    reason = "POST_NOT_FOUND"
    _id_key = "post_id"

    @property
    def post_id(self) -> int | None:
        """The post that does not exist; None if there are several, see `missing_ids`."""
        return self._number(self._id_key)


class CommentNotFound(NotFound):
    """The comment does not exist."""

    reason = "COMMENT_NOT_FOUND"
    _id_key = "comment_id"

    @property
    def comment_id(self) -> int | None:
        """The comment that does not exist; None if there are several, see `missing_ids`."""
        return self._number(self._id_key)


class AlreadyExists(StoreError):
    """A resource exists that conflicts with the one to create or restore."""

    code = grpc.StatusCode.ALREADY_EXISTS


class ExternalIdTaken(AlreadyExists):
    """A resource of the same type has this external id. `create` returns it with `return_existing`."""

    reason = "EXTERNAL_ID_TAKEN"

    @property
    def id(self) -> int | None:
        """The id of that resource; None if unknown."""
        return self._number("id")

    @property
    def external_id(self) -> str:
        """The external id; empty if unknown."""
        return self.metadata.get("external_id", "")


class PreconditionFailed(StoreError):
    """The state of the service does not allow the call."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class PostHasComments(PreconditionFailed):
    """The post has comments, and `force` was not set."""

    reason = "POST_HAS_COMMENTS"

    @property
    def post_id(self) -> int | None:
        """The post that has comments; None if there are several, see `post_ids`."""
        return self._number("post_id")

    @property
    def post_ids(self) -> tuple[int, ...]:
        """The posts that have comments: one, or more after `delete_many`. A long list is cut."""
        return self._numbers("post_id")

    @property
    def comment_count(self) -> int | None:
        """The number of their comments; None if unknown."""
        return self._number("comment_count")


class NotDeleted(PreconditionFailed):
    """The resource is not deleted, so it cannot be restored; another caller may have restored it."""

    reason = "NOT_DELETED"


class ReplyTooDeep(PreconditionFailed):
    """The reply would be deeper in its thread than the service allows."""

    reason = "REPLY_TOO_DEEP"

    @property
    def reply_to_id(self) -> int | None:
        """The comment that is replied to; None if unknown."""
        return self._number("reply_to_id")

    @property
    def max_depth(self) -> int | None:
        """The maximum depth of a reply; None if unknown."""
        return self._number("max_depth")


class ReplyPostMismatch(PreconditionFailed):
    """The comment that is replied to belongs to another post."""

    reason = "REPLY_POST_MISMATCH"

    @property
    def reply_to_id(self) -> int | None:
        """The comment that is replied to; None if unknown."""
        return self._number("reply_to_id")

    @property
    def post_id(self) -> int | None:
        """The post of that comment; None if unknown."""
        return self._number("post_id")


class ReadOnly(PreconditionFailed):
    """The service is in read-only mode; nothing was written."""

    reason = "READ_ONLY"


class SearchDisabled(PreconditionFailed):
    """The service has no index for searches; the operator has switched it off."""

    reason = "SEARCH_DISABLED"


class SchemaMismatch(PreconditionFailed):
    """The database of the service has another schema version; the operator must act."""

    reason = "SCHEMA_MISMATCH"


class Conflict(StoreError):
    """The resource was changed concurrently."""

    code = grpc.StatusCode.ABORTED


class EtagMismatch(Conflict):
    """The resource has changed since its etag was read. Read it again and retry with the new etag."""

    reason = "ETAG_MISMATCH"

    @property
    def current_etag(self) -> str:
        """The current etag; empty if unknown."""
        return self.metadata.get("current_etag", "")
