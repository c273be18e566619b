"""Failures that may repeat: logged when they begin, rarely while they last, and when they end."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

REMINDER_SECONDS = 60.0
"""Time between two lines about a failure that lasts."""

MAX_LINES = 10
"""Most lines about one failure within REMINDER_SECONDS, also when it begins and ends, or its cause changes,
all the time."""


class RepeatedFailure:
    """One kind of failure of a task that tries again and again.

    The line of a failure has `count` from the second failure on: how many there have been since it began.
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
        """Takes what is logged where.

        Args:
            log: A logger of structlog.
            event: What fails.
            end_event: That it no longer does; its line has level info, `count` and `seconds`.
            level: Level of the lines about the failure; one with a traceback is an error.
            clock: Seconds since any time.
        """
        self._log = log
        self._event = event
        self._end_event = end_event
        self._level = level
        self._clock = clock
        self._began_at = self._failed_at = 0.0
        self._count = 0
        self._logged: dict[str, Any] | None = None
        """The details of the last line about the failure that lasts; None before the first."""
        self._lines_at: deque[float] = deque(maxlen=MAX_LINES)

    def failed(self, *, exc_info: BaseException | None = None, **details: Any) -> None:
        """Counts a failure, and logs it when it is the first, when its details have changed, or when nothing
        was logged for REMINDER_SECONDS.

        Args:
            exc_info: A bug, whose traceback is logged.
            details: Further fields of the line, which must not differ each time.
        """
        now = self._clock()
        if self._logged is None and now - self._failed_at > REMINDER_SECONDS:
            # Failures that were not logged and ended long ago are not part of this one.
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
        """Logs the end of a failure. Without one, or without a line about it, nothing happens."""
        if self._logged is None:
            return
        seconds = round(self._clock() - self._began_at, 3)
        self._log.info(self._end_event, **details, count=self._count, seconds=seconds)
        self._count = 0
        self._logged = None
