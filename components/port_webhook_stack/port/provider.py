"""The provider without its protocol: configuration, resource types, package schema.

Everything here is synchronous and works on plain values; `provider_server` speaks to the engine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from port_webhook_stack.port import configuration
from port_webhook_stack.port.configuration import PACKAGE, Configuration, nearest
from port_webhook_stack.port.handler import (
    CheckResult,
    Context,
    Diff,
    Failure,
    Log,
    Properties,
    ProviderError,
    ResourceHandler,
)
from port_webhook_stack.port.wire import inexact_numbers, path_text

if TYPE_CHECKING:
    from port_webhook_handlers.port.client import BaseUrl, PortClient

REGISTRY: dict[str, str] = {
    "port-webhook:index:Action": "port_webhook_stack.port.actions:Action",
    "port-webhook:index:ActionPermissions": "port_webhook_stack.port.permissions:ActionPermissions",
    "port-webhook:index:Automation": "port_webhook_stack.port.actions:Automation",
    "port-webhook:index:Blueprint": "port_webhook_stack.port.blueprints:Blueprint",
    "port-webhook:index:Entity": "port_webhook_stack.port.entities:Entity",
    "port-webhook:index:Secret": "port_webhook_stack.port.organization_secrets:Secret",
    "port-webhook:index:Verification": "port_webhook_stack.verification_handler:VerificationHandler",
    "port-webhook:index:Webhook": "port_webhook_stack.port.ingest_webhooks:Webhook",
    "port-webhook:local:Agent": "port_webhook_stack.agent.local_handler:LocalAgentHandler",
    "port-webhook:local:KafkaBroker": "port_webhook_stack.agent.local_handler:KafkaBrokerHandler",
    "port-webhook:local:Listener": "port_webhook_stack.listener.local_handler:LocalListenerHandler",
    "port-webhook:local:LocalPort": "port_webhook_stack.port.local_port:LocalPort",
    "port-webhook:local:SecretsStore": "port_webhook_stack.secrets_store.local_handler:LocalSecretsStoreHandler",
}
"""Resource types and where their handler is, `module:class`; it is imported when the type is first used."""


@cache
def handler(token: str) -> ResourceHandler:
    """The handler of a resource type.

    Raises:
        ProviderError: there is no such type.
    """
    if token not in REGISTRY:
        raise ProviderError(f"{token} is no resource type of {PACKAGE}{nearest(token, tuple(REGISTRY))}")
    module, _, name = REGISTRY[token].partition(":")
    return cast(ResourceHandler, getattr(import_module(module), name)())


def version() -> str:
    """The version of this distribution."""
    return metadata.version("port-webhook-stack")


class Provider:
    """One configured provider, as long as the plugin's process lives.

    Args:
        environment: variables; by default those of the process.
        project: the project's folder; by default the working directory, where the engine starts its plugins.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, project: Path | None = None) -> None:
        self._environment = os.environ if environment is None else environment
        self._project = project or Path.cwd()
        self._configured: tuple[Configuration, PortClient] | None = None
        self._clients: dict[tuple[str, str, str], PortClient] = {}
        self._lock = threading.Lock()
        self._memory: set[tuple[str, str]] = set()
        self.cancelled = threading.Event()

    def close(self) -> None:
        """Close connections."""
        for client in self._clients.values():
            client.close()

    def check_config(self, urn: str, news: Properties, olds: Properties) -> CheckResult:
        """Complete and validate the provider's inputs."""
        return configuration.check(
            urn,
            news,
            olds,
            environment=self._environment,
            project=self._project,
            connect=self._client,
        )

    def diff_config(self, olds: Properties, news: Properties) -> Diff:
        """Compare the provider's inputs."""
        return configuration.diff(olds, news)

    def configure(self, inputs: Properties) -> None:
        """Take the configuration over. Raises ProviderError."""
        config = configuration.configure(inputs, environment=self._environment, project=self._project)
        self._configured = config, self._client(config.address, config.client_id, config.client_secret)

    def context(self, urn: str, log: Log) -> Context:
        """What a handler works with.

        Raises:
            ProviderError: the provider is not configured yet.
        """
        if self._configured is None:
            raise ProviderError("the provider is not configured yet")
        config, client = self._configured
        return Context(config, client, log, urn, self._memory, self.cancelled)

    def check(self, ctx: Context, token: str, news: Properties, olds: Properties) -> CheckResult:
        """Check the inputs of a resource: first what holds for all types, then its own rules."""
        type_handler = handler(token)
        known = tuple(type_handler.schema.get("inputProperties", {}))
        failures = [
            Failure(key, f"is no input of {token}{nearest(key, known)}; known: {', '.join(known) or 'none'}")
            for key in news
            if key not in known
        ]
        failures += [
            Failure(
                path_text(path), "is an integer beyond 2^53, which the engine rounds: write it as a string"
            )
            for path in inexact_numbers(news)
        ]
        result = type_handler.check(ctx, {key: value for key, value in news.items() if key in known}, olds)
        return CheckResult(result.inputs, [*failures, *result.failures])

    def _client(self, address: BaseUrl, client_id: str, client_secret: str) -> PortClient:
        """One client for each account, so that checking and configuring share a token."""
        from port_webhook_handlers.port.client import PortClient

        key = (address if isinstance(address, str) else "", client_id, client_secret)
        with self._lock:
            if key not in self._clients:
                self._clients[key] = PortClient(address, client_id, client_secret, cancelled=self.cancelled)
            return self._clients[key]


def package_schema(components: Mapping[str, Any]) -> dict[str, Any]:
    """The package's schema: that of the components, and all resource types that can be imported."""
    resources = {
        **components.get("resources", {}),
        **{token: dict(handler(token).schema) for token in REGISTRY},
    }
    variables = {
        key: {"type": "string", **({"secret": True} if key == "clientSecret" else {})}
        for key in configuration.KEYS
    }
    return {
        **components,
        "name": PACKAGE,
        "displayName": "Port webhook stack",
        "version": version(),
        "description": "Port's objects as code, and the webhook backend behind them.",
        "config": {"variables": variables},
        "provider": {"inputProperties": variables},
        "resources": resources,
    }
