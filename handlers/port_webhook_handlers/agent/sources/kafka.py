"""The source that reads Port's topics.

A thread polls, because librdkafka blocks; messages are parsed and verified on the event loop. Committed is, for each
partition, the lowest offset whose message is not settled.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.agent.config import AgentLimits, KafkaSettings
from port_webhook_handlers.agent.core import Agent
from port_webhook_handlers.agent.messages import (
    ForeignError,
    Message,
    PoisonError,
    from_change_log,
    from_topic,
)
from port_webhook_handlers.agent.metrics import AgentMetrics
from port_webhook_handlers.agent.watermark import Watermark
from port_webhook_handlers.port.trust import authorities_pem, is_customised
from port_webhook_handlers.runtime.logs import Log

_POLL_SECONDS: Final = 0.1
_BATCH: Final = 128
_AHEAD: Final = 2_000
_COMMIT_SECONDS: Final = 0.25
_LAG_SECONDS: Final = 1.0
_REVOKE_SECONDS: Final = 5.0
_ASK_AGAIN_SECONDS: Final = 5.0
# How long room is waited for before a pause, and how long at a time.
_PAUSE_SECONDS: Final = 0.5
_ROOM_SECONDS: Final = 0.002
_RESUME_SHARE: Final = 0.75
# Errors of one kind are logged once in this time.
_QUIET_SECONDS: Final = 60.0

Partition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Access:
    """How to get into the cluster, as Port's API hands it out or as it is configured."""

    brokers: str
    username: str
    password: str = field(repr=False)


