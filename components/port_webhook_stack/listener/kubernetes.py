"""The listener of target kubernetes: Deployments of listener and dispatcher, and the way to them from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pulumi

from port_webhook_handlers.port.names import route_path
from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_stack.kubernetes import access, jobs, network, pods
from port_webhook_stack.kubernetes.plan import DEFAULT_GROUP, Manifest, Plan
from port_webhook_stack.kubernetes.register import Registrar
from port_webhook_stack.kubernetes.shards import config_maps
from port_webhook_stack.secrets_store.kubernetes import name_of

_OUT_OF_SERVICE_SECONDS: Final = 10
_SERVICE_PORT: Final = 80


def namespaces(plan: Plan) -> list[Manifest]:
    """Both namespaces, in which only restricted Pods are admitted."""
    security = {
        f"pod-security.kubernetes.io/{mode}{suffix}": value
        for mode in ("enforce", "audit", "warn")
        for suffix, value in (("", "restricted"), ("-version", "latest"))
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {**plan.labels(component), **security}},
        }
        for name, component in ((plan.namespace, access.LISTENER), (plan.runs_namespace, jobs.COMPONENT))
    ]


def bundle(plan: Plan) -> list[Manifest]:
    """The bundle for the listener's namespace and for that of the runs."""
    pieces = list(plan.shards)
    return [
        *config_maps(pieces, lambda name: plan.metadata(name, access.LISTENER)),
        *config_maps(pieces, lambda name: plan.metadata(name, jobs.COMPONENT, plan.runs_namespace)),
    ]


def listener_config(plan: Plan, group: str | None) -> Manifest:
    """Configuration of a listener."""
    component = access.listener(group)
    return plan.config_map(component, component, plan.namespace, plan.config(group=group))


def dispatcher_config(plan: Plan) -> Manifest:
    """Configuration of the dispatcher, with the Jobs that it may make."""
    config = plan.config(jobs=jobs.templates(plan))
    return plan.config_map(access.DISPATCHER, access.DISPATCHER, plan.namespace, config)


def listener(plan: Plan, group: str | None, secrets_version: Any) -> Manifest:
    """Deployment of a listener.

    Args:
        plan: the deployment.
        group: privilege group whose synchronous handlers it runs; None: for everything else.
        secrets_version: Pods are rolled when it changes.
    """
    component = access.listener(group)
    settings = plan.settings
    main = pods.container(
        plan,
        "listener",
        image=plan.image(group or DEFAULT_GROUP),
        resources=settings.listener_resources if group is None else settings.group(group).resources,
        mounts=["bundle", "config", "secrets", "previous", "work", "tmp"],
        role="listener",
    )
    ready = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 3}
    live = {"httpGet": {"path": "/live", "port": "metrics"}, "timeoutSeconds": 3}
    main |= {
        "ports": [
            {"name": "http", "containerPort": names.PORT},
            {"name": "metrics", "containerPort": names.METRICS_PORT},
        ],
        "startupProbe": {**ready, "periodSeconds": 1, "failureThreshold": 60},
        "readinessProbe": {**ready, "periodSeconds": 5, "failureThreshold": 2},
        # Slower than readiness: a busy process is to be spared, not ended.
        "livenessProbe": {**live, "periodSeconds": 15, "failureThreshold": 4},
        # Requests still arrive until every node has heard that this Pod is leaving.
        "lifecycle": {"preStop": {"sleep": {"seconds": _OUT_OF_SERVICE_SECONDS}}},
    }
    spec = pods.pod(
        plan,
        main,
        service_account=component,
        token=True,
        grace_seconds=math.ceil(
            _OUT_OF_SERVICE_SECONDS + plan.limits.sync_deadline_seconds + plan.limits.drain_seconds + 20
        ),
        volumes=[
            pods.bundle_volume(plan),
            pods.config_volume(listener_config(plan, group)["metadata"]["name"]),
            pods.secret_volume("secrets", name_of(plan, component)),
            pods.previous_volume(),
            pods.empty_volume("work", "256Mi"),
            pods.empty_volume("tmp", "64Mi"),
        ],
    )
    spec["topologySpreadConstraints"] = pods.spread(plan, component)
    body: Manifest = {
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "minReadySeconds": 2,
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": 300,
        "selector": {"matchLabels": plan.labels(component)},
        "template": pods.template(plan, component, spec, {pods.SECRETS_ANNOTATION: secrets_version}),
    }
    if not _is_scaled(plan):
        # Otherwise the autoscaler says how many, and every deployment would undo it.
        body["replicas"] = settings.replicas
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": plan.metadata(component, component),
        "spec": body,
    }


