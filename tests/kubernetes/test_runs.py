"""Runs through a deployed stack: real API server and controllers, real processes of the Pods, a real local Port."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any

import pytest
import requests
from tests.fixtures_localport import eventually
from tests.kubernetes.deployed import WAIT, Stack
from tests.kubernetes.kubelet import MERGE

from port_webhook_handlers.port.envelope import action_webhook
from port_webhook_handlers.runtime.kubernetes import names

pytestmark = pytest.mark.kubernetes


ENDS = {
    "refuse": ("FAILURE", "not today", 1),
    "vanish": ("FAILURE", "what it did is unknown", 1),
    "again": ("SUCCESS", "attempt 2", 2),
    "guarded": ("SUCCESS", "token of 24", 1),
}
DEATHS = {
    "oom": "memory than its limit",
    "evict": "evicted",
    "crash": "ended with code 137",
    "image": "ErrImagePull",
}


@pytest.fixture(scope="module")
def started(stack: Stack) -> dict[str, str]:
    """Runs by how they end, all at once: some wait for the pace of the cluster's controllers."""
    kinds: dict[str, str] = {}
    known = threading.Event()

    def behaviour(pod: dict[str, Any]) -> str:
        job = pod["metadata"]["labels"].get("batch.kubernetes.io/job-name")
        # A Pod may be there before Port has said the run's id.
        assert job is None or job in kinds or known.wait(WAIT)
        return kinds.get(job, "run")

    stack.kubelet.behaviour = behaviour
    found = {route: stack.port.execute(route) for route in ENDS}
    for death in DEATHS:
        found[death] = stack.port.execute("work", {"seconds": 20})
        kinds[names.run_name(found[death])] = death
    known.set()
    return found


def test_a_run_is_executed_reported_and_cleaned_up(stack: Stack, started: dict[str, str]) -> None:
    run_id = stack.port.execute("work")
    run = stack.port.finished(run_id, WAIT)
    assert (run["status"], run["summary"]) == ("SUCCESS", "done")
    assert stack.port.logs(run_id)[-2:] == ["working", "worked"]
    name = names.run_name(run_id)
    assert stack.kubelet.starts[name] == 1
    eventually(lambda: name not in {job["metadata"]["name"] for job in stack.jobs()}, WAIT, "the Job stays")
    # Its claim stays, so that a repeat is not executed.
    done = f"{names.STATE_LABEL}=done"
    eventually(lambda: name in {s["metadata"]["name"] for s in stack.secrets(done)}, WAIT, "is not done")
    assert stack.send("work", run_id, 1).status_code in (202, 409)
    assert stack.kubelet.starts[name] == 1


def test_a_run_that_is_handed_over_stays_open_for_the_worker(stack: Stack) -> None:
    run_id = stack.port.execute("pass_on")
    name, done = names.run_name(run_id), f"{names.STATE_LABEL}=done"
    eventually(
        lambda: name in {item["metadata"]["name"] for item in stack.secrets(done)}, WAIT, "is not done"
    )
    run = stack.port.run(run_id)
    assert (run["status"], run["statusLabel"], run["summary"], run["link"]) == (
        "IN_PROGRESS",
        "Handed over",
        "Waiting for a worker.",
        ["https://example.com/queue"],
    )
    # For the stack it is over, and it was no failure.
    assert name not in {item["metadata"]["name"] for item in stack.secrets(f"{names.PREFIX}/dead-letter")}
    eventually(lambda: name not in {job["metadata"]["name"] for job in stack.jobs()}, WAIT, "the Job stays")
    assert stack.port.run(run_id)["status"] == "IN_PROGRESS"
    stack.port.api("PATCH", f"/actions/runs/{run_id}", {"status": "SUCCESS", "summary": "rotated"})
    assert stack.port.run(run_id)["summary"] == "rotated"


def test_a_job_that_somebody_deletes_is_reported(stack: Stack) -> None:
    run_id = stack.port.execute("work", {"seconds": 20})
    name = names.run_name(run_id)
    eventually(lambda: stack.kubelet.starts.get(name) == 1, WAIT)
    path = f"/apis/batch/v1/namespaces/{stack.plan.runs_namespace}/jobs/{name}"
    stack.plane.request("DELETE", path, {"propagationPolicy": "Background"})
    run = stack.port.finished(run_id, WAIT)
    assert (run["status"], "its Job was deleted" in run["summary"]) == ("FAILURE", True), run["summary"]
    assert stack.kubelet.starts[name] == 1


