"""Pods as every component of the stack has them: restricted, read-only, without a token unless it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_stack.kubernetes.plan import Manifest, Plan
from port_webhook_stack.kubernetes.settings import Resources

USER: Final = 65532
"""User and group of the runtime image."""

SECRETS_ANNOTATION: Final = f"{names.PREFIX}/secrets-version"
"""Annotation of Pods that are rolled when their secrets change."""


def command(role: str) -> list[str]:
    """Command of a container of the runtime image."""
    return ["/opt/venv/bin/python", "-I", "/opt/port-webhook/boot.py", role]


def container(
    plan: Plan,
    name: str,
    *,
    image: str,
    resources: Resources,
    mounts: Sequence[str],
    environment: Sequence[Manifest] = (),
    role: str | None = None,
) -> Manifest:
    """A container.

    Args:
        plan: the deployment.
        name: of the container.
        image, resources: as they are.
        mounts: names of volumes, mounted in the runtime's folder; `work` is the only one that can be written.
        environment: further variables.
        role: what the runtime image becomes; None: the image's own command.
    """
    body: Manifest = {
        "name": name,
        "image": image,
        # The digest names one image, so there is nothing to pull again.
        "imagePullPolicy": "IfNotPresent",
        "resources": {kind: dict(values) for kind, values in resources.items()},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {
                "name": mount,
                "mountPath": "/tmp" if mount == "tmp" else f"{names.ROOT}/{mount}",  # noqa: S108
                **({} if mount in ("work", "tmp") else {"readOnly": True}),
            }
            for mount in mounts
        ],
    }
    if role is not None:
        body["command"] = command(role)
        environment = [{"name": "PORT_WEBHOOK_DIGEST", "value": plan.digest}, *environment]
    if environment:
        body["env"] = list(environment)
    return body


def pod(
    plan: Plan,
    main: Manifest,
    *,
    service_account: str,
    volumes: Sequence[Manifest],
    token: bool,
    grace_seconds: int,
) -> Manifest:
    """The specification of a Pod with one container.

    Args:
        plan: the deployment.
        main: its container.
        service_account: its ServiceAccount.
        volumes: what the container mounts.
        token: whether the ServiceAccount's token is mounted.
        grace_seconds: between SIGTERM and SIGKILL.
    """
    settings = plan.settings
    pull_secrets = [{"name": name} for name in settings.image_pull_secrets]
    return {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": token,
        # Addresses of other Services are nobody's business.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
        **({"nodeSelector": dict(settings.node_selector)} if settings.node_selector else {}),
        **({"tolerations": [dict(item) for item in settings.tolerations]} if settings.tolerations else {}),
        "containers": [main],
        "volumes": list(volumes),
    }


def bundle_volume(plan: Plan) -> Manifest:
    """The bundle's pieces in one folder."""
    sources = [
        {"configMap": {"name": shard.name, "items": [{"key": shard.key, "path": shard.key}]}}
        for shard in plan.shards
    ]
    return {"name": "bundle", "projected": {"defaultMode": 0o440, "sources": sources}}


def config_volume(name: str) -> Manifest:
    """The configuration."""
    return {"name": "config", "configMap": {"name": name, "defaultMode": 0o440}}


def secret_volume(name: str, secret: str) -> Manifest:
    """A Secret as files."""
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}


def previous_volume() -> Manifest:
    """What a rotation replaced, as long as it counts; mostly there is none."""
    volume = secret_volume("previous", names.FORMER_SIGNING)
    volume["secret"]["optional"] = True
    return volume


def empty_volume(name: str, size: str) -> Manifest:
    """A folder that ends with the Pod."""
    return {"name": name, "emptyDir": {"sizeLimit": size}}


def template(plan: Plan, component: str, spec: Manifest, annotations: Mapping[str, Any]) -> Manifest:
    """The template of a Deployment's Pods."""
    return {
        "metadata": {"labels": plan.labels(component), "annotations": dict(annotations)},
        "spec": spec,
    }


def spread(plan: Plan, component: str) -> list[Manifest]:
    """Replicas on different nodes and zones, as far as there are some."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": plan.labels(component)},
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]
