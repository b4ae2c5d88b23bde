"""Beside Port's own agent: what it sends, our listener takes where a route declares it; what it gets, ours handles.

The numbers in the names of the tests are those of the sections of Port's protocol that the vectors come from:
5.2 signatures, 6 encrypted inputs, 8.1 environment, 8.3 messages, 8.4 polling, 8.5 mapping, 8.6 reports.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.agent.kit import Destination, Received, destination, is_signed
from tests.contract import official_agent
from tests.contract.official_agent import run_event, today, topic_text
from tests.unit.runtime.kit import FakePort, envelope, fake_port, listener_config, route, signed, write_bundle
from tests.unit.runtime.kit import poll as until
from tests.unit.runtime.kit import write_secrets as write_listener_secrets

from port_webhook_handlers.agent.config import AgentConfig, AgentLimits, PollingSettings
from port_webhook_handlers.agent.core import Agent
from port_webhook_handlers.agent.destinations import AllowList
from port_webhook_handlers.agent.environment import from_environment
from port_webhook_handlers.agent.mapping import Rule, decrypted
from port_webhook_handlers.agent.messages import (
    ForeignError,
    Message,
    PoisonError,
    from_change_log,
    from_node_run,
    from_run,
    from_topic,
)
from port_webhook_handlers.agent.metrics import AgentMetrics
from port_webhook_handlers.agent.reports import Reporter
from port_webhook_handlers.agent.service import AgentService
from port_webhook_handlers.agent.sinks.forward import ForwardSink
from port_webhook_handlers.port.async_client import PortApi
from port_webhook_handlers.port.http_client import HttpClient
from port_webhook_handlers.port.signature import VerificationError, sign, verify, verify_official_agent
from port_webhook_handlers.runtime import control
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.secret_file import (
    ApiCredentials,
    LiveSecrets,
    SecretFile,
    SigningSecret,
    StoredSecrets,
)

SECRET = "port-test-client-secret-0123456789abcdef"
STAMP = "1700000000"
NOW = 1_700_000_000.0
Calls = list[tuple[str, str, dict[str, Any]]]

# 5.2: what is signed, and with which result

VECTORS = {
    "compact": (
        b'{"port_context":{"runId":"r_0123456789abcdef"},"service":"checkout"}',
        "v1,wvnPUuINl/LkVTySSgECeLk+T/SdCu6AXE1+UIkamqE=",
    ),
    "spaced": (
        b'{"port_context": {"runId": "r_0123456789abcdef"}, "service": "checkout"}',
        "v1,te5drtWSGY91Nt2xzjS6AnEF7DHRbTo3sPYvBKvctkQ=",
    ),
    "utf-8": ('{"name":"Zoë","emoji":"✓"}'.encode(), "v1,xO993dYMXroiWjAO+bIaLrfuNt/b/SQxRJF9qLobW9s="),
    "escaped": (rb'{"name":"Zo\u00eb","emoji":"\u2713"}', "v1,S5zH5hAOoaxOeHMmSuLcV1JyusjcYhpayfOmQGNiGag="),
    "empty-object": (b"{}", "v1,IFi1WqjyMRA5JCyHQHWsMcgzvN3TiPqXOGDzXcdIK8Q="),
    "nothing": (b"", "v1,Z4tyZ1qNdPUCCcc+ypJCh5xVSkPycFBaTMZzu5M0nuE="),
}
SPACED_ESCAPED = rb'{"name": "Zo\u00eb", "emoji": "\u2713"}'


@pytest.mark.parametrize("name", VECTORS)
def test_5_2_our_agent_signs_and_the_listener_verifies_the_bytes_sent(name: str) -> None:
    body, expected = VECTORS[name]
    assert sign(SECRET, STAMP, body) == expected
    verify([SECRET], expected, STAMP, body, now=NOW)


@pytest.mark.parametrize(
    ("sent", "signature", "reason"),
    [
        (VECTORS["spaced"][0], "compact", None),
        (SPACED_ESCAPED, "escaped", None),
        (b"{}", "empty-object", None),
        (VECTORS["compact"][0], "compact", "malformed_body"),
        (VECTORS["spaced"][0], "spaced", "bad_signature"),
        (VECTORS["utf-8"][0], "utf-8", "malformed_body"),
        (SPACED_ESCAPED, "utf-8", "bad_signature"),
        (b"", "nothing", "malformed_body"),
    ],
    ids=["spaced", "escaped", "empty-object", "compact", "spaced-signed", "utf-8", "utf-8-signed", "nothing"],
)
def test_5_3_the_scheme_of_the_official_agent_takes_what_it_sends_alone(
    sent: bytes, signature: str, reason: str | None
) -> None:
    check = [SECRET], VECTORS[signature][1], STAMP, sent
    if reason is None:
        assert verify_official_agent(*check, now=NOW) == json.loads(sent)
        return
    with pytest.raises(VerificationError) as caught:
        verify_official_agent(*check, now=NOW)
    assert caught.value.reason == reason


BODIES: dict[str, Any] = {
    "ascii": {"inputs": {"text": "a"}},
    "other-alphabets": {"inputs": {"text": "Zoë ✓ \U0001f680 \u2028"}},
    "numbers": {"inputs": {"text": "n"}, "trigger": [0, -1, 1.0, 1.5e-9, 1e22, 2**70, True, None]},
    "nested": {"inputs": {"text": '\\ " / \x7f'}, "trigger": {"a": [], "b": {}, "": {"c": [[{}]]}}},
    "polled": {
        "inputs": {"text": "p"},
        "headers": {"RUN_ID": "r"},
        "payload": {"action": {"invocationMethod": {"type": "WEBHOOK", "url": "http://x", "method": "POST"}}},
        "context": {"runId": "r"},
    },
}


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakePort]]:
    """URL of a real listener: its route `work` takes what Port sends, `agent` what Port's agent sends."""
    folder = tmp_path_factory.mktemp("compatibility")
    schema = {"type": "object"}
    routes = (
        route("work", inputs_schema=schema),
        route("agent", inputs_schema=schema, handler="app:work", scheme="official-agent"),
    )
    write_bundle(folder / "bundle", routes)
    write_listener_secrets(folder, signing=(SigningSecret(SECRET),))
    with fake_port() as port:
        status = control.start(folder / "listener", listener_config(folder, port.url))
        try:
            yield status.url, port
        finally:
            control.stop(folder / "listener")


