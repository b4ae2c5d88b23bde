"""The agent as a part of a stack on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pulumi

from port_webhook_stack.agent import definitions
from port_webhook_stack.agent.local import KafkaBroker, LocalAgent
from port_webhook_stack.agent.settings import KEY, AgentSettings
from port_webhook_stack.errors import SettingsError

if TYPE_CHECKING:
    from port_webhook_stack.deployed import Deployed

Bodies = Mapping[str, Mapping[str, Any]]


def require_possible(agent: AgentSettings) -> None:
    """Refuses what target `local` cannot do.

    Raises:
        SettingsError: Port's official image is asked for.
    """
    if agent.image == "official":
        raise SettingsError(
            f"{KEY}.image", "official is a container image, which target local does not run", "Use builtin"
        )


def broker(
    name: str, agent: AgentSettings, *, local_port: pulumi.Resource | None, parent: pulumi.Resource
) -> KafkaBroker | None:
    """The broker of a local Port, unless another one is named."""
    if agent.source != "kafka" or agent.brokers is not None or local_port is None:
        return None
    return KafkaBroker(f"{name}-kafka", opts=pulumi.ResourceOptions(parent=parent, depends_on=[local_port]))


def inside_listener(agent: AgentSettings, bodies: Bodies) -> dict[str, Any]:
    """What a listener is told that takes runs itself."""
    return {
        **agent.options,
        "source": agent.source,
        "actions": definitions.identifiers(bodies, "KAFKA") or ["-"],
    }


def beside_listener(
    name: str,
    agent: AgentSettings,
    bodies: Bodies,
    deployed: Deployed,
    *,
    after: Sequence[pulumi.Resource],
    parent: pulumi.Resource,
) -> LocalAgent:
    """An agent that forwards to the listener and to other hosts of the definitions."""
    listener = pulumi.Output.from_input(deployed.url).apply(_place)
    return LocalAgent(
        f"{name}-agent",
        source=agent.source,
        actions=definitions.identifiers(bodies, "GITLAB"),
        allowed_hosts=[listener, *definitions.hosts(bodies), *agent.allowed_hosts],
        secrets_version=deployed.secrets_version,
        options=agent.options,
        opts=pulumi.ResourceOptions(parent=parent, depends_on=list(after)),
    )


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
