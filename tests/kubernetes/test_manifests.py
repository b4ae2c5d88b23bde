"""Every manifest on a real API server: accepted strictly and without a warning, and what RBAC and policies forbid."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.stack import manifests, plan, store

from port_webhook_handlers.runtime.kubernetes import runs
from port_webhook_stack.agent import kubernetes as agent
from port_webhook_stack.kubernetes import access, jobs
from port_webhook_stack.kubernetes.plan import Plan

pytestmark = pytest.mark.kubernetes

Applied = tuple[Plan, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def applied(plane: ControlPlane, scratch: Path) -> Applied:
    """Everything, applied once; a warning or an unknown field fails here."""
    found = plan(scratch)
    everything = [*manifests(found), agent.secret(found, {"PORT_CLIENT_ID": "id", "PORT_CLIENT_SECRET": "s"})]
    for manifest in everything:
        plane.apply(manifest)
    return found, everything


def test_everything_is_applied_with_the_official_client(plane: ControlPlane, applied: Applied) -> None:
    from kubernetes import client, config

    found, everything = applied
    with config.new_client_from_config(str(plane.kubeconfig)) as api:
        deployments = client.AppsV1Api(api).list_namespaced_deployment(found.namespace).items
        names = {item.metadata.name for item in deployments}
    assert names == {"listener", "listener-ops", "dispatcher", "agent"}
    assert names == {m["metadata"]["name"] for m in everything if m["kind"] == "Deployment"}


def test_applying_again_changes_nothing(plane: ControlPlane, applied: Applied) -> None:
    for manifest in applied[1]:
        path = f"{plane.collection(manifest)}/{manifest['metadata']['name']}"
        before = plane.request("GET", path)
        after = plane.apply(manifest)
        assert before["metadata"].get("generation") == after["metadata"].get("generation"), path


def test_pods_are_admitted_by_the_restricted_standard(plane: ControlPlane, applied: Applied) -> None:
    # A Deployment that is not restricted is only warned about: its Pods are what is refused.
    for manifest in applied[1]:
        if manifest["kind"] == "Deployment":
            template = manifest["spec"]["template"]
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {**template["metadata"], "generateName": "x-", "namespace": applied[0].namespace},
                "spec": template["spec"],
            }
            plane.request("POST", f"/api/v1/namespaces/{applied[0].namespace}/pods", pod, dryRun="All")


@pytest.mark.parametrize(
    ("namespace", "verb", "path", "body"),
    [
        ("runs", "GET", "/api/v1/namespaces/{runs}/secrets", None),
        ("runs", "GET", "/api/v1/namespaces/{runs}/secrets/handler-guarded", None),
        ("runs", "DELETE", "/api/v1/namespaces/{runs}/secrets/handler-guarded", None),
        ("own", "GET", "/api/v1/namespaces/{own}/secrets", None),
        ("own", "POST", "/api/v1/namespaces/{own}/secrets", {"kind": "Secret", "metadata": {"name": "x"}}),
        ("runs", "POST", "/apis/batch/v1/namespaces/{runs}/jobs", {"kind": "Job", "metadata": {"name": "x"}}),
        ("runs", "POST", "/api/v1/namespaces/{runs}/pods", {"kind": "Pod", "metadata": {"name": "x"}}),
        ("runs", "GET", "/api/v1/namespaces/{runs}/pods", None),
        ("own", "GET", "/apis/coordination.k8s.io/v1/namespaces/{own}/leases", None),
        ("other", "GET", "/api/v1/nodes", None),
    ],
)
def test_the_listener_may_nothing_but_create_runs(
    plane: ControlPlane, applied: Applied, namespace: str, verb: str, path: str, body: Any
) -> None:
    found = applied[0]
    url = plane.url + path.format(runs=found.runs_namespace, own=found.namespace)
    with plane.account(found.namespace, access.LISTENER) as session:
        assert session.request(verb, url, json=body, timeout=10).status_code == 403


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/api/v1/namespaces/{runs}/secrets"),
        ("POST", "/api/v1/namespaces/{runs}/pods"),
        ("POST", "/api/v1/namespaces/{runs}/pods/x/exec"),
        ("GET", "/api/v1/namespaces/{own}/secrets"),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/{own}/leases/another"),
        ("POST", "/apis/apps/v1/namespaces/{own}/deployments"),
        ("GET", "/api/v1/nodes"),
    ],
)
def test_the_dispatcher_may_not_do_more_than_its_work(
    plane: ControlPlane, applied: Applied, verb: str, path: str
) -> None:
    found = applied[0]
    url = plane.url + path.format(runs=found.runs_namespace, own=found.namespace)
    body = None if verb == "GET" else {}
    with plane.account(found.namespace, access.DISPATCHER) as session:
        assert session.request(verb, url, json=body, timeout=10).status_code == 403


def test_a_runs_account_may_do_nothing(plane: ControlPlane, applied: Applied) -> None:
    found = applied[0]
    with plane.account(found.runs_namespace, jobs.service_account("ops")) as session:
        for kind in ("secrets", "pods", "configmaps"):
            url = f"{plane.url}/api/v1/namespaces/{found.runs_namespace}/{kind}"
            assert session.get(url, timeout=10).status_code == 403


def run_secret(found: Plan, run_id: str = "r_1") -> dict[str, Any]:
    return runs.secret(found.runs_namespace, run_id, "work", "async", body_hash=b"h", payload=b"{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"immutable": False}, "immutable Secrets of runs"),
        ({"type": "Opaque"}, "immutable Secrets of runs"),
        (
            {
                "type": "kubernetes.io/service-account-token",
                "metadata": {"name": "x", "annotations": {"kubernetes.io/service-account.name": "run-ops"}},
            },
            "immutable Secrets of runs",
        ),
        ({"metadata": {"name": "handler-guarded-2"}}, "hash of its run id"),
        ({"metadata": {"name": f"run-{'0' * 40}", "labels": {}}}, "has a mode"),
    ],
)
def test_the_listener_may_create_nothing_but_runs(
    plane: ControlPlane, applied: Applied, change: dict[str, Any], message: str
) -> None:
    found = applied[0]
    url = f"{plane.url}/api/v1/namespaces/{found.runs_namespace}/secrets"
    with plane.account(found.namespace, access.LISTENER) as session:
        answer = session.post(url, json={**run_secret(found), **change}, timeout=10)
        assert (answer.status_code, message in answer.text) == (422, True), answer.text


def test_a_run_is_accepted_once_and_cannot_be_changed(plane: ControlPlane, applied: Applied) -> None:
    found = applied[0]
    url = f"{plane.url}/api/v1/namespaces/{found.runs_namespace}/secrets"
    secret = run_secret(found, "r_once")
    with plane.account(found.namespace, access.LISTENER) as listener:
        assert listener.post(url, json=secret, timeout=10).status_code == 201
        assert listener.post(url, json=secret, timeout=10).json()["reason"] == "AlreadyExists"
    with plane.account(found.namespace, access.DISPATCHER) as dispatcher:
        patch = {"Content-Type": "application/merge-patch+json"}
        name = secret["metadata"]["name"]
        for body, status in (({"data": {"body": "eA=="}}, 422), ({"metadata": {"labels": {"a": "b"}}}, 200)):
            assert (
                dispatcher.patch(f"{url}/{name}", json=body, headers=patch, timeout=10).status_code == status
            )
        # It may not touch what handlers read, nor take it away.
        body = {"metadata": {"labels": {"a": "b"}}}
        answer = dispatcher.patch(f"{url}/handler-guarded", json=body, headers=patch, timeout=10)
        assert (answer.status_code, "Secrets of runs" in answer.text) == (422, True)
        assert dispatcher.delete(f"{url}/handler-guarded", timeout=10).status_code == 422


def job(found: Plan, route: str) -> dict[str, Any]:
    return copy.deepcopy(jobs.templates(found)[route])


@pytest.mark.parametrize("route", ["work", "again", "guarded"])
def test_the_dispatcher_may_create_the_jobs_of_every_route(
    plane: ControlPlane, applied: Applied, route: str
) -> None:
    found = applied[0]
    url = f"{plane.url}/apis/batch/v1/namespaces/{found.runs_namespace}/jobs"
    with plane.account(found.namespace, access.DISPATCHER) as session:
        answer = session.post(
            url, json=job(found, route), params={"dryRun": "All", "fieldValidation": "Strict"}, timeout=10
        )
        assert answer.status_code == 201, answer.text
        assert "Warning" not in answer.headers


def _set(path: str, value: Any) -> Any:
    def change(body: dict[str, Any]) -> None:
        place: Any = body
        *keys, last = path.split(".")
        for key in keys:
            place = place[int(key)] if key.isdigit() else place[key]
        place[int(last) if last.isdigit() else last] = value

    return change


POD = "spec.template.spec"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(f"{POD}.containers.0.image", f"evil@sha256:{'c' * 64}"), "by digest"),
        (_set(f"{POD}.serviceAccountName", "run-ops"), "by digest"),
        (_set(f"{POD}.serviceAccountName", "default"), "ServiceAccount"),
        (_set(f"{POD}.automountServiceAccountToken", True), "token"),
        (_set(f"{POD}.containers.0.command", ["sh", "-c", "id"]), "command"),
        (_set(f"{POD}.containers.0.args", ["x"]), "command"),
        (_set(f"{POD}.containers.0.env", [{"name": "LD_PRELOAD", "value": "x"}]), "variables"),
        (
            _set(
                f"{POD}.containers.0.env",
                [
                    {
                        "name": "PORT_WEBHOOK_X",
                        "valueFrom": {"secretKeyRef": {"name": "handler-guarded", "key": "secrets.json"}},
                    }
                ],
            ),
            "variables",
        ),
        (_set(f"{POD}.initContainers", [{"name": "i", "image": "x"}]), "one container"),
        (
            _set(f"{POD}.volumes.0", {"name": "run", "secret": {"secretName": "handler-guarded"}}),
            "mounts its own",
        ),
        (
            _set(f"{POD}.volumes.0", {"name": "run", "secret": {"secretName": f"run-{'1' * 40}"}}),
            "mounts its own",
        ),
        (_set(f"{POD}.volumes.0", {"name": "run", "configMap": {"name": "other"}}), "mounts its own"),
        (
            _set(
                f"{POD}.volumes.0",
                {"name": "run", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
            ),
            "mounts its own",
        ),
        (_set("spec.parallelism", 2), "one Pod at a time"),
        (_set("metadata.name", "anything"), "named like its Secret"),
    ],
)
def test_the_dispatcher_may_create_nothing_but_the_jobs_that_were_deployed(
    plane: ControlPlane, applied: Applied, change: Any, message: str
) -> None:
    found = applied[0]
    body = job(found, "work")
    change(body)
    url = f"{plane.url}/apis/batch/v1/namespaces/{found.runs_namespace}/jobs"
    with plane.account(found.namespace, access.DISPATCHER) as session:
        answer = session.post(url, json=body, params={"dryRun": "All"}, timeout=10)
    assert (answer.status_code, message in answer.text) == (422, True), answer.text


def test_the_dispatcher_may_only_take_a_pods_gate_away(plane: ControlPlane, applied: Applied) -> None:
    found = applied[0]
    template = job(found, "work")["spec"]["template"]
    metadata = {**template["metadata"], "name": "gated", "namespace": found.runs_namespace}
    pods = f"/api/v1/namespaces/{found.runs_namespace}/pods"
    plane.request(
        "POST", pods, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    )
    ungate = {"spec": {"schedulingGates": None}}
    image = [{"name": "run", "image": f"evil@sha256:{'c' * 64}"}]
    with plane.account(found.namespace, access.DISPATCHER) as session:
        for kind, body, status in (
            ("strategic-merge", {"spec": {**ungate["spec"], "containers": image}}, 422),
            ("strategic-merge", {"metadata": {"labels": {"a": "b"}}, **ungate}, 422),
            ("merge", {"metadata": {"annotations": {"a": "b"}}}, 422),
            ("merge", {"metadata": {"annotations": {"a": "b"}}, **ungate}, 422),
            ("merge", {"metadata": {"finalizers": ["a.example.com/b"]}, **ungate}, 422),
            ("strategic-merge", {"spec": {**ungate["spec"], "tolerations": [{"operator": "Exists"}]}}, 422),
            ("merge", {"spec": {**ungate["spec"], "nodeSelector": {"a": "b"}}}, 422),
            ("merge", ungate, 200),
        ):
            answer = session.patch(
                f"{plane.url}{pods}/gated",
                json=body,
                headers={"Content-Type": f"application/{kind}-patch+json"},
                timeout=10,
            )
            assert answer.status_code == status, answer.text
    plane.request("DELETE", f"{pods}/gated", {"gracePeriodSeconds": 0})


def test_not_even_an_administrator_creates_jobs_there_by_accident(
    plane: ControlPlane, applied: Applied
) -> None:
    found = applied[0]
    url = f"{plane.url}/apis/batch/v1/namespaces/{found.runs_namespace}/jobs"
    answer = plane.session.post(url, json=job(found, "work"), params={"dryRun": "All"}, timeout=10)
    assert (answer.status_code, "only the dispatcher" in answer.text) == (422, True)


def test_the_secrets_of_each_process_hold_what_it_needs(applied: Applied) -> None:
    from port_webhook_stack.secrets_store.kubernetes import contents

    found = applied[0]
    parts = {name: set(part) for (_, name), part in contents(found, store()).items()}
    assert parts["dispatcher-secrets"] == {"api"}
    assert parts["handler-guarded"] == {"secrets", "decryption"}
    content = contents(found, store())
    assert content[found.runs_namespace, "handler-guarded"] == {
        "secrets": store()["secrets"],
        "decryption": [],
    }
    assert content[found.namespace, "listener-secrets"]["secrets"] == {}
