"""The errors that callers see, and the errors that end a command.

    ServiceError
    ├── InvalidRequest          the request is not valid, regardless of what is stored
    │   ├── RequestMalformed
    │   ├── FieldInvalid
    │   ├── FieldMaskInvalid
    │   ├── FieldImmutable
    │   ├── PageTokenInvalid
    │   ├── PageTokenMismatch
    │   ├── BatchEmpty
    │   ├── BatchTooLarge
    │   ├── BatchDuplicate
    │   ├── RequestIdReused
    │   ├── ResumeTokenInvalid
    │   └── ResumeTokenForeign
    ├── Unauthenticated         the caller is not authenticated
    │   ├── CredentialsMissing
    │   └── CredentialsInvalid
    ├── PermissionDenied
    ├── NotFound
    │   ├── PostNotFound
    │   └── CommentNotFound
    ├── PostHasComments
    ├── EtagMismatch
    ├── ResponseTooLarge
    ├── ResumeTokenExpired
    ├── WatchLimit
    ├── RateLimited
    ├── Unavailable             nothing was done; the same call may succeed later
    │   ├── Overloaded
    │   ├── ShuttingDown
    │   ├── StreamStalled
    │   ├── DatabaseBusy
    │   └── DatabaseUnavailable
    ├── ReadOnly
    ├── SchemaMismatch
    └── StorageFull

Only the leaves are raised. `rpc/status.py` maps each leaf to a status. Their text is for callers: it never
contains the text of another error, SQL, a path or an address. Any other exception is an unhandled exception,
and callers get INTERNAL.

An OperatorError and a BadSetting end a command. Callers do not see them.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ServiceError(Exception):
    """The base class of all errors that callers see."""


class OperatorError(Exception):
    """A problem that the operator of the service has to solve. The text is one line.

    It ends a command with exit code 1. Subclasses are defined where they are raised.
    """


class BadSetting(Exception):
    """A setting has a value that is not allowed. The text is one line that names the setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One field of a request that is not valid."""

    error: type["InvalidRequest"]
    """The error that this violation alone would raise."""
    field: str
    """Path from the root of the request: post.body, requests[3].comment.post_id."""
    description: str
    """What is wrong and what is allowed."""


class InvalidRequest(ServiceError):
    """The request is not valid, regardless of what is stored."""

    def __init__(self, violations: Sequence[Violation] = (), *, more_count: int = 0) -> None:
        """Takes the violations to report, of which the first has this class, and the number of others."""
        texts = [f"{it.field}: {it.description}".removeprefix(": ") for it in violations]
        super().__init__("; ".join([*texts, f"and {more_count} more"] if more_count else texts))
        self.violations = tuple(violations)
        self.more_count = more_count

    @classmethod
    def at(cls, field: str, description: str) -> "InvalidRequest":
        """Returns the error of a request with one violation."""
        return cls([Violation(error=cls, field=field, description=description)])


class RequestMalformed(InvalidRequest):
    """The bytes are not a message of the request type of the method."""


class FieldInvalid(InvalidRequest):
    """Fields have values that are not allowed."""


class FieldMaskInvalid(InvalidRequest):
    """update_mask names paths that do not exist or cannot be changed."""


class FieldImmutable(InvalidRequest):
    """An update would change an immutable or output-only field."""


class PageTokenInvalid(InvalidRequest):
    """page_token is not a page token of this service, or it is damaged."""


class PageTokenMismatch(InvalidRequest):
    """page_token belongs to a different query."""


class BatchEmpty(InvalidRequest):
    """A batch has no elements."""


class BatchTooLarge(InvalidRequest):
    """A batch has too many elements."""

    def __init__(
        self, violations: Sequence[Violation] = (), *, more_count: int = 0, count: int, max_count: int
    ) -> None:
        """Takes also the number of elements, and the maximum."""
        super().__init__(violations, more_count=more_count)
        self.count = count
        self.max_count = max_count


class BatchDuplicate(InvalidRequest):
    """A batch contains an id twice, and the method does not allow that."""


class RequestIdReused(InvalidRequest):
    """request_id was already used for a different request."""


class ResumeTokenInvalid(InvalidRequest):
    """resume_token is not a resume token of this service, or it is damaged."""


class ResumeTokenForeign(InvalidRequest):
    """resume_token belongs to another store, or to changes that this store has lost."""


class Unauthenticated(ServiceError):
    """The caller is not authenticated."""


class CredentialsMissing(Unauthenticated):
    """The call requires credentials and has none."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__('the call has no credentials; send the metadata "authorization: Bearer KEY"')


