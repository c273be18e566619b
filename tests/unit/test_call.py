"""The log line of an abandoned call."""

from collections import defaultdict
from dataclasses import dataclass
from typing import cast

import pytest

from store_service.logs import CallLog
from store_service.rpc.call import Call, Context


@dataclass
class Hurried:
    """What a call knows of its deadline."""

    left: float | None

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, as gRPC tells them."""
        return self.left


@pytest.mark.parametrize(
    ("left", "is_late"),
    [(None, False), (-1.0, True), (0.0, True), (0.009, True), (0.1, False), (5.0, False), (1e9, False)],
)
def test_call_that_ends_at_its_deadline_is_late(left: float | None, is_late: bool) -> None:
    """The clock of the caller may end it slightly earlier."""
    call = Call("m", "id", cast(Context, Hurried(left)), CallLog(), None, None, defaultdict(int), None)

    assert call.is_late() == is_late
