"""The function behind the dead-letter queues: ends runs that nobody could run, so that none stays open in Port."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from port_webhook_handlers.runtime.aws.api import AwsApi, AwsError
from port_webhook_handlers.runtime.aws.deployment import Archive, Deployment
from port_webhook_handlers.runtime.aws.events import Record, failures, records_of
from port_webhook_handlers.runtime.aws.ledger import DynamoLedger
from port_webhook_handlers.runtime.aws.messages import MessageError, RunMessage, final_message, send_reports
from port_webhook_handlers.runtime.aws.worker import change_visibility
from port_webhook_handlers.runtime.claims import LedgerError
from port_webhook_handlers.runtime.logs import Log

NOT_STARTED: Final = (
    "The run could not be started: every attempt of its function failed. See the function's log."
)
NOT_ENDED: Final = "The run was started, but its function failed again and again; its outcome is unknown."

_BUSY_SECONDS: Final = 30.0


class DeadLettersFunction:
    """Reports FAILURE for a run, only if it has not ended and nobody can be at work on it."""

    def __init__(self, deployment: Deployment, api: AwsApi, log: Log) -> None:
        self._reports = deployment.reports
        self._queues = {url.rpartition("/")[2]: url for url in deployment.queues.values()}
        self._api = api
        self._log = log
        self._ledger = DynamoLedger(api, deployment.table, deployment.retention_days)

    def __call__(self, event: Mapping[str, Any], context: object) -> dict[str, Any]:
        """Handles a batch; what is named in the answer stays on the queue."""
        kept: list[str] = []
        for record in records_of(event):
            try:
                if not self._handle(record):
                    kept.append(record.id)
            except MessageError as error:
                # Nothing says which run it is; it can only have been put there by hand.
                self._log("dead letter", id=record.id, error=str(error))
            except (AwsError, LedgerError) as error:
                self._log("dead letter not handled", id=record.id, error=str(error))
                kept.append(record.id)
        return failures(kept)

    def _handle(self, record: Record) -> bool:
        message = RunMessage.parse(record.body)
        run_id = message.run_id
        failure = {"status": "FAILURE", "summary": NOT_STARTED}
        item = self._ledger.get(run_id)
        if item is None:
            item = self._ledger.refuse(run_id, message.route, message.body_hash, failure)
        if (item.route, item.body_hash) != (message.route, message.body_hash):
            self._log("run id reused", run=run_id, route=message.route)
            return True
        if item.state == "running":
            if item.lease > time.time():
                change_visibility(self._api, self._queues, record, item.lease - time.time() + 1, self._log)
                return False
            failure = {"status": "FAILURE", "summary": NOT_ENDED}
            if not self._ledger.finish(run_id, failure, item.holder):
                change_visibility(self._api, self._queues, record, _BUSY_SECONDS, self._log)
                return False
        elif item.state == "queued":
            failure = {"status": "FAILURE", "summary": NOT_ENDED}
            if not self._ledger.finish(run_id, failure, ""):
                return False
        elif item.state == "reporting" and item.final is not None:
            failure = item.final
        else:
            self._log("repeat dropped", run=run_id, state=item.state)
            return True
        self._ledger.bury(run_id, str(failure.get("summary") or ""), message.body)
        send_reports(self._api, self._reports, final_message(run_id, failure), "final")
        self._log("dead letter", run=run_id, route=message.route)
        return True


def create() -> DeadLettersFunction:
    """The function, built while Lambda initialises the environment."""
    deployment, archive, log = Deployment.load(), Archive.running(), Log()
    archive.check_loaded()
    return DeadLettersFunction(deployment, AwsApi.from_environment(), log)
