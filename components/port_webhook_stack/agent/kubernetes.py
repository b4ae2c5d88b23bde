"""Port's execution agent in a cluster: ours, or Port's official image by digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pulumi

from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_stack.kubernetes import access, pods
from port_webhook_stack.kubernetes.plan import Manifest, Plan
from port_webhook_stack.kubernetes.register import Registrar
from port_webhook_stack.kubernetes.settings import Agent

_GRACE_SECONDS: Final = 60
# The official image has no health endpoint: its one process is what can be looked at.
_ALIVE: Final = {"exec": {"command": ["sh", "-c", "kill -0 1"]}}


def listener_host(plan: Plan, group: str | None = None) -> str:
    """Name of a listener inside the cluster."""
    return f"{access.listener(group)}.{plan.namespace}.svc"


def secret_name(plan: Plan) -> str:
    """Name of the Secret with the agent's credentials."""
    agent = plan.settings.agent
    return (agent.existing_secret if agent is not None else None) or "agent-secrets"


def secret(plan: Plan, values: Mapping[str, Any]) -> Manifest:
    """The agent's credentials, under the names of its variables."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": plan.metadata(secret_name(plan), access.AGENT),
        "type": "Opaque",
        "stringData": dict(values),
    }


def deployment(plan: Plan, secrets_version: Any) -> Manifest:
    """One replica, because a second one would share its topic or queue; rolled when the credentials change."""
    agent = plan.settings.agent
    if agent is None:
        raise ValueError("the settings name no agent")
    main, volumes = _own(plan, agent) if agent.kind == "own" else _official(plan, agent)
    spec = pods.pod(
        plan,
        main,
        service_account=access.AGENT,
        token=False,
        volumes=volumes,
        grace_seconds=_GRACE_SECONDS,
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": plan.metadata(access.AGENT, access.AGENT),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": 300,
            "selector": {"matchLabels": plan.labels(access.AGENT)},
            "template": pods.template(plan, access.AGENT, spec, {pods.SECRETS_ANNOTATION: secrets_version}),
        },
    }


def manifests(plan: Plan, secrets_version: Any) -> list[Manifest]:
    """The agent's objects but for its Secret; none without an agent."""
    return [] if plan.settings.agent is None else [deployment(plan, secrets_version)]


class KubernetesAgent(pulumi.ComponentResource):
    """The execution agent."""

    def __init__(
        self,
        resource_name: str,
        plan: Plan,
        registrar_of: Any,
        *,
        credentials: Mapping[str, pulumi.Input[str]],
        secrets_version: pulumi.Input[str],
        after: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            resource_name: Pulumi's name of the component.
            plan: the deployment, with an agent.
            registrar_of: function of a parent that gives its registrar.
            credentials: `clientId` and `clientSecret` of the organisation.
            secrets_version: Pods are rolled when it changes.
            after: what must be there before, the listener included.
            opts: options of the component.
        """
        super().__init__("port-webhook:kubernetes:Agent", resource_name, {}, opts)
        registrar: Registrar = registrar_of(self)
        needs = list(after)
        agent = plan.settings.agent
        if agent is not None and agent.existing_secret is None:
            values = {
                "PORT_CLIENT_ID": credentials["clientId"],
                "PORT_CLIENT_SECRET": pulumi.Output.secret(credentials["clientSecret"]),
            }
            needs += registrar.add([secret(plan, values)], after=after)
        registrar.add(manifests(plan, secrets_version), after=needs)
        self.register_outputs({})


def _own(plan: Plan, agent: Agent) -> tuple[Manifest, list[Manifest]]:
    hosts = [listener_host(plan, group) for group in (None, *plan.listener_groups)]
    hosts += plan.agent_hosts
    actions = plan.agent_actions or sorted({route.action for route in plan.routes.values()})
    if plan.settings.ingress is not None:
        hosts.append(plan.settings.ingress.host)
    folder = f"{names.ROOT}/secrets"
    variables = {
        "STREAMER_NAME": "POLLING",
        "PORT_API_BASE_URL": plan.port_base_url,
        "AGENT_NAME": names.label(plan.stack),
        "AGENT_ACTIONS": ",".join(actions),
        "AGENT_ALLOWED_HOSTS": ",".join(hosts),
        "AGENT_HEALTH_PORT": str(names.METRICS_PORT),
        "PORT_CLIENT_ID_FILE": f"{folder}/PORT_CLIENT_ID",
        "PORT_CLIENT_SECRET_FILE": f"{folder}/PORT_CLIENT_SECRET",
        **agent.environment,
    }
    main = pods.container(
        plan,
        "agent",
        image=agent.image or plan.settings.image,
        resources=agent.resources,
        mounts=["bundle", "secrets", "work", "tmp"],
        role="agent",
        environment=_environment(variables),
    )
    live = {"httpGet": {"path": "/health/live", "port": "metrics"}, "timeoutSeconds": 3}
    main |= {
        "ports": [{"name": "metrics", "containerPort": names.METRICS_PORT}],
        "startupProbe": {**live, "periodSeconds": 2, "failureThreshold": 60},
        "readinessProbe": {
            "httpGet": {"path": "/health/ready", "port": "metrics"}, "periodSeconds": 10, "failureThreshold": 3,
        },
        "livenessProbe": {**live, "periodSeconds": 15, "failureThreshold": 4},
    }  # fmt: skip
    volumes = [
        pods.bundle_volume(plan),
        pods.secret_volume("secrets", secret_name(plan)),
        pods.empty_volume("work", "64Mi"),
        pods.empty_volume("tmp", "64Mi"),
    ]
    return main, volumes


def _official(plan: Plan, agent: Agent) -> tuple[Manifest, list[Manifest]]:
    variables = {
        "STREAMER_NAME": "POLLING",
        "PORT_API_BASE_URL": plan.port_base_url,
        # Its default writes payloads into its log.
        "DETAILED_LOGGING": "false",
        **agent.environment,
    }
    main = pods.container(
        plan,
        "agent",
        image=agent.image or "",
        resources=agent.resources,
        mounts=["tmp"],
        environment=_environment(variables),
    )
    main |= {
        "envFrom": [{"secretRef": {"name": secret_name(plan)}}],
        "startupProbe": {**_ALIVE, "periodSeconds": 5, "failureThreshold": 12},
        "readinessProbe": {**_ALIVE, "periodSeconds": 30},
        "livenessProbe": {**_ALIVE, "periodSeconds": 30, "failureThreshold": 4},
    }
    return main, [pods.empty_volume("tmp", "64Mi")]


def _environment(variables: Mapping[str, str]) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in variables.items()]
