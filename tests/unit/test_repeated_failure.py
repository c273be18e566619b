"""Failures that may repeat are logged rarely, and never forgotten."""

from collections.abc import MutableMapping
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from store_service.repeated_failure import MAX_LINES, REMINDER_SECONDS, RepeatedFailure

Lines = list[MutableMapping[str, Any]]


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def failure(clock: Clock) -> RepeatedFailure:
    return RepeatedFailure(
        structlog.get_logger(), "it fails", end_event="it works", level="warning", clock=clock
    )


def events(lines: Lines) -> list[tuple[Any, ...]]:
    return [(line["log_level"], line["event"], line.get("count")) for line in lines]


def test_failure_is_logged_at_start_once_a_minute_and_at_end(failure: RepeatedFailure, clock: Clock) -> None:
    """Whatever the rate of the failures is."""
    with capture_logs() as lines:
        for _ in range(1200):
            failure.failed(cause="a")
            clock.now += 0.125
        failure.ended()

    assert events(lines) == [
        ("warning", "it fails", None),
        ("warning", "it fails", 481),
        ("warning", "it fails", 961),
        ("info", "it works", 1200),
    ]
    assert lines[-1]["seconds"] == pytest.approx(150)


def test_success_without_failure_is_not_logged(failure: RepeatedFailure) -> None:
    """Also not a second success."""
    with capture_logs() as lines:
        failure.ended()
        failure.failed(cause="a")
        failure.ended()
        failure.ended()

    assert events(lines) == [("warning", "it fails", None), ("info", "it works", 1)]


def test_changed_cause_is_logged_at_once(failure: RepeatedFailure) -> None:
    """The cause that lasts is not always the first."""
    with capture_logs() as lines:
        for cause in ("a", "a", "b", "b"):
            failure.failed(cause=cause)

    assert [(line["cause"], line.get("count")) for line in lines] == [("a", None), ("b", 3)]


def test_unhandled_exception_is_logged_with_its_traceback(failure: RepeatedFailure) -> None:
    """As an error, whatever the level of other failures is."""
    with capture_logs() as lines:
        for _ in range(3):
            failure.failed(exc_info=ValueError("x"))

    assert [(line["log_level"], repr(line["exc_info"])) for line in lines] == [("error", "ValueError('x')")]


def test_flapping_failure_has_a_bounded_number_of_lines(failure: RepeatedFailure, clock: Clock) -> None:
    with capture_logs() as lines:
        for _ in range(100):
            failure.failed(cause="a")
            failure.ended()
        clock.now += REMINDER_SECONDS
        failure.failed(cause="a")
        failure.ended()

    assert len(lines) == 2 * MAX_LINES + 2
    assert events(lines)[-2:] == [("warning", "it fails", 91), ("info", "it works", 91)]


def test_unlogged_failure_is_not_counted_after_a_pause(failure: RepeatedFailure, clock: Clock) -> None:
    """It ended long before the next one began."""
    with capture_logs() as lines:
        for _ in range(MAX_LINES + 1):
            failure.failed(cause="a")
            failure.ended()
        clock.now += REMINDER_SECONDS + 1
        failure.failed(cause="a")
        failure.ended()

    assert events(lines)[-2:] == [("warning", "it fails", None), ("info", "it works", 1)]
