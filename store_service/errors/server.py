"""Errors that depend on the state of the server: its limits, its load and its database."""

from typing import Literal

from store_service.errors.base import ServiceError, Unavailable


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
    """The caller of a stream has read or sent nothing for too long."""

    def __init__(self, *, seconds: float, missing: Literal["read", "sent"] = "read") -> None:
        """Takes the time, and what the caller has not done."""
        super().__init__(
            f"the caller has {missing} nothing for {seconds:g} s; call again and continue after the last"
            " response"
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


class StandbyBehind(Unavailable):
    """A standby has not replayed the change of a resume token or consistency token yet."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__("this standby has not received the change of the token yet; retry later")


class StoreMoving(Unavailable):
    """The store moves to another database, or has moved, and accepts no writes here."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__("the store moves to another database and accepts no writes here; retry later")


class SearchIndexNotReady(Unavailable):
    """The index for full-text search is being built, or lacks the latest changes."""

    def __init__(self, *, progress: float) -> None:
        """Takes the part of the posts and comments that the index has, from 0 to 1; 1 if it lacks only the
        latest changes."""
        super().__init__(
            f"the search index is being built ({int(progress * 100)} %); retry later"
            if progress < 1
            else "the search index has not received the latest changes yet; retry later"
        )
        self.progress = progress


class SearchDisabled(ServiceError):
    """The server has no index for full-text search."""

    def __init__(self) -> None:
        """Takes nothing."""
        super().__init__("full-text search is switched off on this server")


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
