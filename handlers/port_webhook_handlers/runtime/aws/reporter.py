"""The outbox: tells Port what is on the queue of reports.

A report that Port cannot take now stays on the queue, first for a second, in the end for half an hour at a time,
until the retention of the queue (14 days). Reports of one run are delivered in order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from port_webhook_handlers.port.client import PortAuthenticationError, PortError
from port_webhook_handlers.runtime.aws.api import AwsApi, AwsError
from port_webhook_handlers.runtime.aws.deployment import Archive, Deployment
from port_webhook_handlers.runtime.aws.events import Record, failures, records_of
from port_webhook_handlers.runtime.aws.ledger import DynamoLedger, Item
from port_webhook_handlers.runtime.aws.messages import MessageError, ReportMessage
from port_webhook_handlers.runtime.aws.secrets import CachedSecrets
from port_webhook_handlers.runtime.aws.worker import change_visibility
from port_webhook_handlers.runtime.claims import LedgerError, Report, Reports
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.outbox import Outbox, group_of
from port_webhook_handlers.runtime.port_calls import ThreadedCalls

# A report that fails so often while Port answers otherwise is given up; the end of a run never is.
_FAILURES_ALONE: Final = 6
_MAX_DELAY_SECONDS: Final = 1800.0


class _MessageReports:
    """The reports of one message, as a ledger for the outbox."""

    def __init__(self, ledger: DynamoLedger, message: ReportMessage, item: Item | None) -> None:
        self._ledger = ledger
        self._run_id = message.run_id
        done = item.reported if item is not None else 0
        ended = item is not None and item.state == "done"
        self._waiting = [
            report
            for report in message.reports
            if report.seq > done and not (ended and report.kind == "final")
        ]
        self._notes = list(item.notes) if item is not None else []

    async def reports(self, run_id: str, limit: int = 50) -> list[Report]:
        return self._waiting[:limit]

    async def reported(self, run_id: str, seqs: Sequence[int], note: str = "") -> None:
        self._ledger.reported(run_id, max(seqs), note)
        self._waiting = [report for report in self._waiting if report.seq not in seqs]
        if note:
            self._notes.append(note)

    async def notes(self, run_id: str) -> list[str]:
        return self._notes

    async def close_run(self, run_id: str) -> None:
        self._ledger.close(run_id)
        self._waiting = []

    async def unreported(self) -> list[str]:
        return [self._run_id] if self._waiting else []


class ReporterFunction:
    """Delivers reports to Port."""

    def __init__(self, deployment: Deployment, api: AwsApi, log: Log) -> None:
        self._deployment = deployment
        self._queues = {deployment.reports.rpartition("/")[2]: deployment.reports}
        self._api = api
        self._log = log
        self._ledger = DynamoLedger(api, deployment.table, deployment.retention_days)
        secrets = CachedSecrets(api, deployment.secrets, ("api",), deployment.secrets_seconds, log)
        no_reports = _MessageReports(self._ledger, ReportMessage("", ()), None)
        self._delivery = _Delivery(no_reports, secrets, deployment.port_base_url, log)

    def __call__(self, event: Mapping[str, Any], context: object) -> dict[str, Any]:
        """Delivers a batch; what is named in the answer stays on the queue."""
        return asyncio.run(self._deliver_all(list(records_of(event))))

    async def _deliver_all(self, records: Sequence[Record]) -> dict[str, Any]:
        kept: list[str] = []
        blocked: set[str] = set()
        for record in records:
            try:
                message = ReportMessage.parse(record.body)
            except MessageError as error:
                self._log("message not understood", id=record.id, error=str(error))
                kept.append(record.id)
                continue
            # What follows an undelivered report of the same run must wait for it.
            if message.run_id in blocked:
                kept.append(record.id)
                continue
            delay = await self._delivered(record, message)
            if delay is not None:
                blocked.add(message.run_id)
                kept.append(record.id)
                change_visibility(self._api, self._queues, record, delay, self._log)
        return failures(kept)

    async def _delivered(self, record: Record, message: ReportMessage) -> float | None:
        """None if a message needs no further delivery, else the seconds until the next one."""
        failed = record.receives
        retry = min(_MAX_DELAY_SECONDS, 2.0 ** min(failed - 1, 16))
        try:
            item = self._ledger.get(message.run_id)
            if message.refusal is not None:
                item = self._ledger.refuse(message.run_id, *message.refusal, dict(message.reports[-1].body))
                if item.state != "reporting" or item.final != message.reports[-1].body:
                    self._log("repeat dropped", run=message.run_id, state=item.state)
                    return None
            reports = _MessageReports(self._ledger, message, item)
            delay = await self._delivery.deliver(message.run_id, reports, failed, retry)
            if delay is not None and item is not None and item.accepted_at:
                # An alarm watches the age.
                age = round(max(0.0, time.time() - item.accepted_at), 1)
                self._log("report waits", run=message.run_id, seconds=round(delay, 1), age=age)
            return delay
        except (AwsError, LedgerError) as error:
            self._log("reports not delivered", run=message.run_id, error=str(error))
            return retry


class _Delivery(Outbox):
    """The outbox's way to talk to Port, without its waiting: that is the queue's part."""

    def __init__(self, no_reports: Reports, secrets: CachedSecrets, base_url: str, log: Log) -> None:
        # Each invocation has an event loop of its own; connections outlive it in threads.
        calls = ThreadedCalls(secrets, base_url)
        super().__init__(no_reports, secrets, base_url, log, Metrics(), calls=calls)
        self._cached = secrets

    async def deliver(
        self, run_id: str, reports: _MessageReports, failures: int, retry: float
    ) -> float | None:
        """Sends what waits; the seconds until the next attempt if Port does not take it."""
        self._ledger = reports
        while waiting := await reports.reports(run_id):
            group = group_of(waiting)
            try:
                await self._send(run_id, group)
            except PortError as error:
                if isinstance(error, PortAuthenticationError):
                    # Perhaps the credentials were replaced.
                    self._cached.refresh()
                alone = failures >= _FAILURES_ALONE and group[0].kind != "final" and await self._is_up(run_id)
                if not await self._refused(run_id, group, error, alone):
                    wanted = getattr(error, "retry_after", None)
                    return max(retry, float(wanted)) if isinstance(wanted, int | float) else retry
            else:
                await self._taken(run_id, group)
        return None


def create() -> ReporterFunction:
    """The function, built while Lambda initialises the environment."""
    deployment, archive, log = Deployment.load(), Archive.running(), Log()
    archive.check_loaded()
    return ReporterFunction(deployment, AwsApi.from_environment(), log)
