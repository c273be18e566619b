"""Everything that can go wrong in a way that a caller should know.

    ServiceError
    ├── InvalidRequest          the request is wrong, whatever is stored
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
    ├── Unauthenticated         the service does not know who calls
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

The leaves are raised; `rpc/status.py` says what a caller sees of each. Their text is for callers: it
never holds the text of another error, SQL, a path or an address. Anything else that is raised is a
bug, and callers see INTERNAL.

No caller sees an OperatorError: it ends a command of whoever runs the service.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ServiceError(Exception):
    """The root of the tree."""


class OperatorError(Exception):
    """What somebody who runs the service has to put right; the text is one line that tells them.

    It ends a command with exit code 1. Each is defined where it is raised.
    """


class BadSetting(Exception):
    """A setting has a value that is not allowed; the text is one line that names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One field of a request that is wrong."""

    error: type["InvalidRequest"]
    """The leaf that this violation alone would raise."""
    field: str
    """Path from the request's root: post.body, requests[3].comment.post_id."""
    description: str
    """What is wrong and what is allowed."""


class InvalidRequest(ServiceError):
    """The request is wrong, whatever is stored."""

    def __init__(self, violations: Sequence[Violation] = (), *, more_count: int = 0) -> None:
        """Takes the violations of the request, the one that gives the error its name first, and how many
        more there are that nobody is told of."""
        texts = [f"{it.field}: {it.description}".removeprefix(": ") for it in violations]
        super().__init__("; ".join([*texts, f"and {more_count} more"] if more_count else texts))
        self.violations = tuple(violations)
        self.more_count = more_count

    @classmethod
    def at(cls, field: str, description: str) -> "InvalidRequest":
        """The error of a request in which one field is wrong."""
        return cls([Violation(error=cls, field=field, description=description)])


class RequestMalformed(InvalidRequest):
    """The bytes are no message of the method's request type."""


class FieldInvalid(InvalidRequest):
    """Fields hold values that are not allowed."""


class FieldMaskInvalid(InvalidRequest):
    """update_mask names paths that do not exist or cannot be changed."""


class FieldImmutable(InvalidRequest):
    """An update would change a field that never changes."""


class PageTokenInvalid(InvalidRequest):
    """page_token was not made by this service, or was damaged."""


class PageTokenMismatch(InvalidRequest):
    """page_token belongs to another query."""


class BatchEmpty(InvalidRequest):
    """A batch holds nothing."""


class BatchTooLarge(InvalidRequest):
    """A batch holds more than is allowed."""

    def __init__(
        self, violations: Sequence[Violation] = (), *, more_count: int = 0, count: int, max_count: int
    ) -> None:
        """Takes also how many there were and how many are allowed."""
        super().__init__(violations, more_count=more_count)
        self.count = count
        self.max_count = max_count


class BatchDuplicate(InvalidRequest):
    """A batch names an id twice where that makes no sense."""


class RequestIdReused(InvalidRequest):
    """request_id was used before for another request."""


class ResumeTokenInvalid(InvalidRequest):
    """resume_token was not made by this service, or was damaged."""


class ResumeTokenForeign(InvalidRequest):
    """resume_token belongs to another store, or to a past that this store no longer has."""


class Unauthenticated(ServiceError):
    """The service does not know who calls."""


class CredentialsMissing(Unauthenticated):
    """The call has no credentials, and needs some."""

    def __init__(self) -> None:
        """Needs no data."""
        super().__init__("the call needs credentials: metadata authorization, with Bearer and a key")


class CredentialsInvalid(Unauthenticated):
    """The call has credentials that are not good."""

    def __init__(self, problem: str) -> None:
        """Takes what is wrong, in words that help who has good ones and nobody else."""
        super().__init__(problem)


class PermissionDenied(ServiceError):
    """The caller is known, and may not do this."""

    def __init__(self, *, permission: str) -> None:
        """Takes the right that is missing."""
        super().__init__(f"the caller does not have the right to {permission}")
        self.permission = permission


class NotFound(ServiceError):
    """Something that the request names is not there."""

    kind: str
    """What is missing, in words."""

    def __init__(self, *, ids: Sequence[int], fields: Sequence[str] = ()) -> None:
        """Takes what is missing and, when it is not what was asked for itself, the field naming each."""
        named = ", ".join(str(id) for id in ids[:10]) + (", ..." if len(ids) > 10 else "")
        others = ", ..." if len(fields) > 1 else ""
        super().__init__(
            f"there is no {self.kind} {named}" + (f" (named by {fields[0]}{others})" if fields else "")
        )
        self.ids = tuple(ids)
        self.fields = tuple(fields)


