"""What a deployment to a cluster consists of: the input of every manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from port_webhook_handlers.runtime.config import Limits
from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_handlers.runtime.kubernetes.config import ClusterConfig, RunLimits
from port_webhook_handlers.runtime.manifest import Route
from port_webhook_stack.kubernetes.settings import KubernetesSettings
from port_webhook_stack.kubernetes.shards import Shard

DEFAULT_GROUP: Final = "default"

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """A deployment.

    Attributes:
        stack: name of the stack, a label of every object.
        settings: of the target.
        routes: of the bundle, by name.
        digest: of the bundle.
        shards: the bundle's archive in pieces.
        port_base_url: base URL of Port's API.
        limits: bounds of the listener.
        source_addresses, trusted_proxy_hops: where requests may come from, see `ListenerConfig`.
        handler_settings: settings by handler; those under `*` are given to every handler.
        permissions: what handlers declared that they do in the cluster, by route.
        agent_actions: identifiers in Port that the agent delivers; empty: the actions of the routes.
        agent_hosts: `host:port` that it delivers to besides the listeners.
    """

    stack: str
    settings: KubernetesSettings
    routes: Mapping[str, Route]
    digest: str
    shards: Sequence[Shard]
    port_base_url: str
    limits: Limits = field(default_factory=Limits)
    source_addresses: tuple[str, ...] = ()
    trusted_proxy_hops: int = 0
    handler_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    permissions: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    agent_actions: Sequence[str] = ()
    agent_hosts: Sequence[str] = ()

    @property
    def namespace(self) -> str:
        """Namespace of listener and dispatcher."""
        return self.settings.namespace

    @property
    def runs_namespace(self) -> str:
        """Namespace of runs and their Jobs."""
        return self.settings.runs_namespace

    @property
    def run_groups(self) -> list[str]:
        """Privilege groups of asynchronous handlers, whose runs are Jobs."""
        return sorted({r.privilege_group for r in self.routes.values() if r.mode == "async"})

    @property
    def listener_groups(self) -> list[str]:
        """Privilege groups of synchronous handlers that have a listener of their own."""
        groups = {r.privilege_group for r in self.routes.values() if r.mode == "sync"}
        return sorted(groups - {DEFAULT_GROUP})

    def job_routes(self) -> list[Route]:
        """Asynchronous routes, by name."""
        return [route for _, route in sorted(self.routes.items()) if route.mode == "async"]

    def sync_routes(self, group: str) -> list[Route]:
        """Synchronous routes of a group, by name."""
        found = [r for r in self.routes.values() if r.mode == "sync" and r.privilege_group == group]
        return sorted(found, key=lambda route: route.name)

    def rules(self, group: str, mode: str) -> list[Mapping[str, Any]]:
        """What the handlers of a group and mode declared that they do in the cluster; each rule once."""
        found: list[Mapping[str, Any]] = []
        for name, declared in sorted(self.permissions.items()):
            route = self.routes[name]
            if (route.privilege_group, route.mode) == (group, mode):
                for rule in declared:
                    if rule not in found:
                        found.append(rule)
        return found

    def token(self, group: str) -> bool:
        """Whether runs of a group get a token of the cluster."""
        return self.settings.group(group).token or bool(self.rules(group, "async"))

    def image(self, group: str) -> str:
        """Image in which the handlers of a group run."""
        return self.settings.group(group).image or self.settings.image

    def labels(self, component: str) -> dict[str, str]:
        """Labels of an object; those of a component's Pods are also how they are selected."""
        return {
            "app.kubernetes.io/name": names.PREFIX,
            "app.kubernetes.io/instance": names.label(self.stack),
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/managed-by": names.PREFIX,
        }

    def metadata(self, name: str, component: str, namespace: str | None = None) -> Manifest:
        """Metadata of an object in the listener's namespace, or in another."""
        return {
            "name": name,
            "namespace": namespace or self.namespace,
            "labels": self.labels(component),
        }

    def config(self, **further: Any) -> ClusterConfig:
        """Configuration of a process."""
        settings = self.settings
        return ClusterConfig(
            port_base_url=self.port_base_url,
            namespace=self.namespace,
            runs_namespace=self.runs_namespace,
            limits=self.limits,
            source_addresses=self.source_addresses,
            trusted_proxy_hops=self.trusted_proxy_hops,
            runs=RunLimits(
                max_jobs=settings.max_jobs,
                start_seconds=settings.start_seconds,
                retention_seconds=settings.retention_hours * 3600,
            ),
            settings=self.handler_settings,
            **further,
        )

    def config_map(self, base: str, component: str, namespace: str, config: ClusterConfig) -> Manifest:
        """An immutable ConfigMap whose name changes with its content, so that what mounts it is rolled."""
        text = config.dumps()
        name = f"{base}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": self.metadata(name, component, namespace),
            "immutable": True,
            "data": {names.CONFIG_FILE: text},
        }
