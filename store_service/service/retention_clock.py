"""A clock for retention that is protected against jumps of the wall clock.

The times of rows come from a wall clock, which can jump by years in both directions. A row is deleted only
when its retention has certainly elapsed: by the wall clock, less the time that the wall clock has gained on
the monotonic clock within one retention (docs/decisions/0029).
"""

import json
from dataclasses import dataclass, field

JUMP_TOLERANCE_MICROSECONDS = 5_000_000
"""A smaller difference between the wall clock and the monotonic clock is not a jump."""

MAX_GAINS = 100
"""Maximum number of gains before those that are close together are joined."""


@dataclass(slots=True)
class RetentionClock:
    """The wall clock compared with the monotonic clock, both in microseconds.

    A gain is the time that the wall clock has gained since an earlier time, by jumps or while no process was
    running. Until a retention has elapsed since that time, rows may look older than they are, by the gain.
    """

    longest: int
    """The longest retention. Older gains have no effect."""
    wall: int
    """Time of the wall clock at `monotonic`."""
    monotonic: int
    """Time of the monotonic clock when the two clocks last differed in a comparison."""
    gains: list[tuple[int, int]] = field(default_factory=list)
    """Each gain, and the monotonic time since which it was gained. The largest and oldest first."""

    @classmethod
    def restored(cls, saved: str, *, longest: int, wall: int, monotonic: int) -> "RetentionClock":
        """Returns a clock that continues from a state that another process has saved.

        The time since then is a gain, because no process has measured it.
        """
        fields = json.loads(saved)
        clock = cls(longest, fields["wall"], monotonic)
        clock.gains = [(gain, monotonic - age) for gain, age in fields["gains"]]
        clock._shift(wall - clock.wall, monotonic)
        clock.wall = wall
        return clock

    def saved(self, monotonic: int) -> str:
        """Returns the state for `restored`."""
        wall = self.wall + monotonic - self.monotonic
        return json.dumps({"wall": wall, "gains": [(gain, monotonic - since) for gain, since in self.gains]})

    def compare(self, wall: int, monotonic: int) -> int:
        """Takes the current times of both clocks. Returns the jump of the wall clock; 0 if there is none."""
        jump = (wall - self.wall) - (monotonic - self.monotonic)
        if abs(jump) <= JUMP_TOLERANCE_MICROSECONDS:
            jump = 0
        else:
            self.wall, self.monotonic = wall, monotonic
            self._shift(jump, monotonic)
        self.gains = [it for it in self.gains if monotonic - it[1] < self.longest]
        return jump

    def unconfirmed(self, retention: int, monotonic: int) -> int:
        """Returns by how much rows may be younger than the wall clock says, for a retention."""
        return max((gain for gain, since in self.gains if monotonic - since < retention), default=0)

    def _shift(self, jump: int, monotonic: int) -> None:
        """Adds a jump to every gain. Gains that are not positive any more are removed."""
        gains = [(gain + jump, since) for gain, since in [*self.gains, (0, monotonic)]]
        self.gains = [it for it in gains if it[0] > 0]
        if len(self.gains) > MAX_GAINS:
            self._join(self.longest // MAX_GAINS)

    def _join(self, bucket: int) -> None:
        """Joins gains that are within a bucket of time. A joined gain expires later, by at most one bucket.

        An entry stands for gains between the previous entry and its own time. Therefore a bucket starts at an
        entry. Buckets at fixed times would move at each restart, and each restart would join more gains.
        About two entries for each bucket can remain.
        """
        joined: list[tuple[int, int]] = []
        for gain, since in self.gains:
            if len(joined) > 1 and since - joined[-2][1] <= bucket:
                joined[-1] = (joined[-1][0], since)
            else:
                joined.append((gain, since))
        self.gains = joined