def whole(action: str, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"port_context": {"action": action, "runId": run_id}, "entity": {}, "trigger": {}, **body}


@pytest.mark.parametrize("name", BODIES)
def test_5_3_a_delivery_of_the_official_agent_is_executed_on_a_route_that_declares_it(
    listener: tuple[str, FakePort], name: str
) -> None:
    url, port = listener
    body = whole("agent", f"r_{name}", BODIES[name])
    assert official_agent.deliver(f"{url}/webhooks/agent", SECRET, body).json()["accepted"] is True
    assert until(lambda: port.ended(f"r_{name}"))["status"] == "SUCCESS"


@pytest.mark.parametrize("name", BODIES)
def test_5_3_a_delivery_of_the_official_agent_is_refused_elsewhere(
    listener: tuple[str, FakePort], name: str
) -> None:
    url, _ = listener
    body = whole("work", f"r_elsewhere_{name}", BODIES[name])
    reply = official_agent.deliver(f"{url}/webhooks/work", SECRET, body)
    assert (reply.status_code, reply.json()["error"]) == (401, "bad_signature")


def test_5_3_what_else_is_refused_on_a_route_of_the_official_agent(listener: tuple[str, FakePort]) -> None:
    url, port = listener
    target = f"{url}/webhooks/agent"
    body = whole("agent", "r_refused", {"inputs": {}})

    def error(reply: requests.Response) -> Any:
        return reply.json()["error"]

    with requests.Session() as session:
        session.trust_env = False
        # Port itself, or our own agent, which sign the bytes that they send.
        direct = envelope("agent", "r_refused")
        assert error(session.post(target, direct, headers=signed(direct, SECRET))) == "malformed_body"
        spaced = official_agent.wire(body)
        assert error(session.post(target, spaced, headers=signed(spaced, SECRET))) == "bad_signature"
        assert error(session.post(target, json=body)) == "missing_signature"
        altered = official_agent.wire({**body, "inputs": {"text": "b"}})
        headers = official_agent.outgoing(SECRET, body)
        assert error(session.post(target, altered, headers=headers)) == "bad_signature"
    assert error(official_agent.deliver(target, "another secret", body)) == "bad_signature"
    assert error(official_agent.deliver(target, SECRET, body, at=time.time() - 400)) == "stale_timestamp"
    other = whole("work", "r_refused", {"inputs": {}})
    assert error(official_agent.deliver(target, SECRET, other)) == "wrong_route"
    assert port.ended("r_refused") is None


# 6: encrypted inputs

CIPHERTEXT = "AAECAwQFBgcICQoLDA0OD75fD3qQcY7d3qL79ThJB7WMVxEC+n4="


def test_6_an_encrypted_input_is_opened_where_the_mapping_names_it() -> None:
    document = {"payload": {"properties": {"secret": CIPHERTEXT, "list": [{"value": CIPHERTEXT}]}}}
    paths = ["payload.properties.secret", "payload.properties.list.0.value", "payload.properties.Secret"]
    found = decrypted(document, paths, ["another-client-secret-0123456789-abc", SECRET])
    assert found["payload"]["properties"] == {"secret": "s3cr3t", "list": [{"value": "s3cr3t"}]}


# 8.1: environment


