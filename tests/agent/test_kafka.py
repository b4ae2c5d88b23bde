"""The Kafka source on a real broker with SASL_SSL and SCRAM-SHA-512."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.agent.kit import (
    AgentProcess,
    Destination,
    Received,
    Topic,
    destination,
    is_signed,
    poll,
    topic_message,
)
from tests.fixtures_localport import LocalPort, local_port
from tests.unit.runtime.kit import FakePort

from port_webhook_handlers.agent.config import AgentConfig, KafkaSettings
from port_webhook_stack.agent import kafka_broker

__all__ = ["local_port"]
pytestmark = pytest.mark.agent


def group(topic: Topic) -> str:
    return f"{topic.organization}.test"


def test_a_signed_message_is_forwarded_and_committed(
    topic: Topic, target: Destination, port: FakePort, kafka_agents: Any
) -> None:
    agent = kafka_agents(run_logs=True, actions=("ship",)).until_ready()
    topic.send("http://elsewhere.invalid", "r_other", action="other")
    topic.send(f"{target.url}/ship", "r_1")
    request: Received = poll(lambda: next(iter(target.received), None))
    assert request.path == "/ship"
    assert is_signed(request, topic.secret)
    # The headers of the signature are Port's business; the action's own are passed on.
    assert "headers" not in request.json
    assert request.json["inputs"] == {"text": "Zoë ✓"}
    assert request.headers["x-custom"] == "yes"
    poll(lambda: topic.committed(group(topic)) == 2)
    poll(lambda: port.logs.get("r_1"))
    assert agent.stop() == 0
    # Nothing about the run of another agent's action. One line in the run's log, and no status: the destination reports an asynchronous run itself.
    assert [(method, path) for method, path, _ in port.calls] == [("POST", "/v1/actions/runs/r_1/logs")]


def test_a_synchronous_message_is_reported(
    topic: Topic, target: Destination, port: FakePort, kafka_agents: Any
) -> None:
    target.answer = lambda request: (200, b'{"answer": 42}')
    kafka_agents()
    topic.send(target.url, "r_1", synchronized=True)
    assert poll(lambda: port.ended("r_1"))["status"] == "SUCCESS"
    assert port.runs["r_1"]["response"] == {"answer": 42}


def test_a_wrong_password_is_told_by_readiness(topic: Topic, kafka_agents: Any) -> None:
    agent = kafka_agents(password="wrong")
    status = poll(lambda: (found := agent.ready())["problem"] == "Kafka refuses the credentials" and found)
    assert status["ready"] is False
    assert topic.password not in agent.log


def test_rotated_credentials_are_taken_up(topic: Topic, target: Destination, kafka_agents: Any) -> None:
    """A refused password is asked for again after a while; here it becomes right without a restart."""
    agent = kafka_agents(password="next-password")
    poll(lambda: agent.ready()["problem"] == "Kafka refuses the credentials")
    kafka_broker.add_user(topic.home, topic.username, "next-password", prefix=f"{topic.organization}.")
    agent.until_ready()


def test_the_brokers_authority_may_be_the_agents(topic: Topic, kafka_agents: Any) -> None:
    """One file for everything, or the environment; without either readiness says what is missing."""
    untrusting = kafka_agents(name="none", kafka={"ca_file": None})
    agents = [
        kafka_agents(name="file", kafka={"ca_file": None}, ca_file=topic.ca_file),
        kafka_agents(
            name="variable", kafka={"ca_file": None}, environment={"SSL_CERT_FILE": str(topic.ca_file)}
        ),
    ]
    for agent in agents:
        agent.until_ready()
    status = poll(lambda: (found := untrusting.ready())["problem"].startswith("TLS to Kafka") and found)
    assert "kafka.ca_file" in status["problem"]


POISON = (
    b"",
    b"\xff\xfe",
    b"[1,2",
    b"[]",
    b'{"a":1,"a":2}',
    b"NaN",
    b'{"payload":{"action":{"invocationMethod":{"agent":true}}}}',
    b"[" * 10_000,
)


def test_a_poison_message_holds_nothing_up(topic: Topic, target: Destination, kafka_agents: Any) -> None:
    """Each is followed by a good one in its partition; all good ones arrive, and all are committed."""
    agent = kafka_agents()
    for number, poison in enumerate(POISON):
        after = topic_message(f"r_after{number}", target.url, topic.secret)
        topic.write(poison, after, partition=0)
    poll(lambda: set(target.run_ids()) == {f"r_after{number}" for number in range(len(POISON))})
    poll(lambda: topic.committed(group(topic)) == 2 * len(POISON))
    assert f'messages_total{{outcome="poison"}} {len(POISON)}' in agent.metrics()
    assert "[[[" not in agent.log


def test_a_message_that_nobody_signed_ends_its_run(
    topic: Topic, target: Destination, port: FakePort, kafka_agents: Any
) -> None:
    away = {"on": True}
    port.fault = lambda method, path: (503, {}, {"ok": False}) if away["on"] else None
    kafka_agents()
    topic.write(topic_message("r_forged", target.url, "another secret"))
    poll(lambda: port.statuses("r_forged") >= 2)
    # As long as Port has not taken the failure, the message is not done.
    assert topic.committed(group(topic)) == 0
    away["on"] = False
    run = poll(lambda: port.ended("r_forged"))
    assert run["status"] == "FAILURE"
    assert "signature" in run["summary"]
    assert target.received == []
    poll(lambda: topic.committed(group(topic)) == 1)


def test_an_entity_change_goes_to_its_blueprints_destination(
    topic: Topic, target: Destination, port: FakePort, kafka_agents: Any
) -> None:
    kafka_agents(kafka={"change_log_topic": None})
    change = {
        "action": "UPDATE",
        "resourceType": "entity",
        "context": {"entity": "svc-1", "blueprint": "service"},
        "diff": {"before": {}, "after": {}},
        "changelogDestination": {"type": "WEBHOOK", "agent": True, "url": f"{target.url}/changes"},
    }
    topic.write(json.dumps(change).encode(), topic=f"{topic.organization}.change.log")
    request = poll(lambda: next(iter(target.received), None))
    assert (request.path, request.json) == ("/changes", change)
    assert port.calls == []


def test_what_local_port_writes_to_the_topics_is_handled(
    broker: Path, target: Destination, local_port: LocalPort, tmp_path: Path
) -> None:
    """Runs, automations, pipelines and entity changes, once the agent has asked for the transport."""
    organization = local_port.api("GET", "/organization")["organization"]["id"]
    topic = Topic(broker, organization, local_port.client_secret)
    known = {"brokers": [topic.brokers], "username": topic.username, "password": topic.password}
    local_port.admin("PUT", "/kafka", {**known, "caFile": str(topic.ca_file)})
    local_port.api("PATCH", "/organization", {"settings": {"portAgentStreamerName": "POLLING"}})
    webhook = {"type": "WEBHOOK", "agent": True, "synchronized": True}
    local_port.api(
        "POST",
        "/blueprints",
        {
            "identifier": "service",
            "title": "Service",
            "schema": {"properties": {}},
            "changelogDestination": {"type": "WEBHOOK", "agent": True, "url": f"{target.url}/changes"},
        },
    )
    form = {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}}
    event = {"type": "ENTITY_CREATED", "blueprintIdentifier": "service"}
    pipeline = {"type": "GITLAB", "groupName": "a", "projectName": "app", "defaultRef": "trunk"}
    for identifier, trigger, method in (
        ("ship", form, {**webhook, "url": f"{target.url}/ship", "body": {"a": "Zoë"}}),
        ("build", form, pipeline),
        ("on_create", {"type": "automation", "event": event}, {**webhook, "url": f"{target.url}/created"}),
    ):
        body = {"identifier": identifier, "trigger": trigger, "invocationMethod": method}
        local_port.api("POST", "/actions", body)
    target.answer = lambda request: (201, b'{"web_url": "https://gitlab/7", "id": 7}')
    agent = AgentProcess(
        tmp_path / "agent",
        AgentConfig(
            source="kafka",
            port_base_url=local_port.url,
            allowed_hosts=(target.host,),
            gitlab_url=target.url,
            set_transport=True,
            kafka=KafkaSettings(ca_file=topic.ca_file, change_log_topic=None, session_timeout_ms=6000),
        ),
        local_port.client_id,
        local_port.client_secret,
        a_app="trigger-token",
    )
    try:
        agent.until_ready()
        ship, build = local_port.execute("ship"), local_port.execute("build")
        local_port.api("POST", "/blueprints/service/entities", {"identifier": "svc-1"})
        assert local_port.finished(ship)["status"] == "SUCCESS"
        poll(lambda: len(target.received) == 4, message=agent.log)
        poll(lambda: local_port.run(build)["link"])
        assert agent.stop() == 0
    finally:
        agent.kill()
        topic.close()
    got = {request.path: request for request in target.received}
    assert set(got) == {"/ship", "/changes", "/created", "/api/v4/projects/a%2Fapp/trigger/pipeline"}
    assert got["/ship"].json["a"] == "Zoë"
    change = got["/changes"].json
    assert (change["action"], change["context"]) == ("CREATE", {"entity": "svc-1", "blueprint": "service"})
    assert "x-port-run-id" not in got["/changes"].headers
    [created] = local_port.api("GET", "/actions/runs?action=on_create&version=v2")["runs"]
    assert got["/created"].headers["x-port-run-id"] == created["id"]
    assert local_port.finished(created["id"])["status"] == "SUCCESS"
    trigger = got["/api/v4/projects/a%2Fapp/trigger/pipeline"].json
    assert (trigger["ref"], trigger["token"]) == ("trunk", "trigger-token")
    assert trigger["port_payload"]["context"]["runId"] == build
    run = local_port.run(build)
    # The pipeline ends it.
    assert (run["status"], run["link"]) == ("IN_PROGRESS", ["https://gitlab/7"])
    assert all(is_signed(request, local_port.client_secret) for request in target.received)


def test_one_slow_destination_does_not_starve_others(
    topic: Topic, target: Destination, port: FakePort, kafka_agents: Any
) -> None:
    gate = threading.Event()
    with destination() as slow:
        slow.answer = lambda request: (200, b"") if gate.wait(30) else (500, b"")
        kafka_agents(allowed_hosts=(target.host, slow.host), limits={"attempt_seconds": 30}).until_ready()
        topic.send(slow.url, *(f"r_slow{number}" for number in range(100)))
        topic.send(target.url, *(f"r_{number}" for number in range(50)))
        try:
            poll(lambda: len(target.received) == 50, 10)
            assert len(slow.received) == 32, "the slow one has no more than its share"
        finally:
            gate.set()
        poll(lambda: len(slow.received) == 100)


def test_a_retrying_key_parks_only_itself(
    topic: Topic, target: Destination, port: FakePort, kafka_agents: Any
) -> None:
    failing = {"on": True}
    target.answer = lambda request: (
        (500, b"") if failing["on"] and request.headers["x-port-run-id"] == "r_bad" else (200, b"")
    )
    kafka_agents(limits={"delivery_seconds": 60}).until_ready()
    topic.send(target.url, "r_bad", *(f"r_{number}" for number in range(40)))
    poll(lambda: len(set(target.run_ids())) == 41)
    # Whatever came after it in its partition is done, and may not be committed.
    time.sleep(0.6)
    assert topic.committed(group(topic)) < 41
    failing["on"] = False
    poll(lambda: topic.committed(group(topic)) == 41)


def test_the_bound_of_messages_in_flight_pauses_and_resumes(
    topic: Topic, target: Destination, kafka_agents: Any
) -> None:
    gate = threading.Event()
    target.answer = lambda request: (200, b"") if gate.wait(30) else (500, b"")
    agent = kafka_agents(limits={"max_in_flight": 50, "attempt_seconds": 30}).until_ready()
    topic.send(target.url, *(f"r_{number}" for number in range(300)))
    poll(lambda: agent.ready()["in_flight"] >= 50)
    assert agent.ready()["in_flight"] <= 53
    gate.set()
    poll(lambda: len(set(target.run_ids())) == 300)
    poll(lambda: topic.committed(group(topic)) == 300)


def test_metrics_tell_lag_outcomes_and_latency(topic: Topic, target: Destination, kafka_agents: Any) -> None:
    agent = kafka_agents().until_ready()
    topic.send(target.url, *(f"r_{number}" for number in range(10)))
    poll(lambda: 'messages_total{outcome="delivered"} 10' in agent.metrics())
    text = agent.metrics()
    assert "port_webhook_agent_message_seconds_count 10" in text
    assert "port_webhook_agent_ready 1" in text
    poll(lambda: "port_webhook_agent_lag 0\n" in agent.metrics())


def test_a_group_that_port_refuses_is_told(topic: Topic, kafka_agents: Any) -> None:
    agent = kafka_agents(kafka={"group_id": "somebody.else"})
    poll(lambda: "refuses access" in str(agent.ready()["problem"]))


def test_a_member_without_a_partition_is_told(broker: Path, kafka_agents: Any, topic: Topic) -> None:
    """Port's agent exits then; ours stands by, and is not ready."""
    agents = [kafka_agents() for _ in range(4)]
    poll(lambda: sum(agent.ready()["ready"] for agent in agents) == 3, 30)

    def problems() -> list[str]:
        return [status["problem"] for status in (agent.ready() for agent in agents) if not status["ready"]]

    # The three may be ready before the fourth has heard anything.
    poll(lambda: len(found := problems()) == 1 and "no partition is assigned" in found[0], 30)


