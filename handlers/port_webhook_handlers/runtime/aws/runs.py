"""Running a handler and passing on what it reports; the same for the worker and for synchronous runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from port_webhook_handlers.port.encryption import DecryptionError
from port_webhook_handlers.runtime.aws import child
from port_webhook_handlers.runtime.aws.api import AwsApi, AwsError
from port_webhook_handlers.runtime.aws.deployment import Archive, Deployment
from port_webhook_handlers.runtime.aws.messages import ReportMessage, send_reports, split
from port_webhook_handlers.runtime.aws.secrets import CachedSecrets
from port_webhook_handlers.runtime.claims import Report
from port_webhook_handlers.runtime.execution import MAX_REPORTS, Outcome, handler_request, reports_of
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Route

# Sequence numbers of a later start come after those of an earlier one.
_SEQS_OF_A_START: Final = 10_000
_FLUSH_SECONDS: Final = 0.5
_FLUSH_REPORTS: Final = 100
_MESSAGE_BYTES: Final = 240 * 1024


class Runs:
    """Runs handlers of this function's archive.

    Args:
        archive: what is deployed.
        deployment: the function's environment.
        api: calls to AWS.
        secrets: values that handlers declare, and decryption keys.
        log: where runs are noted.
    """

    def __init__(
        self, archive: Archive, deployment: Deployment, api: AwsApi, secrets: CachedSecrets | None, log: Log
    ) -> None:
        self._archive = archive
        self._deployment = deployment
        self._api = api
        self._secrets = secrets
        self._log = log

    def run(
        self, run_id: str, route: Route, body: Mapping[str, Any], attempt: int, seconds: float
    ) -> Outcome:
        """Runs the handler of a route; what it reports is on the queue of reports when this returns."""
        try:
            try:
                request = self._request(run_id, route, body, attempt, seconds)
            except DecryptionError:
                # Perhaps the key was replaced since it was read.
                if self._secrets is None or not self._secrets.refresh():
                    raise
                request = self._request(run_id, route, body, attempt, seconds)
        except DecryptionError as error:
            return Outcome(
                "FAILURE", f"An encrypted input cannot be read: {error}.", error_type="DecryptionError"
            )
        self._log("run started", run=run_id, route=route.name, attempt=attempt)
        began = time.monotonic()
        buffer = _Buffer(self._api, self._deployment.reports, run_id, attempt, self._log)
        outcome = child.run(
            self._archive.bundle,
            self._archive.digest,
            request,
            seconds,
            buffer.add,
            buffer.flush_when_due,
            self._log,
            credentials=self._deployment.credentials,
            further_paths=[path for path in sys.path if path and path != str(self._archive.bundle)],
        )
        buffer.flush()
        self._log(
            "run ended",
            run=run_id,
            route=route.name,
            status=outcome.status,
            error_type=outcome.error_type or None,
            seconds=round(time.monotonic() - began, 3),
        )
        return outcome

    def _request(
        self, run_id: str, route: Route, body: Mapping[str, Any], attempt: int, seconds: float
    ) -> dict[str, Any]:
        content = self._secrets.content if self._secrets is not None else None
        return handler_request(
            run_id,
            route,
            body,
            attempt=attempt,
            deadline=time.time() + seconds,
            secrets={} if content is None else content.secrets,
            decryption=() if content is None else content.decryption,
            settings={"state_dir": "/tmp", **self._archive.handler_settings(route.name)},  # noqa: S108
        )


class _Buffer:
    """Collects reports, so that a chatty handler does not cost a message a line."""

    def __init__(self, api: AwsApi, queue: str, run_id: str, attempt: int, log: Log) -> None:
        self._api = api
        self._queue = queue
        self._run_id = run_id
        self._first = attempt * _SEQS_OF_A_START
        self._seq = self._first
        self._log = log
        self._messages = 0
        self._waiting: list[Report] = []
        self._since = 0.0

    def add(self, message: Mapping[str, Any]) -> None:
        self._messages += 1
        if self._messages > MAX_REPORTS + 1:
            return
        if self._messages == MAX_REPORTS + 1:
            message = {"log": f"(after {MAX_REPORTS} reports the rest is left out)"}
        for kind, body in reports_of(message, self._log.redact):
            if not self._waiting:
                self._since = time.monotonic()
            self._waiting.append(Report(self._seq, kind, body))
            self._seq += 1

    def flush_when_due(self) -> None:
        due = time.monotonic() - self._since >= _FLUSH_SECONDS or len(self._waiting) >= _FLUSH_REPORTS
        if self._waiting and due:
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for part in split(waiting, _MESSAGE_BYTES):
            message = ReportMessage(self._run_id, tuple(part))
            try:
                send_reports(self._api, self._queue, message, f"reports {part[0].seq}")
            except AwsError as error:
                # The end of a run matters, lines on the way are best effort.
                self._log("reports lost", run=self._run_id, reports=len(part), error=str(error))