def test_8_1_the_environment_of_the_official_agent_configures_ours(tmp_path: Path) -> None:
    mapping = tmp_path / "control_the_payload_config.json"
    config = from_environment(
        {
            "PORT_ORG_ID": "org_1",
            "PORT_CLIENT_ID": "id",
            "PORT_CLIENT_SECRET": "secret",
            "PORT_API_BASE_URL": "https://api.us.getport.io",
            "STREAMER_NAME": "KAFKA",
            "LOG_LEVEL": "INFO",
            "DETAILED_LOGGING": "true",
            "KAFKA_CONSUMER_GROUP_ID": "org_1.mine",
            "KAFKA_CONSUMER_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_CONSUMER_AUTHENTICATION_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_CONSUMER_SESSION_TIMEOUT_MS": "30000",
            "KAFKA_CONSUMER_AUTO_OFFSET_RESET": "largest",
            "KAFKA_RUNS_TOPIC": "org_1.other",
            "KAFKA_CHANGE_LOG_TOPIC": "org_1.changes",
            "USING_LOCAL_PORT_INSTANCE": "true",
            "KAFKA_CONSUMER_BOOTSTRAP_SERVERS": "localhost:9092",
            "POLLING_INTERVAL_SECONDS": "10",
            "POLLING_RUNS_BATCH_SIZE": "50",
            "POLLING_INITIAL_BACKOFF_SECONDS": "1",
            "POLLING_BACKOFF_FACTOR": "2.0",
            "POLLING_MAX_BACKOFF_SECONDS": "300",
            "POLLING_BACKOFF_JITTER_FACTOR": "0.1",
            "POLLING_MAX_FAILURE_DURATION_SECONDS": "3600",
            "CONTROL_THE_PAYLOAD_CONFIG_PATH": str(mapping),
            "WEBHOOK_INVOKER_TIMEOUT": "15.5",
            "WEBHOOK_VERIFY_SSL": "false",
            "GITLAB_URL": "https://gitlab.internal/",
            "AGENT_ALLOWED_HOSTS": "hooks.internal",
        }
    )
    assert (config.source, config.organization_id, config.detailed) == ("kafka", "org_1", True)
    assert (config.port_base_url, config.mapping_file) == ("https://api.us.getport.io", mapping)
    assert (config.verify_tls, config.gitlab_url) == (False, "https://gitlab.internal/")
    assert config.limits.attempt_seconds == 15.5
    kafka = config.kafka
    assert (kafka.group_id, kafka.brokers) == ("org_1.mine", "localhost:9092")
    assert (kafka.security_protocol, kafka.mechanism) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (kafka.session_timeout_ms, kafka.auto_offset_reset) == (30_000, "latest")
    assert (kafka.runs_topic, kafka.change_log_topic) == ("org_1.other", "org_1.changes")
    assert (config.polling.interval_seconds, config.polling.batch) == (10, 50)
    assert config.polling.max_backoff_seconds == 300


# 8.3: messages of the topics


def from_port(text: str, secret: str = SECRET, **options: Any) -> Message:
    return from_topic("runs/0/0", text.encode(), [secret.encode()], **{"now": NOW, "max_age": 60, **options})


def test_8_3_the_signature_vector_of_the_agents_fixture() -> None:
    text = topic_text(run_event(), "test", "1713277889")
    assert '"X-Port-Signature":"v1,uuBMfcio3oscejO5bOtL97K1AmiZjxDvou7sChjMNeE="' in text
    message = from_port(text, "test", now=1713277889)
    assert (message.refusal, message.run_id, message.action) == (None, "r_jE5FhDURh4Uen2Qr", "Create")
    assert message.invocation.url == "http://localhost:80/api/test"
    # The empty member `headers` is part of what is signed.
    without = topic_text(run_event(), "test", "1713277889", headers_signed=False)
    assert from_port(without, "test", now=1713277889).refusal is not None


URL = "https://hooks.internal/ship"
RUNS: dict[str, dict[str, Any]] = {
    "older, with the whole action": run_event({"type": "WEBHOOK", "agent": True, "url": URL}),
    "newer, on an entity": today("r_1", {"url": URL, "method": "PUT", "synchronized": True}),
    "newer, without an entity": today(
        "r_1", {"url": URL}, context={"entity": None, "blueprint": "service", "runId": "r_1"}
    ),
    "headers of the action": today("r_1", {"url": URL}, headers={"RUN_ID": "r_1", "x-number": 5}),
    "a body of the action's own": {
        "reason": "Zoë",
        "port_context": {"runId": "r_1"},
        "context": {"runId": "r_1"},
        "payload": {"action": {"invocationMethod": {"type": "WEBHOOK", "agent": True, "url": URL}}},
    },
    "a node of a workflow": {
        "context": {"runId": "wfnr_abc123", "nodeConfig": {"url": URL}},
        "payload": {"action": {"invocationMethod": {"type": "WEBHOOK", "agent": True, "url": URL}}},
    },
}


@pytest.mark.parametrize("written", ["compact", "spaced", "escaped"])
@pytest.mark.parametrize("name", RUNS)
def test_8_3_a_message_of_the_topic_of_runs(name: str, written: str) -> None:
    """Verified and read alike, however its bytes are written."""
    source = RUNS[name]
    text = topic_text(source, SECRET, STAMP)
    if written != "compact":
        text = json.dumps(json.loads(text), ensure_ascii=written == "escaped")
    message = from_port(text)
    assert message.refusal is None
    assert message.invocation.url == URL
    assert message.run_id == source["context"]["runId"]
    assert message.is_node_run is (name == "a node of a workflow")
    method = source["payload"]["action"]["invocationMethod"]
    assert message.invocation.method == method.get("method", "POST")
    assert message.invocation.synchronized is method.get("synchronized", False)
    # Headers of the signature are Port's business; the target gets the message without any.
    assert message.body == {key: value for key, value in source.items() if key != "headers"}
    expected = {"RUN_ID": "r_1", "x-number": "5"} if name == "headers of the action" else {}
    assert message.invocation.headers == expected


def test_8_3_a_timestamp_may_be_a_number_or_text_in_seconds_or_milliseconds() -> None:
    source = today("r_1", {"url": URL})
    for stamp in (STAMP, STAMP + "000"):
        text = topic_text(source, SECRET, stamp)
        assert from_port(text).refusal is None
        assert from_port(text.replace(f":{stamp}", f':"{stamp}"')).refusal is None


