"""Logs failures that may repeat: at the beginning, once a minute while they last, and at the end."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

REMINDER_SECONDS = 60.0
"""Time between two lines about a lasting failure."""

MAX_LINES = 10
"""Maximum number of lines about one kind of failure within REMINDER_SECONDS, even if the failure begins and
ends, or its details change, many times."""


class RepeatedFailure:
    """One kind of failure of a task that retries.

    From the second failure on, the line has `count`, the number of failures since the first one.
    """

    def __init__(
        self,
        log: Any,
        event: str,
        *,
        end_event: str,
        level: str = "warning",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes the logger and the events.

        Args:
            log: A logger of structlog.
            event: The event of a failure.
            end_event: The event of the end of a failure. Its line has level info, `count` and `seconds`.
            level: Level of the lines about the failure. Lines with a traceback have level error.
            clock: Returns seconds since any time.
        """
        self._log = log
        self._event = event
        self._end_event = end_event
        self._level = level
        self._clock = clock
        self._began_at = self._failed_at = 0.0
        self._count = 0
        self._logged: dict[str, Any] | None = None
        """Details of the last line about the current failure; None without a line."""
        self._lines_at: deque[float] = deque(maxlen=MAX_LINES)

    def failed(self, *, exc_info: BaseException | None = None, **details: Any) -> None:
        """Counts a failure, and logs it if it is the first, if its details have changed, or if the last line
        is REMINDER_SECONDS old.

        Args:
            exc_info: An unhandled exception, which is logged with its traceback.
            details: Further fields of the line. They should be the same for each failure with the same cause.
        """
        now = self._clock()
        if self._logged is None and now - self._failed_at > REMINDER_SECONDS:
            # Earlier failures that were not logged do not belong to this one.
            self._count = 0
        self._failed_at = now
        if not self._count:
            self._began_at = now
        self._count += 1
        key = details if exc_info is None else {**details, "exc_info": repr(exc_info)}
        is_due = key != self._logged or now - self._lines_at[-1] >= REMINDER_SECONDS
        has_room = len(self._lines_at) < MAX_LINES or now - self._lines_at[0] >= REMINDER_SECONDS
        if not (is_due and has_room):
            return
        self._lines_at.append(now)
        self._logged = key
        count = {"count": self._count} if self._count > 1 else {}
        if exc_info is None:
            getattr(self._log, self._level)(self._event, **details, **count)
        else:
            self._log.error(self._event, exc_info=exc_info, **details, **count)

    def ended(self, **details: Any) -> None:
        """Logs the end of the current failure, if a line about it was logged."""
        if self._logged is None:
            return
        seconds = round(self._clock() - self._began_at, 3)
        self._log.info(self._end_event, **details, count=self._count, seconds=seconds)
        self._count = 0
        self._logged = None
