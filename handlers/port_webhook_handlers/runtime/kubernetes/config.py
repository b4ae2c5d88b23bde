"""Configuration of the processes in a cluster, mounted as `config.json`. It holds no secret."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from port_webhook_handlers.runtime.config import ConfigError, Limits, ListenerConfig
from port_webhook_handlers.runtime.config import parse as parse_listener
from port_webhook_handlers.runtime.kubernetes import names

_SHARED = ("port_base_url", "limits", "settings", "source_addresses", "trusted_proxy_hops")


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Bounds of the dispatcher.

    Attributes:
        max_jobs: how many Jobs run at once, over all routes.
        start_seconds: a Job that cannot start (image, configuration, no room) fails after this time.
        retention_seconds: how long the claim of an ended run is kept; a repeat within it is not executed.
        retention_days: how long Port is told about a run before it is given up.
    """

    max_jobs: int = 50
    start_seconds: float = 300
    retention_seconds: float = 86_400
    retention_days: float = 14


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What listener, dispatcher and job need to know.

    Attributes:
        port_base_url: base URL of Port's API.
        namespace: where listener and dispatcher run.
        runs_namespace: where runs are stored and executed.
        group: None: this listener takes every asynchronous route and the synchronous ones of group `default`;
            else only the synchronous routes of that privilege group.
        source_addresses, trusted_proxy_hops: where requests may come from, see `ListenerConfig`.
        limits: bounds of a listener.
        runs: bounds of the dispatcher.
        settings: route name to settings of its handler; those under `*` are given to every handler.
        jobs: route name to the manifest of its Jobs, complete but for the run's name.
        lease: name of the dispatcher's Lease.
    """

    port_base_url: str
    namespace: str
    runs_namespace: str
    group: str | None = None
    source_addresses: tuple[str, ...] = ()
    trusted_proxy_hops: int = 0
    limits: Limits = field(default_factory=Limits)
    runs: RunLimits = field(default_factory=RunLimits)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    jobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lease: str = "port-webhook-dispatcher"

    def listener(self, bundle: Path, folder: Path) -> ListenerConfig:
        """The same for the parts that all targets share; the paths are not used by them."""
        return ListenerConfig(
            bundle=bundle,
            secrets_file=folder / names.SECRETS_FILE,
            secrets_key_file=folder / names.SECRETS_FILE,
            port_base_url=self.port_base_url,
            limits=self.limits,
            settings=self.settings,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        body = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("limits", "runs"):
            body[name] = {item.name: getattr(body[name], item.name) for item in fields(body[name])}
        return body

    def dumps(self) -> str:
        """Canonical JSON text, the content of `config.json`."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))


def load(folder: Path) -> ClusterConfig:
    """Reads `config.json` strictly.

    Raises:
        ConfigError: it is missing or not JSON, or a key is unknown or of a wrong type.
    """
    path = folder / names.CONFIG_FILE
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); deploy the stack again") from error
    known = {item.name for item in fields(ClusterConfig)}
    if not isinstance(body, dict) or set(body) - known:
        raise ConfigError(f"{path}: must be an object with the keys {', '.join(sorted(known))}")
    for name in ("port_base_url", "namespace", "runs_namespace"):
        if not isinstance(body.get(name), str) or not body[name]:
            raise ConfigError(f"{path}: {name} must be a non-empty string")
    shared = {
        "bundle": "/",
        "secrets_file": "/",
        "secrets_key_file": "/",
        **{key: body[key] for key in _SHARED if key in body},
    }
    parsed = parse_listener(json.dumps(shared))
    runs = body.get("runs", {})
    bounds = {item.name for item in fields(RunLimits)}
    if not isinstance(runs, dict) or set(runs) - bounds:
        raise ConfigError(f"{path}: runs must be an object with the keys {', '.join(sorted(bounds))}")
    for name, value in runs.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"{path}: runs.{name} must be a number above zero")
    return ClusterConfig(
        **{
            **body,
            "source_addresses": parsed.source_addresses,
            "limits": parsed.limits,
            "settings": parsed.settings,
            "runs": RunLimits(**runs),
        }
    )
