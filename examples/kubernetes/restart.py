"""Restarts a Deployment of the cluster that the stack runs in.

Its runs get a token of the cluster (`kubernetes.groups.restarter.mountToken`); what the token may do is granted to
the ServiceAccount `run-restarter` of the runs' namespace, for example to patch the Deployments of one namespace:

    kubectl create role restart --namespace shop --verb patch --resource deployments.apps
    kubectl create rolebinding restart --namespace shop --role restart --serviceaccount port-webhook-runs:run-restarter
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from port_webhook_handlers.sdk import Failure, Field, Inputs, Result, Run, Success, action

API_SERVER = "https://kubernetes.default.svc"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"


class Target(Inputs):
    """Which Deployment."""

    namespace: Annotated[str, Field(title="Namespace", pattern="[a-z0-9-]+", max_length=63)]
    deployment: Annotated[str, Field(title="Deployment", pattern="[a-z0-9.-]+", max_length=253)]


@action(
    "restart_deployment",
    title="Restart a Deployment",
    operation="CREATE",
    timeout_seconds=60,
    privilege_group="restarter",
)
def restart_deployment(inputs: Target, run: Run) -> Result:
    """Rolls the Pods of a Deployment, as `kubectl rollout restart` does."""
    import requests

    annotations = {RESTARTED_AT: datetime.now(UTC).isoformat(timespec="seconds")}
    answer = requests.patch(
        f"{API_SERVER}/apis/apps/v1/namespaces/{quote(inputs.namespace)}/deployments/{quote(inputs.deployment)}",
        json={"spec": {"template": {"metadata": {"annotations": annotations}}}},
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
            "Content-Type": "application/merge-patch+json",
        },
        verify=str(ACCOUNT / "ca.crt"),
        timeout=20,
    )
    if not answer.ok:
        return Failure(f"The cluster refused: {answer.json().get('message', answer.status_code)}")
    return Success(f"{inputs.namespace}/{inputs.deployment} is being rolled")
