"""Errors of the service, of its limits and of the connection."""

import grpc

from storeapi.errors.base import StoreError


class ResourceExhausted(StoreError):
    """A limit is reached, or a message is too large."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class ResponseTooLarge(ResourceExhausted):
    """The response to a batch would exceed the maximum message size. Nothing was done; request fewer."""

    reason = "RESPONSE_TOO_LARGE"

    @property
    def max_bytes(self) -> int | None:
        """The maximum size of a response; None if unknown."""
        return self._number("max_bytes")


class WatchLimit(ResourceExhausted):
    """The server has reached its limit of open watches; retry after `retry_after` seconds."""

    reason = "WATCH_LIMIT"

    @property
    def limit(self) -> int | None:
        """The maximum number of open watches; None if unknown."""
        return self._number("limit")


class RateLimited(ResourceExhausted):
    """The caller exceeds its rate limit; retry after `retry_after` seconds."""

    reason = "RATE_LIMITED"

    @property
    def calls_per_second(self) -> float | None:
        """The rate limit; None if unknown."""
        try:
            return float(self.metadata.get("calls_per_second", ""))
        except ValueError:
            return None


class StorageFull(ResourceExhausted):
    """The disk of the service is full. Nothing was written; the operator must act."""

    reason = "STORAGE_FULL"


class OutOfRange(StoreError):
    """A position is out of range."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResumeTokenExpired(OutOfRange):
    """Changes after the resume token are no longer kept; restart with the initial state."""

    reason = "RESUME_TOKEN_EXPIRED"

    @property
    def earliest_resume_token(self) -> str:
        """The token before the oldest change that is still kept; empty if unknown."""
        return self.metadata.get("earliest_resume_token", "")


class Unavailable(StoreError):
    """The service cannot be reached, or temporarily cannot respond; retry after `retry_after` seconds."""

    code = grpc.StatusCode.UNAVAILABLE


class ConnectionFailed(Unavailable):
    """No connection can be made, for a permanent cause; nothing was sent.

    The message has the cause: a certificate that is not trusted, has expired or has another name, TLS on one
    side only, or a name that could not be resolved twice, at least two seconds apart.
    """


class Overloaded(Unavailable):
    """The service is overloaded. Nothing was done; retry after `retry_after` seconds."""

    reason = "OVERLOADED"


class ShuttingDown(Unavailable):
    """The server is shutting down; nothing was done."""

    reason = "SHUTTING_DOWN"

    @property
    def resume_token(self) -> str:
        """The position to continue a watch that the server ended; empty for other calls."""
        return self.metadata.get("resume_token", "")


class StreamStalled(Unavailable):
    """The server ended a stream because the client did not read it; continue after what was read."""

    reason = "STREAM_STALLED"


class StandbyBehind(Unavailable):
    """The service reads from a standby that has not received the change of the resume token yet."""

    reason = "STANDBY_BEHIND"


class StoreMoving(Unavailable):
    """The store moves to another database and accepts no writes at this address. Nothing was done."""

    reason = "STORE_MOVING"


class SearchIndexNotReady(Unavailable):
    """The service is building the index for searches, or has not added the latest changes to it in time."""

    reason = "SEARCH_INDEX_NOT_READY"

    @property
    def progress(self) -> float | None:
        """The part of the index that is built, from 0 to 1; None if unknown."""
        try:
            return float(self.metadata.get("progress", ""))
        except ValueError:
            return None


class DatabaseBusy(Unavailable):
    """The database was locked for too long; nothing was done."""

    reason = "DATABASE_BUSY"


class DatabaseUnavailable(Unavailable):
    """The service cannot reach, read or write its database."""

    reason = "DATABASE_UNAVAILABLE"


class DeadlineExceeded(StoreError):
    """The response did not arrive before the deadline; a write may have taken effect."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(StoreError):
    """The call was cancelled by the server or by closing the client; a write may have taken effect.

    In a cancelled asyncio task a call raises asyncio.CancelledError instead.
    """

    code = grpc.StatusCode.CANCELLED


class InternalError(StoreError):
    """An unhandled exception in the service; its log has details under `call_id`."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"
