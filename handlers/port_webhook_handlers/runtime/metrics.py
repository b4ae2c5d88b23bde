"""Counters and gauges in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_HELP: Final = {
    "port_webhook_requests_total": ("counter", "Answered requests by status and reason."),
    "port_webhook_runs_total": ("counter", "Runs that came to an end, by route and status."),
    "port_webhook_reports_total": ("counter", "Calls to Port by kind and outcome."),
    "port_webhook_ledger_commits_total": ("counter", "Groups that the ledger committed."),
    "port_webhook_ledger_rows_total": ("counter", "Operations in those groups."),
    "port_webhook_runs": ("gauge", "Runs in the ledger by state."),
    "port_webhook_reports_waiting": ("gauge", "Reports that Port has not taken yet."),
    "port_webhook_oldest_unreported_seconds": ("gauge", "Age of the oldest run that has not ended in Port."),
}


class Metrics:
    """Counters of this process; not shared by threads, all counting is done on the event loop."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}

    def count(self, name: str, *labels: tuple[str, str]) -> None:
        """Adds one to a counter."""
        series = self._values.setdefault(name, {})
        series[labels] = series.get(labels, 0) + 1

    def value(self, name: str, *labels: tuple[str, str]) -> float:
        """A counter's value; 0 if it was never counted."""
        return self._values.get(name, {}).get(labels, 0)

    def render(self, gauges: Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]) -> str:
        """The text that a scraper reads: the counters and the given gauges."""
        lines: list[str] = []
        for name, series in {**self._values, **gauges}.items():
            kind, text = _HELP.get(name, ("untyped", ""))
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            for labels, value in sorted(series.items()):
                shown = ",".join(f'{key}="{_escape(item)}"' for key, item in labels)
                lines.append(f"{name}{{{shown}}} {value:g}" if shown else f"{name} {value:g}")
        return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
