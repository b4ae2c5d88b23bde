"""The function that runs handlers: one accepted run an invocation.

| what is found in the ledger | what happens |
|---|---|
| nothing, or `queued` | the run starts |
| `running`, its lease has not ended | the message stays on its queue until then |
| `running`, its lease has ended | interrupted: FAILURE, or a further start with `on_interrupt="retry"` |
| `reporting` | the last report goes to the outbox once more |
| `done` | dropped: the run has ended |
| another request with this run id | dropped |
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from port_webhook_handlers.runtime.aws.api import AwsApi, AwsError
from port_webhook_handlers.runtime.aws.deployment import Archive, Deployment
from port_webhook_handlers.runtime.aws.events import Record, failures, records_of
from port_webhook_handlers.runtime.aws.ledger import DynamoLedger, Item
from port_webhook_handlers.runtime.aws.messages import MessageError, RunMessage, final_message, send_reports
from port_webhook_handlers.runtime.aws.runs import Runs
from port_webhook_handlers.runtime.aws.secrets import CachedSecrets
from port_webhook_handlers.runtime.claims import LedgerError
from port_webhook_handlers.runtime.execution import STARTS_AFTER_INTERRUPTS, Outcome, starts_again
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Route

INTERRUPTED: Final = (
    "The run was interrupted, outcome unknown: its function ended while the handler was running."
)

_LEASE_MARGIN_SECONDS: Final = 30.0
# Kept back from the function's time, so that an outcome can still be stored.
_RESERVE_SECONDS: Final = 10.0
_STORE_PAUSES: Final = (0.5, 1.0, 2.0)
_RETRY_SECONDS: Final = 2.0
_MAX_RETRY_SECONDS: Final = 300.0
_MAX_VISIBILITY_SECONDS: Final = 43_200


class Context(Protocol):
    """What Lambda tells about an invocation."""

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda ends it."""
        ...


