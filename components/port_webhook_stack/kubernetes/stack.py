"""Target kubernetes of the facade: secrets, listener and agent in a cluster."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pulumi

from port_webhook_handlers.bundle import Bundle
from port_webhook_handlers.port.regions import API_BASE_URLS
from port_webhook_handlers.runtime import manifest as manifests
from port_webhook_handlers.runtime.config import Limits
from port_webhook_stack.agent.definitions import hosts, identifiers
from port_webhook_stack.agent.kubernetes import KubernetesAgent, listener_host
from port_webhook_stack.deployed import Deployed
from port_webhook_stack.errors import SettingsError
from port_webhook_stack.kubernetes import access, dependencies, jobs, reachable
from port_webhook_stack.kubernetes.plan import Plan
from port_webhook_stack.kubernetes.register import Registrar, provider
from port_webhook_stack.kubernetes.settings import KEY, KubernetesSettings
from port_webhook_stack.kubernetes.shards import shards
from port_webhook_stack.listener.kubernetes import KubernetesListener, namespaces
from port_webhook_stack.secrets_store.kubernetes import KubernetesSecretsStore
from port_webhook_stack.settings import MODULE, Settings

# An ingress controller, a certificate's issuer and name servers follow what was deployed at a pace of their own.
_SETTLE_SECONDS = 180


def plan(settings: Settings, bundle: Bundle) -> Plan:
    """What is deployed, checked before anything is registered.

    Raises:
        StackError: settings, handlers and target do not fit together.
    """
    if importlib.util.find_spec("pulumi_kubernetes") is None:
        raise SettingsError(
            f"{MODULE}:target",
            "is kubernetes, but Pulumi's SDK for it is not installed",
            "Run `.venv/bin/pip install 'pulumi-kubernetes>=4,<5'`",
        )
    target = settings.kubernetes
    if target is None:
        raise SettingsError(
            KEY, "is missing", "Set image and apiServer at least; see stacks/Pulumi.kubernetes-dev.yaml"
        )
    base = API_BASE_URLS.get(settings.region or "", settings.base_url)
    if settings.is_local_port or base is None:
        raise SettingsError(
            "port-webhook:region",
            "is local, but a cluster cannot reach a Port on this machine",
            "Use eu or us with an organisation for trying things, or target local",
        )
    dependencies.check(bundle.path, bundle.routes, target)
    found = assemble(settings, target, bundle, base)
    _check(settings, found)
    return found


def assemble(settings: Settings, target: KubernetesSettings, bundle: Bundle, base_url: str) -> Plan:
    """What settings and bundle say, unchecked.

    Args:
        settings: of the stack.
        target: those of the cluster.
        bundle: the handlers.
        base_url: of Port's API.

    Raises:
        StackError: the bundle does not fit into ConfigMaps.
    """
    return Plan(
        stack=settings.stack,
        settings=target,
        routes=manifests.load(bundle.path)[0].routes,
        digest=bundle.digest,
        shards=shards(bundle),
        port_base_url=base_url,
        limits=Limits(
            sync_deadline_seconds=settings.listener.sync_deadline_seconds,
            tolerance_seconds=settings.listener.tolerance_seconds,
        ),
        source_addresses=settings.listener.source_addresses,
        trusted_proxy_hops=settings.listener.trusted_proxy_hops,
        handler_settings=settings.handler_settings,
        permissions=bundle.kubernetes_permissions,
    )


def deploy(
    name: str,
    settings: Settings,
    found: Plan,
    *,
    definitions: Mapping[str, Mapping[str, Any]],
    organisation: Mapping[str, pulumi.Input[str]],
    signing: Sequence[Mapping[str, pulumi.Input[Any]]],
    api: Mapping[str, pulumi.Input[str]],
    decryption: Sequence[pulumi.Input[str]],
    parent: pulumi.Resource,
) -> Deployed:
    """Registers everything in the cluster.

    Args:
        name: prefix of the resources' names.
        settings: of the stack.
        found: see `plan`.
        definitions: as Port gets them, by identifier.
        organisation: `clientId` and `clientSecret`.
        signing, api, decryption: see `KubernetesSecretsStore`.
        parent: the facade.
    """
    target = found.settings
    # An empty list would be everybody's runs.
    delivered = identifiers(definitions, "KAFKA") or ["-"]
    found = replace(found, agent_actions=delivered, agent_hosts=hosts(definitions))
    cluster = provider(
        f"{name}-cluster",
        kubeconfig=target.kubeconfig,
        context=target.context,
        identifier=None
        if target.render_directory is not None
        else reachable.server_of(target.kubeconfig, target.context),
        render_directory=target.render_directory,
        parent=parent,
    )

    def registrar_of(component: pulumi.Resource) -> Registrar:
        return Registrar(name, component, cluster)

    opts = pulumi.ResourceOptions(parent=parent)
    before = Registrar(name, parent, cluster).add(namespaces(found)) if target.create_namespaces else []
    store = KubernetesSecretsStore(
        f"{name}-secrets",
        found,
        registrar_of,
        signing=signing,
        api=api,
        decryption=decryption,
        secrets=settings.secrets,
        after=before,
        opts=opts,
    )
    listener = KubernetesListener(
        f"{name}-listener",
        found,
        registrar_of,
        secrets=store.secrets,
        secrets_version=store.version,
        after=before,
        opts=opts,
    )
    if target.agent is not None:
        KubernetesAgent(
            f"{name}-agent",
            found,
            registrar_of,
            credentials=organisation,
            secrets_version=store.version,
            after=[*before, listener],
            opts=opts,
        )
    return Deployed(
        pulumi.Output.from_input(url(settings, found)),
        store.version,
        listener,
        bases=_bases(settings, found),
        settle_seconds=_SETTLE_SECONDS,
    )


def url(settings: Settings, found: Plan) -> str:
    """Base URL of the listener: of a proxy in front, of the ingress, or inside the cluster."""
    if settings.listener.public_url:
        return settings.listener.public_url
    if found.settings.ingress is not None:
        return f"https://{found.settings.ingress.host}"
    return f"http://{listener_host(found)}"


def _bases(settings: Settings, found: Plan) -> dict[str, str]:
    """Where the routes are that have a listener of their own, and nothing in front that tells them apart."""
    if settings.listener.public_url or found.settings.ingress is not None:
        return {}
    return {
        route.name: f"http://{listener_host(found, group)}"
        for group in found.listener_groups
        for route in found.sync_routes(group)
    }


def _check(settings: Settings, found: Plan) -> None:
    target = found.settings
    if target.ingress is None and settings.listener.public_url is None:
        if target.agent is None:
            raise SettingsError(
                f"{KEY}.ingress",
                "is missing, so Port could not reach the listener",
                "Set ingress.host and ingress.tlsSecret, or listener.publicUrl, or agent for a cluster without entry",
            )
        if settings.verify == "http":
            raise SettingsError(
                f"{MODULE}:verify",
                "is http, but the listener has no address outside of the cluster",
                "Set verify to off, or an ingress",
            )
    known = {access.LISTENER, access.DISPATCHER, *(access.listener(group) for group in found.listener_groups)}
    known |= {route.name for route in found.job_routes() if jobs.secret(found, route) is not None}
    for role in target.existing_secrets:
        if role not in known:
            raise SettingsError(
                f"{KEY}.existingSecrets.{role}",
                "is neither a process nor a handler with secrets",
                f"Known here: {', '.join(sorted(known))}",
            )
    groups = {*found.run_groups, *found.listener_groups}
    for group in target.groups:
        if group not in groups:
            raise SettingsError(
                f"{KEY}.groups.{group}",
                "is no privilege group of these handlers",
                f"Known here: {', '.join(sorted(groups))}",
            )
    agent = target.agent
    if agent is not None and agent.kind == "official" and "PORT_ORG_ID" not in agent.environment:
        raise SettingsError(
            f"{KEY}.agent.environment.PORT_ORG_ID",
            "is missing; the official agent does not start without it",
            "Set the identifier of the organisation, which Port shows in its settings",
        )
    if target.render_directory is not None:
        missing = sorted(known - set(target.existing_secrets))
        if missing or (target.agent is not None and target.agent.existing_secret is None):
            raise SettingsError(
                f"{KEY}.existingSecrets.{missing[0] if missing else 'agent'}",
                "is missing: with renderYamlToDirectory its values would be plain text in files",
                "Name Secrets that are made in the cluster, for example by External Secrets (docs/kubernetes.md)",
            )
        if settings.verify == "http":
            raise SettingsError(
                f"{MODULE}:verify",
                "is http, but with renderYamlToDirectory nothing is deployed yet",
                "Set verify to off",
            )
    else:
        reachable.require(target.kubeconfig, target.context)
