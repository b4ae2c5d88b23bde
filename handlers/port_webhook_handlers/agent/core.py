"""The core: deliver → report → acknowledge, for whatever the source hands over.

A message is acknowledged only after a durable outcome: a 2xx of the destination, a claim in the ledger, or a failure
that Port has taken. A message that has to wait for its next attempt holds up nothing but later messages of its key.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, runtime_checkable

from port_webhook_handlers.agent.config import AgentLimits
from port_webhook_handlers.agent.messages import Lease, Message
from port_webhook_handlers.agent.metrics import AgentMetrics
from port_webhook_handlers.agent.reports import Outcome, Reporter, delay
from port_webhook_handlers.runtime.logs import Log

_LOOK_SECONDS: Final = 0.25
_MESSAGES: Final = "port_webhook_agent_messages_total"
_DELIVERED: Final = ("outcome", "delivered")


class RetryLaterError(Exception):
    """A delivery that may go better later.

    Attributes:
        summary: what Port shows for the run if it does not.
        wanted: seconds that the destination asks to wait.
        lasting: insist beyond the deadline, because nothing was lost but time (the own ledger, for example).
    """

    def __init__(self, summary: str, wanted: float | None = None, *, lasting: bool = False) -> None:
        super().__init__(summary)
        self.summary = summary
        self.wanted = wanted
        self.lasting = lasting


class Sink(Protocol):
    """Where messages go."""

    async def deliver(self, message: Message) -> Outcome:
        """One attempt.

        Raises:
            RetryLaterError: it may go better later.
        """


@runtime_checkable
class BulkSink(Sink, Protocol):
    """A sink that can do the ordinary for many messages at once."""

    async def deliver_many(self, messages: Sequence[Message]) -> list[bool]:
        """For each message whether it is delivered now; the others go through `deliver`. Does not raise."""


class Agent:
    """Works on messages.

    Args:
        sink: where they go.
        reporter: tells Port.
        limits: bounds.
        log, metrics: where outcomes are noted.
    """

    def __init__(
        self, sink: Sink, reporter: Reporter, limits: AgentLimits, log: Log, metrics: AgentMetrics
    ) -> None:
        self._sink = sink
        self._bulk_sink = sink if isinstance(sink, BulkSink) else None
        self._reporter = reporter
        self._limits = limits
        self._log = log
        self._metrics = metrics
        self._keys: dict[str, deque[Message]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = asyncio.Event()
        self.in_flight = 0
        self.parked = 0
        self.on_room: Callable[[], None] = lambda: None

    @property
    def room(self) -> int:
        """How many more messages may be taken."""
        return 0 if self._draining.is_set() else max(0, self._limits.max_in_flight - self.in_flight)

    def submit(self, message: Message) -> None:
        """Takes a message; returns at once."""
        self.in_flight += 1
        waiting = self._keys.get(message.key)
        if waiting is not None:
            waiting.append(message)
            return
        self._keys[message.key] = deque()
        task = asyncio.get_running_loop().create_task(self._work(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def submit_many(self, messages: Sequence[Message]) -> None:
        """Takes messages; returns at once."""
        sink = self._bulk_sink
        bulk: dict[str, Message] = {}
        if sink is not None and not self._draining.is_set():
            for message in messages:
                if (
                    message.refusal is None
                    and message.key not in self._keys
                    and isinstance(message.body, dict)
                ):
                    bulk.setdefault(message.key, message)
        if len(bulk) > 1 and sink is not None:
            chosen = list(bulk.values())
            for message in chosen:
                self.in_flight += 1
                self._keys[message.key] = deque()
                message.lease.busy += 1
            task = asyncio.get_running_loop().create_task(self._work_many(sink, chosen))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            bulk = {}
        for message in messages:
            if bulk.get(message.key) is not message:
                self.submit(message)

    async def _work_many(self, sink: BulkSink, messages: Sequence[Message]) -> None:
        taken = [False] * len(messages)
        try:
            taken = await sink.deliver_many(messages)
        except Exception as error:  # noqa: BLE001
            # One by one it is seen which of them has a problem.
            self._log.error("bulk delivery failed", error)
        finally:
            now = time.monotonic()
            for message, done in zip(messages, taken, strict=True):
                message.lease.busy -= 1
                waiting = self._keys.pop(message.key)
                if done:
                    message.acknowledge()
                    self._metrics.observe(now - message.arrived)
                    if not waiting:
                        continue
                else:
                    waiting.appendleft(message)
                # What `submit` counted for those that wait is counted again there.
                self.in_flight -= len(waiting) - (not done)
                for following in waiting:
                    self.submit(following)
            self.in_flight -= len(messages)
            if delivered := sum(taken):
                self._metrics.count(_MESSAGES, _DELIVERED, amount=delivered)
            self.on_room()

    async def drain(self, seconds: float) -> bool:
        """Starts nothing more and lets attempts under way end; what is left stays unacknowledged.

        Returns:
            False if some had to be given up.
        """
        self._draining.set()
        pending: set[asyncio.Task[None]] = set()
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=seconds)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        return not pending

    async def _work(self, message: Message) -> None:
        while True:
            try:
                await self._finish(message)
            except Exception as error:  # noqa: BLE001
                # A defect that one message meets must neither lose its run nor stop the others.
                self._log.error("message failed", error, message=message.name)
                summary = f"The execution agent failed on this run ({type(error).__name__}); see its log."
                outcome = Outcome("failed", "FAILURE", summary)
                await self._reporter.report(message, outcome)
                self._settle(message, outcome)
            finally:
                self.in_flight -= 1
            self.on_room()
            waiting = self._keys[message.key]
            if not waiting:
                del self._keys[message.key]
                return
            message = waiting.popleft()

    async def _finish(self, message: Message) -> None:
        until = time.monotonic() + self._limits.delivery_seconds
        failures = 0
        lease = message.lease
        while not (self._draining.is_set() or lease.revoked):
            lease.busy += 1
            try:
                outcome = await self._attempt(message)
                await self._reporter.report(message, outcome)
                self._settle(message, outcome)
                return
            except RetryLaterError as error:
                failures += 1
                self._metrics.count("port_webhook_agent_attempts_total", ("result", "retried"))
                limits = self._limits
                seconds = delay(failures, limits.retry_seconds, limits.max_retry_seconds, error.wanted)
                if time.monotonic() + seconds > until and not error.lasting:
                    outcome = Outcome("failed", "FAILURE", error.summary, line=error.summary)
                    await self._reporter.report(message, outcome)
                    self._settle(message, outcome)
                    return
                if failures == 1:
                    self._log("delivery is repeated", message=message.name, reason=error.summary)
            finally:
                lease.busy -= 1
            await self._park(seconds, lease)

    async def _attempt(self, message: Message) -> Outcome:
        if message.refusal is not None:
            return Outcome("failed", "FAILURE", message.refusal)
        return await self._sink.deliver(message)

    def _settle(self, message: Message, outcome: Outcome) -> None:
        if outcome.result == "ignored":
            message.release()
        else:
            message.acknowledge()
            self._metrics.observe(time.monotonic() - message.arrived)
        self._metrics.count(_MESSAGES, ("outcome", outcome.result))
        if outcome.result == "failed":
            self._log("message failed", message=message.name, run=message.run_id, reason=outcome.summary)

    async def _park(self, seconds: float, lease: Lease) -> None:
        until = time.monotonic() + seconds
        self.parked += 1
        try:
            while not lease.revoked and (left := until - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(self._draining.wait(), min(left, _LOOK_SECONDS))
                except TimeoutError:
                    continue
                return
        finally:
            self.parked -= 1
