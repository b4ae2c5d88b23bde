"""What `port-webhook status` shows of the execution agent of this machine, and of its broker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from port_webhook_handlers.runtime.control import ListenerStatus


def agent_lines(state: Path, listener: ListenerStatus | None) -> Iterator[tuple[str, str]]:
    """A word and a text for each line; none without an agent.

    Args:
        state: folder of the stack's state.
        listener: the running listener, which may have the agent inside.
    """
    from port_webhook_handlers.agent import control
    from port_webhook_stack.agent import kafka_broker

    if (endpoint := kafka_broker.status(state / "kafka")) is not None:
        yield "broker", f"{endpoint.brokers}  (pid {endpoint.pid})"
    elif (state / "kafka").is_dir():
        yield "broker", "NOT RUNNING: `port-webhook up` starts it again"
    if listener is not None and listener.config.agent is not None:
        source = str(listener.config.agent.get("source"))
        yield "agent", f"{source}, in the listener: {_state(_inside(listener))}"
    elif (found := control.status(state / "agent")) is not None:
        details = found.details or {"ready": False, "problem": found.problem}
        yield "agent", f"{found.config.source}, forwarding (pid {found.pid}): {_state(details)}"
    elif (state / "agent").is_dir():
        yield "agent", "NOT RUNNING: `port-webhook up` starts it again"


def _inside(listener: ListenerStatus) -> Mapping[str, Any]:
    """What the agent of a listener says at its private address."""
    import json
    from urllib.request import ProxyHandler, build_opener

    unknown = {"ready": False, "problem": "the listener does not tell"}
    if listener.metrics_url is None:
        return unknown
    url = listener.metrics_url.removesuffix("/metrics") + "/agent"
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=5) as reply:
            found = json.load(reply)
    except (OSError, ValueError):
        return unknown
    return found if isinstance(found, dict) else unknown


def _state(details: Mapping[str, Any]) -> str:
    counts = [
        f"{details[key]} {word}"
        for key, word in (
            ("partitions", "partitions"),
            ("lag", "behind"),
            ("in_flight", "under way"),
            ("parked", "waiting for another attempt"),
        )
        if key in details
    ]
    group = [f"group {details['group']}"] if "group" in details else []
    said = "ready" if details.get("ready") else f"NOT READY: {details.get('problem')}"
    return ", ".join([said, *group, *counts])
