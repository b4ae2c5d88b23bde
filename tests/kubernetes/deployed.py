"""A deployed stack as tests use it: its Pods, its Port, signed requests."""

from __future__ import annotations

import json
import time
from typing import Any

import requests
from tests.fixtures_localport import LocalPort, eventually
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.kubelet import Kubelet, RunningPod

from port_webhook_handlers.port.envelope import action_webhook
from port_webhook_handlers.port.signature import sign
from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_stack.kubernetes.plan import Plan

WAIT = 90.0


class Stack:
    """A deployed stack and the Port that it works for."""

    def __init__(self, plane: ControlPlane, kubelet: Kubelet, port: LocalPort, found: Plan) -> None:
        self.plane = plane
        self.kubelet = kubelet
        self.port = port
        self.plan = found

    def pods(self, component: str) -> list[RunningPod]:
        """Executed Pods of a Deployment that are ready."""
        return [
            pod
            for pod in list(self.kubelet.pods.values())
            if pod.namespace == self.plan.namespace
            and pod.manifest["metadata"]["labels"]["app.kubernetes.io/component"] == component
            and pod.ready
            and not pod.ended
            and not pod.terminating
        ]

    def pod(self, component: str, replica: int = 0) -> RunningPod:
        """A ready Pod of a Deployment, waited for if need be."""
        found: list[RunningPod] = []

        def ready() -> bool:
            found[:] = self.pods(component)
            return len(found) > replica

        eventually(ready, WAIT, f"no replica {replica} of {component} is ready")
        return found[replica]

    def url(self, replica: int = 0, component: str = "listener") -> str:
        return f"http://127.0.0.1:{self.pod(component, replica).port}"

    def define(self, route: str, replica: int = 0) -> None:
        """An action in Port that points at a replica."""
        mode = self.plan.routes[route].mode
        method = action_webhook(route, synchronized=mode == "sync").to_body()
        component = "listener-ops" if route.startswith("privileged") else "listener"
        method["url"] = f"{self.url(replica, component)}/webhooks/{route}"
        inputs = {"seconds": {"type": "number", "title": "s"}} if route == "work" else {}
        body = {
            "identifier": route,
            "title": route,
            "trigger": {
                "type": "self-service",
                "operation": "CREATE",
                "userInputs": {"properties": inputs, "required": []},
            },
            "invocationMethod": method,
        }
        if self.port.request("POST", "/v1/actions", body).status_code == 409:
            self.port.api("PUT", f"/actions/{route}", body)

    def send(self, route: str, run_id: str, replica: int = 0, **inputs: Any) -> requests.Response:
        """A signed request, as Port sends it."""
        body = json.dumps(
            {
                "port_context": {"action": route, "runId": run_id},
                "inputs": inputs,
                "entity": None,
                "trigger": {},
            }
        ).encode()
        timestamp = str(int(time.time()))
        headers = {
            "x-port-timestamp": timestamp,
            "x-port-signature": sign(self.port.client_secret, timestamp, body),
            "content-type": "application/json",
        }
        return requests.post(f"{self.url(replica)}/webhooks/{route}", data=body, headers=headers, timeout=30)

    def secrets(self, selector: str = "") -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{self.plan.runs_namespace}/secrets"
        query = {"labelSelector": ",".join(filter(None, [names.MODE_LABEL, selector]))}
        return list(self.plane.request("GET", path, **query)["items"])

    def jobs(self) -> list[dict[str, Any]]:
        path = f"/apis/batch/v1/namespaces/{self.plan.runs_namespace}/jobs"
        return list(self.plane.request("GET", path)["items"])
