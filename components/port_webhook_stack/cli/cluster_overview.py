"""What `port-webhook status` shows of a stack with target kubernetes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from port_webhook_handlers.runtime.kubernetes import names, runs
from port_webhook_stack.cli.cluster import Cluster, previous

_SELECTOR = f"app.kubernetes.io/managed-by={names.PREFIX}"
_WORDS = {"": "waiting", runs.STARTED: "in work", runs.ENDED: "to be reported", runs.DONE: "done"}


def overview(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Pairs of a word and what is to be said, line by line.

    Raises:
        ClusterError: kubectl is not installed, or failed.
    """
    text = cluster.ask("get", "deployments", "--namespace", cluster.namespace, "-l", _SELECTOR, "-o", "json")
    deployments = {item["metadata"]["name"]: item for item in json.loads(text)["items"]}
    if "listener" not in deployments:
        yield "listener", f"not deployed: namespace {cluster.namespace} has no Deployment listener"
        return
    yield "listener", cluster.url or "no address from outside"
    yield "bundle", _digest(deployments["listener"])
    for name, item in sorted(deployments.items()):
        yield "deployment", f"{name}  {_ready(item)}"
    counts = _counts(cluster)
    yield "runs", ", ".join(f"{counts[word]} {word}" for word in _WORDS.values())
    yield "dead letters", str(counts["dead"])
    for item in previous(cluster):
        if item["not_after"] > time.time():
            until = datetime.fromtimestamp(item["not_after"], UTC).isoformat(timespec="seconds")
            yield "rotation", f"a former signing secret is valid until {until}"


def _digest(deployment: Mapping[str, Any]) -> str:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = {item["name"]: item.get("value", "") for item in container.get("env") or ()}
    return str(variables.get("PORT_WEBHOOK_DIGEST", "unknown"))


def _ready(deployment: Mapping[str, Any]) -> str:
    status, wanted = deployment.get("status") or {}, deployment["spec"]["replicas"]
    text = f"{status.get('readyReplicas', 0)} of {wanted} ready"
    troubles = [
        f"{item['reason']}: {item.get('message', '')}"
        for item in status.get("conditions") or ()
        if (item["type"], item["status"]) in (("Available", "False"), ("Progressing", "False"))
    ]
    return "; ".join([text, *troubles])


def _counts(cluster: Cluster) -> Counter[str]:
    """Asynchronous runs by state; the API server sends a table and none of their payloads."""
    columns = f"{names.STATE_LABEL},{names.DEAD_LABEL}"
    text = cluster.ask(
        *("get", "secrets", "--namespace", cluster.runs_namespace, "--no-headers"),
        *("-l", f"{_SELECTOR},{names.MODE_LABEL}=async", "--label-columns", columns),
    )
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        # name, type, number of keys, age, then the two labels, of which each may be missing.
        state, dead = _labels(line)
        counts[_WORDS.get(state, "waiting")] += 1
        counts["dead"] += dead
    return counts


def _labels(line: str) -> tuple[str, bool]:
    found = line.split()[4:]
    return (found[0] if found and found[0] != "true" else ""), "true" in found