@pytest.mark.parametrize("change", ["headers", "payload", "context", "no signature", "old"])
def test_8_3_a_message_that_is_not_as_port_signed_it_ends_its_run(change: str) -> None:
    document = json.loads(topic_text(today("r_1", {"url": URL}, headers={"a": "b"}), SECRET, STAMP))
    if change == "headers":
        document["headers"]["a"] = "c"
    elif change == "payload":
        document["payload"]["properties"]["reason"] = "other"
    elif change == "context":
        document["context"]["entity"] = "svc-2"
    elif change == "no signature":
        document["headers"] = {"a": "b"}
    now = NOW + 3600 if change == "old" else NOW
    message = from_port(json.dumps(document), now=now)
    assert message.run_id == "r_1"
    assert message.refusal is not None


@pytest.mark.parametrize("flag", [{"agent": False}, {}], ids=["false", "absent"])
def test_8_3_a_message_without_agent_true_is_skipped(flag: dict[str, Any]) -> None:
    source = run_event({"type": "WEBHOOK", "url": URL, **flag})
    with pytest.raises(ForeignError):
        from_port(topic_text(source, SECRET, STAMP))


GITLAB = {"type": "GITLAB", "agent": True, "defaultRef": "main", "projectName": "app", "groupName": "a/b"}


def test_8_3_a_gitlab_message_is_signed_without_headers() -> None:
    text = topic_text(run_event(GITLAB), SECRET, STAMP, headers_signed=False)
    message = from_port(text)
    assert (message.refusal, message.invocation.type) == (None, "GITLAB")
    assert "headers" not in message.body


def test_8_3_a_kafka_action_writes_its_payload_alone() -> None:
    payload = {"context": {"runId": "r_1"}, "action": "ship", "payload": {"properties": {}}}
    with pytest.raises(ForeignError):
        from_port(json.dumps(payload))
    message = from_port(json.dumps(payload), allow_unsigned=True)
    assert (message.refusal, message.run_id, message.route) == (None, "r_1", "ship")


DESTINATION = {"type": "WEBHOOK", "agent": True, "url": URL}
CHANGES: dict[str, dict[str, Any]] = {
    "an entity": {
        "action": "UPDATE",
        "resourceType": "entity",
        "status": "SUCCESS",
        "trigger": {"by": {"orgId": "o", "userId": "u"}, "at": "2026-01-02T03:04:05Z", "origin": "API"},
        "context": {"entity": "svc-1", "blueprint": "service"},
        "diff": {"before": {"title": "Zoë"}, "after": {"title": "Zoé"}},
    },
    "a run": {
        "action": "Create",
        "resourceType": "run",
        "status": "TRIGGERED",
        "context": {"entity": None, "blueprint": "Service", "runId": "r_jE5FhDURh4Uen2Qr"},
        "diff": {"before": None, "after": {"id": "r_jE5FhDURh4Uen2Qr", "status": "IN_PROGRESS"}},
    },
}


@pytest.mark.parametrize("name", CHANGES)
def test_8_3_a_message_of_the_change_log(name: str) -> None:
    """Nothing signs it, nobody waits for it, and it goes to the blueprint's destination as it is."""
    change = {**CHANGES[name], "changelogDestination": DESTINATION}
    message = from_change_log("changes/0/0", json.dumps(change).encode())
    assert (message.refusal, message.run_id) == (None, None)
    assert (message.invocation.url, message.body) == (URL, change)
    for other in ({}, {"changelogDestination": {"type": "KAFKA"}}, {"changelogDestination": {"url": URL}}):
        with pytest.raises(ForeignError):
            from_change_log("changes/0/0", json.dumps({**CHANGES[name], **other}).encode())


# 8.4: what claiming hands out

CLAIMED = {"type": "WEBHOOK", "agent": True, "url": URL, "body": {"port_context": {"runId": "r_1"}, "a": 1}}


@pytest.mark.parametrize(
    ("changes", "method", "headers"),
    [
        ({}, "POST", {}),
        ({"method": "DELETE", "headers": {"a": "b", "n": 5, "none": None}}, "DELETE", {"a": "b", "n": "5"}),
        ({"synchronized": True, "headers": None, "method": None}, "POST", {}),
    ],
    ids=["least", "all", "null"],
)
def test_8_4_a_claimed_run(changes: dict[str, Any], method: str, headers: dict[str, str]) -> None:
    run = {
        "id": "r_1",
        "status": "IN_PROGRESS",
        "pendingExecution": True,
        "claimedUntil": "2026-01-02T03:04:05.678Z",
        "installationId": "_PORT_EXEC_AGENT",
        "action": {"identifier": "ship", "title": "Ship", "icon": None, "deleted": False},
        "payload": {**CLAIMED, **changes},
    }
    message = from_run(run)
    assert (message.run_id, message.action, message.invocation.url) == ("r_1", "ship", URL)
    assert (message.invocation.method, message.invocation.headers) == (method, headers)
    assert message.invocation.synchronized is changes.get("synchronized", False)
    assert message.body == CLAIMED["body"]
    # What mappings see is what Port's agent makes of it: the invocation without the flag, and the run's id.
    seen = message.document
    assert seen["context"] == {"runId": "r_1"}
    assert seen["headers"] == (changes.get("headers") or {})
    assert set(seen["payload"]["action"]["invocationMethod"]) == {
        *("type", "url", "synchronized", "method", "headers")
    }
    assert (seen["a"], seen["port_context"]) == (1, {"runId": "r_1"})


