"""When accepting goes before starting.

A run that is accepted is safe, and a run whose request still waits is not. Where runs come in by the thousand,
starting the first of them would slow down accepting the rest, so their start waits a little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# How often whoever waits for the end of a flood looks.
LOOK_SECONDS: Final = 0.02
_RUNS: Final = 100
_WINDOW_SECONDS: Final = 0.1
# Agents bring runs in batches, with pauses in which the next one is fetched.
_PAUSE_SECONDS: Final = 0.3
_LONGEST_SECONDS: Final = 5.0


class Flood:
    """Notices when runs come in fast: more than a hundred within a tenth of a second.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window = 0.0
        self._count = 0
        self._since: float | None = None
        self._last = 0.0

    def arrived(self) -> None:
        """A run was accepted."""
        now = self._clock()
        if now - self._window > _WINDOW_SECONDS:
            self._window, self._count = now, 0
        self._count += 1
        if self._count > _RUNS:
            self._last = now
            if self._since is None:
                self._since = now

    def holds(self) -> bool:
        """Whether starts should wait: while runs come in fast, and for five seconds at most."""
        if self._since is None:
            return False
        now = self._clock()
        if now - self._last > _PAUSE_SECONDS:
            self._since = None
            return False
        return now - self._since < _LONGEST_SECONDS
