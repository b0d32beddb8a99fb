"""What time is it, when the wall clock may jump?"""

from __future__ import annotations

import time


class Clock:
    """Unix seconds that never jump: the wall clock's time at the start plus the monotonic seconds since.

    Cadence, ages and history are kept in it. ``wall`` translates for people; it differs from the identity only
    after the wall clock was set, or the machine slept.
    """

    def __init__(self) -> None:
        self._anchor = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch, on a steady course."""
        return self._anchor + time.monotonic()

    def drift(self) -> float:
        """By how many seconds the wall clock is ahead."""
        ahead = time.time() - self.now()
        return ahead if abs(ahead) > 0.5 else 0.0

    def wall(self, moment: float) -> float:
        """The wall clock's time of a moment of this clock."""
        return moment + self.drift()

    def moment(self, wall: float) -> float:
        """The moment of this clock for a time of the wall clock."""
        return wall - self.drift()
