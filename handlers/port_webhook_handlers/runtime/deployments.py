"""Processes that handlers deployed on this machine and that must not outlive the stack."""

from __future__ import annotations

import json
from pathlib import Path

from port_webhook_handlers.process import ProcessIdentity


def end_deployments(folder: Path) -> list[str]:
    """Ends every process registered as `{"pid", "start_time"}` in `*.json` or `*/current.json` of a folder.

    Returns:
        names of the registrations whose process was running.
    """
    ended: list[str] = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/current.json")]):
        try:
            record = json.loads(path.read_bytes())
            identity = ProcessIdentity(int(record["pid"]), float(record["start_time"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if identity.terminate(grace_seconds=5):
            ended.append(path.relative_to(folder).as_posix())
    return ended