@pytest.mark.slow
def test_sigkill_under_load_loses_nothing(
    topic: Topic, target: Destination, port: FakePort, kafka_agents: Any
) -> None:
    """10,000 messages; agents are killed and replaced while they deliver."""
    total = 10_000
    expected = {f"r_{number}" for number in range(total)}
    soon = {"session_timeout_ms": 3000}
    agent = kafka_agents(kafka=soon).until_ready()
    writing = threading.Thread(target=lambda: topic.send(target.url, *sorted(expected)))
    writing.start()
    for share in (0.2, 0.5, 0.8):
        poll(lambda share=share: len(target.received) >= share * total, 60)  # type: ignore[misc]
        agent.kill()
        agent = kafka_agents(kafka=soon)
    writing.join()
    poll(lambda: len(set(target.run_ids())) == total, 90, f"lost {total - len(set(target.run_ids()))}")
    poll(lambda: topic.committed(group(topic)) == total, 30)
    counts = Counter(target.run_ids())
    # What was under way at a kill, or acknowledged and not committed yet, comes twice; not more.
    assert set(counts) == expected
    assert sum(counts.values()) - total <= 3 * 1000
    assert max(counts.values()) <= 4


@pytest.mark.slow
def test_rebalances_under_load_lose_nothing(
    topic: Topic, target: Destination, port: FakePort, kafka_agents: Any
) -> None:
    """A second agent joins and leaves in order while messages flow."""
    total = 4_000
    first = kafka_agents().until_ready()
    writing = threading.Thread(target=lambda: topic.send(target.url, *(f"r_{n}" for n in range(total))))
    writing.start()
    second = kafka_agents().until_ready()
    assert first.ready()["partitions"] + second.ready()["partitions"] <= 3
    poll(lambda: len(target.received) >= total // 2, 60)
    assert second.stop() == 0
    writing.join()
    poll(lambda: len(set(target.run_ids())) == total, 60)
    poll(lambda: topic.committed(group(topic)) == total, 30)
    poll(lambda: first.ready()["partitions"] == 3)
    # Attempts under way end before a partition moves, so almost nothing is delivered twice.
    assert len(target.received) - total <= 100


@pytest.mark.slow
def test_a_restart_of_the_broker_loses_nothing(
    topic: Topic, target: Destination, port: FakePort, kafka_agents: Any
) -> None:
    agent = kafka_agents().until_ready()
    topic.send(target.url, *(f"r_a{number}" for number in range(100)))
    poll(lambda: len(set(target.run_ids())) >= 50)
    kafka_broker.stop(topic.home)
    assert kafka_broker.status(topic.home) is None
    kafka_broker.ensure_running(topic.home)
    topic.send(target.url, *(f"r_b{number}" for number in range(100)))
    poll(lambda: len(set(target.run_ids())) == 200, 60)
    poll(lambda: topic.committed(group(topic)) == 200, 30)
    agent.until_ready()
