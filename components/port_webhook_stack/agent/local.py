"""The agent of target `local`: a supervised process, and on demand a real Kafka broker beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi


class KafkaBroker(pulumi.CustomResource):
    """An Apache Kafka broker on this machine that the local Port writes agent runs to."""

    brokers: pulumi.Output[str]
    """`host:port` for clients."""

    def __init__(self, resource_name: str, *, opts: pulumi.ResourceOptions | None = None) -> None:
        """
        Args:
            resource_name: Pulumi's name of the resource.
            opts: options of the resource.
        """
        secret = pulumi.ResourceOptions(additional_secret_outputs=["password"])
        super().__init__(
            "port-webhook:local:KafkaBroker",
            resource_name,
            {"brokers": None, "username": None, "password": None, "running": None, "owner": None},
            pulumi.ResourceOptions.merge(opts, secret),
        )


class LocalAgent(pulumi.CustomResource):
    """An execution agent that outlives `pulumi up`; a plain `up` heals it when it has died."""

    def __init__(
        self,
        resource_name: str,
        *,
        source: str,
        actions: Sequence[str],
        allowed_hosts: Sequence[pulumi.Input[str]],
        secrets_version: pulumi.Input[str],
        options: Mapping[str, Any] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            resource_name: Pulumi's name of the resource.
            source: `kafka` or `polling`.
            actions: identifiers in Port that it delivers.
            allowed_hosts: `host:port` that it may call.
            secrets_version: version of the secrets store; the agent reads a new one by itself.
            options: further configuration, see `port_webhook_handlers.agent.config.AgentConfig`.
            opts: options of the resource.
        """
        super().__init__(
            "port-webhook:local:Agent",
            resource_name,
            {
                "source": source,
                "actions": list(actions),
                "allowedHosts": list(allowed_hosts),
                "secretsVersion": secrets_version,
                "options": dict(options or {}),
                "running": None,
                "owner": None,
            },
            opts,
        )
