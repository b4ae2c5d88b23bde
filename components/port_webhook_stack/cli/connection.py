"""Which Port a command talks to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from port_webhook_handlers.port.client import PortClient
from port_webhook_handlers.port.regions import API_BASE_URLS

if TYPE_CHECKING:
    from collections.abc import Mapping


class ConnectionUnavailableError(Exception):
    """No Port to talk to; the message says what to do."""


def connect(project: Path, stack: str) -> PortClient:
    """Client for the Port of a stack: local Port, or the one that its stack file and the environment name.

    Raises:
        ConnectionUnavailableError: local Port does not run, or credentials are missing.
    """
    values = provider_configuration(project, stack)
    if values.get("region") == "local":
        return _connect_local(project, stack, values)
    base_url = values.get("baseUrl") or API_BASE_URLS.get(values.get("region", "eu"))
    client_id, client_secret = values.get("clientId"), values.get("clientSecret")
    if not base_url or not client_id or not client_secret:
        raise ConnectionUnavailableError(
            f"stack {stack}: no credentials for Port. Export PORT_CLIENT_ID and PORT_CLIENT_SECRET "
            "(and PORT_REGION or PORT_BASE_URL), as the stack file's secrets are read by pulumi alone"
        )
    return PortClient(base_url, client_id, client_secret)


def state_folder(project: Path, stack: str) -> Path:
    """Folder of a stack's local state."""
    return project / (provider_configuration(project, stack).get("stateDir") or f".state/{stack}")


def _connect_local(project: Path, stack: str, values: Mapping[str, str]) -> PortClient:
    from port_webhook_localport import control

    home = project / (values.get("stateDir") or f".state/{stack}") / "localport"
    endpoint = control.status(home)
    if endpoint is None:
        raise ConnectionUnavailableError(f"local Port of stack {stack} does not run: run `port-webhook up`")
    return PortClient(endpoint.url, endpoint.client_id, endpoint.client_secret)


def stack_configuration(project: Path, stack: str) -> dict[str, object]:
    """What a stack file sets, as it stands there: secrets are encrypted.

    Raises:
        ConnectionUnavailableError: there is no such stack file.
    """
    import yaml

    stack_file = project / "stacks" / f"Pulumi.{stack}.yaml"
    if not stack_file.is_file():
        raise ConnectionUnavailableError(f"stack {stack!r} has no file {stack_file.relative_to(project)}")
    return (yaml.safe_load(stack_file.read_text(encoding="utf-8")) or {}).get("config") or {}


def provider_configuration(project: Path, stack: str) -> dict[str, str]:
    """The provider's plain settings, from the stack file or the environment.

    Raises:
        ConnectionUnavailableError: there is no such stack file.
    """
    configuration = stack_configuration(project, stack)
    values = {
        key: value
        for key in ("region", "baseUrl", "clientId", "clientSecret", "stateDir")
        if isinstance(value := configuration.get(f"port-webhook:{key}"), str)
    }
    for key, variable in (
        ("region", "PORT_REGION"),
        ("baseUrl", "PORT_BASE_URL"),
        ("clientId", "PORT_CLIENT_ID"),
        ("clientSecret", "PORT_CLIENT_SECRET"),
    ):
        if key not in values and os.environ.get(variable):
            values[key] = os.environ[variable]
    return values