def test_a_run_waits_while_the_policy_is_ahead_of_the_dispatcher(stack: Stack) -> None:
    # Between a deployment's policies and its dispatcher: what the one asks for the other cannot give yet.
    name = f"{stack.plan.runs_namespace}.jobs.{names.PREFIX}"
    path = f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{name}"
    rules = stack.plane.request("GET", path)["spec"]["validations"]

    def enforce(validations: list[dict[str, str]]) -> None:
        stack.plane.request("PATCH", path, {"spec": {"validations": validations}}, kind=MERGE)

    enforce([*rules, {"expression": "object.metadata.name == 'next'", "message": "of the next deployment"}])
    try:
        log = stack.pod("dispatcher").log
        before = len(log.read_bytes())
        waiting: list[str] = []

        def refused() -> bool:
            waiting.append(stack.port.execute("work"))
            eventually(lambda: waiting[-1].encode() in log.read_bytes()[before:], WAIT)
            return b"of the next deployment" in log.read_bytes()[before:]

        # The API server takes a moment to learn of a policy.
        eventually(refused, WAIT, "nothing was refused")
    finally:
        enforce(rules)
    assert {stack.port.finished(run_id, WAIT)["status"] for run_id in waiting} == {"SUCCESS"}


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


def test_the_agent_brings_runs_that_port_cannot_deliver(stack: Stack) -> None:
    method = action_webhook("work", synchronized=False).to_body()
    body = {
        "identifier": "pulled",
        "trigger": {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}},
        "invocationMethod": {**method, "url": f"{stack.url()}/webhooks/work", "agent": True},
    }
    stack.port.api("POST", "/actions", body)
    run_id = stack.port.execute("pulled")
    assert stack.port.finished(run_id, WAIT)["status"] == "SUCCESS"
    assert any("answered 202" in line for line in stack.port.logs(run_id))
    log = stack.pod("agent").log.read_text()
    assert stack.port.client_secret not in log


def test_metrics_are_on_a_port_of_their_own(stack: Stack) -> None:
    for component in ("listener", "dispatcher"):
        pod = stack.pod(component)
        text = requests.get(f"http://127.0.0.1:{pod.metrics_port}/metrics", timeout=5).text
        assert "port_webhook_" in text
    assert requests.get(f"{stack.url()}/metrics", timeout=5).status_code == 404


def test_a_listener_leaves_without_losing_a_request(stack: Stack) -> None:
    pod = stack.pod("listener")
    assert pod.process is not None
    before = len(stack.pods("listener"))
    runs = [stack.port.execute("hello") for _ in range(3)]
    pod.process.send_signal(signal.SIGTERM)
    assert pod.process.wait(30) == 0
    for run_id in runs:
        assert stack.port.finished(run_id, WAIT)["status"] == "SUCCESS"
    eventually(lambda: pod.restarts == 1 and len(stack.pods("listener")) == before, WAIT)
    for route in stack.plan.routes:
        stack.define(route)


def test_what_port_has_not_taken_outlives_the_dispatcher(stack: Stack) -> None:
    run_id = stack.port.execute("work")
    prefix = f"/v1/actions/runs/{run_id}"
    stack.port.admin("PUT", "/faults", {"api": [{"prefix": prefix, "status": 503}]})
    try:
        name = names.run_name(run_id)
        state = f"{names.STATE_LABEL}=ended"
        eventually(
            lambda: name in {s["metadata"]["name"] for s in stack.secrets(state)}, WAIT, "does not end"
        )
        dispatcher = stack.pod("dispatcher")
        restarts = dispatcher.restarts
        stack.kubelet.kill(dispatcher)
        eventually(lambda: dispatcher.restarts > restarts and stack.pods("dispatcher"), WAIT)
    finally:
        stack.port.admin("DELETE", "/faults")
    assert stack.port.finished(run_id, WAIT)["status"] == "SUCCESS"
    assert stack.port.logs(run_id)[-2:] == ["working", "worked"]
    assert stack.kubelet.starts[name] == 1


@pytest.mark.parametrize("route", ENDS)
def test_handlers_end_as_they_do_everywhere(stack: Stack, started: dict[str, str], route: str) -> None:
    status, summary, starts = ENDS[route]
    run = stack.port.finished(started[route], WAIT)
    assert (run["status"], summary in run["summary"]) == (status, True), run["summary"]
    name = names.run_name(started[route])
    assert stack.kubelet.starts[name] == starts
    # What a handler refuses is a result: a dead letter is a run without one.
    assert name not in {item["metadata"]["name"] for item in stack.secrets(f"{names.DEAD_LABEL}=true")}
    assert "handler-token" not in json.dumps(stack.port.logs(started[route]))


@pytest.mark.parametrize("death", DEATHS)
def test_a_job_that_dies_without_a_result_is_reported(
    stack: Stack, started: dict[str, str], death: str
) -> None:
    run = stack.port.finished(started[death], WAIT)
    assert (run["status"], DEATHS[death] in run["summary"]) == ("FAILURE", True), run["summary"]
    dead = {item["metadata"]["name"] for item in stack.secrets(f"{names.DEAD_LABEL}=true")}
    assert names.run_name(started[death]) in dead
