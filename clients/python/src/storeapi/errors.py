"""What a failed call raises.

    StoreError                      every failed call
    ├── InvalidRequest              the request must be changed
    │   ├── RequestMalformed        the server could not read it
    │   ├── FieldInvalid            a field holds a value that is not allowed
    │   ├── FieldMaskInvalid        an update names a field that does not exist
    │   ├── FieldImmutable          an update would change a field that never changes
    │   ├── PageTokenInvalid        a page token is damaged
    │   ├── PageTokenMismatch       a page token belongs to another query
    │   ├── BatchEmpty              a batch holds nothing
    │   ├── BatchTooLarge           a batch holds more than is allowed
    │   ├── BatchDuplicate          a batch delete names an id twice
    │   ├── RequestIdReused         a request id belongs to another request
    │   ├── ResumeTokenInvalid      a resume token is damaged
    │   └── ResumeTokenForeign      a resume token belongs to another store
    ├── Unauthenticated             the service does not know who calls
    │   ├── CredentialsMissing      give the client an API key
    │   └── CredentialsInvalid      the key or token is wrong, was deleted, or has expired
    ├── PermissionDenied            the caller is known, and may not do this
    ├── NotFound                    something named by its id is not there
    │   ├── PostNotFound
    │   └── CommentNotFound
    ├── PreconditionFailed          the state of the store does not allow the call
    │   ├── PostHasComments         delete the comments first, or say force
    │   ├── ReadOnly                the service takes no writes for now
    │   └── SchemaMismatch          an operator is needed
    ├── Conflict                    somebody else was faster
    │   └── EtagMismatch            read again, decide again, send the new etag
    ├── ResourceExhausted           something is full or too large
    │   ├── ResponseTooLarge        ask for fewer at once
    │   ├── WatchLimit              too many watches are open
    │   ├── RateLimited             make fewer calls a second
    │   └── StorageFull             an operator is needed
    ├── OutOfRange                  what is asked for is no longer kept
    │   └── ResumeTokenExpired      start the watch again with the initial state
    ├── Unavailable                 call again after retry_after
    │   ├── ConnectionFailed        no connection, for a reason that stays
    │   ├── Overloaded
    │   ├── ShuttingDown
    │   ├── StreamStalled
    │   ├── DatabaseBusy
    │   └── DatabaseUnavailable
    ├── DeadlineExceeded            the answer did not come in time
    ├── Cancelled                   the call was cancelled, not by the caller's own task
    └── InternalError               a bug in the service; report it with call_id

The service says why a call failed with a reason, and each reason has one class. A reason that this version
does not know, or an error that has none because the service was not reached, is raised as the branch that
belongs to its status code, or as StoreError. The gRPC error is in `__cause__`.
"""

from collections.abc import Mapping, Sequence

import grpc

from storeapi.model import FieldViolation