def test_8_4_a_claimed_run_in_the_former_form_of_runs() -> None:
    """`action` is a plain string there; a body may be a list, which Port's agent cannot take."""
    message = from_run({"id": "r_1", "action": "ship", "payload": {**CLAIMED, "body": [1, 2]}})
    assert (message.action, message.body, message.document["context"]) == ("ship", [1, 2], {"runId": "r_1"})


@pytest.mark.parametrize("node", [False, True], ids=["run", "node"])
def test_8_4_what_is_claimed_and_not_usable(node: bool) -> None:
    read, key = (from_node_run, "identifier") if node else (from_run, "id")
    for broken in ({}, {key: None}, {key: ""}, {key: 5}):
        with pytest.raises(PoisonError):
            read(broken)
    with pytest.raises(ForeignError):
        read({key: "x_1", "config" if node else "payload": {"type": "WEBHOOK", "url": URL, "agent": False}})
    # A missing invocation ends the run where it is delivered, and no sooner.
    assert read({key: "x_1"}).invocation.url is None


@pytest.mark.parametrize("place", ["config", "node"])
def test_8_4_a_claimed_node_of_a_workflow(place: str) -> None:
    config = {"type": "WEBHOOK", "agent": True, "url": URL, "synchronized": True, "body": {"a": 1}}
    run = {"identifier": "wfnr_abc123", **({"config": config} if place == "config" else {})}
    if place == "node":
        run["node"] = {"config": config}
    message = from_node_run(run)
    assert (message.run_id, message.is_node_run) == ("wfnr_abc123", True)
    assert (message.invocation.url, message.invocation.synchronized, message.body) == (URL, True, {"a": 1})
    assert message.document["context"] == {"runId": "wfnr_abc123", "nodeConfig": config}


# 8.5 and 8.6: what is sent for a message, and what Port is told


class Forwarded:
    """One message through the real parts: core, sink, HTTP client, reporter."""

    def __init__(self, folder: Path, target: Destination, port: FakePort) -> None:
        self.folder = folder
        self.target, self.port = target, port
        self.received: list[Received] = []
        self.calls: Calls = []
        self.acknowledged = False

    def __call__(
        self,
        message: Callable[[str], Message],
        *rules: dict[str, Any],
        answer: tuple[int, bytes] = (200, b"{}"),
        **options: Any,
    ) -> Forwarded:
        """Delivers what the function makes for the URL of a destination that answers so."""
        target, port = self.target, self.port
        self.received, self.calls, self.acknowledged = [], [], False
        target.received, port.calls, port.runs = self.received, self.calls, {}
        target.answer = lambda request: answer
        port.fault = lambda method, path: (200, {}, {"ok": True}) if "/workflows/" in path else None
        asyncio.run(self._deliver(message(f"{target.url}/ship"), rules, target, port, options))
        return self

    async def _deliver(
        self,
        message: Message,
        rules: tuple[dict[str, Any], ...],
        target: Destination,
        port: FakePort,
        options: dict[str, Any],
    ) -> None:
        def acknowledge() -> None:
            self.acknowledged = True

        message.acknowledge = acknowledge
        if "gitlab" in options:
            options = {"secret": options["gitlab"].get, "gitlab_url": f"{target.url}/"}
        metrics, http = AgentMetrics(), HttpClient()
        with (self.folder / "log").open("ab") as stream:
            log = Log(stream.fileno())
            sink = ForwardSink(
                http,
                AllowList([target.host]),
                [Rule(f"[{number}]", rule) for number, rule in enumerate(rules)],
                lambda: SECRET.encode(),
                lambda: [SECRET],
                run_logs=False,
                **options,
            )
            reporter = Reporter(PortApi(port.url, lambda: ("id", "secret"), http), log, metrics)
            agent = Agent(
                sink, reporter, AgentLimits(retry_seconds=0.01, delivery_seconds=0.05), log, metrics
            )
            agent.submit(message)
            async with asyncio.timeout(10):
                while agent.in_flight:
                    await asyncio.sleep(0.002)
            http.close()

    @property
    def request(self) -> Received:
        [request] = self.received
        return request

    @property
    def reports(self) -> list[dict[str, Any]]:
        """Bodies of the calls that change a run's or a node's status."""
        return [body for method, path, body in self.calls if method == "PATCH" and "response" not in path]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Destination, FakePort]]:
    with destination() as target, fake_port() as port:
        yield target, port


@pytest.fixture
def forwarded(tmp_path: Path, servers: tuple[Destination, FakePort]) -> Forwarded:
    return Forwarded(tmp_path, *servers)


def event(url: str, **changes: Any) -> Message:
    method = {"url": url, "headers": {"from-action": "Zoë"}, **changes}
    source = today("r_1", method)
    source["payload"]["properties"]["secret"] = CIPHERTEXT
    return from_port(topic_text(source, SECRET, STAMP))


def test_8_5_without_a_mapping_the_message_goes_to_its_url(forwarded: Forwarded) -> None:
    request = forwarded(lambda url: event(url, method="PUT")).request
    assert (request.method, request.path) == ("PUT", "/ship")
    assert request.json["payload"]["properties"]["reason"] == "Zoë ✓"
    assert "headers" not in request.json
    # Unlike Port's agent: headers of the action are forwarded, and what is signed is what is sent.
    assert request.headers["from-action"] == "ZoÃ«"
    assert is_signed(request, SECRET)


