"""Tells Port about runs: in order for each run, the terminal status last, until Port has taken it.

| Port's answer | log, progress, entity | terminal status |
|---|---|---|
| 401, 408, 425, 429, 5xx, none | again, after a growing delay | again, after a growing delay |
| 403 | noted in the summary | again: permissions and allow lists get repaired |
| 422 | noted in the summary | the run is read: if it has ended, that is the end |
| other 4xx | noted in the summary | given up |
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from port_webhook_handlers.port.client import PortApiError, PortError, quote
from port_webhook_handlers.runtime.claims import CurrentSecrets, LedgerError, Report, Reports
from port_webhook_handlers.runtime.execution import HANDED_OVER
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.port_calls import LoopCalls, PortCalls

_MAX_MESSAGE: Final = 16_000
_MAX_SUMMARY: Final = 8_000
_MAX_DELAY_SECONDS: Final = 60.0
# From so many failures of one report on it is asked whether Port as a whole is down; a report that fails so many
# times while Port answers otherwise is given up.
_SUSPICIOUS_FAILURES: Final = 3
_FAILURES_ALONE: Final = 3
_RETRIED: Final = frozenset({401, 408, 425, 429})
_ENDED: Final = frozenset({"SUCCESS", "FAILURE", "DECLINED"})


class Outbox:
    """Delivers the reports in the ledger.

    Args:
        ledger: where reports wait.
        secrets: credentials of Port's API, as they are at each call.
        base_url: address of Port's API, or a function that finds it.
        log, metrics: where deliveries are noted.
        first_delay: seconds before the second attempt; it doubles from there, up to a minute.
        calls: how Port is called; by default on the event loop.
    """

    def __init__(
        self,
        ledger: Reports,
        secrets: CurrentSecrets,
        base_url: str | Callable[[], str],
        log: Log,
        metrics: Metrics,
        first_delay: float = 1.0,
        calls: PortCalls | None = None,
    ) -> None:
        self._ledger = ledger
        self._log = log
        self._metrics = metrics
        self._first_delay = first_delay
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._calls: PortCalls = calls or LoopCalls(secrets, base_url)
        self._closed = False

    def wake(self, run_id: str, final: dict[str, Any] | None = None) -> None:
        """A run has something to report.

        Args:
            run_id: Port's run id.
            final: the run's only report, which is in the ledger as well.
        """
        if self._closed:
            return
        if run_id in self._runs:
            self._again.add(run_id)
            return
        task = asyncio.ensure_future(self._deliver(run_id, final))
        self._runs[run_id] = task
        task.add_done_callback(lambda _: self._ended(run_id))

    async def scan(self) -> None:
        """Looks for runs of this process, or of none, that have something to report."""
        for run_id in await self._ledger.unreported():
            if run_id not in self._runs:
                self.wake(run_id)

    async def flush(self, seconds: float, run_id: str | None = None) -> bool:
        """Waits until the reports of one run, or all, are delivered.

        Returns:
            False if that took longer.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while tasks := self._deliveries(run_id):
            left = until - loop.time()
            if left <= 0:
                return False
            await asyncio.wait(tasks, timeout=left)
            # Let the callbacks run that restart a delivery.
            await asyncio.sleep(0)
        return True

    def _deliveries(self, run_id: str | None) -> list[asyncio.Task[None]]:
        if run_id is None:
            return list(self._runs.values())
        return [self._runs[run_id]] if run_id in self._runs else []

    async def close(self) -> None:
        """Stops delivering; what is left stays in the ledger."""
        self._closed = True
        tasks = list(self._runs.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._calls.close()

    async def fail_now(self, run_id: str, summary: str) -> None:
        """Reports a failure past the ledger, once; never raises."""
        body = {"status": "FAILURE", "summary": summary}
        try:
            async with asyncio.timeout(10):
                await self._call("PATCH", f"/v1/actions/runs/{quote(run_id)}", {"version": "v2"}, body)
        except (PortError, TimeoutError) as error:
            self._log("failure not reported", run=run_id, error=str(error))

    def _ended(self, run_id: str) -> None:
        del self._runs[run_id]
        if run_id in self._again:
            self._again.discard(run_id)
            self.wake(run_id)

    async def _deliver(self, run_id: str, final: dict[str, Any] | None) -> None:
        failures = alone = 0
        try:
            reports = await self._ledger.reports(run_id) if final is None else [Report(0, "final", final)]
            while reports:
                self._again.discard(run_id)
                group = group_of(reports)
                kind = group[0].kind
                try:
                    await self._send(run_id, group, noted=final is None)
                except PortError as error:
                    failures += 1
                    if failures >= _SUSPICIOUS_FAILURES and kind != "final" and await self._is_up(run_id):
                        alone += 1
                    if not await self._refused(run_id, group, error, alone >= _FAILURES_ALONE):
                        self._metrics.count(
                            "port_webhook_reports_total", ("kind", kind), ("outcome", "retried")
                        )
                        await asyncio.sleep(self._delay(failures, error))
                    else:
                        self._metrics.count(
                            "port_webhook_reports_total", ("kind", kind), ("outcome", "refused")
                        )
                        failures = alone = 0
                else:
                    failures = alone = 0
                    self._metrics.count("port_webhook_reports_total", ("kind", kind), ("outcome", "taken"))
                    await self._taken(run_id, group)
                    if kind == "final":
                        return
                reports = await self._ledger.reports(run_id)
        except LedgerError as error:
            # What is not marked as taken is found again by the next scan.
            self._log("reports not marked", run=run_id, error=str(error))
        except Exception as error:  # noqa: BLE001
            self._log.error("delivery failed", error, run=run_id)

    async def _send(self, run_id: str, group: Sequence[Report], *, noted: bool = True) -> None:
        kind, body = group[0].kind, group[0].body
        run = f"/v1/actions/runs/{quote(run_id)}"
        if kind == "log":
            message = "\n".join(report.body["message"] for report in group)
            await self._call("POST", f"{run}/logs", None, {"message": message})
        elif kind == "patch":
            await self._call("PATCH", run, {"version": "v2"}, body)
        elif kind == "entity":
            await self._entity(run_id, body)
        else:
            notes = await self._ledger.notes(run_id) if noted else []
            await self._call("PATCH", run, {"version": "v2"}, _final(body, notes))

    async def _entity(self, run_id: str, write: Mapping[str, Any]) -> None:
        path = f"/v1/blueprints/{quote(str(write['blueprint']))}/entities"
        body = write["body"]
        if write["op"] == "delete":
            try:
                await self._call("DELETE", f"{path}/{quote(str(body['identifier']))}", None, None)
            except PortApiError as error:
                if error.status != 404:
                    raise
            return
        params = {"upsert": "true", "merge": "true"}
        try:
            await self._call("POST", path, {**params, "run_id": run_id}, body)
        except PortApiError as error:
            # Port lists an entity under a run only while the run is open; the write itself is still due.
            if error.code != "run_exhausted":
                raise
            await self._call("POST", path, params, body)

    async def _refused(self, run_id: str, group: Sequence[Report], error: PortError, alone: bool) -> bool:
        """Whether a report needs no further attempt; if so, it has been dealt with."""
        kind = group[0].kind
        status = error.status if isinstance(error, PortApiError) else None
        passing = status is None or status in _RETRIED or status >= 500
        if kind == "final":
            if passing or status == 403:
                self._log("run not reported yet", run=run_id, error=str(error))
                return False
            if status == 422 and not await self._has_ended(run_id, group[0].body):
                return False
            if status != 422:
                self._log("run not reported", run=run_id, error=str(error))
            await self._ledger.close_run(run_id)
            return True
        if passing and not alone:
            return False
        self._log("report refused", run=run_id, kind=kind, error=str(error))
        code = getattr(error, "code", "") or status or "no answer"
        what = {"log": "log lines", "patch": "progress"}.get(kind) or f"entity {_entity_name(group[0].body)}"
        await self._ledger.reported(run_id, [report.seq for report in group], f"{what}: Port answered {code}")
        return True

    async def _has_ended(self, run_id: str, body: Mapping[str, Any]) -> bool:
        """After Port refused a terminal status: whether nothing is left to do."""
        if body["status"] == HANDED_OVER:
            # The other system was faster, or Port dislikes a text; either way the run is no longer ours.
            return True
        path = f"/v1/actions/runs/{quote(run_id)}"
        try:
            run = (await self._call("GET", path, {"version": "v2"}, None)).get("run", {})
            status = run.get("status")
            if status not in _ENDED:
                # Perhaps the summary or link is what Port dislikes.
                await self._call("PATCH", path, {"version": "v2"}, {"status": body["status"]})
                status = body["status"]
        except PortApiError as error:
            if error.status in _RETRIED or error.status >= 500:
                return False
            self._log("run not reported", run=run_id, error=str(error))
            return True
        except PortError:
            return False
        if status != body["status"]:
            self._log("run had ended otherwise", run=run_id, port=str(status), ours=str(body["status"]))
        return True

    async def _is_up(self, run_id: str) -> bool:
        try:
            await self._call("GET", f"/v1/actions/runs/{quote(run_id)}", {"version": "v2"}, None)
        except PortError:
            return False
        return True

    async def _taken(self, run_id: str, group: Sequence[Report]) -> None:
        if group[0].kind == "final":
            self._log("run reported", run=run_id, status=group[0].body["status"])
            await self._ledger.close_run(run_id)
        else:
            await self._ledger.reported(run_id, [report.seq for report in group])

    def _delay(self, failures: int, error: PortError) -> float:
        longest = min(_MAX_DELAY_SECONDS, self._first_delay * 2.0 ** min(failures - 1, 10))
        jittered = longest * random.uniform(0.5, 1)  # noqa: S311
        wanted = getattr(error, "retry_after", None)
        return max(jittered, float(wanted)) if isinstance(wanted, int | float) else jittered

    async def _call(
        self, method: str, path: str, params: Mapping[str, str] | None, body: Any
    ) -> dict[str, Any]:
        return await self._calls.call(method, path, params, body)


def _final(body: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    summary = str(body.get("summary") or "")[:_MAX_SUMMARY]
    if notes:
        summary = "\n\n".join(
            filter(None, [summary, "Not everything was reported:\n- " + "\n- ".join(notes)])
        )
    # Whoever goes on with the run sets its status.
    final = {"statusLabel": "Handed over"} if body["status"] == HANDED_OVER else {"status": body["status"]}
    if summary:
        final["summary"] = summary
    if body.get("link"):
        final["link"] = body["link"]
    return final


def group_of(reports: Sequence[Report]) -> list[Report]:
    """The first report, with the log lines that follow a log line: they are sent in one call."""
    group = [reports[0]]
    if reports[0].kind == "log":
        size = len(reports[0].body["message"])
        for report in reports[1:]:
            size += len(report.body.get("message", "")) + 1
            if report.kind != "log" or size > _MAX_MESSAGE:
                break
            group.append(report)
    return group


def _entity_name(write: Mapping[str, Any]) -> str:
    return f"{write.get('blueprint')}/{(write.get('body') or {}).get('identifier')}"
