"""Errors of requests that are not valid, regardless of what is stored."""

from collections.abc import Sequence
from dataclasses import dataclass

from store_service.errors.base import ServiceError


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


class ConsistencyTokenInvalid(InvalidRequest):
    """at-least is not a token of this service, or it is damaged."""


class ConsistencyTokenForeign(InvalidRequest):
    """at-least belongs to another store."""