class PostNotFound(NotFound):
    """There is no such post."""

    kind = "post"


class CommentNotFound(NotFound):
    """There is no such comment."""

    kind = "comment"


def comments(count: int) -> str:
    """So many comments, in words."""
    return "1 comment" if count == 1 else f"{count} comments"


class PostHasComments(ServiceError):
    """Posts with comments are deleted only with force."""

    def __init__(self, *, comment_counts: dict[int, int]) -> None:
        """Takes how many comments each refused post has, by post id."""
        post_id, count = next(iter(comment_counts.items()))
        others = f" (and {len(comment_counts) - 1} other posts have some)" if len(comment_counts) > 1 else ""
        super().__init__(f"post {post_id} has {comments(count)}{others}; set force to delete them too")
        self.comment_counts = comment_counts


class EtagMismatch(ServiceError):
    """The resource was changed since the caller read it."""

    def __init__(self, *, resource_type: str, id: int, current_etag: str) -> None:
        """Takes what was to be changed, and the etag that it has now."""
        super().__init__(
            f"{resource_type.lower()} {id} was changed since it was read; read it again and decide again"
        )
        self.resource_type = resource_type
        self.id = id
        self.current_etag = current_etag


class ResponseTooLarge(ServiceError):
    """The answer to a batch would be larger than a message may be; nothing was done."""

    def __init__(self, *, max_bytes: int) -> None:
        """Takes how large an answer may be."""
        super().__init__(f"the answer would be larger than {max_bytes} bytes; ask for fewer at once")
        self.max_bytes = max_bytes


class ResumeTokenExpired(ServiceError):
    """Changes behind resume_token have been deleted; it cannot be continued without a gap."""

    def __init__(self, *, earliest_resume_token: str) -> None:
        """Takes the token of the oldest change that is still kept."""
        super().__init__(
            "changes behind this resume_token are no longer kept; start again with initial_state, or with"
            " earliest if missed changes do not matter"
        )
        self.earliest_resume_token = earliest_resume_token


class WatchLimit(ServiceError):
    """As many watches are open as this server, or one connection, may have."""

    def __init__(self, *, limit: int, kind: str = "watches", where: str = "server process") -> None:
        """Takes how many may be open, of which kind and where, in words."""
        super().__init__(f"{limit} {kind} are open on this {where} and no more are allowed; try again later")
        self.limit = limit
        self.kind = kind
        self.where = where


class RateLimited(ServiceError):
    """The caller makes more calls than this server lets one caller make; nothing was done."""

    def __init__(self, *, calls_per_second: float, retry_seconds: float) -> None:
        """Takes how many are allowed, and when the next one will be."""
        super().__init__(
            f"more than {calls_per_second:g} calls a second came from this caller; call again more slowly"
        )
        self.calls_per_second = calls_per_second
        self.retry_seconds = retry_seconds


class Unavailable(ServiceError):
    """Nothing was done; the same call may succeed later."""


class Overloaded(Unavailable):
    """As many calls are running as this server allows; nothing was done."""

    def __init__(self) -> None:
        """Needs no data."""
        super().__init__("the server has as much to do as it can; call again later")


class ShuttingDown(Unavailable):
    """The server stops and takes no new calls."""

    def __init__(self, *, resume_token: str = "") -> None:
        """Takes where a watch can go on; empty for other calls."""
        super().__init__("the server is stopping; call again on another connection")
        self.resume_token = resume_token


class StreamStalled(Unavailable):
    """The caller of a stream has read nothing for too long."""

    def __init__(self, *, seconds: float) -> None:
        """Takes for how long."""
        super().__init__(f"nothing was read for {seconds:g} seconds; call again and go on from what was read")


class DatabaseBusy(Unavailable):
    """Others held locks in the database for too long."""

    def __init__(self) -> None:
        """Needs no data."""
        super().__init__("the database is busy; call again later")


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached, read or written."""

    def __init__(self) -> None:
        """Needs no data."""
        super().__init__("the database is not available; call again later")


class ReadOnly(ServiceError):
    """The server takes no writes for now; nothing was done."""

    def __init__(self) -> None:
        """Needs no data."""
        super().__init__("the server is in read-only mode and takes no writes for now")


class SchemaMismatch(ServiceError):
    """The database's schema is not the one that this program is made for."""

    def __init__(self, *, expected: str, actual: str) -> None:
        """Takes the revision of this program and the one found."""
        super().__init__(f"the database has schema {actual}, this program needs {expected}")
        self.expected = expected
        self.actual = actual


class StorageFull(ServiceError):
    """The database's disk is full; nothing was stored."""

    def __init__(self) -> None:
        """Needs no data."""
        super().__init__("the disk of the database is full; nothing was stored")