def test_8_5_as_the_official_agent_byte_for_byte(forwarded: Forwarded) -> None:
    """For a receiver that is written for that agent: bytes, signature and headers are the same."""
    request = forwarded(lambda url: event(url), official=True).request
    body = request.json
    assert request.body == official_agent.wire(body)
    text = json.dumps(body, separators=(",", ":"))
    stamp = request.headers["x-port-timestamp"]
    assert request.headers["x-port-signature"] == official_agent.signature(SECRET, stamp, text)
    assert body["context"]["runId"] == "r_1"
    assert body["headers"] == {}, "what is left of the headers when the signature is taken out"


DEFAULT_RULE = {
    "enabled": True,
    "url": ".payload.action.invocationMethod.url // .changelogDestination.url",
    "method": '.payload.action.invocationMethod.method // "POST"',
    "fieldsToDecryptPaths": [],
}


def test_8_5_the_default_rule_of_the_official_agent(forwarded: Forwarded) -> None:
    assert forwarded(lambda url: event(url), DEFAULT_RULE).request.path == "/ship"
    change = {**CHANGES["an entity"]}

    def changed(url: str) -> Message:
        document = {**change, "changelogDestination": {**DESTINATION, "url": url}}
        return from_change_log("changes/0/0", json.dumps(document).encode())

    found = forwarded(changed, DEFAULT_RULE)
    assert (found.request.path, found.calls) == ("/ship", [])


def test_8_5_every_field_of_a_mapping(forwarded: Forwarded) -> None:
    other = {"enabled": '.action == "other"', "url": '"http://nowhere.invalid"'}
    rule = {
        "enabled": '.payload.action.invocationMethod.type == "WEBHOOK"',
        "method": '"patch"',
        "url": '.payload.action.invocationMethod.url + "/" + .context.entity',
        "headers": {"x-reason": ".trigger.by.userId", "x-null": ".nothing"},
        "query": {"page": ".payload.properties.ratio", "none": ".nothing"},
        "body": {"literal": 2, "deep": {"text": '"a " + .action', "opened": ".payload.properties.secret"}},
        "fieldsToDecryptPaths": ["payload.properties.secret"],
        "report": {
            "status": 'if .response.statusCode == 201 then "SUCCESS" else "FAILURE" end',
            "link": "[.response.json.link, .request.url]",
            "summary": '.request.method + .request.query.page + .request.headers["x-reason"] + .body.action',
            "externalRunId": ".response.json.id | tostring",
        },
    }
    reply = b'{"link": "https://ci/1", "id": 17}'
    found = forwarded(lambda url: event(url), other, rule, answer=(201, reply))
    request = found.request
    assert (request.method, request.path) == ("PATCH", "/ship/svc-1?page=1.5")
    assert request.headers["x-reason"] == "auth0|1"
    assert "from-action" not in request.headers
    assert "x-null" not in request.headers
    assert request.json == {"literal": 2, "deep": {"text": "a ship", "opened": "s3cr3t"}}
    assert is_signed(request, SECRET)
    [report] = found.reports
    assert report["status"] == "SUCCESS"
    assert report["link"][0] == "https://ci/1"
    assert report["link"][1].endswith("/ship/svc-1?page=1.5")
    assert report["summary"] == "PATCH1.5auth0|1ship"
    assert report["externalRunId"] == "17"


def test_8_5_headers_and_bodies_may_be_one_expression(forwarded: Forwarded) -> None:
    rule = {
        "headers": ".payload.action.invocationMethod.headers // {}",
        "query": '{"a": "b c"}',
        "body": ".payload.properties | del(.secret)",
    }
    request = forwarded(lambda url: event(url), rule).request
    assert request.path == "/ship?a=b+c"
    assert request.json == {"reason": "Zoë ✓", "ratio": 1.5}
    assert "from-action" in request.headers


def test_8_5_a_message_that_no_entry_takes_is_left_alone(forwarded: Forwarded) -> None:
    entries = [{"enabled": False}, {"enabled": '"true"'}, {"enabled": ".payload["}]
    with pytest.raises(ValueError, match="is not JQ"):
        forwarded(lambda url: event(url), *entries)
    found = forwarded(lambda url: event(url), *entries[:2], {"enabled": ".nothing.at.all"})
    assert (found.received, found.calls, found.acknowledged) == ([], [], False)


def test_8_5_a_pipeline_of_gitlab_is_triggered(forwarded: Forwarded) -> None:
    source = run_event({**GITLAB, "pipelineVariables": {"STAGE": "dev"}})
    source["payload"]["properties"] = {"ref": "release", "count": 5, "list": [1, "Zoë"], "no": None}

    def message(url: str) -> Message:
        return from_port(topic_text(source, SECRET, STAMP, headers_signed=False))

    reply = b'{"web_url": "https://gitlab.internal/p/7", "id": 7}'
    found = forwarded(message, answer=(201, reply), gitlab={"a_b_app": "trigger-token"})
    assert (found.request.method, found.request.path) == (
        "POST",
        "/api/v4/projects/a%2Fb%2Fapp/trigger/pipeline",
    )
    assert found.request.json == {
        "ref": "release",
        "token": "trigger-token",
        "variables": {"ref": "release", "count": "5", "list": '[1,"Zoë"]', "no": "null", "STAGE": "dev"},
        "port_payload": source,
    }
    # The pipeline ends the run; the agent says where it is.
    assert found.reports == [{"link": "https://gitlab.internal/p/7", "externalRunId": "7"}]