class CredentialsInvalid(Unauthenticated):
    """The call has credentials that are not valid."""

    def __init__(self, problem: str) -> None:
        """Takes the problem, in words that do not help to guess valid credentials."""
        super().__init__(problem)


class PermissionDenied(ServiceError):
    """The caller is authenticated and does not have the permission for this call."""

    def __init__(self, *, permission: str) -> None:
        """Takes the missing permission."""
        super().__init__(f"the caller does not have the permission {permission}")
        self.permission = permission


class NotFound(ServiceError):
    """Resources that the request names do not exist."""

    kind: str
    """The type of the resources, in lower case."""

    def __init__(self, *, ids: Sequence[int], fields: Sequence[str] = ()) -> None:
        """Takes the missing ids and, if they are not the resources of the call, the field that names each."""
        named = ", ".join(str(id) for id in ids[:10]) + (", ..." if len(ids) > 10 else "")
        others = ", ..." if len(fields) > 1 else ""
        super().__init__(
            f"there is no {self.kind} {named}" + (f" (named by {fields[0]}{others})" if fields else "")
        )
        self.ids = tuple(ids)
        self.fields = tuple(fields)


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


class WatchLimit(ServiceError):
    """The maximum number of watches is open on this server or connection."""

    def __init__(self, *, limit: int, kind: str = "watches", where: str = "server process") -> None:
        """Takes the maximum, what is counted, and where, in words."""
        super().__init__(f"{limit} {kind} are open on this {where}, which is the maximum; retry later")
        self.limit = limit
        self.kind = kind
        self.where = where


class RateLimited(ServiceError):
    """The caller exceeded the rate limit; nothing was done."""

    def __init__(self, *, calls_per_second: float, retry_seconds: float) -> None:
        """Takes the rate limit, and the time until the next call is allowed."""
        super().__init__(f"the caller exceeded the rate limit of {calls_per_second:g} calls per second")
        self.calls_per_second = calls_per_second
        self.retry_seconds = retry_seconds


class Unavailable(ServiceError):
    """Nothing was done. The same call may succeed later."""


class Overloaded(Unavailable):
    """The maximum number of calls is in flight; nothing was done."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__("the server is overloaded; retry later")


class ShuttingDown(Unavailable):
    """The server stops and accepts no new calls."""

    def __init__(self, *, resume_token: str = "") -> None:
        """Takes the token from which a watch can continue; empty for other calls."""
        super().__init__("the server is shutting down; retry on another connection")
        self.resume_token = resume_token


class StreamStalled(Unavailable):
    """The caller of a stream has read nothing for too long."""

    def __init__(self, *, seconds: float) -> None:
        """Takes the time without a read."""
        super().__init__(
            f"the caller has read nothing for {seconds:g} s; call again and continue after the last response"
        )


class DatabaseBusy(Unavailable):
    """Other transactions held locks in the database for too long."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__("the database is busy; retry later")


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached, read or written."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__("the database is unavailable; retry later")


class ReadOnly(ServiceError):
    """The server is in read-only mode; nothing was done."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__("the server is in read-only mode and accepts no writes")


class SchemaMismatch(ServiceError):
    """The database has a different schema than this program needs."""

    def __init__(self, *, expected: str, actual: str) -> None:
        """Takes the schema revision that this program needs, and the one of the database."""
        super().__init__(f"the database has schema {actual}, this program needs {expected}")
        self.expected = expected
        self.actual = actual


class StorageFull(ServiceError):
    """The disk of the database is full; nothing was stored."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__("the disk of the database is full; nothing was stored")