class StoreError(Exception):
    """A call failed.

    Catch this to catch everything that a call can raise, except for the caller's own mistakes that never
    reach the service (TypeError and ValueError, RuntimeError on a closed client).
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    """The gRPC status code."""
    reason: str = ""
    """Why, for programs: a name of the API's ErrorReason such as `POST_NOT_FOUND`; empty if unknown."""
    message: str
    """Why, for people, as the service or gRPC put it."""
    metadata: dict[str, str]
    """Data that belongs to the reason; empty if there is none."""
    call_id: str | None
    """Names this call in the service's log; None if the service did not say."""
    retry_after: float | None
    """Seconds after which the same call may succeed; None if the service did not say."""
    request_id: str = ""
    """The request id that a write carried, chosen by the client or by the caller; empty if there was none.
    Whoever does not know whether the write happened calls again with it and the same arguments: it is done
    once."""
    attempts: int = 1
    """How often the call was made."""

    def __init__(
        self,
        message: str = "",
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        call_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Clients make it; make it by hand to test code that catches it."""
        # The message alone is in args: what Exception does for pickle and copy then works for every subclass.
        super().__init__(message)
        self.message = message
        self.code = type(self).code if code is None else code
        self.reason = type(self).reason if reason is None else reason
        self.metadata = dict(metadata or {})
        self.call_id = call_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        message = self.message or f"the call failed with status {self.code.name}"
        return message if self.attempts == 1 else f"{message} (tried {self.attempts} times)"

    def _number(self, key: str) -> int | None:
        """An integer of the metadata; None if it is not there."""
        value = self.metadata.get(key, "")
        return int(value) if _is_number(value) else None

    def _numbers(self, key: str) -> tuple[int, ...]:
        """A list of integers of the metadata; empty if it is not there."""
        # A long list ends in words: "7,9,... and 950 more".
        parts = (part.strip() for part in self.metadata.get(key, "").split(","))
        return tuple(int(part) for part in parts if _is_number(part))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


class InvalidRequest(StoreError):
    """The request itself is wrong; sending it again will not help."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    violations: tuple[FieldViolation, ...]
    """Everything that is wrong with the request, not only the first thing."""

    def __init__(
        self,
        message: str = "",
        *,
        violations: Sequence[FieldViolation] = (),
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        call_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Clients make it; make it by hand to test code that catches it."""
        super().__init__(
            message, code=code, reason=reason, metadata=metadata, call_id=call_id, retry_after=retry_after
        )
        self.violations = tuple(violations)

    @property
    def fields(self) -> Mapping[str, str]:
        """What is wrong by field path; several descriptions of one field are joined with "; "."""
        fields: dict[str, str] = {}
        for violation in self.violations:
            known = fields.get(violation.field)
            fields[violation.field] = f"{known}; {violation.description}" if known else violation.description
        return fields

    def __str__(self) -> str:
        message = super().__str__()
        unsaid = [
            f"{violation.field}: {violation.description}" if violation.field else violation.description
            for violation in self.violations
            # The service's message names the violations too, as many as fit.
            if f"{violation.field}: {violation.description}" not in message
        ]
        return f"{message} ({'; '.join(unsaid)})" if unsaid else message


class RequestMalformed(InvalidRequest):
    """The server could not read the request: the bytes are no such message, or a text is not UTF-8."""

    reason = "REQUEST_MALFORMED"


class FieldInvalid(InvalidRequest):
    """One or more fields hold a value that is not allowed; `violations` names them all."""

    reason = "FIELD_INVALID"


class FieldMaskInvalid(InvalidRequest):
    """The update mask names a field that does not exist or cannot be changed."""

    reason = "FIELD_MASK_INVALID"


class FieldImmutable(InvalidRequest):
    """The update would change a field that never changes, such as a comment's post_id."""

    reason = "FIELD_IMMUTABLE"


class PageTokenInvalid(InvalidRequest):
    """The page token was not made by this service, or was damaged."""

    reason = "PAGE_TOKEN_INVALID"


class PageTokenMismatch(InvalidRequest):
    """The page token belongs to another query: order_by or post_id differ from those it was made with."""

    reason = "PAGE_TOKEN_MISMATCH"


class BatchEmpty(InvalidRequest):
    """The batch holds nothing."""

    reason = "BATCH_EMPTY"


class BatchTooLarge(InvalidRequest):
    """The batch holds more than is allowed; send it in several calls."""

    reason = "BATCH_TOO_LARGE"

    @property
    def count(self) -> int | None:
        """How many the batch held; None if the service did not say."""
        return self._number("count")

    @property
    def max_count(self) -> int | None:
        """How many are allowed; None if the service did not say."""
        return self._number("max_count")


class BatchDuplicate(InvalidRequest):
    """A batch delete names an id twice."""

    reason = "BATCH_DUPLICATE"


class RequestIdReused(InvalidRequest):
    """The request id was used before for another request; choose a new one for every request."""

    reason = "REQUEST_ID_REUSED"


class ResumeTokenInvalid(InvalidRequest):
    """The resume token was not made by the service, or was damaged."""

    reason = "RESUME_TOKEN_INVALID"


class ResumeTokenForeign(InvalidRequest):
    """The resume token belongs to another store; start again with the initial state."""

    reason = "RESUME_TOKEN_FOREIGN"


class Unauthenticated(StoreError):
    """The service does not know who calls."""

    code = grpc.StatusCode.UNAUTHENTICATED


class CredentialsMissing(Unauthenticated):
    """The service asks who calls, and the client was given no API key."""

    reason = "CREDENTIALS_MISSING"


class CredentialsInvalid(Unauthenticated):
    """The API key or token is wrong, was deleted, or has expired."""

    reason = "CREDENTIALS_INVALID"


class PermissionDenied(StoreError):
    """The caller is known, and does not have the right to do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"

    @property
    def right(self) -> str | None:
        """The right that is missing: read, write or watch; None if the service did not say."""
        return self.metadata.get("right")


class NotFound(StoreError):
    """Something that the request names by its id is not there."""

    code = grpc.StatusCode.NOT_FOUND
    _id_key = ""

    @property
    def missing_ids(self) -> tuple[int, ...]:
        """The ids that are not there: one after a call for one thing, perhaps more after a batch.

        Of very many only the first are named.
        """
        return self._numbers("missing_ids") or self._numbers(self._id_key)


class PostNotFound(NotFound):
    """There is no such post. Adding a comment raises it too, when its post is not there."""

    reason = "POST_NOT_FOUND"
    _id_key = "post_id"

    @property
    def post_id(self) -> int | None:
        """The post that is not there; None if several are missing, which `missing_ids` names."""
        return self._number(self._id_key)


class CommentNotFound(NotFound):
    """There is no such comment."""

    reason = "COMMENT_NOT_FOUND"
    _id_key = "comment_id"

    @property
    def comment_id(self) -> int | None:
        """The comment that is not there; None if several are missing, which `missing_ids` names."""
        return self._number(self._id_key)


class PreconditionFailed(StoreError):
    """The state of the store does not allow the call; change that first."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class PostHasComments(PreconditionFailed):
    """Posts have comments, and the delete did not say force."""

    reason = "POST_HAS_COMMENTS"

    @property
    def post_id(self) -> int | None:
        """The post that has comments; None if there are several, which `post_ids` names."""
        return self._number("post_id")

    @property
    def post_ids(self) -> tuple[int, ...]:
        """The posts that have comments: one after `delete`, perhaps more after `delete_many`.

        Of very many only the first are named.
        """
        return self._numbers("post_id")

    @property
    def comment_count(self) -> int | None:
        """How many comments they have together; None if the service did not say."""
        return self._number("comment_count")


class ReadOnly(PreconditionFailed):
    """The service is in read-only mode and takes no writes for now; nothing was done."""

    reason = "READ_ONLY"


class SchemaMismatch(PreconditionFailed):
    """The service's database has a schema of another version; an operator is needed."""

    reason = "SCHEMA_MISMATCH"


class Conflict(StoreError):
    """Somebody else changed the same thing at the same time."""

    code = grpc.StatusCode.ABORTED


class EtagMismatch(Conflict):
    """The post or comment was changed since its etag was read.

    Read it again, decide again whether to change it, and send the new etag.
    """

    reason = "ETAG_MISMATCH"

    @property
    def current_etag(self) -> str:
        """The stored etag; empty if the service did not say."""
        return self.metadata.get("current_etag", "")


class ResourceExhausted(StoreError):
    """Something is full, or a message is too large."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class ResponseTooLarge(ResourceExhausted):
    """The answer to a batch would be larger than a message may be, so nothing was done; ask for fewer."""

    reason = "RESPONSE_TOO_LARGE"

    @property
    def max_bytes(self) -> int | None:
        """How large an answer may be; None if the service did not say."""
        return self._number("max_bytes")


class WatchLimit(ResourceExhausted):
    """As many watches are open as the server allows; try again after `retry_after` seconds."""

    reason = "WATCH_LIMIT"

    @property
    def limit(self) -> int | None:
        """How many may be open; None if the service did not say."""
        return self._number("limit")


class RateLimited(ResourceExhausted):
    """This caller makes more calls than the service allows; call again after `retry_after` seconds."""

    reason = "RATE_LIMITED"

    @property
    def calls_per_second(self) -> float | None:
        """How many are allowed on average; None if the service did not say."""
        try:
            return float(self.metadata.get("calls_per_second", ""))
        except ValueError:
            return None


class StorageFull(ResourceExhausted):
    """The service's disk is full and nothing was stored; an operator is needed."""

    reason = "STORAGE_FULL"


class OutOfRange(StoreError):
    """What was asked for is no longer kept."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResumeTokenExpired(OutOfRange):
    """Changes behind the resume token have been deleted; start again with the initial state."""

    reason = "RESUME_TOKEN_EXPIRED"

    @property
    def earliest_resume_token(self) -> str:
        """The token of the oldest change that is still kept; empty if the service did not say."""
        return self.metadata.get("earliest_resume_token", "")


class Unavailable(StoreError):
    """The service cannot be reached or cannot answer now; call again after `retry_after` seconds."""

    code = grpc.StatusCode.UNAVAILABLE


class ConnectionFailed(Unavailable):
    """No connection can be made, and another try cannot change that; nothing was sent.

    The message names the cause: a certificate that is not trusted, has expired or has another name, TLS on
    one side only, or a name that two looks, at least two seconds apart, have not found.
    """


class Overloaded(Unavailable):
    """The service has as much to do as it can; nothing was done, call again after `retry_after` seconds."""

    reason = "OVERLOADED"


class ShuttingDown(Unavailable):
    """The server is stopping and took no new call; nothing was done."""

    reason = "SHUTTING_DOWN"

    @property
    def resume_token(self) -> str:
        """Where a watch that the server ended goes on; empty for other calls."""
        return self.metadata.get("resume_token", "")


class StreamStalled(Unavailable):
    """Nothing was read from a stream for so long that the server ended it; go on from what was read."""

    reason = "STREAM_STALLED"


class DatabaseBusy(Unavailable):
    """The database was locked by others for too long; nothing was done."""

    reason = "DATABASE_BUSY"


class DatabaseUnavailable(Unavailable):
    """The service cannot reach, read or write its database."""

    reason = "DATABASE_UNAVAILABLE"


class DeadlineExceeded(StoreError):
    """The answer did not come within the timeout; a write may have happened all the same."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(StoreError):
    """The call was cancelled by the server or by closing the client; a write may have happened all the same.

    When an asyncio task is cancelled, its call raises asyncio.CancelledError as everywhere, not this.
    """

    code = grpc.StatusCode.CANCELLED


class InternalError(StoreError):
    """The service has a bug; its log has more under `call_id`."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"
