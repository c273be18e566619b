"""When a failed call is repeated, and after which pause; used by both clients.

The client does not use the service config of gRPC for this, because gRPC stops after five attempts, does
not repeat a call whose response broke off after its first byte, and would repeat a write of the raw stubs
that has no request_id.
"""

import random
import re
import time
from typing import Any, Final

from grpc import StatusCode

from storeapi.errors import Cancelled, ConnectionFailed, StoreError, Unavailable

FIRST_PAUSE_SECONDS: Final = 0.05
"""Between the first two attempts; doubled for each further one."""

LONGEST_PAUSE_SECONDS: Final = 1.0
"""A restart of the service takes about as long."""

LEAST_SECONDS: Final = 0.001
"""Minimum remaining time for another attempt."""

BROKEN: Final = frozenset(
    {
        StatusCode.CANCELLED,
        StatusCode.UNKNOWN,
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
    }
)
"""The statuses that gRPC reports for a broken stream or an HTTP response of a proxy."""

LASTING: Final = re.compile(
    "larger than max|exceeds|serializ|compress|header with status: (?!408|425|429|500|502|503|504)"
)
"""Messages of gRPC, with the same statuses, for errors that a retry cannot change: a message that is too
large or cannot be decoded, and a proxy that refuses the request."""


class Attempts:
    """The attempts of one call."""

    def __init__(self, timeout: float | None, *, is_endless: bool = False) -> None:
        """Starts the first attempt.

        Args:
            timeout: Seconds for all attempts together; None for no deadline.
            is_endless: Whether the attempts continue without limit, as those of a watch that has begun.
        """
        self.count: int = 1
        self._is_endless = is_endless
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds left; None for no deadline."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), LEAST_SECONDS)

    def pause_after(self, error: StoreError) -> float | None:
        """Seconds to wait before the next attempt; None after the last one."""
        # The deadline of the caller leaves no time for another attempt. A deadline of the service comes with
        # the id of the call. Any other is of a proxy or an interceptor. Every attempt may reach the deadline
        # of an interceptor, so a call without its own deadline would never end.
        is_proxys_deadline = (
            error.code is StatusCode.DEADLINE_EXCEEDED
            and error.call_id is None
            and (self._deadline is not None or self._is_endless)
        )
        return self.pause(error.retry_after) if may_help(error) or is_proxys_deadline else None

    def pause(self, retry_after: float | None = None) -> float | None:
        """Seconds to wait before the next attempt after any error; None if no time is left."""
        pause = min(FIRST_PAUSE_SECONDS * float(2 ** min(self.count - 1, 10)), LONGEST_PAUSE_SECONDS)
        # Jitter: callers that failed together must not retry together.
        pause *= random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        if retry_after is not None:
            pause = max(pause, retry_after * random.uniform(1.0, 1.2))  # noqa: S311 - no secret
        remaining = self.remaining()
        if remaining is not None and pause + LEAST_SECONDS > remaining:
            return None
        self.count += 1
        return pause


def may_help(error: StoreError) -> bool:
    """Whether the same call may succeed later."""
    if error.retry_after is not None:
        return True
    if error.reason:
        return isinstance(error, (Unavailable, Cancelled))
    # An error without a reason is not from the service: a connection broke, of the client or of a proxy.
    return (
        error.code in BROKEN and not isinstance(error, ConnectionFailed) and not LASTING.search(error.message)
    )


def is_repeatable(request: Any) -> bool:
    """Whether a repeated request has no further effect: it only reads, or has a request_id."""
    request_id = getattr(request, "request_id", None)
    return request_id is None or bool(request_id) or bool(request.validate_only)
