"""The entry point of a run's Job: executes the handler in a child, prints what it reports, leaves its result.

Reports are JSON lines on standard output, `{"report": <number>, "kind": …, "body": …}`, which the dispatcher reads
from the Pod's log; `{"end": <how many>}` is the last. The result is the termination message. What the handler prints is wrapped in log lines, so it
cannot pass for either. This process has no credentials of Port and no token of the cluster.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.port.encryption import DecryptionError
from port_webhook_handlers.runtime import manifest as manifests
from port_webhook_handlers.runtime.children import ChildPool
from port_webhook_handlers.runtime.config import ConfigError
from port_webhook_handlers.runtime.execution import (
    MAX_REPORTS,
    Outcome,
    handler_request,
    reports_of,
    starts_again,
)
from port_webhook_handlers.runtime.kubernetes import config as configuration
from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_handlers.runtime.kubernetes.mounted import MountedSecrets
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Route
from port_webhook_handlers.runtime.redact import Redactor
from port_webhook_handlers.runtime.secret_file import LiveSecrets, SecretFileError, StoredSecrets

MAX_MESSAGE_BYTES: Final = 4096
"""What the kubelet keeps of a termination message."""


class JobError(Exception):
    """The run cannot be executed; the message is what Port shows."""


async def execute(root: Path, bundle: Path, attempt: int, log: Log) -> tuple[Outcome, bool]:
    """Executes the mounted run.

    Args:
        root: folder of the mounts.
        bundle: folder of the verified bundle.
        attempt: 1 for the first start.
        log: takes what the handler prints.

    Returns:
        how the run ended, and whether it is to be started again.

    Raises:
        JobError: run, route or secrets cannot be used.
    """
    try:
        manifest, digest = manifests.load(bundle)
        config = configuration.load(root / "config")
        run = json.loads((root / "run" / names.RUN_FILE).read_bytes())
        body = json.loads((root / "run" / names.BODY_FILE).read_bytes())
        run_id, name = run["run_id"], run["route"]
    except (manifests.ManifestError, ConfigError, OSError, ValueError, KeyError) as error:
        raise JobError(f"The run cannot be read: {error}") from error
    route = manifest.routes.get(name)
    if route is None:
        raise JobError("No handler is deployed for this action any more.")
    content = _secrets(root, route)
    log.redact = Redactor([*content.secrets.values(), *content.decryption])
    settings = {"state_dir": str(root / "work"), **config.listener(bundle, root).handler_settings(name)}
    try:
        request = handler_request(
            run_id,
            route,
            body,
            attempt=attempt,
            deadline=time.time() + route.timeout_seconds,
            secrets=content.secrets,
            decryption=content.decryption,
            settings=settings,
        )
    except DecryptionError as error:
        raise JobError(f"An encrypted input cannot be read: {error}.") from error
    pool = ChildPool(bundle, digest, root / "work", log)
    printer = _Printer(log)
    try:
        outcome = await pool.run(run_id, name, request, route.timeout_seconds, printer.message)
    finally:
        await pool.close()
        printer.end()
    outcome = dataclasses.replace(outcome, summary=log.redact(outcome.summary or "") or None)
    return outcome, starts_again(route, attempt, outcome)


def message(outcome: Outcome) -> bytes:
    """The termination message: JSON that fits, whatever the length of the summary."""
    summary, link = outcome.summary or "", outcome.link
    while True:
        body: dict[str, Any] = {"status": outcome.status}
        if summary:
            body["summary"] = summary
        if link:
            body["link"] = link
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
        if len(text) <= MAX_MESSAGE_BYTES:
            return text
        if not summary:
            link = None
        # Escapes can make a short text long, so it is cut until it fits.
        summary = summary[: max(0, min(len(summary) - 100, MAX_MESSAGE_BYTES))]
        if summary:
            summary += " …"


class _Printer:
    """Prints numbered reports."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._messages = 0
        self._number = 0

    def message(self, message: dict[str, Any]) -> None:
        self._messages += 1
        if self._messages == MAX_REPORTS + 1:
            message = {"log": f"(after {MAX_REPORTS} reports the rest is left out)"}
        elif self._messages > MAX_REPORTS:
            return
        for kind, body in reports_of(message, self._log.redact):
            self._number += 1
            self._print({"report": self._number, "kind": kind, "body": body})

    def end(self) -> None:
        self._print({"end": self._number})

    def _print(self, line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def _secrets(root: Path, route: Route) -> StoredSecrets:
    if not route.secrets and not route.encrypted_inputs:
        return StoredSecrets()
    try:
        # As in a listener: inputs that were encrypted before a rotation may be read after it.
        content = LiveSecrets(MountedSecrets.below(root)).content
    except SecretFileError as error:
        raise JobError(f"The handler's secrets cannot be read: {error}") from error
    if missing := [name for name in route.secrets if name not in content.secrets]:
        raise JobError(
            f"The handler declares the secret {missing[0]}, which its Secret does not hold; deploy the stack again."
        )
    return content


async def _run(root: Path, bundle: Path) -> int:
    log = Log()
    attempt = int(os.environ.get("PORT_WEBHOOK_FAILED_ATTEMPTS") or 0) + 1
    try:
        outcome, again = await execute(root, bundle, attempt, log)
    except JobError as error:
        outcome, again = Outcome("FAILURE", str(error)), False
    if again:
        log("run starts again", attempt=attempt)
        return names.RETRY_EXIT_CODE
    log("run ended", status=outcome.status, attempt=attempt, error_type=outcome.error_type or None)
    _leave(message(outcome))
    # The Job did its work; that the run failed is what the message says.
    return 0


def _leave(result: bytes) -> None:
    Path(os.environ.get("PORT_WEBHOOK_TERMINATION_LOG", "/dev/termination-log")).write_bytes(result)


def main() -> None:
    """Executes the run and ends with 0, or with 75 if it is to be started again. Argument: the bundle."""
    sys.exit(asyncio.run(_run(names.root(), Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
