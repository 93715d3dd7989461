"""How often a process has ended of late: how long to wait before it is started again, and when to give it up. Pure."""

from __future__ import annotations

from collections import deque

WINDOW_S = 600.0  # ends before that do not count
MOST = 5  # ends in the window; with one more it is given up
LONGEST_S = 60.0  # of the pauses


class Ends:
    """Of one process."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def __len__(self) -> int:
        return len(self._times)

    def add(self, now: float) -> float | None:
        """It has ended; seconds to wait (none, then 1, 2, 4 and so on), None where it is given up."""
        while self._times and now - self._times[0] > WINDOW_S:
            self._times.popleft()
        self._times.append(now)
        count = len(self._times)
        if count > MOST:
            return None
        return 0.0 if count == 1 else min(2.0 ** (count - 2), LONGEST_S)

    def forget(self) -> None:
        """Begin anew."""
        self._times.clear()
