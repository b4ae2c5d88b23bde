"""Looking into the cluster of a stack with target kubernetes, by kubectl and the user's own access."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from port_webhook_handlers.runtime.kubernetes import names, runs

_OF_LISTENER = "listener-secrets"


class ClusterError(Exception):
    """The cluster cannot be looked into; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a stack runs, as its stack file says.

    Attributes:
        namespace, runs_namespace: of the listener, and of runs.
        context, kubeconfig: how kubectl gets there; None: its own defaults.
        url: base URL of the listener from outside; None: there is none.
        own_secret: name of the listener's Secret where it is not the stack's; None: it is.
    """

    namespace: str = "port-webhook"
    runs_namespace: str = "port-webhook-runs"
    context: str | None = None
    kubeconfig: str | None = None
    url: str | None = None
    own_secret: str | None = None

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

    def ask(self, *arguments: str, given: str | None = None) -> str:
        """What a command of kubectl prints.

        Args:
            arguments: its command.
            given: its standard input, where secrets go.

        Raises:
            ClusterError: kubectl is not installed, or failed.
        """
        done = subprocess.run(
            self.kubectl(*arguments), input=given or "", capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ClusterError(f"kubectl: {done.stderr.strip() or done.returncode}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A run that ended without a result of its handler, or whose end Port has not taken.

    Attributes:
        run_id, route: of the run.
        accepted_at: RFC 3339.
        state: `started`, `ended` (Port has not taken the outcome) or `done`.
        summary: of its outcome.
        body: what Port sent.
    """

    run_id: str
    route: str
    accepted_at: str
    state: str
    summary: str
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)


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
    host = (own.get("ingress") or {}).get("host")
    url = (values.get("port-webhook-stack:listener") or {}).get("publicUrl")
    wanted = {
        "namespace": "namespace",
        "runsNamespace": "runs_namespace",
        "context": "context",
        "kubeconfig": "kubeconfig",
    }
    return Cluster(
        **{name: own[key] for key, name in wanted.items() if own.get(key)},
        url=url or (f"https://{host}" if host else None),
        own_secret=(own.get("existingSecrets") or {}).get("listener"),
    )


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
        found_now = cluster.ask(
            "get", "secrets", "--namespace", cluster.runs_namespace, "-l", selector, "-o", "json"
        )
        for item in json.loads(found_now)["items"]:
            letter = _letter(item)
            if letter is not None:
                found[item["metadata"]["name"]] = letter
    return sorted(found.values(), key=lambda letter: letter.accepted_at)


def forget(cluster: Cluster, letter: DeadLetter) -> None:
    """Takes a run out of the dead letters; its claim stays, so that a repeat of it is still a conflict.

    Raises:
        ClusterError: kubectl failed.
    """
    name = names.run_name(letter.run_id)
    cluster.ask("label", "secret", name, "--namespace", cluster.runs_namespace, f"{names.DEAD_LABEL}-")


def keep_former(cluster: Cluster, new: str, until: float) -> bool:
    """Lets the signing secrets that are in force count until a time, beside the one that is about to be deployed.

    They go into a Secret of their own, which listeners and runs with encrypted inputs mount if it is there, so the
    next deployment neither knows nor ends it. It is owned by objects of the stack and ends with them.

    Args:
        cluster: where.
        new: the secret that replaces them.
        until: seconds since the epoch.

    Returns:
        whether there is a former secret.

    Raises:
        ClusterError: kubectl failed, or the listener's Secret is not the stack's.
    """
    if cluster.own_secret is not None:
        raise ClusterError(
            f"Secret {cluster.own_secret} is your own: put the new secret first in its list `signing`, and give the "
            "former one a not_after (docs/kubernetes.md)"
        )
    stored = _secret(cluster, cluster.namespace, _OF_LISTENER)
    if stored is None:
        return False
    content = json.loads(_value(stored, names.SECRETS_FILE))
    former = {item["value"]: item for item in previous(cluster) if item["not_after"] > time.time()}
    for item in content["signing"]:
        if item["value"] != new and item["value"] not in former:
            former[item["value"]] = {
                "value": item["value"],
                "not_after": min(until, item["not_after"] or until),
            }
    former.pop(new, None)
    owners = {
        cluster.namespace: ("ServiceAccount", "listener"),
        cluster.runs_namespace: ("ResourceQuota", "runs"),
    }
    for namespace, (kind, name) in owners.items():
        uid = cluster.ask(*("get", kind, name, "--namespace", namespace), *("-o", "jsonpath={.metadata.uid}"))
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": names.FORMER_SIGNING,
                "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": names.PREFIX},
                "ownerReferences": [{"apiVersion": "v1", "kind": kind, "name": name, "uid": uid.strip()}],
            },
            "type": "Opaque",
            "stringData": {names.PREVIOUS_FILE: json.dumps(list(former.values()))},
        }
        # Standard input, because arguments are seen by everybody on this machine.
        cluster.ask(
            *("apply", "--server-side", "--force-conflicts", "--field-manager", names.PREFIX, "-f", "-"),
            given=json.dumps(manifest),
        )
    return bool(former)


def end_former(cluster: Cluster) -> bool:
    """Ends the overlap after a rotation; whether there was a former secret.

    Raises:
        ClusterError: kubectl failed.
    """
    # Not what is in it: this is also the way out when that cannot be read.
    found = _secret(cluster, cluster.namespace, names.FORMER_SIGNING) is not None
    for namespace in (cluster.namespace, cluster.runs_namespace):
        cluster.ask("delete", "secret", names.FORMER_SIGNING, "--namespace", namespace, "--ignore-not-found")
    return found


def previous(cluster: Cluster) -> list[dict[str, Any]]:
    """What former rotations replaced, each with its end.

    Raises:
        ClusterError: kubectl failed, or somebody else changed the Secret.
    """
    stored = _secret(cluster, cluster.namespace, names.FORMER_SIGNING)
    try:
        found: list[dict[str, Any]] = json.loads(_value(stored, names.PREVIOUS_FILE)) if stored else []
    except (KeyError, ValueError):
        raise ClusterError(
            f"Secret {names.FORMER_SIGNING} in {cluster.namespace} cannot be read: end the overlap with "
            "`port-webhook rotate-secret --retire`"
        ) from None
    return found


def _secret(cluster: Cluster, namespace: str, name: str) -> dict[str, Any] | None:
    text = cluster.ask("get", "secret", name, "--namespace", namespace, "--ignore-not-found", "-o", "json")
    return json.loads(text) if text.strip() else None


def _value(secret: Mapping[str, Any], key: str) -> str:
    return base64.b64decode(secret["data"][key]).decode()


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
        _body(item),
    )


def _body(item: Mapping[str, Any]) -> dict[str, Any]:
    try:
        body: Any = json.loads(_value(item, names.BODY_FILE))
    except (KeyError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
