"""Runs while everything fails: `python -m tests.agent.soak [--source kafka] [--runs 10000] [--kills 20] [--seed 1]`.

Two agents take runs of a local Port, by polling or from a real broker, and forward them to a real listener. Again and
again one of them is killed in the middle of its deliveries and replaced, claims lapse, and Port fails one call in ten,
some of them after it has done what was asked. Then:

- every run has ended in Port as its handler said, and is acknowledged or committed;
- every run was executed exactly once, although some were delivered more often.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tests.agent.kit import AgentProcess, Topic, poll
from tests.fixtures_localport import LocalPort
from tests.unit.runtime.kit import listener_config, route, write_bundle, write_secrets

from port_webhook_handlers.agent.config import AgentConfig, AgentLimits, KafkaSettings, PollingSettings
from port_webhook_handlers.port.envelope import action_webhook
from port_webhook_handlers.runtime import control
from port_webhook_handlers.runtime.secret_file import ApiCredentials, SigningSecret
from port_webhook_localport import control as local_control
from port_webhook_stack.agent import kafka_broker

HANDLER = """
from pathlib import Path
from port_webhook_handlers.sdk import Run, Success, action

@action("mark", title="Mark", operation="CREATE")
def mark(run: Run) -> Success:
    with open(Path(run.settings["state_dir"]) / "marks", "a") as stream:
        stream.write(f"{run.id}\\n")
    return Success(summary="marked")
