"""The source that polls Port's API (Port's protocol for agents without Kafka).

A run is acknowledged after its outcome. Port offers a claimed run again when its time is over, so the time asked for
is longer than all attempts of a delivery together; there is no call that extends it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from port_webhook_handlers.agent.config import MAX_VISIBILITY_SECONDS, AgentLimits, PollingSettings
from port_webhook_handlers.agent.core import Agent
from port_webhook_handlers.agent.messages import (
    ForeignError,
    Message,
    PoisonError,
    from_node_run,
    from_run,
)
from port_webhook_handlers.agent.metrics import AgentMetrics
from port_webhook_handlers.agent.reports import delay
from port_webhook_handlers.port.async_client import PortApi, is_passing, retry_after
from port_webhook_handlers.port.client import PortError
from port_webhook_handlers.runtime.logs import Log

INSTALLATION: Final = "_PORT_EXEC_AGENT"
_ACKNOWLEDGE_SECONDS: Final = 0.02
_ACKNOWLEDGED_AT_ONCE: Final = 100
_SLACK_SECONDS: Final = 30.0
_RUNS: Final = "/v1/actions/runs"
_NODES: Final = "/v1/workflows/runs"


class PollingSource:
    """Claims runs and acknowledges them.

    Args:
        api: Port's API.
        agent: takes the messages.
        settings, limits: see there.
        wanted: says whether this agent delivers a run; others are left to other agents.
        log, metrics: where it is noted.
    """

    def __init__(
        self,
        api: PortApi,
        agent: Agent,
        settings: PollingSettings,
        limits: AgentLimits,
        wanted: Callable[[Message], bool],
        log: Log,
        metrics: AgentMetrics,
    ) -> None:
        self._api = api
        self._agent = agent
        self._settings = settings
        self._wanted = wanted
        self._log = log
        self._metrics = metrics
        self._visibility = min(
            MAX_VISIBILITY_SECONDS, limits.delivery_seconds + limits.attempt_seconds + _SLACK_SECONDS
        )
        self._known: set[str] = set()
        self._excluded: dict[str, None] = {}
        self._settled: asyncio.Queue[Message] = asyncio.Queue()
        self._room = asyncio.Event()
        self._stopping = asyncio.Event()
        self.problem: str | None = "Port was not asked yet"
        agent.on_room = self._room.set

    def status(self) -> dict[str, Any]:
        """For `/health/ready`."""
        return {"source": "polling", "ready": self.problem is None, "problem": self.problem}

    async def run(self) -> None:
        """Claims until stopped."""
        acknowledging = asyncio.ensure_future(self._acknowledge())
        failures = 0
        try:
            while not self._stopping.is_set():
                self._room.clear()
                limit = min(self._settings.batch, self._agent.room)
                if limit == 0:
                    await self._either(self._room, 1.0)
                    continue
                try:
                    full = await self._claim(limit)
                except PortError as error:
                    failures += 1
                    self.problem = f"Port cannot be polled: {error}"
                    self._metrics.count("port_webhook_agent_source_errors_total", ("kind", "claim"))
                    if failures == 1:
                        self._log("claim failed", error=str(error))
                    seconds = delay(failures, 1.0, self._settings.max_backoff_seconds, retry_after(error))
                    await self._either(None, seconds)
                    continue
                failures, self.problem = 0, None
                if not full:
                    await self._either(None, self._settings.interval_seconds)
        finally:
            acknowledging.cancel()
            await asyncio.wait([acknowledging])

    def stop(self) -> None:
        """Claims nothing more."""
        self._stopping.set()

    async def close(self, seconds: float) -> None:
        """Acknowledges what is settled."""
        try:
            async with asyncio.timeout(seconds):
                while not self._settled.empty():
                    await self._acknowledge_some([self._settled.get_nowait()])
        except TimeoutError:
            self._log("acknowledgements left", count=self._settled.qsize())

    async def _claim(self, limit: int) -> bool:
        """Claims once; whether there may be more at once."""
        body: dict[str, Any] = {
            "installationId": INSTALLATION,
            "limit": limit,
            "invocationMethod": "WEBHOOK",
            "visibilityTimeoutMs": int(self._visibility * 1000),
        }
        if self._excluded:
            # Runs of other agents would fill the batch again and again.
            body["exclude"] = list(self._excluded)
        reply = await self._api.call("POST", f"{_RUNS}/claim-pending", body, reserved=True)
        runs = _list(reply.get("runs"))
        self._take(runs, from_run)
        full = len(runs) >= limit
        if self._settings.workflows and (left := min(self._settings.batch, self._agent.room)):
            del body["invocationMethod"]
            body.pop("exclude", None)
            body["limit"] = left
            reply = await self._api.call("POST", f"{_NODES}/claim-pending", body, reserved=True)
            nodes = _list(reply.get("nodeRuns"))
            self._take(nodes, from_node_run)
            full = full or len(nodes) >= left
        return full

    def _take(self, runs: Iterable[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], Message]) -> None:
        for run in runs:
            try:
                message = read(run)
            except ForeignError:
                self._metrics.count("port_webhook_agent_messages_total", ("outcome", "ignored"))
                continue
            except PoisonError as error:
                self._metrics.count("port_webhook_agent_source_errors_total", ("kind", "poison"))
                self._log("claimed run not usable", error=str(error))
                continue
            if message.name in self._known:
                # Its time was over before the outcome was known; the first claim still works on it.
                continue
            if not message.is_node_run and not self._wanted(message):
                if message.action not in self._excluded:
                    self._excluded[str(message.action)] = None
                    self._log("action is left to other agents", action=message.action)
                continue
            self._known.add(message.name)
            message.acknowledge = functools.partial(self._settled.put_nowait, message)
            # Not acknowledged, it is offered again when its time is over, perhaps to another agent.
            message.release = functools.partial(self._known.discard, message.name)
            self._agent.submit(message)

    async def _acknowledge(self) -> None:
        while True:
            batch = [await self._settled.get()]
            await asyncio.sleep(_ACKNOWLEDGE_SECONDS)
            while not self._settled.empty() and len(batch) < _ACKNOWLEDGED_AT_ONCE:
                batch.append(self._settled.get_nowait())
            try:
                await self._acknowledge_some(batch)
            except asyncio.CancelledError:
                for message in batch:
                    self._settled.put_nowait(message)
                raise

    async def _acknowledge_some(self, batch: list[Message]) -> None:
        runs = [message.name for message in batch if not message.is_node_run]
        if runs:
            await self._insist(f"{_RUNS}/ack", {"runIds": runs})
        for message in batch:
            if message.is_node_run:
                await self._insist(f"{_NODES}/ack", {"nodeRunIdentifier": message.name})
            self._known.discard(message.name)

    async def _insist(self, path: str, body: dict[str, Any]) -> None:
        failures = 0
        while True:
            try:
                await self._api.call("PATCH", path, body, reserved=True)
                return
            except PortError as error:
                if not is_passing(error):
                    self._log("acknowledgement refused", error=str(error))
                    return
                failures += 1
                await asyncio.sleep(delay(failures, 0.5, 30.0, retry_after(error)))

    async def _either(self, event: asyncio.Event | None, seconds: float) -> None:
        """Waits for the event, the end or some time."""
        waits = [asyncio.ensure_future(item.wait()) for item in (self._stopping, event) if item is not None]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


def _list(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
