"""Waiting for what a target does by itself, and going back where it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from port_webhook_handlers.bundled.deploy.deployer import DeploymentError, Report

_POLL_SECONDS: Final = 1.0
_UNDO_SECONDS: Final = 60.0


class ReplacedError(DeploymentError):
    """Somebody else made another change meanwhile, so that this one is not ours to undo."""


class Watch:
    """Two deadlines of one change: until it must be done, and until it must be undone.

    Args:
        timeout_seconds: for both.
        report: takes each line that differs from the one before.
    """

    def __init__(self, timeout_seconds: float, report: Report) -> None:
        now = time.monotonic()
        self._end = now + timeout_seconds
        self._deadline = self._end - min(_UNDO_SECONDS, timeout_seconds / 3)
        self._seconds = self._deadline - now
        self._report = report
        self._said = ""

    def until_done(self, look: Callable[[], str | None]) -> None:
        """Asks again and again how far the change is.

        Args:
            look: says what is missing; None: nothing. It raises DeploymentError if the change has failed.

        Raises:
            DeploymentError: it has failed, or is not done in time.
        """
        missing = self._wait(look, self._deadline)
        if missing is not None:
            raise DeploymentError(f"it was not done within {round(self._seconds, 1):g} s: {missing}")

    def undone(self, look: Callable[[], str | None]) -> bool:
        """Whether going back was done in the time that is left."""
        try:
            return self._wait(look, self._end) is None
        except DeploymentError:
            return False

    def _wait(self, look: Callable[[], str | None], deadline: float) -> str | None:
        while True:
            missing = look()
            if missing is None:
                return None
            if missing != self._said:
                self._said = missing
                self._report(missing)
            left = deadline - time.monotonic()
            if left <= 0:
                return missing
            time.sleep(min(_POLL_SECONDS, left))