def dispatcher(plan: Plan, secrets_version: Any) -> Manifest:
    """Deployment of the dispatcher: one replica and no Service, because nobody calls it."""
    component = access.DISPATCHER
    main = pods.container(
        plan,
        "dispatcher",
        image=plan.settings.image,
        resources=plan.settings.dispatcher_resources,
        mounts=["bundle", "config", "secrets", "work", "tmp"],
        role="dispatcher",
        # The Lease is held under the Pod's name.
        environment=[{"name": "PORT_WEBHOOK_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    )
    main |= {
        "ports": [{"name": "metrics", "containerPort": names.METRICS_PORT}],
        "startupProbe": {
            "httpGet": {"path": "/live", "port": "metrics"}, "periodSeconds": 2, "failureThreshold": 60,
        },
        # Ready once it holds the Lease and sees the cluster: a rollout waits for that.
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": "metrics"}, "periodSeconds": 5, "failureThreshold": 3,
        },
        "livenessProbe": {
            "httpGet": {"path": "/live", "port": "metrics"}, "periodSeconds": 15, "failureThreshold": 4,
        },
    }  # fmt: skip
    spec = pods.pod(
        plan,
        main,
        service_account=component,
        token=True,
        grace_seconds=30,
        volumes=[
            pods.bundle_volume(plan),
            pods.config_volume(dispatcher_config(plan)["metadata"]["name"]),
            pods.secret_volume("secrets", name_of(plan, component)),
            pods.empty_volume("work", "64Mi"),
            pods.empty_volume("tmp", "64Mi"),
        ],
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": plan.metadata(component, component),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": 300,
            "selector": {"matchLabels": plan.labels(component)},
            "template": pods.template(plan, component, spec, {pods.SECRETS_ANNOTATION: secrets_version}),
        },
    }


def service(plan: Plan, group: str | None) -> Manifest:
    """Service of a listener."""
    component = access.listener(group)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": plan.metadata(component, component),
        "spec": {
            "type": "ClusterIP",
            "selector": plan.labels(component),
            "ports": [{"name": "http", "port": _SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def scaling(plan: Plan, group: str | None) -> list[Manifest]:
    """How many replicas there are, and how many must stay during maintenance."""
    component = access.listener(group)
    settings = plan.settings
    found: list[Manifest] = [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": plan.metadata(component, component),
            "spec": {
                "maxUnavailable": 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": plan.labels(component)},
            },
        }
    ]
    if _is_scaled(plan):
        found.append(
            {
                "apiVersion": "autoscaling/v2",
                "kind": "HorizontalPodAutoscaler",
                "metadata": plan.metadata(component, component),
                "spec": {
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": component},
                    "minReplicas": settings.replicas,
                    "maxReplicas": settings.max_replicas,
                    "metrics": [
                        {
                            "type": "Resource",
                            "resource": {
                                "name": "cpu",
                                # Requests are far below limits, so this is early.
                                "target": {"type": "Utilization", "averageUtilization": 200},
                            },
                        }
                    ],
                    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
                },
            }
        )
    return found


def ingress(plan: Plan) -> Manifest | None:
    """Only what is under /webhooks; routes of a group's own listener by their exact path."""
    settings = plan.settings.ingress
    if settings is None:
        return None

    def path(text: str, kind: str, group: str | None) -> Manifest:
        backend = {"service": {"name": access.listener(group), "port": {"name": "http"}}}
        return {"path": text, "pathType": kind, "backend": backend}

    paths = [
        path(route_path(route.name), "Exact", group)
        for group in plan.listener_groups
        for route in plan.sync_routes(group)
    ]
    metadata = plan.metadata(access.LISTENER, access.LISTENER)
    if settings.annotations:
        metadata["annotations"] = dict(settings.annotations)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata,
        "spec": {
            **({"ingressClassName": settings.class_name} if settings.class_name else {}),
            "tls": [{"hosts": [settings.host], "secretName": settings.tls_secret}],
            "rules": [
                {"host": settings.host, "http": {"paths": [*paths, path("/webhooks", "Prefix", None)]}}
            ],
        },
    }


def foundations(plan: Plan) -> list[Manifest]:
    """What stands before anything runs: access, limits, admission and network policies."""
    return [
        *access.service_accounts(plan),
        *access.roles(plan),
        jobs.quota(plan),
        *(access.admission_policies(plan) if plan.settings.admission_policies else []),
        *(network.policies(plan) if plan.settings.network_policies else []),
    ]


class KubernetesListener(pulumi.ComponentResource):
    """Listener, dispatcher and everything that they need, in a cluster."""

    url: str | None
    """Base URL from outside, without a trailing slash; None without an ingress."""

    def __init__(
        self,
        resource_name: str,
        plan: Plan,
        registrar_of: Any,
        *,
        secrets: Sequence[pulumi.Resource],
        secrets_version: pulumi.Input[str],
        after: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            resource_name: Pulumi's name of the component.
            plan: the deployment.
            registrar_of: function of a parent that gives its registrar.
            secrets: the Secrets that are mounted.
            secrets_version: Pods are rolled when it changes.
            after: the namespaces.
            opts: options of the component.
        """
        super().__init__("port-webhook:kubernetes:Listener", resource_name, {}, opts)
        registrar: Registrar = registrar_of(self)
        base = registrar.add(foundations(plan), after=after)
        mounted = [
            *(
                item
                for index, manifest in enumerate(bundle(plan))
                for item in registrar.add([manifest], after=after, name=f"bundle-{index:02d}")
            ),
            *registrar.add([jobs.config_map(plan)], after=after, name="runs"),
        ]
        running = self._deploy(
            registrar,
            dispatcher_config(plan),
            dispatcher(plan, secrets_version),
            [*base, *mounted, *secrets],
            after,
        )
        for group in (None, *plan.listener_groups):
            deployed = self._deploy(
                registrar,
                listener_config(plan, group),
                listener(plan, group, secrets_version),
                [*base, *mounted, *secrets],
                after,
            )
            # An autoscaler without anything to scale complains.
            scaled = registrar.add(scaling(plan, group), after=[*after, *deployed])
            running += [*deployed, *scaled, *registrar.add([service(plan, group)], after=after)]
        entry = ingress(plan)
        if entry is not None:
            running += registrar.add([entry], after=running)
        self.url = f"https://{plan.settings.ingress.host}" if plan.settings.ingress else None
        self.register_outputs({"url": self.url})

    @staticmethod
    def _deploy(
        registrar: Registrar,
        config: Manifest,
        deployment: Manifest,
        needs: Sequence[pulumi.Resource],
        after: Sequence[pulumi.Resource],
    ) -> list[pulumi.Resource]:
        name = deployment["metadata"]["name"]
        mounted = registrar.add([config], after=after, name=name)
        return registrar.add([deployment], after=[*needs, *mounted])


def manifests(plan: Plan, secrets: Mapping[tuple[str, str], str], secrets_version: str) -> list[Manifest]:
    """Everything of a deployment as it is applied, in an order in which it can be.

    Args:
        plan: the deployment.
        secrets: namespace and name of each Secret to its content.
        secrets_version: of the secrets store.
    """
    from port_webhook_stack.agent import kubernetes as agent
    from port_webhook_stack.secrets_store.kubernetes import manifest

    entry = ingress(plan)
    return [
        *(namespaces(plan) if plan.settings.create_namespaces else []),
        *foundations(plan),
        *(manifest(plan, namespace, name, text) for (namespace, name), text in secrets.items()),
        *bundle(plan),
        jobs.config_map(plan),
        dispatcher_config(plan),
        dispatcher(plan, secrets_version),
        *(
            item
            for group in (None, *plan.listener_groups)
            for item in (
                listener_config(plan, group),
                listener(plan, group, secrets_version),
                service(plan, group),
                *scaling(plan, group),
            )
        ),
        *([entry] if entry is not None else []),
        *agent.manifests(plan, secrets_version),
    ]


def _is_scaled(plan: Plan) -> bool:
    return plan.settings.max_replicas > plan.settings.replicas