class KafkaSource:
    """Reads the topics and commits.

    Args:
        access: finds brokers and credentials; called again when they are refused. It blocks.
        organization_id: names the default topics and the group.
        name: the agent's name, for the group.
        settings, limits: see there.
        agent: takes the messages.
        secrets: active signing secrets, as they are now.
        wanted: says whether this agent delivers a message.
        log, metrics: where it is noted.
        ca_file: certificates to trust besides the system's, unless the settings name a file of their own.
    """

    def __init__(
        self,
        access: Callable[[], Access],
        organization_id: str,
        name: str,
        settings: KafkaSettings,
        limits: AgentLimits,
        agent: Agent,
        secrets: Callable[[], Sequence[bytes]],
        wanted: Callable[[Message], bool],
        log: Log,
        metrics: AgentMetrics,
        ca_file: Path | None = None,
    ) -> None:
        self._access = access
        self._ca_file = ca_file
        self._settings = settings
        self._limits = limits
        self._agent = agent
        self._secrets = secrets
        self._wanted = wanted
        self._log = log
        self._metrics = metrics
        self.group_id = settings.group_id or f"{organization_id}.{name}"
        self._runs_topic = settings.runs_topic or f"{organization_id}.runs"
        changes = settings.change_log_topic
        self._change_log_topic = f"{organization_id}.change.log" if changes is None else changes
        self._watermarks: dict[Partition, Watermark] = {}
        self._committed: dict[Partition, int] = {}
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._closing = threading.Event()
        self._ended = asyncio.Event()
        self._paused = False
        self._fresh = False
        self._full_since: float | None = None
        self._credentials_refused = self._untrusted = False
        self._assigned = False
        self._lag = 0
        self._logged: dict[str, float] = {}
        self.problem: str | None = "Kafka has not answered yet"

    def status(self) -> dict[str, Any]:
        """For `/health/ready`: whether partitions are assigned, and what stands in the way."""
        partitions = len(self._watermarks)
        problem = self.problem
        if problem is None and not partitions:
            problem = (
                "no partition is assigned: other members of the group have all of them"
                if self._assigned
                else "the consumer group has not assigned partitions yet"
            )
        self._metrics.gauge("port_webhook_agent_partitions", partitions)
        self._metrics.gauge("port_webhook_agent_lag", self._lag)
        return {
            "source": "kafka",
            "ready": problem is None,
            "problem": problem,
            "group": self.group_id,
            "partitions": partitions,
            "lag": self._lag,
        }

    async def run(self) -> None:
        """Reads until `close`."""
        thread = threading.Thread(target=self._work, name="kafka", daemon=True)
        thread.start()
        await self._ended.wait()
        await asyncio.to_thread(thread.join)

    def stop(self) -> None:
        """Hands over nothing more; what is settled is still committed."""
        self._stopping.set()

    async def close(self, seconds: float) -> None:
        """Commits the rest and leaves the group."""
        self._stopping.set()
        self._closing.set()
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            self._log("the consumer group was not left in time")

    # The thread

    def _work(self) -> None:
        failures = 0
        try:
            while not self._closing.is_set():
                try:
                    access = self._access()
                    self._read(access)
                    failures = 0
                except Exception as error:  # noqa: BLE001
                    failures += 1
                    self.problem = f"Kafka cannot be read: {error}"
                    self._say("kafka failed", type(error).__name__, error=str(error))
                    self._closing.wait(min(30.0, 2.0 ** min(failures, 5)))
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _read(self, access: Access) -> None:
        """Reads with these credentials until closed, or until they are refused."""
        from confluent_kafka import Consumer

        self._credentials_refused = self._untrusted = False
        consumer = Consumer(self._configuration(access), logger=_quiet_logger())
        refused_at = 0.0
        try:
            topics = [topic for topic in (self._runs_topic, self._change_log_topic) if topic]
            consumer.subscribe(
                topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            commit_at = lag_at = 0.0
            while not self._closing.is_set():
                if self._balance(consumer):
                    self._hand_over(consumer)
                now = time.monotonic()
                if now >= commit_at:
                    commit_at = now + _COMMIT_SECONDS
                    self._commit(consumer, list(self._watermarks), wait=False)
                if now >= lag_at:
                    lag_at = now + _LAG_SECONDS
                    self._measure(consumer)
                if self._credentials_refused:
                    # Perhaps they were rotated: after a while they are asked for again.
                    refused_at = refused_at or now
                    if now - refused_at > _ASK_AGAIN_SECONDS:
                        return
        finally:
            self._commit(consumer, list(self._watermarks), wait=True)
            for watermark in self._watermarks.values():
                watermark.lease.revoked = True
            self._watermarks.clear()
            self._committed.clear()
            self._assigned = self._paused = False
            consumer.close()

    def _configuration(self, access: Access) -> dict[str, Any]:
        settings = self._settings
        configuration: dict[str, Any] = {
            "bootstrap.servers": access.brokers,
            "client.id": "port-webhook-agent",
            "group.id": self.group_id,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": settings.auto_offset_reset,
            "session.timeout.ms": settings.session_timeout_ms,
            "heartbeat.interval.ms": min(3_000, settings.session_timeout_ms // 3),
            # Members that stay keep their partitions while others come and go.
            "partition.assignment.strategy": "cooperative-sticky",
            "security.protocol": settings.security_protocol,
            "reconnect.backoff.max.ms": 5_000,
            "fetch.wait.max.ms": 500,
            # A hundred thousand messages ahead, the default, would cost memory and time that deliveries need.
            "queued.min.messages": _AHEAD,
            # How long it waits when it has so many; a second, the default, would be a pause.
            "fetch.queue.backoff.ms": 10,
            "error_cb": self._on_error,
            "on_commit": self._on_commit,
        }
        if settings.security_protocol.upper().startswith("SASL"):
            configuration |= {
                "sasl.mechanism": settings.mechanism,
                "sasl.username": access.username,
                "sasl.password": access.password,
            }
        if settings.ca_file is not None:
            configuration["ssl.ca.location"] = str(settings.ca_file)
        elif is_customised(self._ca_file):
            # librdkafka's own TLS knows nothing of the environment, and takes one or the other.
            configuration["ssl.ca.pem"] = authorities_pem(self._ca_file)
        return configuration

    def _in_flight(self) -> int:
        return sum(watermark.open for watermark in self._watermarks.values())

    def _balance(self, consumer: Any) -> bool:
        """Pauses at the bound, and resumes once there is room again. Returns whether to poll now.

        A pause throws away what was fetched ahead, so at first room is waited for.
        """
        bound, taken = self._limits.max_in_flight, self._in_flight()
        if self._paused:
            if self._fresh:
                consumer.pause(consumer.assignment())
            elif taken < bound * _RESUME_SHARE and not self._stopping.is_set():
                self._paused, self._full_since = False, None
                consumer.resume(consumer.assignment())
        elif self._stopping.is_set() or (taken >= bound and self._is_long_full()):
            self._paused = True
            consumer.pause(consumer.assignment())
        elif taken >= bound:
            self._closing.wait(_ROOM_SECONDS)
            return False
        else:
            self._full_since = None
        self._fresh = False
        return True

    def _is_long_full(self) -> bool:
        now = time.monotonic()
        self._full_since = self._full_since or now
        return now - self._full_since > _PAUSE_SECONDS

    def _hand_over(self, consumer: Any) -> None:
        # `consume` waits for a full batch, so the first message is waited for alone.
        first = consumer.poll(_POLL_SECONDS)
        if first is None:
            return
        messages = [first]
        if (room := min(_BATCH, self._limits.max_in_flight - self._in_flight()) - 1) > 0:
            messages += consumer.consume(room, 0)
        batch: list[tuple[Watermark, str, int, int, bytes | None]] = []
        for message in messages:
            error = message.error()
            if error is not None:
                self._on_error(error)
                continue
            watermark = self._watermarks.get((message.topic(), message.partition()))
            if watermark is None:
                continue
            watermark.begin(message.offset())
            batch.append((watermark, message.topic(), message.partition(), message.offset(), message.value()))
        if batch:
            self.problem = None
            self._loop.call_soon_threadsafe(self._take, batch)

    def _commit(self, consumer: Any, partitions: Sequence[Partition], *, wait: bool) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        due: list[Any] = []
        for partition in partitions:
            watermark = self._watermarks.get(partition)
            position = None if watermark is None else watermark.position
            if position is not None and self._committed.get(partition) != position:
                due.append(TopicPartition(*partition, position))
        if not due:
            return
        for place in due:
            self._committed[(place.topic, place.partition)] = place.offset
        try:
            consumer.commit(offsets=due, asynchronous=not wait)
        except KafkaException as error:
            self._on_commit(error.args[0], due)

    def _measure(self, consumer: Any) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        lag = 0
        for (topic, number), watermark in list(self._watermarks.items()):
            try:
                _, high = consumer.get_watermark_offsets(TopicPartition(topic, number), cached=True)
            except KafkaException:
                continue
            position = watermark.position
            if position is not None and high >= 0:
                lag += max(0, high - position)
        self._lag = lag

    # Called by librdkafka, in the thread

    def _on_assign(self, consumer: Any, partitions: Sequence[Any]) -> None:
        for item in partitions:
            self._watermarks[(item.topic, item.partition)] = Watermark()
            self._committed.pop((item.topic, item.partition), None)
        self._assigned, self.problem = True, None
        # A partition that comes while the source is paused would flow.
        self._fresh = True
        self._log("partitions assigned", partitions=[f"{item.topic}/{item.partition}" for item in partitions])

    def _on_revoke(self, consumer: Any, partitions: Sequence[Any]) -> None:
        names = [(item.topic, item.partition) for item in partitions]
        found = [self._watermarks[name] for name in names if name in self._watermarks]
        for watermark in found:
            watermark.lease.revoked = True
        # Attempts under way may end, so that their messages are not delivered twice.
        until = time.monotonic() + _REVOKE_SECONDS
        while any(watermark.lease.busy for watermark in found) and time.monotonic() < until:
            time.sleep(0.01)
        self._commit(consumer, names, wait=True)
        self._forget(names)
        self._log("partitions revoked", partitions=[f"{topic}/{number}" for topic, number in names])

    def _on_lost(self, consumer: Any, partitions: Sequence[Any]) -> None:
        # Somebody else has them already: to commit would be refused.
        names = [(item.topic, item.partition) for item in partitions]
        for name in names:
            if name in self._watermarks:
                self._watermarks[name].lease.revoked = True
        self._forget(names)
        self._log("partitions lost", partitions=[f"{topic}/{number}" for topic, number in names])

    def _forget(self, names: Sequence[Partition]) -> None:
        for name in names:
            self._watermarks.pop(name, None)
            self._committed.pop(name, None)

    def _on_commit(self, error: Any, partitions: Sequence[Any]) -> None:
        """A commit that failed, as in the middle of a rebalance, is made again."""
        for place in partitions:
            name = (place.topic, place.partition)
            problem = error or place.error
            if problem is not None and self._committed.get(name) == place.offset:
                del self._committed[name]
                self._say("commit failed", "commit", error=problem.str())

    def _on_error(self, error: Any) -> None:
        """The only place where librdkafka tells that credentials are refused."""
        from confluent_kafka import KafkaError

        code = error.code()
        if code in (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED):
            self._credentials_refused = True
            self.problem = "Kafka refuses the credentials"
        elif code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
            self.problem = f"Kafka refuses access to the topic or the group {self.group_id}"
        elif code == KafkaError.UNKNOWN_TOPIC_OR_PART:
            self.problem = f"the topic {self._runs_topic} does not exist"
        elif code == KafkaError._SSL:
            self._untrusted = True
            self.problem = (
                "TLS to Kafka fails, perhaps because the authority of its certificate is not trusted: "
                "name that in kafka.ca_file"
            )
        elif code == KafkaError._ALL_BROKERS_DOWN and not (self._credentials_refused or self._untrusted):
            self.problem = "no broker can be reached"
        self._say("kafka error", error.name(), error=error.str())

    def _say(self, event: str, kind: str, **fields: Any) -> None:
        """Counts each error, and logs those of one kind once in a while."""

        def note() -> None:
            self._metrics.count("port_webhook_agent_source_errors_total", ("kind", kind))

        self._loop.call_soon_threadsafe(note)
        now = time.monotonic()
        if now - self._logged.get(kind, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            self._logged[kind] = now
            self._log(event, **fields)

    # On the event loop

    def _take(self, batch: Sequence[tuple[Watermark, str, int, int, bytes | None]]) -> None:
        secrets, now = self._secrets(), time.time()
        messages: list[Message] = []
        for watermark, topic, partition, offset, value in batch:
            name = f"{topic}/{partition}/{offset}"
            try:
                message = self._read_message(name, topic, value, secrets, now)
            except ForeignError:
                message = None
                self._metrics.count("port_webhook_agent_messages_total", ("outcome", "ignored"))
            except PoisonError as error:
                message = None
                self._metrics.count("port_webhook_agent_messages_total", ("outcome", "poison"))
                self._log("message not usable", message=name, error=str(error))
            if message is None or not self._wanted(message):
                watermark.settle(offset)
                continue
            message.lease = watermark.lease
            message.acknowledge = message.release = functools.partial(watermark.settle, offset)
            messages.append(message)
        self._agent.submit_many(messages)

    def _read_message(
        self, name: str, topic: str, value: bytes | None, secrets: Sequence[bytes], now: float
    ) -> Message:
        if topic == self._change_log_topic:
            return from_change_log(name, value)
        return from_topic(
            name,
            value,
            secrets,
            now=now,
            max_age=self._limits.max_age_seconds,
            allow_unsigned=self._settings.allow_unsigned,
        )


def _quiet_logger() -> logging.Logger:
    """librdkafka would write its lines to standard error as they are; `error_cb` tells what matters."""
    logger = logging.getLogger(f"{__name__}.librdkafka")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger
