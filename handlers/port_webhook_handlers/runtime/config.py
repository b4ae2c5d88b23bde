"""Configuration of a listener on this machine. It holds no secret; `listener.json` keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from port_webhook_handlers.runtime.sources import Sources


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a listener.

    Attributes:
        max_body_bytes: a larger request is answered 413.
        tolerance_seconds: how far a request's timestamp may be from this clock, both ways.
        sync_deadline_seconds: a synchronous run is killed and answered 504 after this time.
        max_children: how many handlers run at once, over all routes.
        max_queued: how many accepted runs may wait; further ones are reported FAILURE.
        drain_seconds: how long `stop` lets running handlers finish.
        start_seconds: how long a server may take until it is healthy.
        retry_seconds: a run that fails in a retryable way starts again after this time, then after twice as long,
            and so on.
        retention_days: how long reports are retried and claims remembered.
    """

    max_body_bytes: int = 256 * 1024
    tolerance_seconds: float = 300
    sync_deadline_seconds: float = 25
    max_children: int = 16
    max_queued: int = 10_000
    drain_seconds: float = 20
    start_seconds: float = 20
    retry_seconds: float = 2
    retention_days: float = 14


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """What `control.start` needs.

    Attributes:
        bundle: folder of the bundle (absolute).
        secrets_file, secrets_key_file: the secrets store.
        port_base_url: base URL of Port's API, or
        port_endpoint_file: JSON file whose `url` is the base URL; read again when Port cannot be reached.
        host: address to bind.
        port: 0: picked once, then kept.
        source_addresses: addresses and networks that requests may come from; empty: from everywhere.
        trusted_proxy_hops: which address of X-Forwarded-For is the sender's, counted from the right; 0: the socket's
            peer is the sender.
        public_url: address under which a tunnel or proxy forwards to this listener.
        state_dir: folder of the stack's state, where handlers keep theirs; by default the parent of the
            listener's home.
        limits: bounds.
        settings: route name to settings of its handler; those under `*` are given to every handler.
        agent: take runs from Port directly, without a request: configuration of an agent (`source`, `name`, `kafka`,
            `polling`, …) as `port_webhook_handlers.agent.config` reads it.
    """

    bundle: Path
    secrets_file: Path
    secrets_key_file: Path
    port_base_url: str | None = None
    port_endpoint_file: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    source_addresses: tuple[str, ...] = ()
    trusted_proxy_hops: int = 0
    public_url: str | None = None
    state_dir: Path | None = None
    limits: Limits = field(default_factory=Limits)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    agent: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.port_base_url is None) == (self.port_endpoint_file is None):
            raise ConfigError("listener: give either port_base_url or port_endpoint_file")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"listener.port: {self.port} is not a port; use 0 (picked) or 1 to 65535")
        try:
            Sources.of(self.source_addresses, self.trusted_proxy_hops)
        except ValueError as error:
            raise ConfigError(f"listener.source_addresses, listener.trusted_proxy_hops: {error}") from error
        if not self.host:
            raise ConfigError("listener.host: is empty; use 127.0.0.1")
        for name in ("port_base_url", "public_url"):
            value = getattr(self, name)
            if value is not None and not _is_http_url(value):
                raise ConfigError(f"listener.{name}: {value!r} is not an http or https URL")
        for name in ("bundle", "secrets_file", "secrets_key_file", "port_endpoint_file", "state_dir"):
            value = getattr(self, name)
            if value is not None and not value.is_absolute():
                raise ConfigError(f"listener.{name}: {value} must be an absolute path")

    def handler_settings(self, route: str) -> dict[str, Any]:
        """Settings for the handler of a route."""
        return {**self.settings.get("*", {}), **self.settings.get(route, {})}

    def to_json(self) -> dict[str, Any]:
        """Plain values; paths as strings."""
        body: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Limits):
                value = {limit.name: getattr(value, limit.name) for limit in fields(value)}
            elif isinstance(value, Path):
                value = str(value)
            elif isinstance(value, tuple):
                value = list(value)
            body[item.name] = value
        return body

    def dumps(self) -> bytes:
        """JSON text, the content of `listener.json`."""
        return json.dumps(self.to_json(), sort_keys=True, indent=1).encode() + b"\n"


def _is_http_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def parse(data: bytes | str) -> ListenerConfig:
    """Reads a configuration strictly.

    Raises:
        ConfigError: not JSON, or a key is unknown, missing or of a wrong type.
    """
    try:
        body = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"listener configuration is not JSON: {error}") from error
    values = _known(body, ListenerConfig, "listener")
    for name in ("bundle", "secrets_file", "secrets_key_file", "port_endpoint_file", "state_dir"):
        if values.get(name) is not None:
            values[name] = Path(_typed(values[name], str, f"listener.{name}"))
    for name in ("port_base_url", "public_url"):
        if values.get(name) is not None:
            _typed(values[name], str, f"listener.{name}")
    if "host" in values:
        _typed(values["host"], str, "listener.host")
    if "source_addresses" in values:
        listed = _typed(values["source_addresses"], list, "listener.source_addresses")
        values["source_addresses"] = tuple(_typed(item, str, "listener.source_addresses") for item in listed)
    if "trusted_proxy_hops" in values:
        _typed(values["trusted_proxy_hops"], int, "listener.trusted_proxy_hops")
    if "port" in values:
        _typed(values["port"], int, "listener.port")
    if "limits" in values:
        values["limits"] = _limits(values["limits"])
    settings = _typed(values.get("settings", {}), dict, "listener.settings")
    for name, value in settings.items():
        _typed(value, dict, f"listener.settings.{name}")
    if values.get("agent") is not None:
        _typed(values["agent"], dict, "listener.agent")
    missing = [name for name in ("bundle", "secrets_file", "secrets_key_file") if values.get(name) is None]
    if missing:
        raise ConfigError(f"listener.{missing[0]}: is missing")
    return ListenerConfig(**values)


def _limits(body: object) -> Limits:
    values = _known(body, Limits, "listener.limits")
    defaults = Limits()
    for name, value in values.items():
        whole = isinstance(getattr(defaults, name), int) and name.startswith("max_")
        _typed(value, int if whole else (int, float), f"listener.limits.{name}")
        if not 0 < value < float("inf"):
            raise ConfigError(f"listener.limits.{name}: must be above zero, not {value}")
    return Limits(**values)


def _known(body: object, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ConfigError(f"{where}: must be an object")
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(body) - known)
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]}: unknown key; known are {', '.join(sorted(known))}")
    return dict(body)


def _typed(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{where}: has the wrong type, {type(value).__name__}")
    return value
