"""Runs through a deployed stack: real API server and controllers, real processes of the Pods, a real local Port."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.fixtures_localport import LocalPort, eventually
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.kubelet import Kubelet, RunningPod
from tests.kubernetes.stack import manifests, plan, store

from port_webhook_handlers.port.envelope import action_webhook
from port_webhook_handlers.port.signature import sign
from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_localport import control
from port_webhook_stack.kubernetes.plan import Plan

pytestmark = pytest.mark.kubernetes

WAIT = 60.0


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

    def url(self, replica: int = 0, component: str = "listener") -> str:
        return f"http://127.0.0.1:{self.pods(component)[replica].port}"

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


@pytest.fixture(scope="module")
def port(scratch: Path) -> Iterator[LocalPort]:
    home = scratch / "local-port"
    running = LocalPort(control.ensure_running(home), home)
    yield running
    running.close()
    control.stop(home)


@pytest.fixture(scope="module")
def stack(plane: ControlPlane, kubelet: Kubelet, port: LocalPort, scratch: Path) -> Iterator[Stack]:
    found = plan(scratch, {"agent": None, "startSeconds": 30, "maxJobs": 8}, port=port.url)
    stack = Stack(plane, kubelet, port, found)
    applied = manifests(found, store(port.client_id, port.client_secret))
    for manifest in applied:
        plane.apply(manifest)
    eventually(
        lambda: (
            (len(stack.pods("listener")), len(stack.pods("listener-ops")), len(stack.pods("dispatcher")))
            == (2, 2, 1)
        ),
        WAIT,
        "the Deployments do not become ready",
    )
    for route in found.routes:
        stack.define(route)
    yield stack
    for manifest in applied:
        if manifest["kind"] in ("Deployment", "ValidatingAdmissionPolicyBinding"):
            plane.request("DELETE", f"{plane.collection(manifest)}/{manifest['metadata']['name']}")
    eventually(lambda: not stack.pods("listener") and not stack.pods("dispatcher"), WAIT)


def test_a_run_is_executed_reported_and_cleaned_up(stack: Stack) -> None:
    run_id = stack.port.execute("work")
    run = stack.port.finished(run_id, WAIT)
    assert (run["status"], run["summary"]) == ("SUCCESS", "done")
    assert stack.port.logs(run_id)[-2:] == ["working", "worked"]
    name = names.run_name(run_id)
    assert stack.kubelet.starts[name] == 1
    eventually(lambda: name not in {job["metadata"]["name"] for job in stack.jobs()}, WAIT, "the Job stays")
    # Its claim stays, so that a repeat is not executed.
    assert [
        s["metadata"]["labels"][names.STATE_LABEL] for s in stack.secrets() if s["metadata"]["name"] == name
    ] == ["done"]
    assert stack.send("work", run_id, 1).status_code in (202, 409)
    assert stack.kubelet.starts[name] == 1


@pytest.mark.parametrize(
    ("route", "status", "summary", "starts"),
    [
        ("refuse", "FAILURE", "not today", 1),
        ("vanish", "FAILURE", "what it did is unknown", 1),
        ("again", "SUCCESS", "attempt 2", 2),
        ("guarded", "SUCCESS", "token of 24", 1),
    ],
)
def test_handlers_end_as_they_do_everywhere(
    stack: Stack, route: str, status: str, summary: str, starts: int
) -> None:
    run_id = stack.port.execute(route)
    run = stack.port.finished(run_id, WAIT)
    assert (run["status"], summary in run["summary"]) == (status, True), run["summary"]
    assert stack.kubelet.starts[names.run_name(run_id)] == starts
    assert "handler-token" not in json.dumps(stack.port.logs(run_id))


@pytest.mark.parametrize(
    ("behaviour", "summary"),
    [
        ("oom", "memory than its limit"),
        ("evict", "evicted"),
        ("crash", "ended with code 137"),
        ("image", "ErrImagePull"),
    ],
)
def test_a_job_that_dies_without_a_result_is_reported(stack: Stack, behaviour: str, summary: str) -> None:
    kubelet = stack.kubelet
    kubelet.behaviour = lambda pod: (
        behaviour if "batch.kubernetes.io/job-name" in pod["metadata"]["labels"] else "run"
    )
    try:
        run_id = stack.port.execute("work", {"seconds": 20})
        run = stack.port.finished(run_id, WAIT)
    finally:
        kubelet.behaviour = lambda pod: "run"
    assert (run["status"], summary in run["summary"]) == ("FAILURE", True), run["summary"]


def test_a_job_that_somebody_deletes_is_reported(stack: Stack) -> None:
    run_id = stack.port.execute("work", {"seconds": 20})
    name = names.run_name(run_id)
    eventually(lambda: stack.kubelet.starts.get(name) == 1, WAIT)
    path = f"/apis/batch/v1/namespaces/{stack.plan.runs_namespace}/jobs/{name}"
    stack.plane.request("DELETE", path, {"propagationPolicy": "Background"})
    run = stack.port.finished(run_id, WAIT)
    assert (run["status"], "its Job was deleted" in run["summary"]) == ("FAILURE", True), run["summary"]
    assert stack.kubelet.starts[name] == 1


def test_synchronous_handlers_answer_in_the_listener_of_their_group(stack: Stack) -> None:
    run_id = stack.port.execute("hello")
    run = stack.port.finished(run_id, WAIT)
    assert run["status"] == "SUCCESS"
    assert stack.port.finished(stack.port.execute("privileged@hello"), WAIT)["status"] == "SUCCESS"
    # The listener for everything else does not know the route of the group.
    assert stack.send("privileged@hello", "r_elsewhere").status_code == 404


def test_a_repeat_is_a_conflict_and_not_a_second_run(stack: Stack) -> None:
    answers = [stack.send("hello", "r_repeat", 0) for _ in range(2)]
    assert [a.status_code for a in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    elsewhere = stack.send("hello", "r_repeat", 1)
    assert (elsewhere.status_code, elsewhere.json()["error"]) == (409, "answered_elsewhere")


def test_what_is_refused_ends_in_port(stack: Stack) -> None:
    run_id = stack.port.execute("work", {"seconds": -1})
    stack.port.finished(run_id, WAIT)
    bad = stack.port.execute("hello")
    answer = stack.send("work", f"{bad}x", seconds="long")
    assert (answer.status_code, answer.json()["accepted"]) == (202, False)


def test_metrics_are_on_a_port_of_their_own(stack: Stack) -> None:
    for component in ("listener", "dispatcher"):
        pod = stack.pods(component)[0]
        text = requests.get(f"http://127.0.0.1:{pod.metrics_port}/metrics", timeout=5).text
        assert "port_webhook_" in text
    assert requests.get(f"{stack.url()}/metrics", timeout=5).status_code == 404


def test_a_listener_leaves_without_losing_a_request(stack: Stack) -> None:
    pod = stack.pods("listener")[0]
    assert pod.process is not None
    before = len(stack.pods("listener"))
    runs = [stack.port.execute("hello") for _ in range(3)]
    pod.process.send_signal(signal.SIGTERM)
    assert pod.process.wait(30) == 0
    for run_id in runs:
        assert stack.port.finished(run_id, WAIT)["status"] == "SUCCESS"
    eventually(lambda: len(stack.pods("listener")) == before, WAIT)
    for route in stack.plan.routes:
        stack.define(route)
