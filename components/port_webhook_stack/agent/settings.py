"""The setting `agent` of a stack."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from port_webhook_stack.errors import SettingsError

KEY: Final = "port-webhook-stack:agent"
_KEYS: Final = (
    "source",
    "sink",
    "image",
    "actions",
    "allowedHosts",
    "mappingFile",
    "caFile",
    "gitlabUrl",
    "signature",
    "verifyTls",
    "runLogs",
    "detailed",
    "setTransport",
    "kafka",
    "polling",
    "limits",
)
_NESTED: Final[Mapping[str, Mapping[str, str]]] = {
    "kafka": {
        "brokers": "brokers",
        "username": "username",
        "groupId": "group_id",
        "runsTopic": "runs_topic",
        "changeLogTopic": "change_log_topic",
        "securityProtocol": "security_protocol",
        "mechanism": "mechanism",
        "caFile": "ca_file",
        "autoOffsetReset": "auto_offset_reset",
        "sessionTimeoutMs": "session_timeout_ms",
        "allowUnsigned": "allow_unsigned",
    },
    "polling": {
        "intervalSeconds": "interval_seconds",
        "batch": "batch",
        "maxBackoffSeconds": "max_backoff_seconds",
        "workflows": "workflows",
    },
    "limits": {
        "concurrency": "concurrency",
        "perDestination": "per_destination",
        "maxInFlight": "max_in_flight",
        "attemptSeconds": "attempt_seconds",
        "deliverySeconds": "delivery_seconds",
        "retrySeconds": "retry_seconds",
        "maxRetrySeconds": "max_retry_seconds",
        "drainSeconds": "drain_seconds",
        "maxAgeSeconds": "max_age_seconds",
    },
}
_PLAIN: Final = {
    "gitlabUrl": "gitlab_url",
    "detailed": "detailed",
    "runLogs": "run_logs",
    "setTransport": "set_transport",
    "signature": "signature",
    "verifyTls": "verify_tls",
}
_FILES: Final = {"mappingFile": "mapping_file", "caFile": "ca_file"}


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How Port's invocations are fetched instead of received.

    Attributes:
        source: `kafka` or `polling`.
        sink: `forward` (HTTP, as Port's own agent) or `direct` (the listener takes runs itself).
        image: `builtin` or `official`.
        actions: identifiers that use the agent; empty: all whose URL is a route of the listener.
        allowed_hosts: hosts that may be called besides those of the stack's definitions.
        options: the rest, as `port_webhook_handlers.agent.config` names it.
    """

    source: str
    sink: str
    image: str = "builtin"
    actions: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def brokers(self) -> str | None:
        """Configured brokers; None: Port names them."""
        found: str | None = self.options.get("kafka", {}).get("brokers")
        return found


def parse(values: Mapping[str, Any], project: Path) -> AgentSettings:
    """Reads the map.

    Args:
        values: the content of the setting.
        project: folder that relative paths start at.

    Raises:
        SettingsError: a key is unknown, or its value is missing or wrong.
    """
    _known(values, _KEYS, KEY)
    source = _choice(values, "source", ("kafka", "polling"), None)
    sink = _choice(values, "sink", ("forward", "direct"), "direct")
    image = _choice(values, "image", ("builtin", "official"), "builtin")
    if image == "official" and sink == "direct" and "sink" in values:
        raise SettingsError(f"{KEY}.sink", "direct is not what Port's official agent can do", "Use forward")
    sink = "forward" if image == "official" else sink
    options: dict[str, Any] = {_PLAIN[name]: values[name] for name in _PLAIN if name in values}
    for name, keys in _NESTED.items():
        nested = values.get(name, {})
        if not isinstance(nested, Mapping):
            raise SettingsError(f"{KEY}.{name}", "is not a map", f"Known here: {', '.join(keys)}")
        _known(nested, tuple(keys), f"{KEY}.{name}")
        options[name] = {keys[key]: value for key, value in nested.items()}
    for nested, key in ((options["kafka"], "ca_file"),):
        if isinstance(nested.get(key), str):
            nested[key] = str(project / nested[key])
    options |= {name: str(project / str(values[key])) for key, name in _FILES.items() if key in values}
    settings = AgentSettings(
        source, sink, image, _texts(values, "actions"), _texts(values, "allowedHosts"), options
    )
    _check(settings)
    return settings


def _check(settings: AgentSettings) -> None:
    """What only the agent's own reader knows: types, bounds, and what fits together."""
    from port_webhook_handlers.agent import config

    try:
        config.from_json(
            {
                **settings.options,
                "source": settings.source,
                "sink": settings.sink,
                "port_base_url": "https://api.getport.io",
                "allowed_hosts": ["localhost"],
            }
        )
    except config.AgentConfigError as error:
        raise SettingsError(KEY, f"is wrong: {error}", "docs/agent.md lists the settings") from None


def _known(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SettingsError(
                f"{where}.{name}", f"is no setting of this module{hint}", f"Known here: {', '.join(known)}"
            )


def _choice(values: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str | None) -> str:
    value = values.get(name, default)
    if value is None:
        raise SettingsError(f"{KEY}.{name}", "is missing", f"Use {' or '.join(choices)}")
    if value not in choices:
        raise SettingsError(f"{KEY}.{name}", f"{value!r} is not supported", f"Use {' or '.join(choices)}")
    return str(value)


def _texts(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = values.get(name, [])
    if not isinstance(found, list) or not all(isinstance(item, str) and item for item in found):
        raise SettingsError(f"{KEY}.{name}", "is not a list of strings", "Write a list of strings")
    return tuple(found)
