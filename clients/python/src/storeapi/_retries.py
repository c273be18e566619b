"""When a failed call is made again, and after which pause; shared by both clients.

The client does this itself and not through gRPC's service config, because gRPC gives up after five tries,
does not repeat a call whose answer was cut off behind its first byte, and would repeat a write of the raw
stubs that has no request_id.
"""

import random
import re
import time
from typing import Any, Final

from grpc import StatusCode

from storeapi.errors import Cancelled, ConnectionFailed, StoreError, Unavailable

FIRST_PAUSE_SECONDS: Final = 0.05
"""Between the first two tries; doubled for each further one."""

LONGEST_PAUSE_SECONDS: Final = 1.0
"""A restart of the service takes about as long."""

LEAST_SECONDS: Final = 0.001
"""With less time than this there is no use in trying."""

BROKEN: Final = frozenset(
    {
        StatusCode.CANCELLED,
        StatusCode.UNKNOWN,
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
    }
)
"""The statuses that gRPC makes of a broken stream or of an HTTP answer, of which it depends on the proxy."""

LASTING: Final = re.compile(
    "larger than max|exceeds|serializ|compress|header with status: (?!408|425|429|500|502|503|504)"
)
"""What gRPC says, with the same statuses, of messages that are too large or cannot be decoded, and of a proxy
that refuses the request itself: the next try would end in the same way."""


class Attempts:
    """The tries of one call, from the first to the one that succeeds or is the last."""

    def __init__(self, timeout: float | None, *, is_endless: bool = False) -> None:
        """Begins; `timeout` is how many seconds all tries have together.

        With `is_endless` they go on for as long as it takes, as those of a watch that has begun.
        """
        self.count: int = 1
        self._is_endless = is_endless
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds that are left; None for no end."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), LEAST_SECONDS)

    def pause_after(self, error: StoreError) -> float | None:
        """How long to wait before the next try; None when this one was the last."""
        # The caller's own deadline leaves no time for another try. One that the service enforces has the id
        # of the call; any other is that of a proxy, or of an interceptor. Every try may reach that of an
        # interceptor, so a call that has no deadline itself would never end.
        is_proxys_deadline = (
            error.code is StatusCode.DEADLINE_EXCEEDED
            and error.call_id is None
            and (self._deadline is not None or self._is_endless)
        )
        return self.pause(error.retry_after) if may_help(error) or is_proxys_deadline else None

    def pause(self, retry_after: float | None = None) -> float | None:
        """How long to wait before the next try, whatever went wrong; None when no time is left for it."""
        pause = min(FIRST_PAUSE_SECONDS * float(2 ** min(self.count - 1, 10)), LONGEST_PAUSE_SECONDS)
        # Callers that failed together must not come back together.
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
    # An error without a reason is not from the service: the connection broke, here or after a proxy.
    return (
        error.code in BROKEN and not isinstance(error, ConnectionFailed) and not LASTING.search(error.message)
    )


def is_repeatable(request: Any) -> bool:
    """Whether doing a request twice is like doing it once: it only reads, or its request_id sees to it."""
    request_id = getattr(request, "request_id", None)
    return request_id is None or bool(request_id) or bool(request.validate_only)
