"""Execution, delivery, reporting, approval, the agent's protocol."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.fixtures_localport import LocalPort, eventually
from tests.unit.localport.definitions import action, with_service
from tests.unit.localport.webhook import Webhook

from port_webhook_localport import control

DAY_2 = {"operation": "DAY-2", "blueprintIdentifier": "service"}


def create(port: LocalPort, *documents: dict[str, Any]) -> None:
    for document in documents:
        port.api("POST", "/actions", document)


def received(webhook: Webhook, count: int = 1) -> None:
    eventually(lambda: len(webhook.received) >= count, message="the webhook was not called")


# --- execution ----------------------------------------------------------------------------------------


def test_execute_answers_before_delivery_in_both_shapes(local_port: LocalPort, webhook: Webhook) -> None:
    webhook.gate.clear()
    create(local_port, action("x", webhook.url, title="X"))
    reply = local_port.request("POST", "/v1/actions/x/runs", {"properties": {"reason": "r"}})
    assert reply.status_code == 202
    run = reply.json()["run"]
    assert (run["action"], run["relatedEntityExists"], run["relatedBlueprintExists"]) == ("x", False, False)
    assert run["id"].startswith("r_")
    assert len(run["id"]) == 18
    shown = local_port.run(run["id"])
    assert shown["action"] == {"identifier": "x", "title": "X", "icon": None, "deleted": False}
    assert (shown["status"], shown["source"], shown["rawProperties"]) == (
        "IN_PROGRESS",
        "API",
        {"reason": "r"},
    )


def test_errors_of_execution(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port, "a", tier="gold")
    condition = {"type": "SEARCH", "rules": [{"property": "tier", "operator": "=", "value": "silver"}]}
    create(
        local_port,
        action("day2", webhook.url, trigger=DAY_2),
        action("silver", webhook.url, trigger={**DAY_2, "condition": condition}),
        action("broken", webhook.url, method={"body": {"a": "{{ action.id }}"}}),
        action("method", webhook.url, method={"method": "{{ .inputs.reason }}"}),
        action("url", "{{ .inputs.reason }}"),
        action("agent", webhook.url, method={"agent": "{{ .inputs.reason }}"}),
        action("header", webhook.url, method={"headers": {"a": "{{ .inputs.reason }}"}}),
    )

    def refused(name: str, **body: Any) -> tuple[int, str]:
        return local_port.error("POST", f"/actions/{name}/runs", {"properties": {}, **body})

    odd = {"reason": "a\nb"}
    assert refused("absent") == (404, "not_found")
    assert refused("day2") == (422, "missing_self_service_action_entity")
    assert refused("day2", entity="absent") == (404, "not_found")
    assert refused("silver", entity="a") == (422, "entity_does_not_pass_condition")
    assert refused("broken") == (422, "evaluate_invocation_method_error")
    for name in ("method", "url", "agent", "header"):
        assert refused(name, properties=odd) == (422, "invalid_evaluated_invocation_method"), name
    assert refused("day2", entity="a", extra=1) == (422, "invalid_request")
    assert local_port.error("POST", "/actions/day2/runs", {}) == (422, "invalid_request")
    assert local_port.error("GET", "/actions/runs/r_absent") == (404, "not_found")
    assert local_port.api("GET", "/actions/runs")["runs"] == []
    assert webhook.received == []


@pytest.mark.parametrize(
    ("rule", "value", "problem"),
    [
        ({"type": "string"}, 1, "must be of type string"),
        ({"type": "number"}, True, "must be of type number"),
        ({"type": "string", "enum": ["a"]}, "b", "must be one of a"),
        ({"type": "string", "pattern": "^a$"}, "b", "must match the pattern ^a$"),
        ({"type": "string", "minLength": 2}, "b", "at least 2"),
        ({"type": "number", "maximum": 2}, 3, "at most 2"),
        ({"type": "array", "items": {"type": "string"}}, [1], "input.0: must be of type string"),
        ({"type": "array", "maxItems": 1}, [1, 2], "at most 1"),
        ({"type": "string", "format": "url"}, "no", "a valid url"),
        ({"type": "string", "format": "date-time"}, "today", "a valid date-time"),
        ({"type": "string", "encryption": "aes256-gcm", "minLength": 20}, "s3cr3t-value", "at least 20"),
    ],
)
def test_inputs_that_do_not_fit(
    local_port: LocalPort, webhook: Webhook, rule: dict[str, Any], value: Any, problem: str
) -> None:
    inputs = {"properties": {"input": rule}}
    create(local_port, action("x", webhook.url, trigger={"userInputs": inputs}))
    reply = local_port.request("POST", "/v1/actions/x/runs", {"properties": {"input": value}})
    assert (reply.status_code, reply.json()["error"]) == (422, "user_inputs_schema_invalid")
    assert problem in reply.json()["message"]
    assert "input" in reply.json()["message"]
    assert "s3cr3t-value" not in reply.text


def test_required_unknown_and_jq_inputs(local_port: LocalPort, webhook: Webhook) -> None:
    inputs = {
        "properties": {
            "a": {"type": "string"},
            "b": {"type": "string", "enum": {"jqQuery": "[1]"}, "visible": {"jqQuery": "false"}},
            "c": {"type": "number", "minimum": {"jqQuery": "3"}},
        },
        "required": ["a"],
    }
    create(local_port, action("x", webhook.url, trigger={"userInputs": inputs}))
    for properties in ({}, {"a": None}, {"a": "1", "z": 1}):
        assert local_port.error("POST", "/actions/x/runs", {"properties": properties}) == (
            422,
            "user_inputs_schema_invalid",
        )
    local_port.execute("x", {"a": "1", "b": "anything", "c": 0})


# --- what a webhook receives --------------------------------------------------------------------------


def test_the_request_of_an_asynchronous_webhook(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port, "cart", tier="gold")
    local_port.api(
        "POST", "/organization/secrets", {"secretName": "HOOK_TOKEN", "secretValue": "s3cr3t-token"}
    )
    method = {
        "method": "PUT",
        "url": webhook.url + "/hook?token={{ .secrets.HOOK_TOKEN }}&entity={{ .entity.identifier }}",
        "headers": {
            "RUN_ID": "{{ .run.id }}",
            "Authorization": "Bearer {{ .secrets.HOOK_TOKEN }}",
            "x-absent": "{{ .inputs.absent }}",
            "X-Port-Signature": "forged",
        },
        "body": {
            "port_context": {"runId": "{{ .run.id }}", "action": "{{ .action.identifier }}"},
            "{{ spreadValue() }}": "{{ .inputs }}",
            "tier": "{{ .entity.properties.tier }}",
            "origin": "{{ .trigger.origin }}",
            "event": "{{ .event }}",
            "{{ .inputs.absent }}": "removed",
        },
    }
    create(local_port, action("x", "", trigger=DAY_2, method=method))
    run_id = local_port.execute("x", {"reason": "Zoë ✓"}, entity="cart")
    received(webhook)
    request = webhook.received[0]
    assert (request.method, request.path) == ("PUT", "/hook?token=s3cr3t-token&entity=cart")
    assert request.headers["run_id"] == run_id
    assert request.headers["authorization"] == "Bearer s3cr3t-token"
    assert "x-absent" not in request.headers
    assert request.headers["content-type"] == "application/json"
    wanted = (
        f'{{"port_context":{{"runId":"{run_id}","action":"x"}},"reason":"Zoë ✓",'
        '"tier":"gold","origin":"API","event":null}'
    )
    assert request.body.decode() == wanted
    timestamp = request.headers["x-port-timestamp"]
    assert abs(int(timestamp) - time.time()) < 30
    digest = hmac.digest(
        local_port.client_secret.encode(), timestamp.encode() + b"." + request.body, hashlib.sha256
    )
    assert request.headers["x-port-signature"] == "v1," + base64.b64encode(digest).decode()

    eventually(lambda: local_port.logs(run_id) == ["The webhook answered 200."])
    run = local_port.run(run_id)
    assert run["status"] == "IN_PROGRESS"
    assert run["response"] is None
    assert "s3cr3t-token" not in json.dumps(run)
    assert run["payload"]["url"] == webhook.url + "/hook?token=********&entity=cart"
    assert run["payload"]["body"]["reason"] == "Zoë ✓"
    assert "s3cr3t-token" not in json.dumps(local_port.deliveries(run=run_id))


@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_an_asynchronous_run_goes_on_whatever_the_webhook_answers(
    local_port: LocalPort, webhook: Webhook, status: int
) -> None:
    webhook.status, webhook.reply_headers = status, {"Location": webhook.url + "/elsewhere"}
    create(local_port, action("x", webhook.url))
    run_id = local_port.execute("x")
    eventually(lambda: local_port.logs(run_id) == [f"The webhook answered {status}."])
    assert local_port.run(run_id)["status"] == "IN_PROGRESS"
    assert len(webhook.received) == 1


def test_a_webhook_that_cannot_be_reached(local_port: LocalPort, webhook: Webhook) -> None:
    webhook.close()
    create(local_port, action("x", webhook.url), action("s", webhook.url, method={"synchronized": True}))
    run_id = local_port.execute("x")
    eventually(lambda: local_port.logs(run_id))
    assert "Connection refused" in local_port.logs(run_id)[0]
    assert local_port.run(run_id)["status"] == "IN_PROGRESS"
    failed = local_port.finished(local_port.execute("s"))
    assert failed["status"] == "FAILURE"
    assert "Connection refused" in failed["summary"]


@pytest.mark.parametrize(
    ("status", "reply", "result", "response"),
    [
        (200, b'{"id":1}', "SUCCESS", {"id": 1}),
        (201, b"[1,2]", "SUCCESS", [1, 2]),
        (202, b"plain text", "SUCCESS", "plain text"),
        (204, b"", "SUCCESS", None),
        (301, b"", "FAILURE", None),
        (422, b'{"error":"x"}', "FAILURE", {"error": "x"}),
        (500, b"<html>", "FAILURE", "<html>"),
    ],
)
def test_a_synchronous_run_ends_by_the_reply(
    local_port: LocalPort, webhook: Webhook, status: int, reply: bytes, result: str, response: Any
) -> None:
    webhook.status, webhook.reply = status, reply
    create(local_port, action("x", webhook.url, method={"synchronized": "{{ true }}\n"}))
    run = local_port.finished(local_port.execute("x"))
    assert (run["status"], run["response"]) == (result, response)
    assert run["endedAt"]


def test_a_synchronous_webhook_that_does_not_answer_in_time(local_port: LocalPort, webhook: Webhook) -> None:
    local_port.admin("PUT", "/settings", {"deliveryTimeoutSeconds": 0.2})
    webhook.gate.clear()
    create(local_port, action("x", webhook.url, method={"synchronized": True}))
    run = local_port.finished(local_port.execute("x"))
    assert (run["status"], run["response"]) == ("FAILURE", None)
    assert "no complete reply within 0.2 s" in run["summary"]


def test_bodies_of_get_and_of_actions_without_body(local_port: LocalPort, webhook: Webhook) -> None:
    plain = action("plain", webhook.url)
    del plain["invocationMethod"]["body"]
    create(local_port, plain, action("get", webhook.url, method={"method": "get"}))
    local_port.execute("plain")
    received(webhook)
    assert webhook.received[0].body == b"{}"
    local_port.execute("get")
    received(webhook, 2)
    assert (webhook.received[1].method, webhook.received[1].body) == ("GET", b"")


def test_entity_inputs_arrive_as_objects(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port, "a", "b", tier="gold")
    inputs = {
        "properties": {
            "one": {"type": "string", "format": "entity", "blueprint": "service"},
            "many": {
                "type": "array",
                "items": {"type": "string", "format": "entity", "blueprint": "service"},
            },
        }
    }
    body = {"one": "{{ .inputs.one.properties.tier }}", "many": "{{ .inputs.many | map(.identifier) }}"}
    create(local_port, action("x", webhook.url, trigger={"userInputs": inputs}, method={"body": body}))
    run_id = local_port.execute("x", {"one": "a", "many": ["a", "b"]})
    received(webhook)
    assert webhook.received[0].json == {"one": "gold", "many": ["a", "b"]}
    assert local_port.run(run_id)["rawProperties"] == {"one": "a", "many": ["a", "b"]}
    assert local_port.error("POST", "/actions/x/runs", {"properties": {"one": "absent"}}) == (
        404,
        "not_found",
    )


def test_encrypted_inputs_are_ciphertext_everywhere(own_local_port: LocalPort, webhook: Webhook) -> None:
    port = own_local_port
    inputs = {
        "properties": {
            "password": {"type": "string", "encryption": "aes256-gcm"},
            "config": {"type": "object", "encryption": "aes256-gcm"},
            "reason": {"type": "string"},
        }
    }
    body = {"inputs": "{{ .inputs }}", "encrypted": "{{ .action.encryptedProperties }}"}
    create(port, action("x", webhook.url, trigger={"userInputs": inputs}, method={"body": body}))
    run_id = port.execute(
        "x", {"password": "pl4in-s3cret", "config": {"key": "pl4in-object"}, "reason": "open"}
    )
    received(webhook)
    sent = webhook.received[0].json
    assert sent["encrypted"] == ["password", "config"]
    assert sent["inputs"]["reason"] == "open"
    assert _decrypt(sent["inputs"]["password"], port.client_secret) == "pl4in-s3cret"
    assert json.loads(_decrypt(sent["inputs"]["config"], port.client_secret)) == {"key": "pl4in-object"}
    assert "pl4in" not in json.dumps(port.run(run_id))
    for file in port.home.iterdir():
        assert b"pl4in" not in file.read_bytes(), file


def _decrypt(value: str, secret: str) -> str:
    raw = base64.b64decode(value)
    return AESGCM(secret.encode()[:32]).decrypt(raw[:16], raw[16:], None).decode()


def test_deliveries_run_concurrently(local_port: LocalPort, webhook: Webhook) -> None:
    webhook.gate.clear()
    create(local_port, action("x", webhook.url))
    for _ in range(10):
        local_port.execute("x")
    received(webhook, 10)
    assert local_port.api("GET", "/actions")["actions"]


def test_other_types_stay_in_progress_and_the_log_says_why(local_port: LocalPort) -> None:
    document = action("x", "")
    document["invocationMethod"] = {"type": "KAFKA", "payload": {"runId": "{{ .run.id }}"}}
    create(local_port, document)
    run_id = local_port.execute("x")
    run = local_port.run(run_id)
    assert run["status"] == "IN_PROGRESS"
    assert run["payload"] == {"type": "KAFKA", "payload": {"runId": run_id}}
    assert "does not deliver invocations of type KAFKA" in local_port.logs(run_id)[0]


def test_upsert_entity_is_executed_here(local_port: LocalPort) -> None:
    with_service(local_port, "cart", tier="gold")
    document = action("x", "", trigger={"userInputs": {"properties": {"replicas": {"type": "number"}}}})
    document["invocationMethod"] = {
        "type": "UPSERT_ENTITY",
        "blueprintIdentifier": "service",
        "mapping": {"identifier": "cart", "properties": {"replicas": "{{ .inputs.replicas }}"}},
    }
    create(local_port, document)
    assert local_port.finished(local_port.execute("x", {"replicas": 4}))["status"] == "SUCCESS"
    entity = local_port.api("GET", "/blueprints/service/entities/cart")["entity"]
    assert entity["properties"] == {"tier": "gold", "replicas": 4}
    document["invocationMethod"]["mapping"]["properties"] = {"tier": "tin"}
    local_port.api("PUT", "/actions/x", document)
    failed = local_port.finished(local_port.execute("x"))
    assert failed["status"] == "FAILURE"
    assert "properties.tier" in failed["summary"]


def test_the_destination_check_is_a_switch(local_port: LocalPort, webhook: Webhook) -> None:
    create(
        local_port,
        action("local", webhook.url),
        action("agent", webhook.url, method={"agent": True}),
        action("absent", "https://absent.invalid/"),
    )
    local_port.admin("PUT", "/settings", {"destinationCheck": True})
    body: dict[str, Any] = {"properties": {}}
    assert local_port.error("POST", "/actions/local/runs", body) == (403, "private_destination")
    assert local_port.error("POST", "/actions/absent/runs", body) == (403, "not_resolvable_destination")
    local_port.execute("agent")


# --- faults of deliveries -----------------------------------------------------------------------------


def test_faulty_deliveries(local_port: LocalPort, webhook: Webhook) -> None:
    create(local_port, action("x", webhook.url))

    def deliver(**fault: Any) -> dict[str, str]:
        before = len(webhook.received)
        local_port.admin("PUT", "/faults", {"delivery": [{"action": "x", "count": 1, **fault}]})
        local_port.execute("x")
        received(webhook, before + 1)
        return webhook.received[-1].headers

    def valid(headers: dict[str, str]) -> bool:
        message = headers["x-port-timestamp"].encode() + b"." + webhook.received[-1].body
        digest = hmac.digest(local_port.client_secret.encode(), message, hashlib.sha256)
        return headers["x-port-signature"] == "v1," + base64.b64encode(digest).decode()

    assert not valid(deliver(signature="wrong"))
    assert "x-port-signature" not in deliver(signature="missing")
    old = deliver(timestamp="old")
    assert int(old["x-port-timestamp"]) < time.time() - 3000
    assert valid(old)
    milliseconds = deliver(timestamp="milliseconds")
    assert len(milliseconds["x-port-timestamp"]) == 13
    assert valid(milliseconds)
    started = time.monotonic()
    assert valid(deliver(pauseSeconds=0.2))
    assert time.monotonic() - started >= 0.2
    deliver(duplicates=2)
    eventually(lambda: len(webhook.received) == 8)
    assert webhook.received[-1] == webhook.received[-2] == webhook.received[-3]
    local_port.execute("x")
    received(webhook, 9)
    assert valid(webhook.received[-1].headers)


# --- reporting ----------------------------------------------------------------------------------------


def in_progress(port: LocalPort, webhook: Webhook, **changes: Any) -> str:
    create(port, action("x", webhook.url, **changes))
    return port.execute("x")


def test_patch_overwrites_until_the_run_has_ended(local_port: LocalPort, webhook: Webhook) -> None:
    run_id = in_progress(local_port, webhook)
    path = f"/actions/runs/{run_id}"
    local_port.api(
        "PATCH", path, {"statusLabel": "half", "link": "https://a", "summary": "s", "externalRunId": "ci-1"}
    )
    local_port.api("PATCH", path, {"link": ["https://b", "https://c"]})
    run = local_port.run(run_id)
    assert (run["status"], run["statusLabel"], run["link"], run["summary"]) == (
        "IN_PROGRESS",
        "half",
        ["https://b", "https://c"],
        "s",
    )
    found = local_port.api("GET", "/actions/runs", params={"external_run_id": "ci-1"})["runs"]
    assert [item["id"] for item in found] == [run_id]
    wrong: list[dict[str, Any]] = [
        {"status": "DONE"},
        {"response": {}},
        {"status": "IN_PROGRESS"},
        {"summary": 1},
    ]
    for body in wrong:
        assert local_port.error("PATCH", path, body) == (422, "invalid_request")
    ended = local_port.api("PATCH", path, {"status": "SUCCESS"}, params={"version": "v2"})["run"]
    assert ended["status"] == "SUCCESS"
    assert ended["endedAt"]
    for body in ({"status": "FAILURE"}, {"status": "SUCCESS"}, {"summary": "late"}):
        assert local_port.error("PATCH", path, body) == (422, "invalid_request")
    assert local_port.error("POST", path + "/logs", {"message": "late"}) == (422, "run_exhausted")


def test_logs(local_port: LocalPort, webhook: Webhook) -> None:
    run_id = in_progress(local_port, webhook)
    path = f"/actions/runs/{run_id}/logs"
    eventually(lambda: len(local_port.logs(run_id)) == 1)
    line = local_port.request("POST", "/v1" + path, {"message": "one"})
    assert line.status_code == 201
    assert line.json()["runLog"].keys() == {"id", "runId", "message", "createdBy", "createdAt"}
    local_port.api("POST", path, {"message": "two", "statusLabel": "label"})
    assert local_port.run(run_id)["statusLabel"] == "label"
    assert [
        entry["message"] for entry in local_port.api("GET", path, params={"limit": 1, "offset": 1})["runLogs"]
    ] == ["one"]
    assert local_port.error("GET", path, params={"limit": 51}) == (422, "invalid_request")
    assert local_port.error("POST", path, {"text": "x"}) == (422, "invalid_request")
    local_port.api("POST", path, {"message": "end", "terminationStatus": "FAILURE"})
    assert local_port.run(run_id)["status"] == "FAILURE"
    assert local_port.error("POST", path, {"message": "x", "terminationStatus": "SUCCESS"}) == (
        422,
        "run_exhausted",
    )


def test_nobody_sets_the_status_of_a_synchronous_run(local_port: LocalPort, webhook: Webhook) -> None:
    webhook.gate.clear()
    run_id = in_progress(local_port, webhook, method={"synchronized": True})
    received(webhook)
    path = f"/actions/runs/{run_id}"
    assert local_port.error("PATCH", path, {"status": "SUCCESS"}) == (422, "run_synchronized_error")
    assert local_port.error("POST", path + "/logs", {"message": "m", "terminationStatus": "SUCCESS"}) == (
        422,
        "run_synchronized_error",
    )
    local_port.api("PATCH", path, {"summary": "still open"})
    webhook.gate.set()
    run = local_port.finished(run_id)
    assert (run["status"], run["summary"]) == ("SUCCESS", "still open")


def test_entities_are_listed_under_their_run(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port)
    run_id = in_progress(local_port, webhook)
    path = "/blueprints/service/entities"
    local_port.api("POST", path, {"identifier": "new"}, params={"run_id": run_id})
    assert local_port.admin("GET", f"/runs/{run_id}")["entities"] == [
        {"blueprint": "service", "identifier": "new"}
    ]
    local_port.api("PATCH", f"/actions/runs/{run_id}", {"status": "SUCCESS"})
    late = {"identifier": "late"}
    assert local_port.error("POST", path, late, params={"run_id": run_id}) == (400, "run_exhausted")
    assert local_port.error("POST", path, late, params={"run_id": "r_absent"}) == (404, "not_found")


def test_list_filters(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port, "a", "b")
    create(local_port, action("x", webhook.url, trigger=DAY_2), action("y", webhook.url))
    on_a, on_b = local_port.execute("x", entity="a"), local_port.execute("x", entity="b")
    plain = local_port.execute("y")
    local_port.api("PATCH", f"/actions/runs/{on_b}", {"status": "FAILURE"})

    def listed(**params: Any) -> list[str]:
        return [run["id"] for run in local_port.api("GET", "/actions/runs", params=params)["runs"]]

    assert listed() == [plain, on_b, on_a]
    assert listed(limit=1) == [plain]
    assert listed(entity="a") == [on_a]
    assert listed(blueprint="service") == [on_b, on_a]
    assert listed(active="true") == [plain, on_a]
    assert listed(active="false") == [on_b]
    assert listed(action="y") == [plain]
    assert listed(**{"exclude[]": ["y"]}) == [on_b, on_a]
    assert listed(**{"source[]": ["API"]}) == [plain, on_b, on_a]
    assert listed(**{"source[]": ["UI"]}) == []
    assert local_port.error("GET", "/actions/runs", params={"limit": 0}) == (422, "invalid_request")


# --- approval -----------------------------------------------------------------------------------------


def decide(port: LocalPort, run_id: str, status: str, **params: str) -> int:
    path = f"/v1/actions/runs/{run_id}/approval"
    return port.request("PATCH", path, {"status": status, "description": "d"}, params=params).status_code


def test_an_approved_run_is_delivered_then(local_port: LocalPort, webhook: Webhook) -> None:
    run_id = in_progress(local_port, webhook, requiredApproval=True)
    assert local_port.run(run_id)["status"] == "WAITING_FOR_APPROVAL"
    path = f"/actions/runs/{run_id}"
    assert local_port.error("PATCH", path, {"status": "SUCCESS"}) == (422, "invalid_request")
    pending = local_port.api("GET", path + "/approvers", params={"include_pending_approvers": "true"})
    assert [item["state"] for item in pending["approvers"]] == ["PENDING"]
    assert webhook.received == []
    assert decide(local_port, run_id, "APPROVE") == 201
    received(webhook)
    run = local_port.run(run_id)
    assert (run["status"], run["approval"]["state"], run["approval"]["description"]) == (
        "IN_PROGRESS",
        "APPROVED",
        "d",
    )
    assert local_port.error("PATCH", path + "/approval", {"status": "APPROVE"}) == (
        422,
        "run_not_waiting_for_approval",
    )


def test_declined_and_withdrawn_runs_are_never_delivered(local_port: LocalPort, webhook: Webhook) -> None:
    create(local_port, action("x", webhook.url, requiredApproval={"type": "ANY"}))
    declined, withdrawn = local_port.execute("x"), local_port.execute("x")
    assert decide(local_port, declined, "DECLINE") == 201
    local_port.api("PATCH", f"/actions/runs/{withdrawn}", {"status": "FAILURE"})
    assert local_port.run(declined)["status"] == "DECLINED"
    assert local_port.run(withdrawn)["status"] == "FAILURE"
    assert webhook.received == []


def test_all_approvers_must_agree(local_port: LocalPort, webhook: Webhook) -> None:
    create(local_port, action("x", webhook.url, requiredApproval={"type": "ALL"}))
    eventually(lambda: local_port.request("GET", "/v1/actions/x/permissions").ok)
    local_port.api("PATCH", "/actions/x/permissions", {"approve": {"users": ["a@b.c", "d@e.f"]}})
    run_id = local_port.execute("x")
    assert decide(local_port, run_id, "APPROVE") == 403
    assert decide(local_port, run_id, "APPROVE", run_as="a@b.c") == 201
    assert local_port.run(run_id)["status"] == "WAITING_FOR_APPROVAL"
    assert decide(local_port, run_id, "APPROVE", run_as="d@e.f") == 201
    received(webhook)


# --- the agent's protocol -----------------------------------------------------------------------------

RESERVED = "x-port-reserved-usage"


def reserved(port: LocalPort, method: str, path: str, body: Any) -> tuple[int, Any]:
    token = port.request("GET", "/v1/organization").request.headers["Authorization"]
    headers = {"Authorization": str(token), RESERVED: "true"}
    reply = port.request(method, f"/v1/actions/runs/{path}", body, headers=headers)
    return reply.status_code, reply.json()


def claim(port: LocalPort, **changes: Any) -> list[str]:
    body = {"installationId": "_PORT_EXEC_AGENT", "limit": 100, "invocationMethod": "WEBHOOK", **changes}
    status, reply = reserved(port, "POST", "claim-pending", body)
    assert status == 200
    return [run["id"] for run in reply["runs"]]


def test_claim_and_acknowledge(local_port: LocalPort, webhook: Webhook) -> None:
    local_port.api("POST", "/organization/secrets", {"secretName": "T", "secretValue": "s3cr3t"})
    create(
        local_port,
        action("x", webhook.url, method={"agent": True, "headers": {"a": "{{ .secrets.T }}"}}),
        action("direct", webhook.url),
    )
    body: dict[str, Any] = {"installationId": "_PORT_EXEC_AGENT"}
    assert local_port.error("POST", "/actions/runs/claim-pending", body) == (403, "missing_permissions")
    first, second = local_port.execute("x"), local_port.execute("x")
    local_port.execute("direct")
    received(webhook)
    run = local_port.run(first)
    assert run["pendingExecution"] is True
    assert run["payload"]["headers"] == {"a": "********"}
    assert claim(local_port, exclude=["x"]) == []
    status, reply = reserved(local_port, "POST", "claim-pending", {**body, "limit": 1})
    claimed = reply["runs"][0]
    assert (status, claimed["id"], claimed["claimedUntil"] is not None) == (200, first, True)
    assert claimed["payload"]["headers"] == {"a": "s3cr3t"}
    assert claimed["payload"]["body"]["port_context"] == {"runId": first}
    assert claim(local_port, visibilityTimeoutMs=800) == [second]
    assert claim(local_port) == []
    eventually(lambda: claim(local_port) == [second])
    assert reserved(local_port, "PATCH", "ack", {"runIds": [first, "r_absent"]}) == (
        200,
        {"ok": True, "ackedCount": 1},
    )
    assert reserved(local_port, "PATCH", "ack", {"runId": second})[0] == 200
    assert reserved(local_port, "PATCH", "ack", {"runId": second})[0] == 409
    assert local_port.run(first)["pendingExecution"] is False
    assert len(webhook.received) == 1


def test_the_agent_reports_synchronous_runs(local_port: LocalPort, webhook: Webhook) -> None:
    run_id = in_progress(local_port, webhook, method={"agent": True, "synchronized": True})
    path = f"/actions/runs/{run_id}"
    local_port.api("PATCH", path + "/response", {"response": {"a": 1}})
    local_port.api("PATCH", path, {"status": "SUCCESS"})
    run = local_port.run(run_id)
    assert (run["status"], run["response"]) == ("SUCCESS", {"a": 1})
    assert claim(local_port) == []


# --- restarts -----------------------------------------------------------------------------------------


def kill(port: LocalPort) -> None:
    os.kill(port.endpoint.pid, signal.SIGKILL)
    port.endpoint = control.ensure_running(port.home)


def test_after_a_crash(own_local_port: LocalPort, webhook: Webhook) -> None:
    port = own_local_port
    create(
        port,
        action("asynchronous", webhook.url + "/async"),
        action("synchronous", webhook.url + "/sync", method={"synchronized": True}),
        action("done", webhook.url + "/done"),
    )
    done = port.execute("done")
    eventually(lambda: port.logs(done))
    webhook.gate.clear()
    asynchronous, synchronous = port.execute("asynchronous"), port.execute("synchronous")
    received(webhook, 3)
    port.admin("PUT", "/settings", {"holdDeliveries": True})
    held = port.execute("synchronous")
    kill(port)
    webhook.gate.set()
    eventually(lambda: port.logs(asynchronous) == ["The webhook answered 200."])
    assert port.run(asynchronous)["status"] == port.run(done)["status"] == "IN_PROGRESS"
    interrupted = port.finished(synchronous)
    assert interrupted["status"] == "FAILURE"
    assert "stopped before the webhook replied" in interrupted["summary"]
    assert port.finished(held)["status"] == "SUCCESS"
    paths = sorted(request.path for request in webhook.received)
    assert paths == ["/async", "/async", "/done", "/sync", "/sync"]


def test_an_orderly_stop_does_not_wait_for_webhooks(own_local_port: LocalPort, webhook: Webhook) -> None:
    webhook.gate.clear()
    run_id = in_progress(own_local_port, webhook, method={"synchronized": True})
    received(webhook)
    started = time.monotonic()
    own_local_port.restart()
    assert time.monotonic() - started < 8
    assert own_local_port.finished(run_id)["status"] == "FAILURE"


def test_held_deliveries_go_out_when_released(local_port: LocalPort, webhook: Webhook) -> None:
    create(local_port, action("x", webhook.url))
    local_port.admin("PUT", "/settings", {"holdDeliveries": True})
    local_port.execute("x")
    assert local_port.error("GET", "/actions/absent") == (404, "not_found")
    assert webhook.received == []
    local_port.admin("PUT", "/settings", {"holdDeliveries": False})
    received(webhook)
