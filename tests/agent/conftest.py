"""One real broker for all tests of a run; each test has topics of its own."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.kit import AgentProcess, Destination, Topic, destination
from tests.unit.runtime.kit import FakePort, fake_port

from port_webhook_handlers.agent.config import AgentConfig, AgentLimits, KafkaSettings
from port_webhook_stack.agent import kafka_broker

SECRET = "organisation-secret-0123456789-0123456789"
_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def broker() -> Iterator[Path]:
    """Home of a running broker."""
    home = Path(tempfile.mkdtemp(prefix="kafka-"))
    try:
        kafka_broker.ensure_running(home)
        yield home
    finally:
        kafka_broker.remove(home)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def topic(broker: Path) -> Iterator[Topic]:
    found = Topic(broker, f"org{next(_NUMBERS)}", SECRET)
    yield found
    found.close()


@pytest.fixture
def target() -> Iterator[Destination]:
    with destination() as found:
        yield found


@pytest.fixture
def port() -> Iterator[FakePort]:
    with fake_port() as found:
        yield found


@pytest.fixture
def kafka_agents(tmp_path: Path, topic: Topic, target: Destination, port: FakePort) -> Iterator[Any]:
    """Starts agents of the topic, and ends those that a test left."""
    started: list[AgentProcess] = []

    def start(password: str = "", environment: dict[str, str] | None = None, **changes: Any) -> AgentProcess:
        kafka = {"session_timeout_ms": 6000, "ca_file": topic.ca_file, **changes.pop("kafka", {})}
        limits = {
            "retry_seconds": 0.05,
            "attempt_seconds": 5,
            "delivery_seconds": 3,
            **changes.pop("limits", {}),
        }
        values: dict[str, Any] = {
            "source": "kafka",
            "name": "test",
            "port_base_url": port.url,
            "organization_id": topic.organization,
            "allowed_hosts": (target.host,),
            "run_logs": False,
            "kafka": KafkaSettings(brokers=topic.brokers, username=topic.username, **kafka),
            "limits": AgentLimits(**limits),
            **changes,
        }
        process = AgentProcess(
            tmp_path / f"agent-{len(started)}",
            AgentConfig(**values),
            "client-id",
            SECRET,
            environment,
            KAFKA_PASSWORD=password or topic.password,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
