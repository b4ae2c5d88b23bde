"""Puts an agent together and runs it until it is told to end."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from port_webhook_handlers.agent.config import AgentConfig, AgentConfigError
from port_webhook_handlers.agent.core import Agent, Sink
from port_webhook_handlers.agent.credentials import KAFKA_PASSWORD, trigger_token
from port_webhook_handlers.agent.destinations import AllowList, DestinationError, is_callable
from port_webhook_handlers.agent.health import HealthServer
from port_webhook_handlers.agent.mapping import load
from port_webhook_handlers.agent.messages import Message
from port_webhook_handlers.agent.metrics import AgentMetrics
from port_webhook_handlers.agent.reports import Reporter, delay
from port_webhook_handlers.agent.sinks.forward import ForwardSink
from port_webhook_handlers.port.async_client import PortApi, is_passing, retry_after
from port_webhook_handlers.port.client import PortError, PortUnreachableError
from port_webhook_handlers.port.http_client import HttpClient
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.port_calls import credentials_of
from port_webhook_handlers.runtime.secret_file import LiveSecrets

_CLOSE_SECONDS: Final = 10.0


class Source(Protocol):
    """Where messages come from."""

    def status(self) -> dict[str, Any]:
        """For `/health/ready`."""

    async def run(self) -> None:
        """Hands messages over until stopped."""

    def stop(self) -> None:
        """Hands over nothing more."""

    async def close(self, seconds: float) -> None:
        """Acknowledges the rest."""


class AgentService:
    """An agent: one source, one sink.

    Args:
        config: configuration.
        secrets: credentials, signing secrets and decryption keys.
        log: its log.
        sink: where messages go; None: they are forwarded over HTTP.
        serves_health: answer on the health port; otherwise somebody else shows `status` and `rendered`.
    """

    def __init__(
        self,
        config: AgentConfig,
        secrets: LiveSecrets,
        log: Log,
        sink: Sink | None = None,
        *,
        serves_health: bool = True,
    ) -> None:
        self._config = config
        self._secrets = secrets
        self._log = log
        self._sink = sink
        self._allowed = AllowList(config.allowed_hosts)
        self.metrics = AgentMetrics()
        self._source: Source | None = None
        self._agent: Agent | None = None
        self._problem = "Port has not been asked yet"
        self._running: asyncio.Task[None] | None = None
        self._health = HealthServer(self.status, self.rendered) if serves_health else None
        self.health_port = 0

    def status(self) -> dict[str, Any]:
        """Whether invocations are received, and what stands in the way."""
        source, agent = self._source, self._agent
        found = (
            {"ready": False, "problem": self._problem, "source": self._config.source}
            if source is None
            else source.status()
        )
        if agent is not None:
            found |= {"in_flight": agent.in_flight, "parked": agent.parked}
        return found

    async def start(self) -> None:
        """Binds the health port and begins; returns at once.

        Raises:
            AgentConfigError: configuration or secrets cannot be used.
        """
        config = self._config
        content = self._secrets.content
        if content.api is None or not content.signing:
            raise AgentConfigError("agent: the secrets hold no API credentials or no signing secret")
        self._api_http = HttpClient(ca_file=config.ca_file)
        self._api = PortApi(
            base_url(config),
            lambda: credentials_of(self._secrets),
            self._api_http,
            user_agent="port-webhook-agent",
        )
        self._http: HttpClient | None = None
        sink = self._sink or self._forward()
        self._reporter = Reporter(self._api, self._log, self.metrics)
        self._agent = Agent(sink, self._reporter, config.limits, self._log, self.metrics)
        await self._bind()
        self._running = asyncio.ensure_future(self._run(self._agent))

    async def _bind(self) -> None:
        config = self._config
        if self._health is None:
            return
        try:
            self.health_port = await self._health.start(config.health_host, config.health_port)
        except OSError as error:
            raise AgentConfigError(
                f"agent.health_port: cannot bind {config.health_host}:{config.health_port} ({error.strerror}); "
                "set it to a free port, or to 0"
            ) from error

    async def close(self) -> None:
        """Takes nothing more, lets deliveries under way end, and acknowledges them."""
        agent, running = self._agent, self._running
        if agent is None or running is None:
            return
        if self._source is not None:
            self._source.stop()
        drained = await agent.drain(self._config.limits.drain_seconds)
        if self._source is not None:
            await self._source.close(_CLOSE_SECONDS)
        running.cancel()
        await asyncio.wait([running])
        await self._reporter.flush(_CLOSE_SECONDS if drained else 1.0)
        await self._reporter.close()
        self._api_http.close()
        if self._http is not None:
            self._http.close()
        if self._health is not None:
            await self._health.close()
        self._log("agent ended", drained=drained)

    async def _run(self, agent: Agent) -> None:
        try:
            self._source = await self._open(agent)
            self._log("agent reads", source=self._config.source)
            await self._source.run()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001
            self._problem = f"the agent failed: {type(error).__name__}"
            self._log.error("agent failed", error)

    async def _open(self, agent: Agent) -> Source:
        from port_webhook_handlers.agent.sources.polling import PollingSource

        config = self._config
        if config.set_transport:
            transport = {"settings": {"portAgentStreamerName": config.source.upper()}}
            await self._insist("PATCH", "/v1/organization", transport)
        if config.source == "polling":
            return PollingSource(
                self._api, agent, config.polling, config.limits, self._wanted, self._log, self.metrics
            )
        from port_webhook_handlers.agent.sources.kafka import KafkaSource

        organization_id = config.organization_id
        if organization_id is None:
            found = await self._insist("GET", "/v1/organization", None)
            organization_id = str(found["organization"]["id"])
        return KafkaSource(
            self._access,
            organization_id,
            config.name,
            config.kafka,
            config.limits,
            agent,
            lambda: self._secrets.signing(time.time()),
            self._wanted,
            self._log,
            self.metrics,
            config.ca_file,
        )

    def _access(self) -> Any:
        """Brokers and credentials; called by the thread of the source."""
        from port_webhook_handlers.agent.sources.kafka import Access

        kafka = self._config.kafka
        loop = self._loop()
        found: dict[str, Any] = {}
        if kafka.brokers is None or (kafka.username is None and kafka.security_protocol.startswith("SASL")):
            call = self._api.call("GET", "/v1/kafka-credentials")
            found = asyncio.run_coroutine_threadsafe(call, loop).result(60).get("credentials", {})
        brokers = kafka.brokers or ",".join(found.get("brokers", []))
        if not brokers:
            raise AgentConfigError("Port's API names no Kafka brokers; set agent.kafka.brokers")
        if kafka.username is None:
            return Access(brokers, str(found.get("username", "")), str(found.get("password", "")))
        return Access(brokers, kafka.username, self._secrets.content.secrets.get(KAFKA_PASSWORD, ""))

    def _loop(self) -> asyncio.AbstractEventLoop:
        assert self._running is not None  # noqa: S101
        return self._running.get_loop()

    async def _insist(self, method: str, path: str, body: Any) -> dict[str, Any]:
        failures = 0
        while True:
            try:
                return await self._api.call(method, path, body)
            except PortError as error:
                self._problem = str(error)
                failures += 1
                if failures == 1:
                    self._log("Port refuses or is away", error=str(error))
                if not is_passing(error) and method != "GET":
                    # Without the setting the agent still works; only nothing may come.
                    return {}
                await asyncio.sleep(delay(failures, 1.0, 60.0, retry_after(error)))

    def _forward(self) -> Sink:
        config = self._config
        limits = config.limits
        self._http = HttpClient(check_address=is_callable, verify=config.verify_tls, ca_file=config.ca_file)
        rules = load(config.mapping_file) if config.mapping_file is not None else ()

        def signing_secret() -> bytes:
            return self._secrets.signing(time.time())[0]

        return ForwardSink(
            self._http,
            self._allowed,
            rules,
            signing_secret,
            lambda: self._secrets.content.decryption,
            secret=lambda name: trigger_token(name, self._secrets.content.secrets, os.environ),
            gitlab_url=config.gitlab_url,
            official=config.signature == "official-agent",
            seconds=limits.attempt_seconds,
            per_destination=limits.per_destination,
            concurrency=limits.concurrency,
            run_logs=config.run_logs,
            detailed=config.detailed,
        )

    def _wanted(self, message: Message) -> bool:
        actions = self._config.actions
        if actions is None or message.run_id is None:
            # The change log is asked for by its topic.
            return True
        if message.action is not None:
            return message.action in actions
        # Other agents may read the topic too, so what names no action is taken only if it could be delivered.
        return self._sink is None and (self._config.mapping_file is not None or self._may_call(message))

    def _may_call(self, message: Message) -> bool:
        try:
            self._allowed.place(message.invocation.url or "")
        except DestinationError:
            return False
        return True

    def rendered(self) -> str:
        """Metrics as text."""
        status = self.status()
        self.metrics.gauge("port_webhook_agent_ready", int(bool(status["ready"])))
        self.metrics.gauge("port_webhook_agent_in_flight", status.get("in_flight", 0))
        self.metrics.gauge("port_webhook_agent_parked", status.get("parked", 0))
        return self.metrics.render()


def base_url(config: AgentConfig) -> str | Callable[[], str]:
    """Port's address, or a function that reads it from local Port's file."""
    if config.port_base_url is not None:
        return config.port_base_url
    path: Path | None = config.port_endpoint_file

    def read() -> str:
        try:
            return str(json.loads(path.read_bytes())["url"])  # type: ignore[union-attr]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PortUnreachableError(
                f"{path} does not tell where Port is ({type(error).__name__})"
            ) from error

    return read
