"""Looking into the cluster of a stack with target kubernetes, by kubectl and the user's own access."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from port_webhook_handlers.runtime.kubernetes import names, runs


class ClusterError(Exception):
    """The cluster cannot be looked into; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a stack runs, as its stack file says.

    Attributes:
        namespace, runs_namespace: of the listener, and of runs.
        context, kubeconfig: how kubectl gets there; None: its own defaults.
    """

    namespace: str = "port-webhook"
    runs_namespace: str = "port-webhook-runs"
    context: str | None = None
    kubeconfig: str | None = None

    def kubectl(self, *arguments: str) -> list[str]:
        """A command of kubectl.

        Raises:
            ClusterError: kubectl is not installed.
        """
        found = shutil.which("kubectl")
        if found is None:
            raise ClusterError("kubectl is not on PATH; install it (https://kubernetes.io/docs/tasks/tools/)")
        return [
            found,
            *(["--context", self.context] if self.context else []),
            *(["--kubeconfig", self.kubeconfig] if self.kubeconfig else []),
            *arguments,
        ]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A run that ended without a result of its handler, or whose end Port has not taken.

    Attributes:
        run_id, route: of the run.
        accepted_at: RFC 3339.
        state: `started`, `ended` (Port has not taken the outcome) or `done`.
        summary: of its outcome.
    """

    run_id: str
    route: str
    accepted_at: str
    state: str
    summary: str


def cluster_of(project: Path, stack: str) -> Cluster | None:
    """The cluster of a stack; None if its target is another."""
    import yaml

    path = project / "stacks" / f"Pulumi.{stack}.yaml"
    if not path.is_file():
        return None
    values = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("config") or {}
    if values.get("port-webhook-stack:target") != "kubernetes":
        return None
    own = values.get("port-webhook-stack:kubernetes") or {}
    wanted = {
        "namespace": "namespace",
        "runsNamespace": "runs_namespace",
        "context": "context",
        "kubeconfig": "kubeconfig",
    }
    return Cluster(**{field: own[key] for key, field in wanted.items() if own.get(key)})


def print_logs(cluster: Cluster, lines: int, follow: bool) -> int:
    """Prints the logs of listener and dispatcher; returns kubectl's exit code."""
    selector = f"app.kubernetes.io/name={names.PREFIX},app.kubernetes.io/component in (listener,dispatcher)"
    command = cluster.kubectl(
        *("logs", "--namespace", cluster.namespace, "--selector", selector, "--prefix", f"--tail={lines}"),
        *(["--follow"] if follow else []),
    )
    return subprocess.run(command, check=False).returncode


def dead_letters(cluster: Cluster) -> list[DeadLetter]:
    """The dead letters of a stack, the oldest first.

    Raises:
        ClusterError: kubectl failed.
    """
    found: dict[str, DeadLetter] = {}
    for selector in (f"{names.DEAD_LABEL}=true", f"{names.STATE_LABEL}={runs.ENDED}"):
        command = cluster.kubectl(
            "get", "secrets", "--namespace", cluster.runs_namespace, "-l", selector, "-o", "json"
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"kubectl: {done.stderr.strip() or done.returncode}")
        for item in json.loads(done.stdout)["items"]:
            letter = _letter(item)
            if letter is not None:
                found[item["metadata"]["name"]] = letter
    return sorted(found.values(), key=lambda letter: letter.accepted_at)


def _letter(item: dict[str, Any]) -> DeadLetter | None:
    run = runs.parse(item)
    if run is None:
        return None
    outcome = run.outcome or run.failure or {}
    return DeadLetter(
        run.run_id,
        run.route,
        item["metadata"]["creationTimestamp"],
        run.state,
        str(outcome.get("summary") or ""),
    )
