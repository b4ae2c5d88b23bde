"""Names that the processes in the cluster and the manifests agree on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

PREFIX: Final = "port-webhook-stack"
RUN_TYPE: Final = f"{PREFIX}/run"
"""Type of the Secrets that hold accepted runs."""

MODE_LABEL: Final = f"{PREFIX}/mode"
STATE_LABEL: Final = f"{PREFIX}/state"
ROUTE_LABEL: Final = f"{PREFIX}/route"
GROUP_LABEL: Final = f"{PREFIX}/privilege-group"
DEAD_LABEL: Final = f"{PREFIX}/dead-letter"
"""On runs that ended without a result of their handler."""

PODS_ANNOTATION: Final = f"{PREFIX}/pods"
"""On a run: the uids of the Pods that may execute it, one for each start."""

START_GATE: Final = f"{PREFIX}/start"
"""Scheduling gate of a run's Pods, which the dispatcher takes away."""

OUTCOME_ANNOTATION: Final = f"{PREFIX}/outcome"
REPORTED_ANNOTATION: Final = f"{PREFIX}/reported"

RUN_FILE: Final = "run.json"
BODY_FILE: Final = "body"
SECRETS_FILE: Final = "secrets.json"
PREVIOUS_FILE: Final = "previous.json"
CONFIG_FILE: Final = "config.json"

FORMER_SIGNING: Final = "previous-secrets"
"""Secret, in both namespaces, with what a rotation replaced; it comes and goes without a deployment."""

CONTAINER: Final = "run"
"""Name of the container of a run's Job."""

RETRY_EXIT_CODE: Final = 75
"""Exit code of a Job's container that asks for another attempt (EX_TEMPFAIL)."""

PORT: Final = 8080
METRICS_PORT: Final = 9090

ROOT: Final = "/port-webhook"
"""Folder in which everything is mounted."""


def root() -> Path:
    """Folder of the mounts; the variable is for tests, which run without a container."""
    return Path(os.environ.get("PORT_WEBHOOK_ROOT", ROOT))


def run_name(run_id: str) -> str:
    """Name of the Secret and of the Job of a run: equal names are what makes a repeat a conflict."""
    return f"run-{hashlib.sha256(run_id.encode()).hexdigest()[:40]}"


def label(name: str) -> str:
    """A route or group as a label's value and part of a name: at most 40 characters, distinct for each name."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    if plain == name and not plain.startswith("-") and not plain.endswith("-") and len(plain) <= 40:
        return plain
    return f"{plain.strip('-')[:31].strip('-') or 'x'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
