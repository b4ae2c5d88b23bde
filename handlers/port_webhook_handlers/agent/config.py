"""Configuration of an agent. It holds no secret; `agent.json` keeps it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

SOURCES: Final = ("kafka", "polling")
SINKS: Final = ("forward", "direct")
SIGNATURES: Final = ("raw", "official-agent")
MAX_VISIBILITY_SECONDS: Final = 600.0
"""Port's upper bound of the time for which a run can be claimed."""


class AgentConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Bounds of an agent.

    Attributes:
        concurrency: deliveries at once.
        per_destination: deliveries at once to one host and port, so that a slow one leaves room for others.
        max_in_flight: messages taken and not acknowledged; at that number the source pauses.
        attempt_seconds: for one delivery, from connecting to the last byte of the reply.
        delivery_seconds: for all attempts of one message; then the run ends as FAILURE.
        retry_seconds, max_retry_seconds: the first delay between attempts doubles up to the second.
        drain_seconds: how long deliveries under way may take at the end.
        max_age_seconds: a signed message of the topic that is older is refused.
    """

    concurrency: int = 256
    per_destination: int = 32
    max_in_flight: int = 1000
    attempt_seconds: float = 30
    delivery_seconds: float = 120
    retry_seconds: float = 1
    max_retry_seconds: float = 30
    drain_seconds: float = 20
    max_age_seconds: float = 7 * 86_400


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How the topic is read.

    Attributes:
        brokers: `host:port`, separated by commas; None: Port's API names them.
        username: None: Port's API names it, together with the password; else the password is the secret
            `KAFKA_PASSWORD`.
        group_id: None: `<organisation>.<name of the agent>`. Port allows that form, or the user's name.
        runs_topic: None: `<organisation>.runs`.
        change_log_topic: also deliver entity changes; `""`: do not, None: `<organisation>.change.log`.
        security_protocol, mechanism: as librdkafka names them.
        ca_file: certificates to trust instead of the system's.
        auto_offset_reset: where a new group starts, `earliest` or `latest`.
        session_timeout_ms: how soon a dead member is noticed.
        allow_unsigned: take messages without a signature, as those of KAFKA-type actions are.
    """

    brokers: str | None = None
    username: str | None = None
    group_id: str | None = None
    runs_topic: str | None = None
    change_log_topic: str | None = ""
    security_protocol: str = "SASL_SSL"
    mechanism: str = "SCRAM-SHA-512"
    ca_file: Path | None = None
    auto_offset_reset: str = "earliest"
    session_timeout_ms: int = 45_000
    allow_unsigned: bool = False


@dataclass(frozen=True, slots=True)
class PollingSettings:
    """How Port's API is polled.

    Attributes:
        interval_seconds: pause after a claim that found less than it asked for.
        batch: runs of one claim at most.
        max_backoff_seconds: longest pause while Port cannot be reached.
        workflows: also claim nodes of workflows.
    """

    interval_seconds: float = 2
    batch: int = 100
    max_backoff_seconds: float = 60
    workflows: bool = False


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent needs to run.

    Attributes:
        source: `kafka` or `polling`.
        sink: `forward` (HTTP) or `direct` (into the listener of this process).
        name: project and stack; with the organisation it names the consumer group.
        secrets_file, secrets_key_file: the secrets store; None: secrets are in the environment.
        port_base_url: base URL of Port's API, or
        port_endpoint_file: JSON file whose `url` is the base URL.
        organization_id: None: asked of Port's API.
        actions: identifiers that this agent delivers; None: all.
        allowed_hosts: `host`, `host:port` or `*.domain` that may be called.
        mapping_file: JSON list that controls the payload, in the format of Port's own agent.
        gitlab_url: address of GitLab, for invocations of the type GITLAB; the secret `<group>_<project>` is the
            trigger token of a project.
        signature: what the outgoing signature is made over: `raw`, the bytes sent, or `official-agent`.
        verify_tls: check the certificates of destinations.
        ca_file: certificates to trust besides the system's: of Port's API, destinations and the brokers.
        run_logs: write a line into the run's log for each delivery.
        detailed: quote replies of destinations in summaries and run logs.
        set_transport: tell Port to send agent runs of the whole organisation over this source.
        health_port: port of `/health/live`, `/health/ready` and `/metrics`; 0: picked.
        health_host: address that it is bound to.
    """

    source: str
    sink: str = "forward"
    name: str = "port-webhook-stack"
    secrets_file: Path | None = None
    secrets_key_file: Path | None = None
    port_base_url: str | None = None
    port_endpoint_file: Path | None = None
    organization_id: str | None = None
    actions: tuple[str, ...] | None = None
    allowed_hosts: tuple[str, ...] = ()
    mapping_file: Path | None = None
    gitlab_url: str = "https://gitlab.com/"
    signature: str = "raw"
    verify_tls: bool = True
    ca_file: Path | None = None
    run_logs: bool = True
    detailed: bool = False
    set_transport: bool = False
    health_host: str = "127.0.0.1"
    health_port: int = 0
    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    polling: PollingSettings = field(default_factory=PollingSettings)
    limits: AgentLimits = field(default_factory=AgentLimits)

    def __post_init__(self) -> None:
        _choice(self.source, SOURCES, "source")
        _choice(self.sink, SINKS, "sink")
        _choice(self.signature, SIGNATURES, "signature")
        if (self.port_base_url is None) == (self.port_endpoint_file is None):
            raise AgentConfigError("agent: give either port_base_url or port_endpoint_file")
        if self.port_base_url is not None and urlsplit(self.port_base_url).scheme not in ("http", "https"):
            raise AgentConfigError(f"agent.port_base_url: {self.port_base_url!r} is not an http or https URL")
        gitlab = urlsplit(self.gitlab_url)
        if gitlab.scheme not in ("http", "https") or not gitlab.hostname:
            raise AgentConfigError(f"agent.gitlab_url: {self.gitlab_url!r} is not an http or https URL")
        if (self.secrets_file is None) != (self.secrets_key_file is None):
            raise AgentConfigError("agent: give both secrets_file and secrets_key_file, or neither")
        if self.sink == "forward" and not self.allowed_hosts:
            raise AgentConfigError(
                "agent.allowed_hosts: is empty, so nothing could be delivered; list the hosts that may be called"
            )
        limits = self.limits
        if self.source == "polling" and limits.delivery_seconds + limits.attempt_seconds > (
            MAX_VISIBILITY_SECONDS - 30
        ):
            raise AgentConfigError(
                "agent.limits.delivery_seconds: together with attempt_seconds must be 570 at most, because Port "
                "offers a run again after 600 seconds"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values; paths as strings."""

        def plain(value: Any) -> Any:
            if isinstance(value, Path):
                return str(value)
            return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else value

        body: dict[str, Any] = plain(dataclasses.asdict(self))
        return body

    def dumps(self) -> bytes:
        """JSON text, the content of `agent.json`."""
        return json.dumps(self.to_json(), sort_keys=True, indent=1).encode() + b"\n"


