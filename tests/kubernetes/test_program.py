"""The stack kubernetes-dev on the real engine and a real API server, and the command line on what is deployed.

With `pulumi-resource-kubernetes` on PATH Pulumi's own provider does it, else a stand-in. Pods are processes of this
machine; the ingress controller is played by a proxy on loopback. The tests run in order.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import yaml
from tests.engine.operations import Operations
from tests.engine.project import ROOT, Project, Result, fresh
from tests.fixtures_localport import LocalPort, eventually
from tests.kubernetes.control_plane import ControlPlane, binaries
from tests.kubernetes.deployed import WAIT, Stack
from tests.kubernetes.kubelet import Kubelet

from port_webhook_handlers.port.signature import sign
from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_localport import control
from port_webhook_localport.encryption import encrypt_input
from port_webhook_stack.cli import cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.engine, pytest.mark.slow]

STACK = "kubernetes-dev"
NAMESPACE, RUNS = "port-webhook", "port-webhook-runs"
TOKEN = "planted-token-value"
HANDLERS = '''\
"""Handlers of the test."""

from typing import Annotated

from port_webhook_handlers.sdk import Field, Inputs, Run, Success, action


class Sealed(Inputs):
    word: Annotated[str, Field(encrypted=True)]


@action("seal", title="Seal", operation="CREATE", secrets=["TOKEN"])
def seal(inputs: Sealed, run: Run) -> Success:
    run.log("sealing")
    return Success(summary=f"{len(inputs.word)} and {len(run.secret('TOKEN'))}")


@action("work", title="Work", operation="CREATE")
def work(run: Run) -> Success:
    run.log("working")
    return Success(summary="worked")
'''


class Entry(ThreadingHTTPServer):
    """What an ingress controller does: the requests from outside go to a replica that is ready."""

    target: Any

    def __init__(self) -> None:
        entry = self

        class Proxy(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                answer = requests.request(
                    self.command,
                    entry.target() + self.path,
                    data=self.rfile.read(length),
                    headers=kept,
                    timeout=30,
                )
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Proxy)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Deployment:
    """A project whose stack kubernetes-dev goes to a control plane on this machine."""

    def __init__(self, project: Project, stack: Stack, entry: Entry, plugin: Path) -> None:
        self.project = project
        self.stack = stack
        self.port = stack.port
        self.plane = stack.plane
        self.handlers = project.folder / "hooks.py"
        self.handlers.write_text(HANDLERS)
        backend = project.folder.parent / "backend"
        backend.mkdir()
        project.environment |= {
            "PATH": os.pathsep.join([str(binaries()[0]), project.environment["PATH"], str(plugin)]),
            "PULUMI_BACKEND_URL": backend.as_uri(),
            "PULUMI_HOME": str(project.folder.parent / "pulumi-home"),
            "PULUMI_CONFIG_PASSPHRASE": "a passphrase of the test",
            # The engine writes its state after every resource otherwise, which is most of the time.
            "PULUMI_EXPERIMENTAL": "true",
            "PULUMI_SKIP_CHECKPOINTS": "true",
            "PORT_BASE_URL": stack.port.url,
            "PORT_CLIENT_ID": stack.port.client_id,
            "PORT_CLIENT_SECRET": stack.port.client_secret,
            "HANDLER_TOKEN": TOKEN,
        }
        path = project.folder / "stacks" / f"Pulumi.{STACK}.yaml"
        config = yaml.safe_load(path.read_text())["config"]
        target = config["port-webhook-stack:kubernetes"]
        target |= {"context": "test", "kubeconfig": str(self.plane.kubeconfig), "startSeconds": 30}
        # No controller writes an address into the Ingress.
        target["ingress"]["annotations"] = {"pulumi.com/skipAwait": "true"}
        project.configure(
            {
                "port-webhook:region": None,
                "port-webhook-stack:kubernetes": target,
                "port-webhook-stack:listener": {"publicUrl": entry.url},
                "port-webhook-stack:handlers": [*config["port-webhook-stack:handlers"], "hooks.py"],
                "port-webhook-stack:secrets": {"TOKEN": {"fromEnv": "HANDLER_TOKEN"}},
            },
            STACK,
        )
        self._operations: Operations | None = None

    def operate(self, operation: str) -> dict[str, int]:
        """Counts of resources by what happened to them."""
        if self._operations is None:
            self._operations = Operations(self.project.folder, self.project.environment)
        answer = self._operations(operation, STACK)
        assert not answer["error"], answer["error"]
        counts: dict[str, int] = answer["changes"]
        return counts

    def close(self) -> None:
        """Ends the process of operations; the next one has the environment of then."""
        if self._operations is not None:
            self._operations.close()
            self._operations = None

    def cli(self, *arguments: str, check: bool = True) -> Result:
        return self.project.cli(*arguments, "-s", STACK, check=check)

    def state(self) -> str:
        """The stack's state as the backend keeps it."""
        return next((self.project.folder.parent / "backend").glob(f"**/stacks/**/{STACK}.json")).read_text()

    def objects(self, path: str) -> list[str]:
        """Names of the objects of a collection that belong to the stack."""
        query = {"labelSelector": f"app.kubernetes.io/managed-by={names.PREFIX}"}
        return [item["metadata"]["name"] for item in self.plane.request("GET", path, **query)["items"]]

    def bundles(self) -> list[str]:
        found = self.objects(f"/api/v1/namespaces/{RUNS}/configmaps")
        return [name for name in found if name.startswith("bundle-")]

    def send(self, secret: str, route: str, run_id: str, **inputs: Any) -> int:
        """Status of the answer to a request that is signed with a secret."""
        sent = {"port_context": {"action": route, "runId": run_id}, "inputs": inputs}
        body = json.dumps(sent).encode()
        timestamp = str(int(time.time()))
        headers = {
            "x-port-timestamp": timestamp,
            "x-port-signature": sign(secret, timestamp, body),
            "content-type": "application/json",
        }
        url = f"{self.stack.url()}/webhooks/{route}"
        return requests.post(url, data=body, headers=headers, timeout=30).status_code


