"""An accepted run as a Secret: its data is immutable, its labels and annotations are its progress.

| label `state` | meaning |
|---|---|
| none | accepted; no Job yet |
| `started` | its Job was created, and is never created again |
| `ended` | the outcome is in the annotation; Port has not taken it yet |
| `done` | nothing is left to do; the Secret stays for a while as the claim |
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from port_webhook_handlers.runtime.execution import STARTS_AFTER_INTERRUPTS
from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_handlers.runtime.manifest import Route

STARTED: Final = "started"
ENDED: Final = "ended"
DONE: Final = "done"


@dataclass(frozen=True, slots=True)
class StoredRun:
    """What the Secret of a run says.

    Attributes:
        name: of the Secret and of the Job.
        uid: of the Secret.
        run_id, route, mode: as claimed.
        state: label, "" while accepted.
        failure: the report that ends a refused run.
        outcome: the terminal report, once known.
        reported: how many reports Port has taken.
        pods: uids of the Pods that were let start.
        created_at: seconds since the epoch.
    """

    name: str
    uid: str
    run_id: str
    route: str
    mode: str
    state: str
    failure: dict[str, Any] | None
    outcome: dict[str, Any] | None
    reported: int
    pods: tuple[str, ...]
    created_at: float


def secret(
    namespace: str,
    run_id: str,
    route: str,
    mode: str,
    *,
    body_hash: bytes,
    payload: bytes,
    failure: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Manifest of the Secret whose creation is the acceptance of a run."""
    run = {"run_id": run_id, "route": route, "mode": mode, "body_sha256": body_hash.hex(), "failure": failure}
    data = {names.RUN_FILE: json.dumps(run, separators=(",", ":")).encode()}
    if mode == "async" and failure is None:
        data[names.BODY_FILE] = payload
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.run_name(run_id),
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/managed-by": names.PREFIX,
                names.MODE_LABEL: mode,
                names.ROUTE_LABEL: names.label(route),
            },
        },
        "type": names.RUN_TYPE,
        "immutable": True,
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def parse(manifest: dict[str, Any]) -> StoredRun | None:
    """Reads a Secret; None if it is not the claim of a run."""
    metadata = manifest.get("metadata", {})
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    try:
        run = json.loads(base64.b64decode(manifest["data"][names.RUN_FILE]))
        outcome = annotations.get(names.OUTCOME_ANNOTATION)
        return StoredRun(
            name=metadata["name"],
            uid=metadata["uid"],
            run_id=run["run_id"],
            route=run["route"],
            mode=run["mode"],
            state=labels.get(names.STATE_LABEL, ""),
            failure=run.get("failure"),
            outcome=None if outcome is None else json.loads(outcome),
            reported=int(annotations.get(names.REPORTED_ANNOTATION, "0")),
            pods=tuple(filter(None, annotations.get(names.PODS_ANNOTATION, "").split(","))),
            created_at=epoch(metadata["creationTimestamp"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def attempts(route: Route) -> int:
    """How often a run of this route may be started at most.

    `retry` means at least once: an interruption alone allows further starts.
    """
    again = STARTS_AFTER_INTERRUPTS if route.on_interrupt == "retry" else 1
    return max(route.max_attempts, again)


def epoch(text: str) -> float:
    """Seconds since the epoch of a time as the API server writes it."""
    return datetime.fromisoformat(text).timestamp()
