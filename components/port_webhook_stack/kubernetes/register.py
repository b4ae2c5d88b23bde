"""Manifests as Pulumi resources. The only module that imports pulumi_kubernetes, and only when it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pulumi

from port_webhook_stack.kubernetes.plan import Manifest

_RESOURCES = {
    ("v1", "ConfigMap"): "core.v1.ConfigMap",
    ("v1", "Namespace"): "core.v1.Namespace",
    ("v1", "ResourceQuota"): "core.v1.ResourceQuota",
    ("v1", "Secret"): "core.v1.Secret",
    ("v1", "Service"): "core.v1.Service",
    ("v1", "ServiceAccount"): "core.v1.ServiceAccount",
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"): (
        "admissionregistration.v1.ValidatingAdmissionPolicy"
    ),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding"): (
        "admissionregistration.v1.ValidatingAdmissionPolicyBinding"
    ),
    ("apps/v1", "Deployment"): "apps.v1.Deployment",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "autoscaling.v2.HorizontalPodAutoscaler",
    ("networking.k8s.io/v1", "Ingress"): "networking.v1.Ingress",
    ("networking.k8s.io/v1", "NetworkPolicy"): "networking.v1.NetworkPolicy",
    ("policy/v1", "PodDisruptionBudget"): "policy.v1.PodDisruptionBudget",
    ("rbac.authorization.k8s.io/v1", "Role"): "rbac.v1.Role",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "rbac.v1.RoleBinding",
}
_ARGUMENTS = {
    "apiVersion": "api_version",
    "automountServiceAccountToken": "automount_service_account_token",
    "binaryData": "binary_data",
    "roleRef": "role_ref",
    "stringData": "string_data",
}


class Registrar:
    """Registers manifests below one component.

    Args:
        prefix: of the resources' names in Pulumi.
        parent: their parent.
        provider: of the cluster.
    """

    def __init__(self, prefix: str, parent: pulumi.Resource, provider: pulumi.ProviderResource) -> None:
        self._prefix = prefix
        self._parent = parent
        self._provider = provider

    def add(
        self,
        manifests: Iterable[Manifest],
        *,
        after: Sequence[pulumi.Resource] = (),
        name: str | None = None,
    ) -> list[pulumi.Resource]:
        """Registers manifests.

        Args:
            manifests: as Kubernetes takes them.
            after: what must be there before.
            name: name in Pulumi of the one manifest, where its own changes with its content: a new object is
                then made before what mounts the old one is rolled, and the old one is removed after that.
        """
        import pulumi_kubernetes

        found: list[pulumi.Resource] = []
        for manifest in manifests:
            kind, metadata = manifest["kind"], manifest["metadata"]
            resource: Any = pulumi_kubernetes
            for part in _RESOURCES[manifest["apiVersion"], kind].split("."):
                resource = getattr(resource, part)
            own = name or "-".join(filter(None, [metadata.get("namespace"), metadata["name"]]))
            arguments = {_ARGUMENTS.get(key, key): value for key, value in manifest.items()}
            found.append(
                resource(
                    f"{self._prefix}-{kind.lower()}-{own}",
                    **arguments,
                    opts=pulumi.ResourceOptions(
                        parent=self._parent, provider=self._provider, depends_on=list(after)
                    ),
                )
            )
        return found


def provider(
    name: str,
    *,
    kubeconfig: str | None,
    context: str | None,
    identifier: str | None,
    render_directory: str | None,
    parent: pulumi.Resource,
) -> pulumi.ProviderResource:
    """The provider of the cluster, or of a folder of YAML files.

    Args:
        name: in Pulumi.
        kubeconfig, context: how the cluster is reached.
        identifier: which cluster it is. Everything is made anew when it changes, and only then: without it the
            provider takes another path of the kubeconfig, or a renewed certificate in it, for another cluster.
        render_directory: write files there instead.
        parent: the facade.
    """
    import pulumi_kubernetes

    found: pulumi.ProviderResource = pulumi_kubernetes.Provider(
        name,
        # The provider refuses both beside a folder; an empty text keeps KUBECONFIG out.
        kubeconfig="" if render_directory else kubeconfig,
        context=None if render_directory else context,
        cluster_identifier=identifier,
        # Else a changed Secret would be deleted first, and Pods that start then would wait for it.
        enable_secret_mutable=True,
        render_yaml_to_directory=render_directory,
        opts=pulumi.ResourceOptions(parent=parent),
    )
    return found