def parse(data: bytes | str) -> AgentConfig:
    """Reads a configuration strictly.

    Raises:
        AgentConfigError: not JSON, or a key is unknown, missing or of a wrong type.
    """
    try:
        body = json.loads(data)
    except ValueError as error:
        raise AgentConfigError(f"agent configuration is not JSON: {error}") from error
    return from_json(body)


def from_json(body: object) -> AgentConfig:
    """Reads plain values strictly.

    Raises:
        AgentConfigError: see `parse`.
    """
    values = _values(body, AgentConfig, "agent")
    if "source" not in values:
        raise AgentConfigError(f"agent.source: is missing; use {' or '.join(SOURCES)}")
    for name, kind in (("kafka", KafkaSettings), ("polling", PollingSettings), ("limits", AgentLimits)):
        if name in values:
            values[name] = kind(**_values(values[name], kind, f"agent.{name}"))
    return AgentConfig(**values)


def _choice(value: str, choices: tuple[str, ...], key: str) -> None:
    if value not in choices:
        raise AgentConfigError(f"agent.{key}: {value!r} is not one of {', '.join(choices)}")


def _values(body: object, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(body, Mapping):
        raise AgentConfigError(f"{where}: must be an object")
    known = {item.name: str(item.type) for item in fields(kind)}
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise AgentConfigError(f"{where}.{unknown[0]}: unknown key; known are {', '.join(sorted(known))}")
    return {
        name: value
        if name in ("kafka", "polling", "limits")
        else _typed(value, known[name], f"{where}.{name}")
        for name, value in body.items()
    }


def _typed(value: Any, annotation: str, where: str) -> Any:
    """A plain value as the annotated type; the annotations of this module are simple enough to be read."""
    kind, _, optional = annotation.partition(" | ")
    if value is None and optional == "None":
        return None
    if kind == "Path" and isinstance(value, str):
        if not Path(value).is_absolute():
            raise AgentConfigError(f"{where}: {value} must be an absolute path")
        return Path(value)
    if kind.startswith("tuple") and isinstance(value, list | tuple):
        if not all(isinstance(item, str) and item for item in value):
            raise AgentConfigError(f"{where}: must be a list of non-empty strings")
        return tuple(value)
    wanted: Any = {"str": str, "bool": bool, "int": int, "float": int | float}.get(kind)
    if wanted is None or not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        raise AgentConfigError(f"{where}: has the wrong type, {type(value).__name__}")
    if kind in ("int", "float") and not (
        0 < value < float("inf") or (value == 0 and where.endswith("_port"))
    ):
        raise AgentConfigError(f"{where}: must be above zero, not {value}")
    return value
