"""How old rows certainly are, whatever the wall clock does.

The times of rows come from a wall clock, which may jump by years in both directions. A row is deleted only
when its retention has certainly elapsed: by the wall clock, less what the clock has gained on the monotonic
clock within the last retention (docs/decisions/0029).
"""

import json
from dataclasses import dataclass, field

JUMP_TOLERANCE_MICROSECONDS = 5_000_000
"""A smaller difference between the wall clock and the monotonic clock is not a jump."""

MAX_GAINS = 100
"""Most gains that are remembered one by one. Of more, those close together are joined."""


@dataclass(slots=True)
class RetentionClock:
    """The wall clock compared with the monotonic clock, both in microseconds.

    A gain is what the wall clock has gained since an earlier time, by jumps or while no process was running.
    Until a retention has elapsed since that time, rows may look older than they are, by the gain.
    """

    longest: int
    """The longest retention that is asked for; gains that are older do not matter."""
    wall: int
    """Time of the wall clock at `monotonic`."""
    monotonic: int
    """Time of the monotonic clock when the two were last compared and differed."""
    gains: list[tuple[int, int]] = field(default_factory=list)
    """Gains since a time of the monotonic clock, the largest and oldest first."""

    @classmethod
    def restored(cls, saved: str, *, longest: int, wall: int, monotonic: int) -> "RetentionClock":
        """A clock that goes on where another process saved it. The time since then is a gain, for nobody has
        measured it."""
        fields = json.loads(saved)
        clock = cls(longest, fields["wall"], monotonic)
        clock.gains = [(gain, monotonic - age) for gain, age in fields["gains"]]
        clock._shift(wall - clock.wall, monotonic)
        clock.wall = wall
        return clock

    def saved(self, monotonic: int) -> str:
        """What `restored` takes."""
        wall = self.wall + monotonic - self.monotonic
        return json.dumps({"wall": wall, "gains": [(gain, monotonic - since) for gain, since in self.gains]})

    def compare(self, wall: int, monotonic: int) -> int:
        """Takes what both clocks show now; returns by how much the wall clock has jumped, 0 if it has not."""
        jump = (wall - self.wall) - (monotonic - self.monotonic)
        if abs(jump) <= JUMP_TOLERANCE_MICROSECONDS:
            jump = 0
        else:
            self.wall, self.monotonic = wall, monotonic
            self._shift(jump, monotonic)
        self.gains = [it for it in self.gains if monotonic - it[1] < self.longest]
        return jump

    def unconfirmed(self, retention: int, monotonic: int) -> int:
        """By how much rows may be younger than the wall clock says, of those that matter to a retention."""
        return max((gain for gain, since in self.gains if monotonic - since < retention), default=0)

    def _shift(self, jump: int, monotonic: int) -> None:
        """Adds to every gain what the clock has just gained; one that it loses again is none."""
        gains = [(gain + jump, since) for gain, since in [*self.gains, (0, monotonic)]]
        self.gains = [it for it in gains if it[0] > 0]
        if len(self.gains) > MAX_GAINS:
            self._join(self.longest // MAX_GAINS)

    def _join(self, bucket: int) -> None:
        """Joins gains that lie within a bucket of time; each expires later by at most that.

        What an entry stands for was gained between the entry before it and its own time, so the buckets are
        measured from entry to entry. Fixed ones would move at each restart, and each time more gains would be
        joined. About two entries for each bucket may remain.
        """
        joined: list[tuple[int, int]] = []
        for gain, since in self.gains:
            if len(joined) > 1 and since - joined[-2][1] <= bucket:
                joined[-1] = (joined[-1][0], since)
            else:
                joined.append((gain, since))
        self.gains = joined
