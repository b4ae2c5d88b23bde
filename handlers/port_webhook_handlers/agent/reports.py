"""What an agent tells Port about runs (Port's routes of runs and of workflow nodes)."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from port_webhook_handlers.agent.messages import Message
from port_webhook_handlers.agent.metrics import AgentMetrics
from port_webhook_handlers.port.async_client import PortApi, is_passing, retry_after
from port_webhook_handlers.port.client import PortError, quote
from port_webhook_handlers.runtime.logs import Log

NOTHING: Final = object()
_MAX_TEXT: Final = 8_000
_MAX_DELAY_SECONDS: Final = 60.0
_LOGS_WAITING: Final = 10_000
_LOGS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a message.

    Attributes:
        result: `delivered`, `failed`, `ignored` (none of this agent's) or `settled` (somebody else reports).
        status: SUCCESS or FAILURE, where the agent ends the run.
        summary, link, external_run_id: shown by Port with the run.
        response: what a synchronous destination answered.
        code: status of that answer.
        line: for the run's log.
    """

    result: str
    status: str | None = None
    summary: str | None = None
    link: Any = None
    external_run_id: str | None = None
    response: Any = NOTHING
    code: int | None = None
    line: str | None = None


class Reporter:
    """Sends outcomes to Port; log lines go by themselves, later, and never hold anything up.

    Args:
        api: Port's API.
        log, metrics: where reports are noted.
        first_delay: seconds before a call is repeated; it doubles from there, up to a minute.
    """

    def __init__(self, api: PortApi, log: Log, metrics: AgentMetrics, first_delay: float = 0.5) -> None:
        self._api = api
        self._log = log
        self._metrics = metrics
        self._first_delay = first_delay
        self._lines: deque[tuple[str, bool, str]] = deque()
        self._writers: set[asyncio.Task[None]] = set()

    async def report(self, message: Message, outcome: Outcome) -> None:
        """Ends the run where the outcome says so; returns once Port has taken it, however long that takes."""
        run_id = message.run_id
        if run_id is None:
            return
        node = message.is_node_run
        if node and outcome.status == "FAILURE":
            await self._explain(run_id, outcome.summary)
        elif outcome.line is not None:
            self._write(run_id, node, outcome.line)
        if outcome.response is not NOTHING and not node:
            await self._insist(
                "PATCH", f"/v1/actions/runs/{quote(run_id)}/response", {"response": outcome.response}
            )
        body = _node_body(outcome) if node else _run_body(outcome)
        if body:
            await self._insist("PATCH", _run_path(run_id, node) + ("" if node else "?version=v2"), body)

    async def flush(self, seconds: float) -> None:
        """Waits until the log lines are written, or the time is over."""
        if self._writers:
            await asyncio.wait(self._writers, timeout=seconds)

    async def close(self) -> None:
        """Gives up what is left of log lines."""
        for task in list(self._writers):
            task.cancel()
        if self._writers:
            await asyncio.wait(self._writers)

    async def _explain(self, run_id: str, reason: str | None) -> None:
        """Why a node failed; its log is the only place for that, and may be closed once it has ended."""
        body = {"logs": [{"level": "ERROR", "message": (reason or "The delivery failed.")[:_MAX_TEXT]}]}
        try:
            await self._api.call("POST", f"{_run_path(run_id, True)}/logs", body)
        except PortError:
            self._metrics.count("port_webhook_agent_log_lines_lost_total")

    async def _insist(self, method: str, path: str, body: Any) -> None:
        """Repeats a call until Port has taken it, or says that it never will."""
        failures = 0
        while True:
            try:
                await self._api.call(method, path, body)
            except PortError as error:
                if not is_passing(error):
                    # The run has ended otherwise or is gone: nothing is left to do for it.
                    self._metrics.count("port_webhook_agent_reports_total", ("outcome", "refused"))
                    self._log("report refused", path=path, error=str(error))
                    return
                failures += 1
                self._metrics.count("port_webhook_agent_reports_total", ("outcome", "retried"))
                await asyncio.sleep(
                    delay(failures, self._first_delay, _MAX_DELAY_SECONDS, retry_after(error))
                )
            else:
                self._metrics.count("port_webhook_agent_reports_total", ("outcome", "taken"))
                return

    def _write(self, run_id: str, node: bool, line: str) -> None:
        if len(self._lines) >= _LOGS_WAITING:
            self._metrics.count("port_webhook_agent_log_lines_lost_total")
            return
        self._lines.append((run_id, node, line))
        if len(self._writers) < _LOGS_AT_ONCE:
            task = asyncio.ensure_future(self._write_lines())
            self._writers.add(task)
            task.add_done_callback(self._writers.discard)

    async def _write_lines(self) -> None:
        failures = 0
        while self._lines:
            run_id, node, line = self._lines.popleft()
            body = {"logs": [{"level": "INFO", "message": line}]} if node else {"message": line}
            try:
                await self._api.call("POST", f"{_run_path(run_id, node)}/logs", body)
                failures = 0
            except PortError as error:
                if is_passing(error) and failures < 5:
                    failures += 1
                    self._lines.appendleft((run_id, node, line))
                    await asyncio.sleep(
                        delay(failures, self._first_delay, _MAX_DELAY_SECONDS, retry_after(error))
                    )
                else:
                    # A line is a courtesy: one that Port does not take is not worth a run.
                    failures = 0
                    self._metrics.count("port_webhook_agent_log_lines_lost_total")


def delay(failures: int, first: float, longest: float, wanted: float | None = None) -> float:
    """Seconds before the next attempt: exponential with jitter, and no less than what was asked for."""
    bound = min(longest, first * 2.0 ** min(failures - 1, 16))
    jittered = bound * random.uniform(0.5, 1)  # noqa: S311
    return jittered if wanted is None else max(jittered, wanted)


def _run_path(run_id: str, node: bool) -> str:
    return f"/v1/{'workflows/nodes' if node else 'actions'}/runs/{quote(run_id)}"


def _run_body(outcome: Outcome) -> dict[str, Any]:
    body: dict[str, Any] = {
        "status": outcome.status,
        "summary": outcome.summary and outcome.summary[:_MAX_TEXT],
        "link": outcome.link,
        "externalRunId": outcome.external_run_id,
    }
    return {key: value for key, value in body.items() if value}


def _node_body(outcome: Outcome) -> dict[str, Any]:
    if outcome.status == "FAILURE":
        return {"status": "COMPLETED", "result": "FAILED"}
    if outcome.status != "SUCCESS":
        return {}
    answer = {
        "status": outcome.code or 200,
        "data": {} if outcome.response is NOTHING else outcome.response,
    }
    return {"status": "COMPLETED", "result": "SUCCESS", "output": {"response": answer}}
