"""Deployments of services in a cluster: a real API server and real controllers, with the rights that the stack grants.

No kubelet runs these Pods; a thread says of each that it is ready, unless its image is one that never gets so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.stack import SETTINGS
from tests.unit.bundled.services import entity, failure

from port_webhook_handlers.bundle import build
from port_webhook_handlers.bundled.deploy import deploy_microservice, rollout
from port_webhook_handlers.bundled.deploy.kubernetes import DEPLOYED
from port_webhook_handlers.bundled.running import what_runs_where
from port_webhook_handlers.bundled.scale_restart import restart_service, scale_service
from port_webhook_handlers.runtime import manifest as manifests_of_bundles
from port_webhook_handlers.sdk import Success
from port_webhook_handlers.sdk.testing import Invocation, invoke
from port_webhook_stack.kubernetes import access, jobs
from port_webhook_stack.kubernetes import settings as target
from port_webhook_stack.kubernetes.plan import Plan

pytestmark = pytest.mark.kubernetes

NAMESPACE = "shop"
SPEC = {"namespace": NAMESPACE, "container": "web", "image": "registry.example.com/cart:{version}"}
PATH = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/cart"
STRATEGIC = "application/strategic-merge-patch+json"


def deployment(name: str) -> dict[str, Any]:
    labels = {"app": name}
    containers = [
        {"name": "web", "image": "registry.example.com/cart:1.0.0"},
        {"name": "proxy", "image": "registry.example.com/proxy:3"},
    ]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": 2,
            "progressDeadlineSeconds": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                # No scheduler of this name, so no node and no kubelet.
                "spec": {"schedulerName": "nobody", "containers": containers},
            },
        },
    }


class Cluster:
    """A namespace with a Deployment, and the settings of handlers that work on it."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._make_ready)
        plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for name in ("cart", "bill"):
            plane.apply(deployment(name))
        services = {"cart": SPEC, "shop": SPEC | {"deployment": "nothing"}}
        modules = [f"port_webhook_handlers.bundled.{name}" for name in ("deploy", "scale_restart", "running")]
        shared = {"*": {"target": "kubernetes", "services": services}}
        bundle = build(list(modules), folder / "bundles", shared)
        self.plan = Plan(
            stack="test",
            settings=target.parse(
                {**SETTINGS, "groups": None, "namespace": "port", "runsNamespace": "port-runs"}
            ),
            routes=manifests_of_bundles.load(bundle.path)[0].routes,
            digest=bundle.digest,
            shards=(),
            port_base_url="https://api.getport.io",
            permissions=bundle.kubernetes_permissions,
        )
        for name in ("port", "port-runs"):
            plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for manifest in [*access.service_accounts(self.plan), *access.roles(self.plan)]:
            plane.apply(manifest)
        self.settings: dict[str, Any] = {**shared["*"], "cluster": {"server": plane.url}}
        self.accounts = {}
        for namespace, account in (("port-runs", "run-deploy"), ("port", "listener-look")):
            home = folder / account
            home.mkdir()
            (home / "token").write_text(plane.account_token(namespace, account))
            (home / "ca.crt").write_bytes(plane.ca.read_bytes())
            self.accounts[account] = str(home)
        self._thread.start()

    def run(
        self, handler: Any, account: str = "run-deploy", settings: Any = None, **options: Any
    ) -> Invocation:
        mine = {"cluster": {"server": self.plane.url, "credentials": self.accounts[account]}}
        if handler is not what_runs_where:
            options = {"entity": entity(), **options}
        return invoke(handler, settings={**self.settings, **mine, **(settings or {})}, **options)

    def deploy(self, version: str, **options: Any) -> Invocation:
        return self.run(deploy_microservice, inputs={"version": version}, **options)

    def seen(self) -> dict[str, Any]:
        response = self.run(what_runs_where, "listener-look").result.response
        assert response is not None
        assert response["services"]["shop"] is None
        state: dict[str, Any] = response["services"]["cart"]
        return state

    def found(self) -> dict[str, Any]:
        return self.plane.request("GET", PATH)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self.plane.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}")

    def _make_ready(self) -> None:
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        while not self._stopped.wait(0.1):
            for pod in self.plane.request("GET", pods)["items"]:
                if pod["status"].get("conditions") or "6.6.6" in pod["spec"]["containers"][0]["image"]:
                    continue
                status = {
                    "phase": "Running",
                    "conditions": [
                        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
                    ],
                }
                path = f"{self.plane.url}{pods}/{pod['metadata']['name']}/status"
                # It may be gone by now.
                self.plane.session.patch(
                    path, json={"status": status}, headers={"Content-Type": STRATEGIC}, timeout=10
                )


@pytest.fixture(scope="module")
def cluster(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(plane, tmp_path_factory.mktemp("deployments"))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "_POLL_SECONDS", 0.1)


def test_from_one_version_to_the_next(cluster: Cluster) -> None:
    before = cluster.seen()
    assert (before["version"], before["replicas"]) == ("1.0.0", 2)
    outcome = cluster.deploy("1.1.0")
    assert isinstance(outcome.result, Success), outcome
    assert outcome.logs[0] == "shop/cart: registry.example.com/cart:1.0.0 → registry.example.com/cart:1.1.0"
    containers = cluster.found()["spec"]["template"]["spec"]["containers"]
    assert [item["image"] for item in containers] == [
        "registry.example.com/cart:1.1.0",
        "registry.example.com/proxy:3",
    ]
    seen = cluster.seen()
    assert (seen["version"], seen["replicas"], seen["healthy"]) == ("1.1.0", 2, 2)
    live, replaced = (item["body"] for item in outcome.entities)
    assert live["identifier"] == f"cart-{seen['revision']}"
    assert replaced["properties"] == {"version": "1.0.0", "status": "Replaced"}

    outcome = cluster.run(scale_service, inputs={"replicas": 3})
    assert outcome.result.summary == "cart runs 3 copies of 1.1.0", outcome
    outcome = cluster.run(restart_service)
    assert outcome.result.summary == "cart runs 3 copies of 1.1.0", outcome
    # Scaling and restarting are no new deployments.
    assert outcome.entities[0]["body"]["identifier"] == live["identifier"]
    # What somebody else sets is seen, not what was deployed from here.
    image = {"name": "web", "image": "registry.example.com/cart:9.9.9-hotfix"}
    body = {"spec": {"template": {"spec": {"containers": [image]}}}}
    cluster.plane.request("PATCH", PATH, body, kind=STRATEGIC)
    assert cluster.seen()["version"] == "9.9.9-hotfix"


