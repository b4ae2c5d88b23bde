"""The agent as a part of the local stack: real engine, real broker, no request to the listener."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from tests.engine.project import Project, changes, eventually, fresh

pytestmark = [pytest.mark.engine, pytest.mark.agent, pytest.mark.slow]

KEY = "port-webhook-stack:agent"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield from fresh(tmp_path_factory.mktemp("agent"))


def deploy(project: Project, version: str) -> dict[str, Any]:
    shown = project.cli(
        "run", "deploy_microservice", "--entity", "cart", "-i", f"version={version}", "--follow"
    ).stdout
    assert "deploy_microservice → SUCCESS" in shown
    run: dict[str, Any] = project.port("GET", "/v1/actions/runs?limit=1&version=v2")["runs"][0]
    return run


def settle(project: Project, agent: dict[str, Any] | None) -> dict[str, int]:
    """Deploys with that setting; a second deployment then changes nothing."""
    project.configure({KEY: agent})
    counts = changes(project.cli("up"))
    assert set(changes(project.cli("up"))) == {"unchanged"}
    return counts


def direct_deliveries(project: Project) -> list[Any]:
    """Requests that local Port itself sent to the listener."""
    found: list[Any] = project.admin("GET", "/_local/deliveries")["deliveries"]
    return [item for item in found if not item["own"]]


def processes(project: Project, word: str) -> list[int]:
    return [process.pid for process in project.processes() if word in " ".join(process.cmdline())]


def test_polling_into_the_listener(project: Project) -> None:
    settle(project, {"source": "polling", "polling": {"intervalSeconds": 0.2}})
    action = project.port("GET", "/v1/actions/deploy_microservice")["action"]
    assert action["invocationMethod"]["agent"] is True
    run = deploy(project, "1.0.0")
    assert run["payload"]["agent"] is True
    assert direct_deliveries(project) == []
    assert processes(project, "agent.supervisor") == []


def test_polling_and_forwarding(project: Project) -> None:
    counts = settle(project, {"source": "polling", "sink": "forward", "polling": {"intervalSeconds": 0.2}})
    assert counts["created"] == 1
    deploy(project, "1.1.0")
    assert direct_deliveries(project) == []
    [supervisor] = processes(project, "agent.supervisor")
    assert f"agent        polling, forwarding (pid {supervisor}): ready" in project.cli("status").stdout


def test_up_heals_a_killed_agent(project: Project) -> None:
    [supervisor] = processes(project, "agent.supervisor")
    family = [supervisor, *(child.pid for child in psutil.Process(supervisor).children())]
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not processes(project, "agent.supervisor"))
    assert changes(project.cli("up"))["updated"] == 1
    deploy(project, "1.2.0")


def test_kafka_and_forwarding(project: Project) -> None:
    counts = settle(project, {"source": "kafka", "sink": "forward"})
    assert counts["created"] == 1, "the broker"
    assert len(processes(project, "kafka.Kafka")) == 1
    deploy(project, "1.3.0")
    assert direct_deliveries(project) == []


def test_up_heals_a_killed_broker(project: Project) -> None:
    [broker] = processes(project, "kafka.Kafka")
    os.kill(broker, signal.SIGKILL)
    eventually(lambda: not processes(project, "kafka.Kafka"))
    assert "broker       NOT RUNNING" in project.cli("status").stdout
    project.cli("up")
    shown = project.cli("status").stdout
    assert "broker       127.0.0.1:" in shown
    assert "agent        kafka, forwarding" in shown
    deploy(project, "1.4.0")


def test_kafka_into_the_listener(project: Project) -> None:
    counts = settle(project, {"source": "kafka"})
    assert counts["deleted"] == 1, "the process"
    deploy(project, "1.5.0")
    assert processes(project, "agent.supervisor") == []


def test_no_password_of_the_broker_is_in_plain_text(project: Project) -> None:
    password = project.port("GET", "/v1/kafka-credentials")["credentials"]["password"].encode()
    holders = [
        str(path.relative_to(project.folder))
        for path in project.folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and ".venv" not in path.parts
        and password in path.read_bytes()
    ]
    assert holders == []
    for process in psutil.process_iter():
        try:
            assert password.decode() not in " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue


def test_without_the_agent_port_sends_requests_again(project: Project) -> None:
    counts = settle(project, None)
    assert counts["deleted"] == 1, "the broker"
    deploy(project, "1.6.0")
    assert len(direct_deliveries(project)) == 1


def test_down_leaves_nothing_behind(project: Project) -> None:
    project.cli("down")
    eventually(lambda: not project.processes())
    assert not (project.folder / ".state").exists()