@pytest.mark.parametrize("flag", ["omitUserInputs", "omitPayload"])
def test_8_5_a_pipeline_without_inputs_or_payload(forwarded: Forwarded, flag: str) -> None:
    source = run_event({**GITLAB, flag: True})
    source["payload"]["properties"] = {"a": "b"}
    text = topic_text(source, SECRET, STAMP, headers_signed=False)
    body = forwarded(lambda url: from_port(text), gitlab={"a_b_app": "t"}).request.json
    assert body["ref"] == "main"
    assert (body["variables"] == {}, body["port_payload"] == {}) == (
        flag == "omitUserInputs",
        flag == "omitPayload",
    )


def test_8_5_a_pipeline_without_a_token_ends_its_run(forwarded: Forwarded) -> None:
    text = topic_text(run_event(GITLAB), SECRET, STAMP, headers_signed=False)
    found = forwarded(lambda url: from_port(text), gitlab={})
    assert found.received == []
    [report] = found.reports
    assert report["status"] == "FAILURE"
    assert "a_b_app" in report["summary"]


def test_8_5_a_secret_that_cannot_be_opened_is_not_sent(forwarded: Forwarded) -> None:
    """Port's agent would pass the ciphertext on."""
    rule = {"fieldsToDecryptPaths": ["payload.properties.reason"]}
    found = forwarded(lambda url: event(url), rule)
    assert found.received == []
    assert found.reports[0]["status"] == "FAILURE"
    assert "payload.properties.reason cannot be decrypted" in found.reports[0]["summary"]


def test_8_5_an_opened_secret_in_the_message_itself(forwarded: Forwarded) -> None:
    rule = {"fieldsToDecryptPaths": ["payload.properties.secret"]}
    request = forwarded(lambda url: event(url), rule).request
    assert request.json["payload"]["properties"]["secret"] == "s3cr3t"
    assert is_signed(request, SECRET)
    run = {"id": "r_1", "payload": {**CLAIMED, "body": {"deep": [{"x": CIPHERTEXT}], "payload": {"y": 1}}}}

    def claimed(url: str) -> Message:
        run["payload"]["url"] = url
        return from_run(run)

    # Nothing of the protocol gets into the body, with or without a secret in it.
    body = forwarded(claimed, {"fieldsToDecryptPaths": ["deep.0.x"]}).request.json
    assert body == {"deep": [{"x": "s3cr3t"}], "payload": {"y": 1}}


def test_8_5_a_reply_is_quoted_only_on_demand(forwarded: Forwarded) -> None:
    """Unlike Port's agent, which does so unless it is told not to."""
    quiet = forwarded(lambda url: event(url), answer=(400, b"reply-text")).reports
    assert "reply-text" not in quiet[0]["summary"]
    detailed = forwarded(lambda url: event(url), answer=(400, b"reply-text"), detailed=True).reports
    assert "reply-text" in detailed[0]["summary"]


SYNCHRONOUS = {"synchronized": True}


@pytest.mark.parametrize(
    ("method", "answer", "response", "status"),
    [
        ({}, (200, b"{}"), None, None),
        ({}, (204, b""), None, None),
        ({}, (404, b"no"), None, "FAILURE"),
        ({}, (500, b"no"), None, "FAILURE"),
        ({}, (302, b""), None, "FAILURE"),
        (SYNCHRONOUS, (201, b'{"a": [1]}'), {"a": [1]}, "SUCCESS"),
        (SYNCHRONOUS, (200, "Zoë".encode()), "Zoë", "SUCCESS"),
        (SYNCHRONOUS, (200, b""), None, "SUCCESS"),
        (SYNCHRONOUS, (422, b'{"error": "x"}'), {"error": "x"}, "FAILURE"),
        (SYNCHRONOUS, (500, b"[]"), [], "FAILURE"),
    ],
)
def test_8_6_reports_of_a_run(
    forwarded: Forwarded, method: dict[str, Any], answer: tuple[int, bytes], response: Any, status: str | None
) -> None:
    """Asynchronous: silence unless it failed. Synchronous: the response first, the status once."""
    found = forwarded(lambda url: event(url, **method), answer=answer)
    reported = [body["response"] for _, path, body in found.calls if path.endswith("/response")]
    assert reported == ([] if response is None else [response])
    assert [report["status"] for report in found.reports] == ([] if status is None else [status])
    if status == "FAILURE":
        assert str(answer[0]) in found.reports[0]["summary"]
    assert found.calls == sorted(found.calls, key=lambda call: not call[1].endswith("/response"))
    assert found.acknowledged


@pytest.mark.parametrize(
    ("report", "answer", "expected"),
    [
        ({"status": '"SUCCESS"'}, (200, b""), {"status": "SUCCESS"}),
        ({"status": ".nothing"}, (200, b""), None),
        ({"status": '"DONE"'}, (200, b""), None),
        ({"link": ".response.headers.nothing"}, (200, b""), None),
        ({"summary": ".response.text"}, (404, b"gone"), {"status": "FAILURE", "summary": "gone"}),
        ({"status": '"SUCCESS"', "summary": '"fine"'}, (404, b""), {"status": "SUCCESS", "summary": "fine"}),
    ],
    ids=["status", "null", "unknown", "nothing", "failure", "override"],
)
def test_8_6_a_report_mapping(
    forwarded: Forwarded, report: dict[str, str], answer: tuple[int, bytes], expected: dict[str, Any] | None
) -> None:
    found = forwarded(lambda url: event(url), {"report": report}, answer=answer)
    assert found.reports == ([] if expected is None else [expected])