@pytest.fixture(scope="module")
def deployment(
    plane: ControlPlane, kubelet: Kubelet, port: LocalPort, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    tools, missing = binaries()
    if "kubectl" in missing:
        pytest.skip(f"kubectl not in {tools}; `make tools` builds it, once per user")
    folder = tmp_path_factory.mktemp("program")
    plugin = folder / "plugin" / "pulumi-resource-kubernetes"
    plugin.parent.mkdir()
    if shutil.which(plugin.name) is None:
        plugin.write_text(
            f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.kubernetes.provider "$@"\n'
        )
        plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    where: Any = SimpleNamespace(namespace=NAMESPACE, runs_namespace=RUNS)
    stack = Stack(plane, kubelet, port, where)
    with Entry() as entry:
        entry.target = stack.url
        thread = threading.Thread(target=entry.serve_forever, args=(0.05,))
        thread.start()
        for project in fresh(folder):
            deployment = Deployment(project, stack, entry, plugin.parent)
            yield deployment
            deployment.close()
        entry.shutdown()
        thread.join()


def test_a_preview_touches_nothing(deployment: Deployment) -> None:
    assert set(deployment.operate("preview")) == {"create"}
    assert NAMESPACE not in deployment.objects("/api/v1/namespaces")


def test_everything_is_deployed_and_verified_through_the_entry(deployment: Deployment) -> None:
    assert set(deployment.operate("up")) == {"create"}
    assert set(deployment.operate("up")) == {"same"}
    state = deployment.state()
    assert "webhook-verification" in state
    for secret in (deployment.port.client_secret, TOKEN):
        # Kubernetes shows the values of Secrets in base64, at three possible offsets.
        encoded = [base64.b64encode(b"x" * pad + secret.encode())[4:-4].decode() for pad in range(3)]
        assert not any(text in state for text in (secret, *encoded))
    labels = deployment.plane.request("GET", f"/api/v1/namespaces/{RUNS}")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_run_its_log_and_the_state_of_everything(deployment: Deployment) -> None:
    shown = deployment.cli("run", "seal-dev", "-i", "word=marmalade", "--follow").stdout
    assert "seal-dev → SUCCESS" in shown
    assert f"9 and {len(TOKEN)}" in shown
    assert "sealing" in deployment.cli("logs", shown.split()[2]).stdout
    logs = deployment.cli("logs", "--lines", "200").stdout
    assert '"serving"' in logs
    assert '"dispatching"' in logs
    assert deployment.port.client_secret not in logs
    status = deployment.cli("status").stdout
    assert "listener  1 of 1 ready" in status
    assert "dispatcher  1 of 1 ready" in status
    assert "0 waiting, 0 in work" in status
    assert "seal-dev  SUCCESS" in status


def test_a_run_without_a_result_is_a_dead_letter_until_it_is_redriven(deployment: Deployment) -> None:
    kubelet = deployment.stack.kubelet
    kubelet.behaviour = lambda pod: (
        "oom" if "batch.kubernetes.io/job-name" in pod["metadata"]["labels"] else "run"
    )
    try:
        dead = deployment.port.execute("work-dev")
        assert deployment.port.finished(dead, WAIT)["status"] == "FAILURE"
    finally:
        kubelet.behaviour = lambda pod: "run"
    name = names.run_name(dead)
    done = f"{names.STATE_LABEL}=done"
    eventually(lambda: name in {s["metadata"]["name"] for s in deployment.stack.secrets(done)}, WAIT)
    listed = deployment.cli("dead-letters", "list").stdout
    assert dead in listed
    assert "memory" in listed
    assert "1 dead letters" in listed
    assert "is no dead letter" in deployment.cli("dead-letters", "redrive", "r_other", check=False).stderr
    shown = deployment.cli("dead-letters", "redrive", dead).stdout
    again = shown.split("→ ")[1].split()[0]
    assert deployment.port.finished(again, WAIT)["status"] == "SUCCESS"
    assert "0 dead letters" in deployment.cli("dead-letters").stdout
    # Its claim stays: a repeat of the ended run is still no second one.
    assert deployment.send(deployment.port.client_secret, "work", dead) in (202, 409)
    assert kubelet.starts[name] == 1


def test_new_code_and_a_rotation_whose_secrets_overlap(deployment: Deployment) -> None:
    former = deployment.port.client_secret
    before = deployment.bundles()
    deployment.handlers.write_text(HANDLERS.replace("sealing", "second version"))
    control.rotate_secret(deployment.port.home, "stage")
    control.rotate_secret(deployment.port.home, "activate", 3600)
    renewed = control.status(deployment.port.home)
    assert renewed is not None
    deployment.port.endpoint = renewed
    new = renewed.client_secret
    deployment.project.environment["NEW_SECRET"] = new
    shown = deployment.cli("rotate-secret", "--from-env", "NEW_SECRET", "--overlap", "2h").text
    assert "the former one is valid until" in shown
    assert not {former, new} & set(shown.split())
    # Both ConfigMaps of the bundle and that of the dispatcher are made anew, Secrets and all else in place.
    assert "3 replaced" in shown
    after = deployment.bundles()
    assert (len(after), set(after) & set(before)) == (len(before), set())
    deployment.project.environment["PORT_CLIENT_SECRET"] = new
    deployment.close()
    assert deployment.send(former, "work", "r_former") == 202
    shown = deployment.cli("run", "seal-dev", "-i", "word=x", "--follow").stdout
    assert "SUCCESS" in shown
    assert "second version" in shown
    assert "a former signing secret is valid until" in deployment.cli("status").stdout
    # What Port encrypted before the rotation is read after it.
    sealed = encrypt_input("marmalade", former)
    assert deployment.send(former, "seal", "r_sealed", word=sealed) == 202
    outcomes: dict[str, str] = {}

    def ended() -> bool:
        outcomes.update(
            (s["metadata"]["name"], s["metadata"]["annotations"][names.OUTCOME_ANNOTATION])
            for s in deployment.stack.secrets()
            if names.OUTCOME_ANNOTATION in s["metadata"].get("annotations", {})
        )
        return names.run_name("r_sealed") in outcomes

    eventually(ended, WAIT)
    assert f"9 and {len(TOKEN)}" in outcomes[names.run_name("r_sealed")]
    assert "the former secret is refused" in deployment.cli("rotate-secret", "--retire").text
    deployment.stack.kubelet.refresh(deployment.stack.pod("listener"))
    eventually(lambda: deployment.send(former, "work", "r_late") == 401, WAIT)
    assert deployment.send(new, "work", "r_new") == 202


def test_a_refresh_finds_everything_as_it_is_and_nothing_is_left_in_the_end(deployment: Deployment) -> None:
    assert set(deployment.operate("refresh")) == {"same"}
    assert deployment.operate("destroy")["delete"] > 40
    policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
    for path in ("/api/v1/namespaces", f"{policies}ies", f"{policies}ybindings"):
        assert not [name for name in deployment.objects(path) if name.startswith(NAMESPACE)]


def test_a_cluster_out_of_reach_is_one_message(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(binaries()[0]), prepend=":")
    elsewhere = cluster.Cluster("a", "b", "nowhere", str(plane.kubeconfig))
    with pytest.raises(cluster.ClusterError) as caught:
        cluster.dead_letters(elsewhere)
    assert "nowhere" in str(caught.value)