def test_a_version_that_does_not_roll_out_is_rolled_back(cluster: Cluster) -> None:
    assert isinstance(cluster.deploy("2.0.0").result, Success)
    before = cluster.seen()
    outcome = cluster.deploy("6.6.6")
    text = failure(outcome)
    assert text.startswith('version 6.6.6 of cart failed: ReplicaSet "cart-')
    assert "has timed out progressing" in text
    assert text.endswith("Rolled back to registry.example.com/cart:2.0.0")
    assert outcome.entities == []
    assert cluster.seen() == before
    text = failure(cluster.deploy("6.6.6", seconds=16.5))
    assert "it was not done within 1 s" in text
    assert cluster.seen()["version"] == "2.0.0"


def test_a_change_of_somebody_else_is_left_alone(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    image = {"name": "web", "image": "registry.example.com/cart:3.0.0"}
    body = {"spec": {"template": {"spec": {"containers": [image]}}}}
    waits: list[None] = []

    def interfere(self: Any, look: Any, deadline: float) -> str | None:
        if not waits:
            cluster.plane.request("PATCH", PATH, body, kind=STRATEGIC)
        waits.append(None)
        return original(self, look, deadline)

    original = rollout.Watch._wait
    monkeypatch.setattr(rollout.Watch, "_wait", interfere)
    assert "somebody else has changed it meanwhile" in failure(cluster.deploy("6.6.6"))
    assert cluster.seen()["version"] == "3.0.0"
    assert cluster.found()["metadata"]["annotations"][DEPLOYED]


def test_it_may_do_nothing_else(cluster: Cluster) -> None:
    other = {"services": {"bill": SPEC | {"deployment": "bill"}}}
    text = failure(cluster.deploy("1.1.0", settings=other, entity=entity("bill")))
    assert text.startswith("the cluster does not allow it: GET")
    # What only looks may not change.
    assert "does not allow it: PATCH" in failure(cluster.deploy("1.1.0", account="listener-look"))
    with cluster.plane.account("port-runs", "run-deploy") as session:
        base = f"{cluster.plane.url}/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
        for method, path in (("GET", ""), ("DELETE", "/cart"), ("GET", "/bill")):
            assert session.request(method, base + path, timeout=10).status_code == 403, (method, path)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ({"deployment": "nothing"}, "Deployment shop/nothing of cart does not exist"),
        (
            {"container": "worker"},
            "services.cart.container: shop/cart has no container worker, only web, proxy",
        ),
        ({"container": ""}, "shop/cart has the containers web, proxy; name one"),
        ({"namespace": "Shop"}, "services.cart.namespace: must be a name of Kubernetes"),
        ({"image": "cart:latest"}, "services.cart.image: must hold {version}"),
        ({"images": "x"}, "services.cart.images: unknown key"),
    ],
)
def test_what_cannot_be_used(spec: dict[str, Any], part: str, cluster: Cluster) -> None:
    assert part in failure(cluster.deploy("1.1.0", settings={"services": {"cart": SPEC | spec}}))


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ({"server": "http://127.0.0.1:1"}, "cluster.server: must start with https://"),
        ({"server": "https://127.0.0.1:1", "credentials": "/nowhere"}, "cluster.credentials: /nowhere holds"),
        ({"server": "https://127.0.0.1:1"}, "the API server does not answer"),
    ],
)
def test_a_cluster_that_cannot_be_reached(place: dict[str, str], part: str, cluster: Cluster) -> None:
    place = {"credentials": cluster.accounts["run-deploy"], **place}
    assert part in failure(cluster.deploy("1.1.0", settings={"cluster": place}))


def test_what_is_rendered_is_exactly_that(cluster: Cluster) -> None:
    roles = [item for item in access.roles(cluster.plan) if item["metadata"]["namespace"] == NAMESPACE]
    rules = {item["metadata"]["name"]: item["rules"] for item in roles if item["kind"] == "Role"}
    assert set(rules) == {"port-runs-run-deploy", "port-listener-look"}
    for found, verbs in (("port-runs-run-deploy", {"get", "patch"}), ("port-listener-look", {"get"})):
        assert {name for rule in rules[found] for name in rule["resourceNames"]} == {"cart", "nothing"}
        assert {verb for rule in rules[found] for verb in rule["verbs"]} == verbs
    subjects = [item["subjects"][0] for item in roles if item["kind"] == "RoleBinding"]
    assert [(item["namespace"], item["name"]) for item in subjects] == [
        ("port-runs", "run-deploy"),
        ("port", "listener-look"),
    ]
    # Its runs get a token, and the admission policy lets them have it.
    pod = jobs.templates(cluster.plan)["deploy_microservice"]["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("run-deploy", True)
    variables = access.admission_policies(cluster.plan)[0]["spec"]["variables"]
    assert {"name": "tokens", "expression": '["run-deploy"]'} in variables
