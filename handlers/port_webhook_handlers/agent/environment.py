"""An agent's configuration from environment variables, for a container."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from port_webhook_handlers.agent import config as configuration
from port_webhook_handlers.agent.config import AgentConfig, AgentConfigError

_SOURCES: Final = {"KAFKA": "kafka", "POLLING": "polling"}
# Variable → place in the configuration. The names without AGENT_ are those of Port's own agent.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "PORT_API_BASE_URL": ("port_base_url",),
    "PORT_ORG_ID": ("organization_id",),
    "CONTROL_THE_PAYLOAD_CONFIG_PATH": ("mapping_file",),
    "KAFKA_CONSUMER_GROUP_ID": ("kafka", "group_id"),
    "KAFKA_CONSUMER_SECURITY_PROTOCOL": ("kafka", "security_protocol"),
    "KAFKA_CONSUMER_AUTHENTICATION_MECHANISM": ("kafka", "mechanism"),
    "KAFKA_CONSUMER_AUTO_OFFSET_RESET": ("kafka", "auto_offset_reset"),
    "KAFKA_CONSUMER_BOOTSTRAP_SERVERS": ("kafka", "brokers"),
    "KAFKA_CONSUMER_SESSION_TIMEOUT_MS": ("kafka", "session_timeout_ms"),
    "KAFKA_RUNS_TOPIC": ("kafka", "runs_topic"),
    "KAFKA_CHANGE_LOG_TOPIC": ("kafka", "change_log_topic"),
    "KAFKA_USERNAME": ("kafka", "username"),
    "KAFKA_CA_FILE": ("kafka", "ca_file"),
    "KAFKA_ALLOW_UNSIGNED": ("kafka", "allow_unsigned"),
    "POLLING_INTERVAL_SECONDS": ("polling", "interval_seconds"),
    "POLLING_RUNS_BATCH_SIZE": ("polling", "batch"),
    "POLLING_MAX_BACKOFF_SECONDS": ("polling", "max_backoff_seconds"),
    "GITLAB_URL": ("gitlab_url",),
    "WEBHOOK_INVOKER_TIMEOUT": ("limits", "attempt_seconds"),
    "WEBHOOK_VERIFY_SSL": ("verify_tls",),
    "DETAILED_LOGGING": ("detailed",),
    "AGENT_NAME": ("name",),
    "AGENT_ACTIONS": ("actions",),
    "AGENT_ALLOWED_HOSTS": ("allowed_hosts",),
    "AGENT_SIGNATURE": ("signature",),
    "AGENT_CA_FILE": ("ca_file",),
    "AGENT_SET_TRANSPORT": ("set_transport",),
    "AGENT_WORKFLOWS": ("polling", "workflows"),
    "AGENT_RUN_LOGS": ("run_logs",),
    "AGENT_HEALTH_HOST": ("health_host",),
    "AGENT_HEALTH_PORT": ("health_port",),
    "AGENT_DELIVERY_SECONDS": ("limits", "delivery_seconds"),
    "AGENT_MAX_IN_FLIGHT": ("limits", "max_in_flight"),
}
_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_FLAGS: Final = ("allow_unsigned", "verify_tls", "detailed", "set_transport", "workflows", "run_logs")
_INTEGERS: Final = ("session_timeout_ms", "batch", "health_port", "max_in_flight")
_NUMBERS: Final = ("interval_seconds", "max_backoff_seconds", "attempt_seconds", "delivery_seconds")
_LISTS: Final = ("actions", "allowed_hosts")


def from_environment(environment: Mapping[str, str]) -> AgentConfig:
    """Reads the variables that are set.

    Raises:
        AgentConfigError: a value is wrong; the message names the variable.
    """
    streamer = environment.get("STREAMER_NAME", "KAFKA").upper()
    if streamer not in _SOURCES:
        raise AgentConfigError(f"STREAMER_NAME: {streamer!r} is not one of {', '.join(_SOURCES)}")
    body: dict[str, Any] = {
        "source": _SOURCES[streamer],
        "port_base_url": "https://api.getport.io",
        "health_host": "0.0.0.0",  # noqa: S104 - the kubelet or a load balancer asks
        "health_port": 8080,
    }
    for variable, path in _NAMES.items():
        text = environment.get(variable, "").strip()
        if not text:
            continue
        place = body
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = _value(variable, path[-1], text)
    return configuration.from_json(body)


def _value(variable: str, name: str, text: str) -> Any:
    if name in _LISTS:
        return [item.strip() for item in text.split(",") if item.strip()]
    if name in _FLAGS:
        if text.lower() not in _BOOLEANS:
            raise AgentConfigError(f"{variable}: {text!r} is not true or false")
        return _BOOLEANS[text.lower()]
    if name in ("auto_offset_reset",):
        # Port's agent documents librdkafka's older words.
        return {"largest": "latest", "smallest": "earliest"}.get(text, text)
    try:
        return int(text) if name in _INTEGERS else float(text) if name in _NUMBERS else text
    except ValueError:
        raise AgentConfigError(f"{variable}: {text!r} is not a number") from None
