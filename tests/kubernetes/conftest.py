"""The control plane, and a stack that is deployed on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fixtures_localport import LocalPort, eventually
from tests.kubernetes.control_plane import CONTROL_PLANE, ControlPlane, binaries
from tests.kubernetes.deployed import WAIT, Stack
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.stack import manifests, plan, store

from port_webhook_localport import control
from port_webhook_stack.agent import kubernetes as agents


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane of all tests."""
    folder, missing = binaries()
    missing = [name for name in missing if name in CONTROL_PLANE]
    if missing:
        pytest.skip(f"{', '.join(missing)} not in {folder}; `make tools` builds them, once per user")
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def kubelet(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    """Nodes that execute Pods as processes."""
    kubelet = Kubelet(plane, tmp_path_factory.mktemp("pods"))
    kubelet.start()
    yield kubelet
    kubelet.stop()


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all tests."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="session")
def port(scratch: Path) -> Iterator[LocalPort]:
    home = scratch / "local-port"
    running = LocalPort(control.ensure_running(home), home)
    yield running
    running.close()
    control.stop(home)


@pytest.fixture(scope="session")
def stack(plane: ControlPlane, kubelet: Kubelet, port: LocalPort, scratch: Path) -> Iterator[Stack]:
    # No name of a Service is known on this machine.
    agent = {"kind": "own", "environment": {"AGENT_ALLOWED_HOSTS": "127.0.0.1"}}
    found = plan(scratch, {"agent": agent, "startSeconds": 30, "maxJobs": 24}, port=port.url)
    found = dataclasses.replace(found, agent_actions=["pulled"])
    stack = Stack(plane, kubelet, port, found)
    credentials = {"PORT_CLIENT_ID": port.client_id, "PORT_CLIENT_SECRET": port.client_secret}
    applied = [
        *manifests(found, store(port.client_id, port.client_secret)),
        agents.secret(found, credentials),
    ]
    for manifest in applied:
        plane.apply(manifest)
    eventually(
        lambda: (
            [len(stack.pods(name)) for name in ("listener", "listener-ops", "dispatcher", "agent")]
            == [2, 2, 1, 1]
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
