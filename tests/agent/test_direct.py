"""The direct sink: a listener that takes runs from Port itself, over polling and from the topic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.kit import Topic, poll, topic_message
from tests.fixtures_localport import LocalPort, eventually, local_port
from tests.unit.runtime.kit import FakePort, listener_config, write_bundle, write_secrets

from port_webhook_handlers.port.envelope import action_body, action_webhook
from port_webhook_handlers.runtime import control
from port_webhook_handlers.runtime.secret_file import ApiCredentials, SigningSecret
from port_webhook_stack.cli.agent_status import agent_lines

__all__ = ["local_port"]
pytestmark = pytest.mark.agent


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[Any]:
    """Starts a listener whose agent reads what the given configuration says."""
    home = tmp_path / "listener"

    def start(
        port_url: str, client: tuple[str, str], agent: dict[str, Any], **secrets: str
    ) -> control.ListenerStatus:
        if not (tmp_path / "bundle").exists():
            write_bundle(tmp_path / "bundle")
        write_secrets(
            tmp_path,
            signing=(SigningSecret(client[1]),),
            api=ApiCredentials(*client),
            secrets={"TOKEN": "token-of-the-handler", **secrets},
        )
        return control.start(home, listener_config(tmp_path, port_url, agent=agent))

    yield start
    control.stop(home)


def define(port: LocalPort, action: str, *, synchronized: bool = False) -> None:
    webhook = action_webhook(action, synchronized=synchronized, agent=True)
    body = {
        "identifier": action,
        "trigger": {
            "type": "self-service",
            "operation": "CREATE",
            "userInputs": {"properties": {"text": {"type": "string"}}},
        },
        # Nobody listens there: the run comes over polling.
        "invocationMethod": {**webhook.to_body(), "url": "http://127.0.0.1:9/nowhere"},
    }
    port.api("POST", "/actions", body)


def shown(folder: Path, listener: control.ListenerStatus) -> str:
    """What `port-webhook status` says of the agent."""
    return dict(agent_lines(folder, listener))["agent"]


POLLING = {"source": "polling", "polling": {"interval_seconds": 0.05}}


def test_a_run_is_polled_executed_and_reported(local_port: LocalPort, listeners: Any, tmp_path: Path) -> None:
    define(local_port, "greet")
    started = listeners(local_port.url, (local_port.client_id, local_port.client_secret), POLLING)
    poll(
        lambda: (
            shown(tmp_path, started)
            == "polling, in the listener: ready, 0 under way, 0 waiting for another attempt"
        )
    )
    run_id = local_port.execute("greet", {"text": "Zoe"})
    run = local_port.finished(run_id)
    assert run["status"] == "SUCCESS"
    assert run["summary"].startswith("greeted Zoe")
    assert (tmp_path / "marks").read_text().splitlines() == [f"{run_id} start 1"]
    eventually(lambda: local_port.admin("GET", f"/runs/{run_id}")["delivery"] == "none")


def test_a_synchronous_run_gets_its_answer(local_port: LocalPort, listeners: Any) -> None:
    define(local_port, "ask", synchronized=True)
    listeners(local_port.url, (local_port.client_id, local_port.client_secret), POLLING)
    good = local_port.finished(local_port.execute("ask", {"text": "x"}))
    bad = local_port.finished(local_port.execute("ask", {"text": "fail"}))
    assert good["status"] == "SUCCESS"
    assert good["response"]["text"] == "x"
    assert bad["status"] == "FAILURE"
    assert "no way" in bad["summary"]


def test_inputs_that_are_not_valid_end_the_run(local_port: LocalPort, listeners: Any) -> None:
    define(local_port, "greet")
    listeners(local_port.url, (local_port.client_id, local_port.client_secret), POLLING)
    run = local_port.finished(local_port.execute("greet", {"text": "x" * 300}))
    assert run["status"] == "FAILURE"
    assert "text" in run["summary"]


def kafka(topic: Topic) -> dict[str, Any]:
    return {
        "source": "kafka",
        "name": "direct",
        "organization_id": topic.organization,
        "kafka": {
            "brokers": topic.brokers,
            "username": topic.username,
            "ca_file": str(topic.ca_file),
            "session_timeout_ms": 6000,
            "allow_unsigned": True,
        },
    }


def test_a_message_of_the_topic_is_executed_once(
    topic: Topic, port: FakePort, listeners: Any, tmp_path: Path
) -> None:
    listeners(port.url, ("client-id", topic.secret), kafka(topic), KAFKA_PASSWORD=topic.password)
    message = topic_message(
        "r_1", "http://nowhere.invalid", topic.secret, action="greet", inputs={"text": "Zoë"}
    )
    topic.write(message, message, message)
    assert poll(lambda: port.ended("r_1"), 30)["summary"] == "greeted Zoë"
    poll(lambda: topic.committed(f"{topic.organization}.direct") == 3)
    assert (tmp_path / "marks").read_text().splitlines() == ["r_1 start 1"]


def test_a_kafka_action_is_read_from_the_topic(
    broker: Path, local_port: LocalPort, listeners: Any, tmp_path: Path
) -> None:
    """What a KAFKA invocation sends is its payload alone, unsigned (Port's documented form)."""
    organization = local_port.api("GET", "/organization")["organization"]["id"]
    topic = Topic(broker, organization, local_port.client_secret)
    known = {"brokers": [topic.brokers], "username": topic.username, "password": topic.password}
    local_port.admin("PUT", "/kafka", {**known, "caFile": str(topic.ca_file)})
    form = {"properties": {"text": {"type": "string"}}}
    body = {
        "identifier": "greet",
        "trigger": {"type": "self-service", "operation": "CREATE", "userInputs": form},
        "invocationMethod": {"type": "KAFKA", "payload": action_body("greet")},
    }
    local_port.api("POST", "/actions", body)
    # Brokers and credentials come from Port's API here.
    agent = kafka(topic)
    agent["kafka"] |= {"brokers": None, "username": None}
    started = listeners(local_port.url, (local_port.client_id, local_port.client_secret), agent)
    run = local_port.finished(local_port.execute("greet", {"text": "Zoë"}), 30)
    assert run["status"] == "SUCCESS"
    assert run["summary"].startswith("greeted Zoë")
    group = f"group {organization}.direct"
    poll(lambda: f"ready, {group}, 3 partitions, 0 behind" in shown(tmp_path, started))
    topic.close()


def test_the_status_tells_that_credentials_are_refused(
    topic: Topic, port: FakePort, listeners: Any, tmp_path: Path
) -> None:
    started = listeners(port.url, ("client-id", topic.secret), kafka(topic), KAFKA_PASSWORD="wrong")
    expected = f"NOT READY: Kafka refuses the credentials, group {topic.organization}.direct, 0 partitions"
    poll(lambda: expected in shown(tmp_path, started))


def test_an_update_of_the_listener_loses_nothing(
    topic: Topic, port: FakePort, listeners: Any, tmp_path: Path
) -> None:
    """Servers are exchanged while messages come: each run is executed once."""
    client = ("client-id", topic.secret)
    listeners(port.url, client, kafka(topic), KAFKA_PASSWORD=topic.password)
    runs = {f"r_{number}" for number in range(60)}
    messages = [
        topic_message(run_id, "http://nowhere.invalid", topic.secret, action="work", inputs={"text": ""})
        for run_id in sorted(runs)
    ]
    topic.write(*messages[:30])
    changed = {**kafka(topic), "limits": {"max_in_flight": 500}}
    listeners(port.url, client, changed, KAFKA_PASSWORD=topic.password)
    topic.write(*messages[30:])
    poll(lambda: all(port.ended(run_id) for run_id in runs), 60)
    starts = [line for line in (tmp_path / "marks").read_text().splitlines() if " start " in line]
    assert sorted(line.split()[0] for line in starts) == sorted(runs)