"""
# Half of them fail after the work is done, as when only the reply is lost.
FAULTS = [
    # What is delivered and not acknowledged yet is what a kill lets be delivered again.
    {"prefix": "/v1/actions/runs/ack", "delaySeconds": 0.3, "percent": 50},
    {"prefix": "/v1/actions/runs/", "status": 503, "percent": 5},
    {"prefix": "/v1/actions/runs/", "status": 502, "percent": 5, "after": True},
]


class Agents:
    """Two agents at a time."""

    def __init__(self, folder: Path, port: LocalPort, listener: str, topic: Topic | None) -> None:
        self._folder = folder
        self._port = port
        self._topic = topic
        self._listener = urlsplit(listener).netloc
        self._running: list[AgentProcess] = []
        self.kills = 0
        for _ in range(2):
            self._start()

    def _start(self) -> None:
        topic = self._topic
        config = AgentConfig(
            source="polling" if topic is None else "kafka",
            name="soak",
            kafka=KafkaSettings(ca_file=topic.ca_file if topic else None, session_timeout_ms=3000),
            port_base_url=self._port.url,
            allowed_hosts=(self._listener,),
            polling=PollingSettings(interval_seconds=0.05, max_backoff_seconds=0.2, batch=50),
            limits=AgentLimits(retry_seconds=0.05, attempt_seconds=5, delivery_seconds=60, max_in_flight=100),
            run_logs=False,
        )
        folder = self._folder / f"agent-{self.kills}-{len(self._running)}"
        credentials = self._port.client_id, self._port.client_secret
        self._running.append(AgentProcess(folder, config, *credentials))

    def kill_one(self) -> None:
        """Kills the older one in the middle of what it does, and starts another."""
        self._running.pop(0).kill()
        self.kills += 1
        self._start()

    def stop(self) -> None:
        for agent in self._running:
            assert agent.stop() == 0, agent.log

    def kill(self) -> None:
        for agent in self._running:
            agent.kill()


def soak(
    folder: Path, port: LocalPort, runs: int, kills: int, seed: int = 1, topic: Topic | None = None
) -> dict[str, int]:
    """Figures by name; raises AssertionError where a promise is broken.

    Args:
        folder: for everything that it writes.
        port: a local Port without actions.
        runs: how many.
        kills: how often one of the two agents is killed.
        seed: of the moments when.
        topic: the topics of the local Port's organisation; None: agents poll.
    """
    generator = random.Random(seed)
    write_bundle(folder / "bundle", (route("mark", inputs_schema={"type": "object"}),), HANDLER)
    write_secrets(
        folder,
        signing=(SigningSecret(port.client_secret),),
        api=ApiCredentials(port.client_id, port.client_secret),
    )
    listener = control.start(folder / "listener", listener_config(folder, port.url))
    try:
        webhook = {**action_webhook("mark", agent=True).to_body(), "url": f"{listener.url}/webhooks/mark"}
        trigger = {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}}
        port.api("POST", "/actions", {"identifier": "mark", "trigger": trigger, "invocationMethod": webhook})
        port.admin("PUT", "/settings", {"claimSeconds": 1})
        if topic is not None:
            known = {"brokers": [topic.brokers], "username": topic.username, "password": topic.password}
            port.admin("PUT", "/kafka", {**known, "caFile": str(topic.ca_file)})
        # All wait from the beginning, so that a kill always strikes in the middle of deliveries.
        expected = [port.execute("mark") for _ in range(runs)]
        port.admin("PUT", "/faults", {"api": FAULTS})
        agents = Agents(folder, port, listener.url, topic)
        try:
            marks = folder / "marks"

            def done() -> int:
                return marks.read_bytes().count(b"\n") if marks.exists() else 0

            for number in range(kills):
                goal = int(runs * (number + generator.random()) / (kills + 1))
                poll(lambda goal=goal: _deliveries(listener) >= goal, 120)  # type: ignore[misc]
                agents.kill_one()
            poll(lambda: done() >= runs, 60 + runs / 20, "runs are missing")
            port.admin("PUT", "/faults", {"api": []})
            if topic is not None:
                poll(lambda: topic.committed(f"{topic.organization}.soak") == runs, 60, "not committed")
            for run_id in expected:
                poll(lambda run_id=run_id: _is_settled(port, run_id), 60, "a run is open")  # type: ignore[misc]
            agents.stop()
        finally:
            agents.kill()
        executed = Counter(marks.read_text().split())
        assert set(executed) == set(expected), "runs were lost"
        assert set(executed.values()) == {1}, executed.most_common(3)
        return {"runs": runs, "kills": agents.kills, "deliveries": _deliveries(listener)}
    finally:
        control.stop(folder / "listener")


def _is_settled(port: LocalPort, run_id: str) -> bool:
    found = port.admin("GET", f"/runs/{run_id}")
    settled = found["delivery"] in ("acknowledged", "published", "none")
    return found["run"]["status"] == "SUCCESS" and settled


def _deliveries(listener: control.ListenerStatus) -> int:
    """Requests that the listener answered 202, duplicates included."""
    with requests.Session() as session:
        session.trust_env = False
        lines = session.get(listener.metrics_url or "", timeout=5).text.splitlines()
    counted = [line for line in lines if line.startswith('port_webhook_requests_total{status="202"')]
    return sum(int(float(line.rpartition(" ")[2])) for line in counted)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.agent.soak")
    parser.add_argument("--source", choices=("polling", "kafka"), default="polling")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="agent-soak-") as name:
        folder = Path(name)
        port = LocalPort(local_control.ensure_running(folder / "local-port"), folder / "local-port")
        topic = None
        try:
            if arguments.source == "kafka":
                organization = port.api("GET", "/organization")["organization"]["id"]
                kafka_broker.ensure_running(folder / "kafka")
                topic = Topic(folder / "kafka", organization, port.client_secret)
            figures = soak(folder, port, arguments.runs, arguments.kills, arguments.seed, topic)
        finally:
            if topic is not None:
                topic.close()
            kafka_broker.remove(folder / "kafka")
            port.close()
            local_control.stop(folder / "local-port")
    figures["seconds"] = round(time.monotonic() - began)
    print(json.dumps({"source": arguments.source, **figures}), file=sys.stdout)


if __name__ == "__main__":
    main()