def node(url: str, changes: dict[str, Any]) -> Message:
    config = {"type": "WEBHOOK", "agent": True, "url": url, "body": {"a": 1}} | changes
    return from_node_run({"identifier": "wfnr_1", "config": config})


@pytest.mark.parametrize(
    ("changes", "answer", "expected"),
    [
        ({}, (200, b"{}"), []),
        (
            SYNCHRONOUS,
            (201, b'{"a": 1}'),
            [{"result": "SUCCESS", "output": {"response": {"status": 201, "data": {"a": 1}}}}],
        ),
        (
            SYNCHRONOUS,
            (204, b""),
            [{"result": "SUCCESS", "output": {"response": {"status": 204, "data": {}}}}],
        ),
        ({}, (400, b""), [{"result": "FAILED"}]),
        (SYNCHRONOUS, (500, b""), [{"result": "FAILED"}]),
        ({"url": "http://elsewhere.invalid"}, (200, b""), [{"result": "FAILED"}]),
    ],
    ids=["asynchronous", "synchronous", "no-content", "refused", "failed", "not-allowed"],
)
def test_8_6_reports_of_a_node_of_a_workflow(
    forwarded: Forwarded, changes: dict[str, Any], answer: tuple[int, bytes], expected: list[dict[str, Any]]
) -> None:
    found = forwarded(lambda url: node(url, changes), answer=answer)
    assert found.reports == [{"status": "COMPLETED", **report} for report in expected]
    assert all(path.startswith("/v1/workflows/nodes/runs/wfnr_1") for _, path, _ in found.calls)
    if {"result": "FAILED"} in expected:
        method, path, body = found.calls[0]
        assert (method, path) == ("POST", "/v1/workflows/nodes/runs/wfnr_1/logs")
        assert body["logs"][0]["level"] == "ERROR"
    assert found.acknowledged


def test_8_6_a_node_that_no_entry_of_the_mapping_takes_fails(forwarded: Forwarded) -> None:
    assert forwarded(lambda url: node(url, {}), {"enabled": False}).reports == [
        {"status": "COMPLETED", "result": "FAILED"}
    ]


def test_8_4_nodes_of_workflows_are_claimed_delivered_reported_and_acknowledged(tmp_path: Path) -> None:
    """The whole way of one node, with the calls in their order; an agent that is told to takes runs, too."""
    left = {"nodes": True}
    store = SecretFile(tmp_path / "store", tmp_path / "key")
    store.write(StoredSecrets((SigningSecret(SECRET),), ApiCredentials("id", SECRET), (SECRET,), {}))
    with destination() as target, fake_port() as port:
        target.answer = lambda request: (200, b'{"done": true}')
        config = {"type": "WEBHOOK", "agent": True, "url": f"{target.url}/node", "synchronized": True}

        def answer(method: str, path: str) -> Any:
            nodes = [{"identifier": "wfnr_1", "config": config}]
            if path == "/v1/workflows/runs/claim-pending":
                return 200, {}, {"nodeRuns": nodes if left.pop("nodes", False) else []}
            known = {
                "/v1/actions/runs/claim-pending": {"runs": []},
                "/v1/workflows/runs/ack": {"acked": True},
            }
            return (200, {}, known[path]) if path in known else (200, {}, {"ok": True})

        port.fault = answer

        async def main() -> None:
            agent = AgentService(
                AgentConfig(
                    source="polling",
                    port_base_url=port.url,
                    allowed_hosts=(target.host,),
                    polling=PollingSettings(interval_seconds=0.02, workflows=True),
                ),
                LiveSecrets(store),
                Log(stream.fileno()),
                serves_health=False,
            )
            await agent.start()
            for _ in range(500):
                if any(path.endswith("/ack") for _, path, _ in port.calls):
                    break
                await asyncio.sleep(0.02)
            await agent.close()

        with (tmp_path / "log").open("wb") as stream:
            asyncio.run(main())
    told = [
        (method, path, body)
        for method, path, body in port.calls
        if "claim" not in path and "logs" not in path
    ]
    assert told == [
        (
            "PATCH",
            "/v1/workflows/nodes/runs/wfnr_1",
            {
                "status": "COMPLETED",
                "result": "SUCCESS",
                "output": {"response": {"status": 200, "data": {"done": True}}},
            },
        ),
        ("PATCH", "/v1/workflows/runs/ack", {"nodeRunIdentifier": "wfnr_1"}),
    ]
    claims = [body for _, path, body in port.calls if path == "/v1/workflows/runs/claim-pending"]
    # As many as fit, for longer than all attempts may take; there is no call that extends it.
    assert claims[0] == {
        "installationId": "_PORT_EXEC_AGENT",
        "limit": 100,
        "visibilityTimeoutMs": 1000 * (120 + 30 + 30),
    }
    [asked, *_] = [body for _, path, body in port.calls if path == "/v1/actions/runs/claim-pending"]
    assert asked == {**claims[0], "invocationMethod": "WEBHOOK"}
    assert [request.path for request in target.received] == ["/node"]
