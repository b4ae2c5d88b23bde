"""Counters, gauges and one histogram of an agent, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

_HELP: Final = {
    "port_webhook_agent_messages_total": ("counter", "Messages by outcome."),
    "port_webhook_agent_attempts_total": ("counter", "Deliveries that were tried, by result."),
    "port_webhook_agent_reports_total": ("counter", "Reports to Port by outcome."),
    "port_webhook_agent_log_lines_lost_total": ("counter", "Lines that Port's run logs did not take."),
    "port_webhook_agent_source_errors_total": ("counter", "Errors of the source by kind."),
    "port_webhook_agent_in_flight": ("gauge", "Messages taken and not acknowledged."),
    "port_webhook_agent_parked": ("gauge", "Messages that wait for their next attempt."),
    "port_webhook_agent_partitions": ("gauge", "Partitions that this agent reads."),
    "port_webhook_agent_lag": ("gauge", "Messages of the topic that are not acknowledged."),
    "port_webhook_agent_ready": ("gauge", "1 if the agent receives messages."),
}
_SECONDS: Final = "port_webhook_agent_message_seconds"
_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
Labels = tuple[tuple[str, str], ...]


class AgentMetrics:
    """Counted on the event loop alone."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {}
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._sum = 0.0

    def count(self, name: str, *labels: tuple[str, str], amount: float = 1) -> None:
        """Adds to a counter."""
        series = self._values.setdefault(name, {})
        series[labels] = series.get(labels, 0) + amount

    def gauge(self, name: str, value: float, *labels: tuple[str, str]) -> None:
        """Sets a gauge."""
        self._values.setdefault(name, {})[labels] = value

    def value(self, name: str, *labels: tuple[str, str]) -> float:
        """A counter or gauge; 0 if it was never set."""
        return self._values.get(name, {}).get(labels, 0)

    def observe(self, seconds: float) -> None:
        """Notes how long a message took from its arrival to its acknowledgement."""
        self._buckets[bisect_left(_BOUNDS, seconds)] += 1
        self._sum += seconds

    def render(self) -> str:
        """The text that a scraper reads."""
        lines: list[str] = []
        for name, series in self._values.items():
            kind, text = _HELP.get(name, ("untyped", ""))
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            for labels, value in sorted(series.items()):
                shown = ",".join(f'{key}="{item}"' for key, item in labels)
                lines.append(f"{name}{{{shown}}} {value:g}" if shown else f"{name} {value:g}")
        lines += [f"# HELP {_SECONDS} From arrival to acknowledgement.", f"# TYPE {_SECONDS} histogram"]
        total = 0
        for bound, count in zip((*_BOUNDS, float("inf")), self._buckets, strict=True):
            total += count
            lines.append(
                f'{_SECONDS}_bucket{{le="{"+Inf" if bound == float("inf") else f"{bound:g}"}"}} {total}'
            )
        lines += [f"{_SECONDS}_sum {self._sum:g}", f"{_SECONDS}_count {total}"]
        return "\n".join(lines) + "\n"
