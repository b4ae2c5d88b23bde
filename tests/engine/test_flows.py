"""Everything that a webhook backend of Port is for, on the local stack: real engine, deliveries and processes.

One stack serves the whole module. Its handlers and definitions are in tests/engine/flows.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import requests
from tests.engine.project import Project, changes, fresh
from tests.fixtures_localport import LocalPort, eventually
from tests.unit.localport.webhook import Webhook

from port_webhook_localport import control
from port_webhook_localport.signature import sign

pytestmark = [pytest.mark.engine, pytest.mark.slow]

HERE = Path(__file__).parent / "flows"
SECONDS = 60.0

HANDLER_TOKEN = "planted-handler-token-4711"
SINK_TOKEN = "planted-port-secret-0815"
SLACK_PATH = "/services/T000/B000/planted-slack-path"
PASSWORD = "planted-password-input"
CONFIG = "planted-config-input"
SEALED = "planted-client-side-input"


def property_of(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, **more}


BLUEPRINTS: list[dict[str, Any]] = [
    {
        "identifier": "subject",
        "title": "Subject",
        "schema": {
            "properties": {"tier": property_of("string"), "expires": property_of("string", format="timer")}
        },
    },
    {"identifier": "looped", "title": "Looped", "schema": {"properties": {"count": property_of("number")}}},
    {
        "identifier": "sighting",
        "title": "Sighting",
        "schema": {
            "properties": {
                **{name: property_of("string") for name in ("automation", "action", "origin")},
                **{name: property_of("object") for name in ("before", "after", "context")},
            }
        },
    },
]


@dataclass
class Flows:
    """The deployed stack, its Port, and a server on loopback that stands for the world outside."""

    project: Project
    port: LocalPort
    sink: Webhook
    pem: str

    def endpoint(self) -> control.Endpoint:
        with mock.patch.dict(os.environ, {"XDG_STATE_HOME": str(self.project.user_state)}):
            found = control.status(self.project.state / "localport")
        assert found is not None
        return found

    def rotate(self, step: control.RotationStep, seconds: float = 0) -> control.Endpoint:
        with mock.patch.dict(os.environ, {"XDG_STATE_HOME": str(self.project.user_state)}):
            return control.rotate_secret(self.project.state / "localport", step, seconds)

    def ended(self, action: str, properties: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
        return self.port.finished(self.port.execute(action, properties, **body), SECONDS)

    def runs(self, action: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.port.api(
            "GET", "/actions/runs", params={"action": action, "version": "v2", "limit": "1000"}
        )["runs"]
        return found

    def sighting(self, identifier: str) -> dict[str, Any]:
        """The properties of what an automation left behind."""
        path = f"/v1/blueprints/sighting/entities/{identifier}"
        eventually(lambda: self.port.request("GET", path).ok, SECONDS, f"{identifier} is not there")
        found: dict[str, Any] = self.port.request("GET", path).json()["entity"]["properties"]
        return found

    def sightings(self) -> set[str]:
        entities = self.port.api("GET", "/blueprints/sighting/entities")["entities"]
        return {str(entity["identifier"]) for entity in entities}

    def listener(self) -> tuple[str, int]:
        """Address and process of the listener."""
        line = next(
            line for line in self.project.cli("status").stdout.splitlines() if line.startswith("listener")
        )
        assert "healthy" in line, line
        words = line.split()
        return words[1], int(line.partition("(pid ")[2].split(",")[0])

    def send(self, route: str, secret: str, inputs: Any, run_id: str) -> requests.Response:
        """A request to the listener as Port would send it, past Port."""
        url, _ = self.listener()
        body = json.dumps({"port_context": {"action": route, "runId": run_id}, "inputs": inputs}).encode()
        stamp = str(int(time.time()))
        headers = {"x-port-timestamp": stamp, "x-port-signature": sign(secret, stamp, body)}
        with requests.Session() as session:
            session.trust_env = False
            return session.post(f"{url}/webhooks/{route}", data=body, headers=headers, timeout=10)


def key_pair() -> tuple[str, str]:
    """A private and a public key in PEM."""
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = generate_private_key(65537, 2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return private, public


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flows]:
    sink = Webhook()
    private, public = key_pair()
    for project in fresh(tmp_path_factory.mktemp("flows")):
        source = (HERE / "handlers.py").read_text(encoding="utf-8").replace("@@PUBLIC_KEY@@", public)
        (project.folder / "flows.py").write_text(source, encoding="utf-8")
        (project.folder / "definitions.json").write_bytes((HERE / "definitions.json").read_bytes())
        project.environment |= {
            "HANDLER_TOKEN": HANDLER_TOKEN,
            "SINK_URL": sink.url,
            "SINK_TOKEN": SINK_TOKEN,
            "SLACK_WEBHOOK_URL": sink.url + SLACK_PATH,
            "PRIVATE_KEY": private,
        }
        names = ("SINK_URL", "SINK_TOKEN", "SLACK_WEBHOOK_URL")
        project.configure(
            {
                "port-webhook-stack:handlers": ["port_webhook_handlers.bundled.deploy", "flows.py"],
                "port-webhook-stack:definitions": ["definitions.json"],
                "port-webhook-stack:secrets": {"HANDLER_TOKEN": {"fromEnv": "HANDLER_TOKEN"}},
                "port-webhook-stack:listener": {"sourceAddresses": ["port"]},
                "port-webhook-stack:portSecrets": {name: {"fromEnv": name} for name in names},
                "port-webhook-stack:decryptionKeys": [{"fromEnv": "PRIVATE_KEY"}],
            }
        )
        with mock.patch.dict(os.environ, {"XDG_STATE_HOME": str(project.user_state)}):
            endpoint = control.ensure_running(project.state / "localport")
        port = LocalPort(endpoint, project.state / "localport")
        for body in BLUEPRINTS:
            port.api("POST", "/blueprints", body)
        project.cli("up")
        yield Flows(project, port, sink, private)
        port.close()
    sink.close()


# --- Modes, methods, types --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_asynchronous_runs_of_each_method(flows: Flows, method: str) -> None:
    action = f"echo_async_{method.lower()}"
    run = flows.ended(action, {"text": "hello"})
    assert (run["status"], run["summary"], run["response"]) == ("SUCCESS", "echoed hello", None)
    assert run["link"] == ["https://example.com/echo"]
    assert "got hello" in flows.port.logs(run["id"])
    sent = flows.port.deliveries(run=run["id"])
    assert [(item["method"], item["status"]) for item in sent] == [(method, 202)]
    failed = flows.ended(action, {"text": "x", "fail": True})
    assert (failed["status"], failed["summary"]) == ("FAILURE", "failed as asked: x")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_synchronous_runs_of_each_method(flows: Flows, method: str) -> None:
    action = f"echo_sync_{method.lower()}"
    run = flows.ended(action, {"text": "hello"})
    assert (run["status"], run["response"]) == ("SUCCESS", {"text": "hello"})
    sent = flows.port.deliveries(run=run["id"])
    assert [(item["method"], item["status"]) for item in sent] == [(method, 200)]
    failed = flows.ended(action, {"text": "x", "fail": True})
    assert failed["status"] == "FAILURE"
    assert failed["response"] == {"error": "handler_failed", "message": "failed as asked: x"}
    assert flows.port.deliveries(run=failed["id"])[0]["status"] == 422


FORM = {
    "properties": {"text": {"type": "string"}, "fail": {"type": "boolean"}},
    "required": ["text"],
    "order": ["text", "fail"],
}
SPREAD = {"{{ spreadValue() }}": "{{ .inputs }}"}
THEIRS: dict[str, dict[str, Any]] = {
    # What Port's template for migrated actions sends.
    "service_theirs": {
        "body": {
            "action": '{{ .action.identifier[("service_" | length):] }}',
            "resourceType": "run",
            "status": "TRIGGERED",
            "trigger": "{{ .trigger | {by, origin, at} }}",
            "context": {
                "entity": "{{ .entity.identifier }}",
                "blueprint": "{{ .action.blueprint }}",
                "runId": "{{ .run.id }}",
            },
            "payload": {
                "entity": "{{ (if .entity == {} then null else .entity end) }}",
                "properties": {
                    '{{if (.inputs | has("text")) then "text" else null end}}': "{{ .inputs.text }}"
                },
                "censoredProperties": "{{ .action.encryptedProperties }}",
            },
        }
    },
    "their_ui": {
        "headers": {"RUN_ID": "{{ .run.id }}"},
        "body": {**SPREAD, "port_context": {"runId": "{{ .run.id }}"}},
    },
    "their_header": {"headers": {"RUN_ID": "{{ .run.id }}"}, "body": SPREAD, "synchronized": True},
}


def test_actions_that_exist_in_port_already(flows: Flows) -> None:
    url, _ = flows.listener()
    for name, method in THEIRS.items():
        assert flows.port.request("GET", f"/v1/actions/{name}").status_code == 404, "the stack left it alone"
        on = {"operation": "DAY-2", "blueprintIdentifier": "service"}
        flows.port.api(
            "POST",
            "/actions",
            {
                "identifier": name,
                "trigger": {
                    "type": "self-service",
                    "userInputs": FORM,
                    **(on if "payload" in method["body"] else {"operation": "CREATE"}),
                },
                "invocationMethod": {"type": "WEBHOOK", "url": f"{url}/webhooks/{name}", **method},
            },
        )
    run = flows.ended("service_theirs", {"text": "hello"}, entity="cart")
    assert (run["status"], run["summary"]) == ("SUCCESS", "hello of Cart")
    run = flows.ended("their_ui", {"text": "hello", "fail": True})
    assert (run["status"], run["summary"]) == ("FAILURE", "failed as asked: hello")
    run = flows.ended("their_header", {"text": "hello"})
    assert (run["status"], run["response"]) == ("SUCCESS", {"text": "hello"})
    body = b'{"text":"forged"}'
    stamp = str(int(time.time()))
    headers = {"x-port-timestamp": stamp, "x-port-signature": sign(flows.port.client_secret, stamp, body)}
    for name in (run["id"], "r_0123456789abcdef"):
        reply = requests.post(
            f"{url}/webhooks/their_header", data=body, headers={**headers, "RUN_ID": name}, timeout=10
        )
        assert (reply.status_code, reply.json()["error"]) == (403, "unconfirmed_run")


GOOD: dict[str, Any] = {
    "text": "abc1",
    "choice": "large",
    "colour": "green",
    "dynamic": "b",
    "hidden": "h",
    "yaml": "a: 1",
    "markdown": "# t",
    "proto": "message A {}",
    "lines": "one\ntwo",
    "number": 2.5,
    "whole": 3,
    "flag": True,
    "moment": "2026-01-02T03:04:05Z",
    "obj": {"any": [1, None]},
    "nested": {"depth": 2},
    "texts": ["abc", "de"],
    "numbers": [1, 2.5],
    "objects": [{"a": 1}],
    "url": "https://example.com/x?y=1",
    "email": "someone@example.com",
    "ip4": "10.0.0.1",
    "ip6": "fe80::1",
    "owner": "owner@example.com",
    "team": "platform",
    "link": {"url": "https://example.com", "displayText": "Example"},
    "service": "cart",
    "services": ["cart"],
}


def test_every_type_of_input_arrives_as_its_python_type(flows: Flows) -> None:
    run = flows.ended("everything", GOOD)
    assert run["status"] == "SUCCESS", run["response"]
    assert run["response"]["types"] == {
        **dict.fromkeys(("text", "choice", "dynamic", "hidden", "yaml", "markdown", "proto", "lines"), "str"),
        **dict.fromkeys(("url", "email", "ip4", "ip6", "owner", "team"), "str"),
        **dict.fromkeys(("texts", "numbers", "objects", "services"), "list"),
        "colour": "Colour",
        "number": "float",
        "whole": "int",
        "flag": "bool",
        "moment": "datetime",
        "obj": "dict",
        "nested": "Nested",
        "link": "LabeledUrl",
        "service": "Entity",
    }
    # Port sends the whole entity in place of its identifier.
    assert (run["response"]["service"], run["response"]["services"]) == ("Cart", ["Python"])


def test_only_what_is_required_is_enough(flows: Flows) -> None:
    run = flows.ended("everything", {"text": "ab"})
    assert set(run["response"]["types"]) == {"text", "choice", "colour", "number", "whole", "flag"}


BAD: dict[str, Any] = {
    "text": "ABC",
    "choice": "medium",
    "colour": "blue",
    "number": 11,
    "whole": 0,
    "flag": "yes",
    "moment": "tomorrow",
    "obj": [],
    "texts": ["abc", "de", "f"],
    "numbers": ["one"],
    "objects": ["x"],
    "url": "not a url",
    "email": "nobody",
    "ip4": "10.0.0.256",
    "ip6": "fe80::zz",
}


def test_port_refuses_bad_inputs_by_name(flows: Flows) -> None:
    for name, value in BAD.items():
        reply = flows.port.request(
            "POST", "/v1/actions/everything/runs", {"properties": {"text": "ab", name: value}}
        )
        assert (reply.status_code, reply.json()["error"]) == (422, "user_inputs_schema_invalid"), name
        assert name in reply.json()["message"]
    missing = flows.port.request("POST", "/v1/actions/everything/runs", {"properties": {}})
    assert "text" in missing.json()["message"]
    unknown = flows.port.request(
        "POST", "/v1/actions/everything/runs", {"properties": {"text": "ab", "txt": 1}}
    )
    assert "txt" in unknown.json()["message"]
    absent = flows.port.request(
        "POST", "/v1/actions/everything/runs", {"properties": {"text": "ab", "service": "nobody"}}
    )
    assert absent.status_code == 404


def test_bad_inputs_that_bypass_port_end_as_failure_with_every_field(flows: Flows) -> None:
    flows.port.admin("PUT", "/settings", {"holdDeliveries": True})
    try:
        run_id = flows.port.execute("everything_async", {"text": "ab"})
        inputs = {**BAD, "nested": {"name": "n"}, "link": {"displayText": "x"}, "strange": 1}
        answer = flows.send("everything_async", flows.endpoint().client_secret, inputs, run_id)
        assert (answer.status_code, answer.json()["error"]) == (202, "invalid_inputs")
        run = flows.port.finished(run_id, SECONDS)
    finally:
        flows.port.admin("PUT", "/settings", {"holdDeliveries": False})
    assert run["status"] == "FAILURE"
    for name in inputs:
        assert f"`{name}" in run["summary"], run["summary"]
    # In a synchronous run the sender gets the same as an answer.
    answer = flows.send("everything", flows.endpoint().client_secret, inputs, "r_0000000000000001")
    assert answer.status_code == 422
    assert {name.partition(".")[0] for name in answer.json()["fields"]} == set(inputs)


def test_encrypted_inputs_reach_the_handler_in_plain_and_appear_nowhere(flows: Flows) -> None:
    run = flows.ended("use_secrets", {"password": PASSWORD, "config": {"key": CONFIG}, "sealed": SEALED})
    assert run["status"] == "SUCCESS", run["summary"]
    hashes = [
        hashlib.sha256(value.encode()).hexdigest() for value in (PASSWORD, CONFIG, SEALED, HANDLER_TOKEN)
    ]
    assert run["summary"] == " ".join(hashes)
    for name in ("password", "config", "sealed"):
        assert len(base64.b64decode(run["properties"][name], validate=True)) >= 32
    assert "calling with ***" in " ".join(flows.port.logs(run["id"])).replace("[redacted]", "***")
    # The rules of the form hold for what was encrypted as well.
    short = flows.port.request(
        "POST", "/v1/actions/use_secrets/runs", {"properties": {"password": "short", "config": {"key": "k"}}}
    )
    assert short.status_code == 422
    assert "password" in short.json()["message"]


# --- Secrets of Port -------------------------------------------------------------------------------------


def test_port_secrets_are_resolved_when_sending_and_masked_when_shown(flows: Flows) -> None:
    run = flows.ended("with_token")
    assert run["status"] == "SUCCESS"
    received = flows.sink.received[-1]
    assert received.path == f"/hook?token={SINK_TOKEN}"
    assert received.headers["x-token"] == SINK_TOKEN
    assert run["payload"]["headers"] == {"X-Token": "********"}
    shown = json.dumps([run, flows.port.logs(run["id"]), flows.port.deliveries(run=run["id"])])
    assert SINK_TOKEN not in shown


def test_a_missing_secret_is_named_in_the_log_of_the_run_and_at_preview(flows: Flows) -> None:
    flows.port.api("DELETE", "/organization/secrets/SINK_TOKEN")
    try:
        run = flows.ended("with_token")
    finally:
        flows.project.cli("refresh")
        flows.project.cli("up")
    assert run["status"] == "FAILURE"
    assert any("the secret SINK_TOKEN does not exist in Port" in line for line in flows.port.logs(run["id"]))
    assert flows.ended("with_token")["status"] == "SUCCESS"

    definitions = json.loads((HERE / "definitions.json").read_text(encoding="utf-8"))
    definitions[1]["invocationMethod"]["url"] = "https://example.com/{{ .secrets.SINK_TOKN }}"
    refused = preview_refused(flows, definitions)
    assert "with_token: invocationMethod.url: reads the secret 'SINK_TOKN'" in refused
    assert "did you mean SINK_TOKEN?" in refused


def preview_refused(flows: Flows, definitions: list[dict[str, Any]]) -> str:
    """What a preview says on standard error about other definitions than the deployed ones."""
    file = flows.project.folder / "definitions.json"
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(json.dumps(definitions), encoding="utf-8")
        result = flows.project.cli("preview", check=False)
    finally:
        file.write_text(before, encoding="utf-8")
    assert result.code == 1, result.text
    assert "Traceback" not in result.text
    return result.stderr


# --- Automations ---------------------------------------------------------------------------------------


def test_entity_events_and_conditions(flows: Flows) -> None:
    port = flows.port
    port.api("POST", "/blueprints/subject/entities", {"identifier": "a", "properties": {"tier": "bronze"}})
    created = flows.sighting("on_created-a-CREATE")
    assert (created["before"], created["after"]["properties"]["tier"]) == (None, "bronze")
    assert created["context"]["entityIdentifier"] == "a"
    port.api("PATCH", "/blueprints/subject/entities/a", {"title": "No change of tier"})
    port.api("PATCH", "/blueprints/subject/entities/a", {"properties": {"tier": "gold"}})
    updated = flows.sighting("on_updated-a-UPDATE")
    assert (updated["before"]["properties"]["tier"], updated["after"]["properties"]["tier"]) == (
        "bronze",
        "gold",
    )
    assert len(flows.runs("on_updated")) == 1
    assert len(flows.runs("on_any")) == 3
    port.api("DELETE", "/blueprints/subject/entities/a")
    deleted = flows.sighting("on_deleted-a-DELETE")
    assert (deleted["before"]["identifier"], deleted["after"]) == ("a", None)
    assert flows.sighting("on_any-a-DELETE")["action"] == "DELETE"
    # An entity written by an automation that has nothing to do with it fires nothing.
    assert flows.runs("never") == []
    for run in flows.runs("on_any"):
        assert port.finished(run["id"], SECONDS)["status"] == "SUCCESS"
    assert "either-a" not in flows.sightings()


def test_conditions_combined_by_or(flows: Flows) -> None:
    for name, tier in (("b", "silver"), ("c", "bronze")):
        flows.port.api(
            "POST", "/blueprints/subject/entities", {"identifier": name, "properties": {"tier": tier}}
        )
        flows.sighting(f"on_created-{name}-CREATE")
    assert flows.sighting("either-b")["after"]["properties"] == {"tier": "silver"}
    assert "either-c" not in flows.sightings()


def test_a_timer_that_expires(flows: Flows) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
    flows.port.api(
        "POST", "/blueprints/subject/entities", {"identifier": "t", "properties": {"expires": soon}}
    )
    seen = flows.sighting("on_timer-t-TIMER_EXPIRED")
    assert seen["context"]["propertyIdentifier"] == "expires"
    assert (seen["before"], seen["after"]["identifier"]) == (None, "t")


def test_run_events(flows: Flows) -> None:
    run = flows.ended("echo_async_put", {"text": "events"})
    assert flows.sighting(f"on_run_created-{run['id']}-CREATE")["after"]["status"] == "IN_PROGRESS"
    updated = flows.sighting(f"on_run_updated-{run['id']}-UPDATE")
    assert (updated["before"]["status"], updated["after"]["status"]) == ("IN_PROGRESS", "SUCCESS")
    run = flows.ended("echo_sync_put", {"text": "events"})
    flows.sighting(f"on_any_run-{run['id']}-CREATE")
    # What the webhook answered is there for the next automation.
    assert flows.sighting(f"on_any_run-{run['id']}-UPDATE")["after"]["response"] == {"text": "events"}


def test_an_automation_does_not_start_itself(flows: Flows) -> None:
    flows.port.api("POST", "/blueprints/looped/entities", {"identifier": "l"})
    run = flows.port.finished(flows.runs("itself")[0]["id"], SECONDS)
    assert run["status"] == "SUCCESS"
    assert "count" in flows.port.api("GET", "/blueprints/looped/entities/l")["entity"]["properties"]
    expected = "Automation itself was not started: its own run caused the event."
    assert expected in flows.port.logs(run["id"])
    assert len(flows.runs("itself")) == 1

    definitions = json.loads((HERE / "definitions.json").read_text(encoding="utf-8"))
    definitions[3]["trigger"]["event"] = {"type": "RUN_UPDATED", "actionIdentifier": "run_on_behalf"}
    refused = preview_refused(flows, definitions)
    assert "run_on_behalf: trigger.event.actionIdentifier: is the automation itself" in refused


def test_ports_own_api_as_the_backend_with_run_as(flows: Flows) -> None:
    flows.port.api(
        "POST", "/blueprints/subject/entities", {"identifier": "g", "properties": {"tier": "gold"}}
    )
    eventually(lambda: flows.runs("run_on_behalf"), SECONDS)
    automation = flows.port.finished(flows.runs("run_on_behalf")[0]["id"], SECONDS)
    assert automation["status"] == "SUCCESS"
    assert automation["payload"]["url"].startswith("https://api.getport.io/v1/actions/echo_async_post/runs")
    started = automation["response"]["run"]["id"]
    run = flows.port.finished(started, SECONDS)
    assert (run["status"], run["summary"]) == ("SUCCESS", "echoed g")
    assert (run["source"], run["createdBy"]) == ("AUTOMATION", "local|ann@example.com")
    assert run["impersonatedBy"] == flows.endpoint().client_id


# --- The example: Slack on failure of a service --------------------------------------------------------------


def slack_messages(flows: Flows) -> list[Any]:
    return [request.json for request in list(flows.sink.received) if request.path == SLACK_PATH]


def set_passed(flows: Flows, value: str) -> None:
    flows.port.api("PATCH", "/blueprints/service/entities/cart", {"properties": {"passed": value}})


def test_slack_is_told_when_a_service_fails(flows: Flows) -> None:
    set_passed(flows, "Passed")
    assert flows.runs("slack_notify_on_service_failure") == []
    set_passed(flows, "Not passed")
    [automation] = flows.runs("slack_notify_on_service_failure")
    automation = flows.port.finished(automation["id"], SECONDS)
    assert automation["status"] == "SUCCESS"
    [run] = flows.runs("slack_notify")
    assert automation["response"]["run"]["id"] == run["id"]
    run = flows.port.finished(run["id"], SECONDS)
    assert (run["status"], run["source"]) == ("SUCCESS", "AUTOMATION")
    message = "Service Cart has degraded from `Passed` to `Not passed`."
    assert run["properties"] == {"message": message}
    assert slack_messages(flows) == [{"text": message}]
    assert run["payload"]["url"] == "********"
    # Other changes of the service, the way back among them, are nobody's business.
    set_passed(flows, "Passed")
    flows.port.api("PATCH", "/blueprints/service/entities/cart", {"properties": {"language": "Go"}})
    flows.port.api("PATCH", "/blueprints/service/entities/cart", {"properties": {"language": "Python"}})
    assert len(flows.runs("slack_notify_on_service_failure")) == 1
    assert len(slack_messages(flows)) == 1


def test_a_slack_that_cannot_be_reached_is_said_in_the_log(flows: Flows) -> None:
    gone = {"secretValue": f"http://127.0.0.1:9{SLACK_PATH}"}
    flows.port.api("PATCH", "/organization/secrets/SLACK_WEBHOOK_URL", gone)
    try:
        set_passed(flows, "Passed")
        set_passed(flows, "Not passed")
        automation = flows.port.finished(flows.runs("slack_notify_on_service_failure")[0]["id"], SECONDS)
        # The automation has done its part: the action was started.
        assert automation["status"] == "SUCCESS"
        run = flows.port.finished(automation["response"]["run"]["id"], SECONDS)
        assert run["status"] == "FAILURE"
        line = "The webhook did not answer: the connection failed: Connection refused."
        assert line in flows.port.logs(run["id"])
        assert run["summary"] == line
    finally:
        there = {"secretValue": flows.sink.url + SLACK_PATH}
        flows.port.api("PATCH", "/organization/secrets/SLACK_WEBHOOK_URL", there)


# --- Approval ------------------------------------------------------------------------------------------


def test_one_approver_is_enough(flows: Flows) -> None:
    run_id = flows.port.execute("careful", {"text": "ok"})
    assert flows.port.run(run_id)["status"] == "WAITING_FOR_APPROVAL"
    listed = flows.project.cli("runs", "--status", "waiting_for_approval").stdout
    assert f"{run_id}  WAITING_FOR_APPROVAL" in listed
    assert flows.port.deliveries(run=run_id) == []
    assert "IN_PROGRESS" in flows.project.cli("approve", run_id, "--reason", "looks good").stdout
    run = flows.port.finished(run_id, SECONDS)
    assert (run["status"], run["approval"]["description"]) == ("SUCCESS", "looks good")
    again = flows.project.cli("approve", run_id, check=False)
    assert (again.code, "does not wait for approval" in again.stderr) == (1, True)


def test_a_declined_run_is_never_sent(flows: Flows) -> None:
    run_id = flows.port.execute("careful", {"text": "no"})
    assert "DECLINED" in flows.project.cli("decline", run_id, "--reason", "not today").stdout
    run = flows.port.run(run_id)
    assert (run["status"], run["approval"]["description"]) == ("DECLINED", "not today")
    assert flows.port.deliveries(run=run_id) == []


def test_all_approvers_are_needed(flows: Flows) -> None:
    run_id = flows.port.execute("very_careful", {"text": "all"})
    first = flows.project.cli("approve", run_id, "--as", "ann@example.com").stdout
    assert "WAITING_FOR_APPROVAL" in first
    assert "waits for bob@example.com" in first
    stranger = flows.project.cli("approve", run_id, "--as", "eve@example.com", check=False)
    assert (stranger.code, "eve@example.com is not an approver" in stranger.stderr) == (1, True)
    flows.project.cli("approve", run_id, "--as", "bob@example.com")
    assert flows.port.finished(run_id, SECONDS)["summary"] == "echoed all"


def test_the_requester_withdraws(flows: Flows) -> None:
    run_id = flows.port.execute("careful", {"text": "oops"})
    assert "FAILURE" in flows.project.cli("withdraw", run_id).stdout
    assert flows.port.run(run_id)["summary"] == "Withdrawn by the requester."
    again = flows.project.cli("withdraw", run_id, check=False)
    assert "does not wait for approval: its status is FAILURE" in again.stderr


# --- Bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("on_entity", "--entity", "nobody"), 'Entity with identifier "nobody" was not found'),
        (("on_entity",), "entity: is required, because the operation is DAY-2"),
        (("nowhere",), "invocationMethod.url: its expression yields null"),
        (("everything", "-i", "text=ab", "-i", "whole=three"), "-i whole: 'three' is no JSON number"),
        (("everything", "-i", "text=ab", "-i", "flag=3"), "flag"),
        (("on_created",), '"on_created" is an automation: it starts by its event only'),
    ],
)
def test_a_run_that_cannot_start_says_why(flows: Flows, arguments: tuple[str, ...], message: str) -> None:
    result = flows.project.cli("run", *arguments, check=False)
    assert result.code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


def test_calls_of_ports_api_from_the_command_line(flows: Flows) -> None:
    path = "/v1/blueprints/service/entities/cart"
    shown = flows.project.cli("api", "patch", path, "--json", '{"title": "Cart"}').stdout
    assert json.loads(shown)["entity"]["identifier"] == "cart"
    for arguments, message in (
        (("GET", "/actions"), "begin it with /v1/"),
        (("POST", "/v1/actions", "--json", "{"), "--json is not JSON"),
        (("GET", "/v1/actions/none"), "404"),
    ):
        refused = flows.project.cli("api", *arguments, check=False)
        assert (refused.code, message in refused.stderr) == (1, True), refused.text


# --- Rotation ------------------------------------------------------------------------------------------


@dataclass
class Traffic:
    """Runs that are started without a pause until `stop` is set."""

    started: list[str]
    stop: threading.Event

    def drive(self, start: Callable[[int], str]) -> None:
        number = 0
        while not self.stop.is_set():
            self.started.append(start(number))
            number += 1
            self.stop.wait(0.1)


def test_rotation_loses_no_run_and_restarts_nothing(flows: Flows) -> None:
    url, pid = flows.listener()
    servers = {child.pid for child in psutil.Process(pid).children()}
    old = flows.endpoint().client_secret
    waiting = flows.port.execute("careful", {"text": "approved after the rotation"})
    traffic = Traffic([], threading.Event())
    with ThreadPoolExecutor(1) as pool:
        driven = pool.submit(
            traffic.drive,
            lambda number: flows.port.execute(
                ("echo_async_post", "echo_sync_post")[number % 2], {"text": "r"}
            ),
        )
        eventually(lambda: len(traffic.started) > 3, SECONDS)
        try:
            result = flows.project.cli("rotate-secret", "--overlap", "10m")
            before = len(traffic.started)
            eventually(lambda: len(traffic.started) > before + 5, SECONDS)
        finally:
            traffic.stop.set()
        driven.result()
    new = flows.endpoint().client_secret
    assert new != old
    assert "the former one is valid until" in result.stdout
    assert old not in result.text
    assert new not in result.text
    statuses = [flows.port.finished(run_id, SECONDS)["status"] for run_id in traffic.started]
    assert statuses == ["SUCCESS"] * len(statuses)
    assert len(statuses) > 9
    assert flows.listener() == (url, pid)
    assert servers <= {child.pid for child in psutil.Process(pid).children()}
    assert set(changes(flows.project.cli("up"))) == {"unchanged"}

    for secret, accepted in ((new, True), (old, True), ("neither", False)):
        answer = flows.send("echo_sync_post", secret, {"text": "x"}, f"r_rotation{secret[:8]}")
        assert (answer.status_code == 200) is accepted, answer.text
    flows.project.cli("approve", waiting)
    assert flows.port.finished(waiting, SECONDS)["status"] == "SUCCESS"

    assert "refused from now on" in flows.project.cli("rotate-secret", "--retire").stdout
    eventually(
        lambda: flows.send("echo_sync_post", old, {"text": "x"}, "r_retired0001").status_code == 401, SECONDS
    )
    assert flows.ended("echo_async_post", {"text": "still"})["status"] == "SUCCESS"
    assert set(changes(flows.project.cli("up"))) == {"unchanged"}
    assert flows.listener() == (url, pid)


def test_an_up_after_a_rotation_in_port_does_the_same(flows: Flows) -> None:
    _, pid = flows.listener()
    old = flows.endpoint().client_secret
    encrypted = {"password": PASSWORD, "config": {"key": CONFIG}}
    new = flows.rotate("stage").client_secret
    # Until Port switches, inputs are encrypted with the former secret.
    assert flows.ended("use_secrets", encrypted)["status"] == "SUCCESS"
    result = flows.project.cli("up")
    assert changes(result)["updated"] >= 2
    assert "created" not in changes(result)
    # A rotation that was interrupted is finished by the way.
    assert "Port signs with the new secret" in result.stdout
    assert flows.ended("use_secrets", encrypted)["status"] == "SUCCESS"
    for secret in (old, new):
        answer = flows.send("echo_sync_post", secret, {"text": "x"}, f"r_again{secret[:8]}")
        assert answer.status_code == 200
    assert set(changes(flows.project.cli("up"))) == {"unchanged"}
    assert flows.listener()[1] == pid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--overlap", "soon"), "--overlap soon: write a number and s, m, h or d"),
        (("--from-env", "NEW"), "local Port makes its new secret itself"),
    ],
)
def test_a_rotation_that_cannot_be(flows: Flows, arguments: tuple[str, ...], message: str) -> None:
    result = flows.project.cli("rotate-secret", *arguments, check=False)
    assert (result.code, message in result.stderr) == (1, True), result.text


def test_a_secret_is_stored_encrypted_in_the_stack_file(flows: Flows) -> None:
    file = flows.project.folder / "stacks" / "Pulumi.local.yaml"
    before = file.read_text(encoding="utf-8")
    try:
        value = "planted-value-of-set-secret"
        flows.project.cli("set-secret", "HANDLER_TOKEN", "--from-env", "VALUE", VALUE=value)
        assert value not in file.read_text(encoding="utf-8")
        assert (
            flows.project.pulumi(
                *("config", "get", "--path", "port-webhook-stack:secrets.HANDLER_TOKEN", "-s", "local")
            ).stdout.strip()
            == value
        )
        asked = flows.project.cli("set-secret", "OTHER", check=False)
        assert "give the value by --from-env VARIABLE" in asked.stderr
    finally:
        file.write_text(before, encoding="utf-8")


# --- Nothing secret in plain text ------------------------------------------------------------------------


def test_no_secret_is_anywhere_in_plain_text(flows: Flows) -> None:
    old = flows.endpoint().client_secret
    encrypted = {"password": PASSWORD, "config": {"key": CONFIG}, "sealed": SEALED}
    assert flows.ended("use_secrets", encrypted)["status"] == "SUCCESS"
    assert flows.ended("with_token")["status"] == "SUCCESS"
    arguments: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for process in psutil.process_iter():
                try:
                    arguments.add(" ".join(process.cmdline()))
                except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    continue
            done.wait(0.05)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            printed = [
                flows.project.cli("rotate-secret", "--overlap", "1h"),
                flows.project.cli("up"),
                flows.project.cli("status"),
                flows.project.cli("logs", "--lines", "100000"),
                *(flows.project.cli("logs", run["id"]) for run in flows.runs("use_secrets")[:2]),
                flows.project.pulumi("stack", "export", "-s", "local"),
                flows.project.pulumi("stack", "output", "--json", "-s", "local"),
            ]
        finally:
            done.set()
        watching.result()
    new = flows.endpoint()
    planted = {
        "the client secret": new.client_secret,
        "the former client secret": old,
        "the admin token": new.admin_token,
        "the handler's secret": HANDLER_TOKEN,
        "Port's secret": SINK_TOKEN,
        "the address of Slack": SLACK_PATH,
        "an encrypted input": PASSWORD,
        "an encrypted object": CONFIG,
        "a client-side input": SEALED,
        "the private key": flows.pem.splitlines()[1],
    }
    places = {f"printed by {number}": result.text for number, result in enumerate(printed)}
    places["arguments"] = "\n".join(arguments)
    for process in flows.project.processes():
        environment = process.environ()
        places[f"environment of {' '.join(process.cmdline())[:80]}"] = "\n".join(environment.values())
    files = [
        path
        for folder in (flows.project.folder / ".state", flows.project.user_state)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    assert any(path.name == "listener.log" for path in files)
    assert any(path.name == "ledger.db" for path in files)
    places |= {str(path): path.read_bytes().decode("latin-1") for path in files}
    found = [
        (name, place)
        for place, text in places.items()
        for name, value in planted.items()
        if value in text or base64.b64encode(value.encode()).decode() in text
    ]
    assert found == []
