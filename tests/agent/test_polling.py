"""Polling against local Port: an agent as a process, a real destination, faults on the way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.kit import AgentProcess, Destination, Received, destination, is_signed, poll
from tests.agent.soak import soak
from tests.fixtures_localport import LocalPort, eventually, local_port

from port_webhook_handlers.agent.config import AgentConfig, AgentLimits, PollingSettings

__all__ = ["local_port"]
pytestmark = pytest.mark.agent


@pytest.fixture
def target() -> Iterator[Destination]:
    with destination() as found:
        yield found


@pytest.fixture
def agents(tmp_path: Path, local_port: LocalPort, target: Destination) -> Iterator[Any]:
    """Starts agents, and ends those that a test left."""
    started: list[AgentProcess] = []

    def start(**changes: Any) -> AgentProcess:
        values: dict[str, Any] = {
            "source": "polling",
            "port_base_url": local_port.url,
            "allowed_hosts": (target.host,),
            "polling": PollingSettings(interval_seconds=0.05, max_backoff_seconds=0.3),
            "limits": AgentLimits(retry_seconds=0.05, attempt_seconds=5, delivery_seconds=3),
            **changes,
        }
        process = AgentProcess(
            tmp_path / f"agent-{len(started)}",
            AgentConfig(**values),
            local_port.client_id,
            local_port.client_secret,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def define(
    port: LocalPort,
    target: Destination,
    action: str = "ship",
    inputs: dict[str, Any] | None = None,
    **method: Any,
) -> None:
    port.api(
        "POST",
        "/actions",
        {
            "identifier": action,
            "trigger": {
                "type": "self-service",
                "operation": "CREATE",
                "userInputs": {"properties": inputs or {"text": {"type": "string"}}},
            },
            "invocationMethod": {
                "type": "WEBHOOK",
                "url": f"{target.url}/{action}",
                "agent": True,
                "headers": {"x-custom": "{{ .inputs.text }}"},
                "body": {"context": {"runId": "{{ .run.id }}"}, "text": "{{ .inputs.text }}"},
                **method,
            },
        },
    )


def test_an_asynchronous_run_is_forwarded_and_acknowledged(
    local_port: LocalPort, target: Destination, agents: Any
) -> None:
    define(local_port, target)
    agent = agents()
    run_id = local_port.execute("ship", {"text": "Zoe"})
    request: Received = poll(lambda: next(iter(target.received), None))
    assert (request.method, request.path) == ("POST", "/ship")
    # The evaluated body as it is: nothing of the protocol is mixed into it.
    assert request.json == {"context": {"runId": run_id}, "text": "Zoe"}
    assert request.headers["x-custom"] == "Zoe"
    assert request.headers["x-port-run-id"] == run_id
    assert is_signed(request, local_port.client_secret)
    eventually(lambda: local_port.admin("GET", f"/runs/{run_id}")["delivery"] == "acknowledged")
    assert local_port.run(run_id)["status"] == "IN_PROGRESS"
    eventually(lambda: any("answered 200" in line for line in local_port.logs(run_id)))
    assert agent.ready()["ready"]
    # A setting of the whole organisation is nobody's to change without being told.
    assert local_port.api("GET", "/organization")["organization"]["settings"] == {}
    assert agent.stop() == 0


def test_a_synchronous_run_gets_response_and_status(
    local_port: LocalPort, target: Destination, agents: Any
) -> None:
    define(local_port, target, synchronized=True)
    target.answer = lambda request: (
        (200, b'{"answer": 42}') if request.json["text"] == "good" else (422, b'{"error": "no"}')
    )
    agents()
    good = local_port.finished(local_port.execute("ship", {"text": "good"}))
    bad = local_port.finished(local_port.execute("ship", {"text": "bad"}))
    assert (good["status"], good["response"]) == ("SUCCESS", {"answer": 42})
    assert (bad["status"], bad["response"]) == ("FAILURE", {"error": "no"})
    assert "422" in bad["summary"]
    # The reply's text is not for everybody who may see runs, unless it is asked for.
    assert "no" not in bad["summary"].split()


def test_a_mapping_decides_what_is_sent_and_what_is_reported(
    local_port: LocalPort, target: Destination, agents: Any, tmp_path: Path
) -> None:
    """Conditions, a secret input in clear text, and a report that Port can be searched by."""
    for action in ("ship", "other"):
        inputs = {"text": {"type": "string"}, "key": {"type": "string", "encryption": "aes256-gcm"}}
        define(local_port, target, action, body={"inputs": "{{ .inputs }}"}, inputs=inputs)
    mapping = tmp_path / "mapping.json"
    mapping.write_text(
        json.dumps(
            [
                {
                    "enabled": '.payload.action.invocationMethod.url | endswith("/ship")',
                    "method": '"PUT"',
                    "query": {"run": ".context.runId"},
                    "body": {"opened": ".inputs.key", "said": ".inputs.text"},
                    "fieldsToDecryptPaths": ["inputs.key"],
                    "report": {
                        "status": 'if .response.json.ok then "SUCCESS" else "FAILURE" end',
                        "link": ".response.json.url",
                        "summary": '.body.inputs.text + " as " + (.response.json.id | tostring)',
                        "externalRunId": ".response.json.id | tostring",
                    },
                },
                {"enabled": True, "report": {"summary": ".response.text"}},
            ]
        )
    )
    target.answer = lambda request: (200, b'{"ok": true, "id": 17, "url": "https://ci/17"}')
    agents(mapping_file=mapping)
    shipped = local_port.execute("ship", {"text": "Zoë", "key": "s3cr3t"})
    run = local_port.finished(shipped)
    other = local_port.execute("other", {"text": "x", "key": "s3cr3t"})
    eventually(lambda: local_port.run(other)["summary"])
    first, second = target.received
    assert (first.method, first.path) == ("PUT", f"/ship?run={shipped}")
    assert first.json == {"opened": "s3cr3t", "said": "Zoë"}
    assert (run["status"], run["link"], run["summary"]) == ("SUCCESS", ["https://ci/17"], "Zoë as 17")
    found = local_port.api("GET", "/actions/runs?external_run_id=17&version=v2")["runs"]
    assert [item["id"] for item in found] == [shipped]
    assert (second.method, second.path) == ("POST", "/other")
    assert second.json["inputs"]["key"] not in ("", "s3cr3t"), "nobody asked for that one"
    assert local_port.run(other)["status"] == "IN_PROGRESS"


def test_a_destination_that_fails_for_a_while_is_tried_again(
    local_port: LocalPort, target: Destination, agents: Any
) -> None:
    define(local_port, target)
    answers = iter([503, 500, 429])
    target.answer = lambda request: (next(answers, 200), b"")
    agents()
    run_id = local_port.execute("ship", {"text": "x"})
    eventually(lambda: local_port.admin("GET", f"/runs/{run_id}")["delivery"] == "acknowledged")
    assert target.run_ids() == [run_id] * 4
    assert local_port.run(run_id)["status"] == "IN_PROGRESS"


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (302, 1), (500, 2)])
def test_a_delivery_that_cannot_succeed_ends_the_run(
    local_port: LocalPort, target: Destination, agents: Any, status: int, attempts: int
) -> None:
    define(local_port, target)
    target.answer = lambda request: (status, b"secret reply")
    agents(limits=AgentLimits(retry_seconds=0.05, attempt_seconds=5, delivery_seconds=0.5))
    run = local_port.finished(local_port.execute("ship", {"text": "x"}))
    assert run["status"] == "FAILURE"
    assert str(status) in run["summary"]
    assert "secret reply" not in run["summary"]
    assert len(target.received) >= attempts
    # No redirect is followed: it could lead anywhere.
    assert all(request.path == "/ship" for request in target.received)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.2:1/x", "not among the hosts"),
        ("http://169.254.169.254/latest", "never called"),
        ("http://[::ffff:a9fe:a9fe]/", "never called"),
        ("http://metadata.google.internal/", "never called"),
    ],
)
def test_other_hosts_are_never_called(
    local_port: LocalPort, target: Destination, agents: Any, url: str, problem: str
) -> None:
    define(local_port, target, url=url)
    agents(allowed_hosts=(target.host, "169.254.169.254"))
    run = local_port.finished(local_port.execute("ship", {"text": "x"}))
    assert run["status"] == "FAILURE"
    assert problem in run["summary"]


def test_nothing_is_acknowledged_while_port_is_away(
    local_port: LocalPort, target: Destination, agents: Any
) -> None:
    define(local_port, target)
    target.answer = lambda request: (400, b"")
    local_port.admin(
        "PUT",
        "/faults",
        {"api": [{"method": "PATCH", "prefix": "/v1/actions/runs/r_", "status": 503, "count": 2}]},
    )
    agents()
    run_id = local_port.execute("ship", {"text": "x"})
    eventually(lambda: target.received)
    assert local_port.admin("GET", f"/runs/{run_id}")["delivery"] == "agent"
    run = local_port.finished(run_id)
    assert run["status"] == "FAILURE"
    assert len(target.received) == 1, "only the report is repeated"


def test_a_killed_agent_loses_nothing(local_port: LocalPort, target: Destination, agents: Any) -> None:
    """The claim lapses and another agent takes the runs over: delivered at least once, none lost."""
    local_port.admin("PUT", "/settings", {"claimSeconds": 1.5})
    define(local_port, target)
    gate = {"open": False}

    def answer(request: Received) -> tuple[int, bytes]:
        poll(lambda: gate["open"], 30)
        return 200, b""

    target.answer = answer
    limits = AgentLimits(retry_seconds=0.05, attempt_seconds=1, delivery_seconds=0.5)
    first = agents(limits=limits)
    runs = {local_port.execute("ship", {"text": str(number)}) for number in range(20)}
    eventually(lambda: len(target.received) >= 20, 20)
    first.kill()
    gate["open"] = True
    claimed = [local_port.admin("GET", f"/runs/{run_id}")["delivery"] for run_id in runs]
    assert set(claimed) == {"agent"}, "a run was acknowledged before its outcome"
    before = len(target.received)
    agents(limits=limits)
    eventually(
        lambda: all(
            local_port.admin("GET", f"/runs/{run_id}")["delivery"] == "acknowledged" for run_id in runs
        ),
        30,
    )
    assert set(target.run_ids()[before:]) == runs


def test_an_end_in_order_waits_for_deliveries_and_acknowledges_them(
    local_port: LocalPort, target: Destination, agents: Any
) -> None:
    """The claim lapses in the meantime, and the agent that still works on it does not deliver it twice."""
    local_port.admin("PUT", "/settings", {"claimSeconds": 0.1})
    define(local_port, target)
    gate = threading.Event()
    target.answer = lambda request: (200, b"") if gate.wait(20) else (500, b"")
    agent = agents()
    run_id = local_port.execute("ship", {"text": "x"})
    poll(lambda: target.received)

    def claims() -> int:
        return local_port.calls()["POST /v1/actions/runs/claim-pending"]

    def has_stopped_claiming() -> bool:
        before = claims()
        time.sleep(0.2)
        return claims() == before

    before = claims()
    poll(lambda: claims() >= before + 5)
    agent.process.terminate()
    poll(has_stopped_claiming)
    late = local_port.execute("ship", {"text": "late"})
    gate.set()
    assert agent.stop() == 0
    assert target.run_ids() == [run_id]
    assert local_port.admin("GET", f"/runs/{run_id}")["delivery"] == "acknowledged"
    assert local_port.admin("GET", f"/runs/{late}")["delivery"] == "agent", "left to the next agent"


def test_kills_and_faults_lose_nothing_and_execute_nothing_twice(
    local_port: LocalPort, tmp_path: Path
) -> None:
    """Few runs of what `make soak` does with many: claims lapse, and the listener tells repeats."""
    figures = soak(tmp_path, local_port, runs=120, kills=2)
    assert figures["deliveries"] >= 120


def test_actions_of_other_agents_are_left_alone(
    local_port: LocalPort, target: Destination, agents: Any
) -> None:
    define(local_port, target)
    define(local_port, target, "foreign")
    foreign = [local_port.execute("foreign", {"text": "x"}) for _ in range(3)]
    agents(actions=("ship",), polling=PollingSettings(interval_seconds=0.05, batch=2))
    mine = local_port.execute("ship", {"text": "x"})
    eventually(lambda: target.run_ids() == [mine])
    states = {local_port.admin("GET", f"/runs/{run_id}")["delivery"] for run_id in foreign}
    assert states == {"agent"}


def test_the_log_holds_neither_payloads_nor_secrets(
    local_port: LocalPort, target: Destination, agents: Any
) -> None:
    define(local_port, target)
    target.answer = lambda request: (400, b"reply-text")
    agent = agents()
    local_port.finished(local_port.execute("ship", {"text": "input-text"}))
    agent.stop()
    for word in ("input-text", "reply-text", local_port.client_secret):
        assert word not in agent.log
