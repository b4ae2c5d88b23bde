"""What Port has not heard yet about runs in the cluster.

Held in memory, because all of it can be had again: reports from the Pods' logs, outcomes from the runs' Secrets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from port_webhook_handlers.runtime.claims import Report

FINAL: Final = 1 << 60
"""Number of a terminal report: after all others."""


class ClusterReports:
    """The outbox's view of the cluster.

    Args:
        close: ends a run whose terminal status Port has taken; raises `LedgerError` if it must be tried again.
    """

    def __init__(self, close: Callable[[str], Awaitable[None]]) -> None:
        self._close = close
        self._waiting: dict[str, deque[Report]] = {}
        self._notes: dict[str, list[str]] = {}
        self.taken: dict[str, int] = {}
        """Run id to the number of the last report that Port took, of those not yet written to the Secret."""

    def add(self, run_id: str, number: int, kind: str, body: dict[str, Any]) -> None:
        """Adds something to tell Port."""
        self._waiting.setdefault(run_id, deque()).append(Report(number, kind, body))

    def note(self, run_id: str, note: str) -> None:
        """Adds a line to the summary of a run."""
        self._notes.setdefault(run_id, []).append(note)

    def forget(self, run_id: str) -> None:
        """Drops what is held about a run."""
        for held in (self._waiting, self._notes, self.taken):
            held.pop(run_id, None)

    def clear(self) -> None:
        """Drops everything: another process reports from now on."""
        self._waiting.clear()
        self._notes.clear()
        self.taken.clear()

    @property
    def count(self) -> int:
        """How many reports wait."""
        return sum(map(len, self._waiting.values()))

    # What the outbox calls

    async def reports(self, run_id: str, limit: int = 50) -> list[Report]:
        """The next reports of a run, in order."""
        return list(self._waiting.get(run_id, ()))[:limit]

    async def reported(self, run_id: str, seqs: Sequence[int], note: str = "") -> None:
        """Removes reports that Port took or refused for good."""
        done = set(seqs)
        waiting = self._waiting.get(run_id)
        if waiting is None:
            return
        self._waiting[run_id] = deque(report for report in waiting if report.seq not in done)
        self.taken[run_id] = max([self.taken.get(run_id, 0), *(seq for seq in done if seq < FINAL)])
        if note:
            self.note(run_id, note)

    async def notes(self, run_id: str) -> list[str]:
        """Refusals noted for a run."""
        return self._notes.get(run_id, [])

    async def close_run(self, run_id: str) -> None:
        """A reported run has ended."""
        await self._close(run_id)

    async def unreported(self) -> list[str]:
        """Runs that have something to report."""
        return [run_id for run_id, waiting in self._waiting.items() if waiting]