class WorkerFunction:
    """Runs what is on the queue of a privilege group."""

    def __init__(self, archive: Archive, deployment: Deployment, api: AwsApi, log: Log) -> None:
        self._routes = archive.manifest.routes
        self._queues = {url.rpartition("/")[2]: url for url in deployment.queues.values()}
        self._reports = deployment.reports
        self._api = api
        self._log = log
        secrets = CachedSecrets(
            api,
            deployment.secrets,
            ("handlers",),
            deployment.secrets_seconds,
            log,
            deployment.overlap_seconds,
        )
        self._runs = Runs(
            archive, deployment, api, secrets if "handlers" in deployment.secrets else None, log
        )
        self._ledger = DynamoLedger(api, deployment.table, deployment.retention_days)

    def __call__(self, event: Mapping[str, Any], context: Context) -> dict[str, Any]:
        """Handles a batch; what is named in the answer stays on the queue."""
        kept: list[str] = []
        for record in records_of(event):
            try:
                if not self._handle(record, context):
                    kept.append(record.id)
            except MessageError as error:
                # It ends in the dead-letter queue.
                self._log("message not understood", id=record.id, error=str(error))
                kept.append(record.id)
            except (AwsError, LedgerError) as error:
                self._log("run not stored", id=record.id, error=str(error))
                kept.append(record.id)
        return failures(kept)

    def _handle(self, record: Record, context: Context) -> bool:
        """Whether nothing is left to do for a message."""
        message = RunMessage.parse(record.body)
        run_id, holder = message.run_id, os.urandom(12).hex()
        # An alarm watches the age.
        self._log("run taken", run=run_id, age=round(max(0.0, time.time() - message.accepted_at), 1))
        lease = time.time() + context.get_remaining_time_in_millis() / 1000 + _LEASE_MARGIN_SECONDS
        attempt = self._ledger.start(
            run_id, message.route, message.body_hash, holder, lease, message.accepted_at
        )
        if not attempt:
            item = self._ledger.get(run_id)
            if item is None:
                return False
            if item.holder == holder:
                attempt = item.attempt
            elif (item.route, item.body_hash) != (message.route, message.body_hash):
                self._log("run id reused", run=run_id, route=message.route)
                return True
            elif item.state != "running":
                return self._ended(item)
            elif item.lease > time.time():
                self._show_again(record, item.lease - time.time())
                return False
            else:
                return self._interrupted(record, message, item, holder, lease, context)
        return self._run(record, message, attempt, holder, lease, context)

    def _ended(self, item: Item) -> bool:
        if item.state == "reporting" and item.final is not None:
            self._send(item.run_id, item.final)
        else:
            self._log("repeat dropped", run=item.run_id, state=item.state)
        return True

    def _interrupted(
        self, record: Record, message: RunMessage, item: Item, holder: str, lease: float, context: Context
    ) -> bool:
        route = self._routes.get(item.route)
        limit = max(route.max_attempts, STARTS_AFTER_INTERRUPTS) if route is not None else 0
        again = route is not None and route.on_interrupt == "retry" and item.attempt < limit
        self._log("run recovered", run=item.run_id, route=item.route, again=again)
        if again:
            attempt = self._ledger.take_over(item, holder, lease)
            return bool(attempt) and self._run(record, message, attempt, holder, lease, context)
        self._end(item.run_id, {"status": "FAILURE", "summary": INTERRUPTED}, item.holder)
        return True

    def _run(
        self, record: Record, message: RunMessage, attempt: int, holder: str, lease: float, context: Context
    ) -> bool:
        # If this function dies, the message comes back as soon as nobody can be at work on the run any more.
        self._show_again(record, lease - time.time() + 1)
        route = self._routes.get(message.route)
        if route is None:
            outcome = Outcome("FAILURE", "No handler is deployed for this action any more.")
        else:
            left = context.get_remaining_time_in_millis() / 1000 - _RESERVE_SECONDS
            outcome = self._outcome(message, route, attempt, max(1.0, min(route.timeout_seconds, left)))
            if starts_again(route, attempt, outcome):
                delay = min(_MAX_RETRY_SECONDS, _RETRY_SECONDS * 2.0 ** (attempt - 1))
                delay *= random.uniform(0.5, 1)  # noqa: S311
                self._log("run starts again", run=message.run_id, attempt=attempt, seconds=round(delay, 1))
                self._ledger.requeue(message.run_id, holder)
                self._show_again(record, delay)
                return False
        final = {"status": outcome.status, "summary": outcome.summary, "link": outcome.link}
        self._end(message.run_id, final, holder)
        return True

    def _outcome(self, message: RunMessage, route: Route, attempt: int, seconds: float) -> Outcome:
        try:
            return self._runs.run(message.run_id, route, json.loads(message.body), attempt, seconds)
        except Exception as error:  # noqa: BLE001
            self._log.error("run failed", error, run=message.run_id)
            return Outcome("FAILURE", "The listener failed; see its log.", error_type="Internal")

    def _end(self, run_id: str, final: Mapping[str, Any], holder: str) -> None:
        if self._finished(run_id, final, holder):
            self._send(run_id, final)
        elif (item := self._ledger.get(run_id)) is not None and item.final is not None:
            self._send(run_id, item.final)

    def _finished(self, run_id: str, final: Mapping[str, Any], holder: str) -> bool:
        """Stores an outcome, more than once: what a handler did must not end as "interrupted"."""
        for pause in _STORE_PAUSES:
            try:
                return self._ledger.finish(run_id, final, holder)
            except LedgerError as error:
                self._log("outcome not stored yet", run=run_id, error=str(error))
                time.sleep(pause)
        return self._ledger.finish(run_id, final, holder)

    def _send(self, run_id: str, final: Mapping[str, Any]) -> None:
        send_reports(self._api, self._reports, final_message(run_id, final), "final")

    def _show_again(self, record: Record, seconds: float) -> None:
        change_visibility(self._api, self._queues, record, seconds, self._log)


def change_visibility(
    api: AwsApi, queues: Mapping[str, str], record: Record, seconds: float, log: Log
) -> None:
    """Lets a message be delivered again after some seconds, if it is not deleted before.

    Args:
        queues: name of a queue to its URL.
    """
    whole = max(0, min(_MAX_VISIBILITY_SECONDS, round(seconds)))
    url = queues.get(record.queue_name)
    if url is None:
        return
    try:
        api.call(
            "sqs",
            "ChangeMessageVisibility",
            {"QueueUrl": url, "ReceiptHandle": record.receipt, "VisibilityTimeout": whole},
        )
    except AwsError as error:
        # Then the queue's own time applies.
        log("visibility not changed", id=record.id, error=str(error))


def create() -> WorkerFunction:
    """The function, built while Lambda initialises the environment."""
    deployment, archive, log = Deployment.load(), Archive.running(), Log()
    archive.check_loaded()
    return WorkerFunction(archive, deployment, AwsApi.from_environment(), log)
