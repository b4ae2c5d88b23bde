"""`port-webhook logs` and `dead-letters` on a deployed stack, with a real kubectl."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.fixtures_localport import eventually
from tests.kubernetes.control_plane import binaries
from tests.kubernetes.deployed import WAIT, Stack

from port_webhook_stack.cli import cluster

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def found(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cluster.Cluster:
    """The stack's cluster, as its stack file names it."""
    folder, missing = binaries()
    if "kubectl" in missing:
        pytest.skip(f"kubectl not in {folder}; `make tools` builds it, once per user")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    values = {
        "namespace": stack.plan.namespace,
        "runsNamespace": stack.plan.runs_namespace,
        "kubeconfig": str(stack.plane.kubeconfig),
        "context": "test",
    }
    config = {"port-webhook-stack:target": "kubernetes", "port-webhook-stack:kubernetes": values}
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "Pulumi.c.yaml").write_text(yaml.safe_dump({"config": config}))
    named = cluster.cluster_of(tmp_path, "c")
    assert named is not None
    return named


def test_logs_are_those_of_listener_and_dispatcher(
    stack: Stack, found: cluster.Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cluster.print_logs(found, 200, follow=False) == 0
    text = capfd.readouterr().out
    assert '"serving"' in text
    assert '"dispatching"' in text
    assert stack.port.client_secret not in text


def test_dead_letters_are_runs_without_a_result(stack: Stack, found: cluster.Cluster) -> None:
    before = {letter.run_id for letter in cluster.dead_letters(found)}
    stack.kubelet.behaviour = lambda pod: (
        "oom" if "batch.kubernetes.io/job-name" in pod["metadata"]["labels"] else "run"
    )
    try:
        dead = stack.port.execute("work", {"seconds": 20})
        stack.port.finished(dead, WAIT)
    finally:
        stack.kubelet.behaviour = lambda pod: "run"
    # What its handler refuses is a result.
    refused = stack.port.execute("refuse")
    stack.port.finished(refused, WAIT)
    eventually(
        lambda: {letter.run_id for letter in cluster.dead_letters(found)} - before == {dead},
        WAIT,
        "not a dead letter",
    )
    (letter,) = [letter for letter in cluster.dead_letters(found) if letter.run_id == dead]
    assert (letter.route, "memory" in letter.summary) == ("work", True)


def test_a_cluster_out_of_reach_is_one_message(found: cluster.Cluster) -> None:
    elsewhere = cluster.Cluster("a", "b", "nowhere", found.kubeconfig)
    with pytest.raises(cluster.ClusterError) as caught:
        cluster.dead_letters(elsewhere)
    assert "nowhere" in str(caught.value)
