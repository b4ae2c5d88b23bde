"""Secrets of the organisation in invocations: resolved when one is sent, and shown nowhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.fixtures_localport import LocalPort
from tests.unit.localport.definitions import action, automation, with_service
from tests.unit.localport.webhook import Webhook

VALUE = "T000/B000/planted-secret-path"


def with_secret(port: LocalPort, value: str, name: str = "HOOK") -> None:
    port.api("POST", "/organization/secrets", {"secretName": name, "secretValue": value})


def shown(port: LocalPort, run_id: str) -> str:
    """Everything that local Port shows of a run."""
    parts: list[Any] = [
        port.run(run_id),
        port.logs(run_id),
        port.deliveries(run=run_id),
        port.admin("GET", f"/runs/{run_id}"),
    ]
    return json.dumps(parts)


def test_a_whole_url_can_be_a_secret(local_port: LocalPort, webhook: Webhook) -> None:
    with_secret(local_port, f"{webhook.url}/services/{VALUE}")
    method = {"synchronized": True, "headers": {"X-Key": "k-{{ .secrets.HOOK }}"}}
    local_port.api("POST", "/actions", action("x", "{{ .secrets.HOOK }}", method=method))
    run = local_port.finished(local_port.execute("x"))
    assert run["status"] == "SUCCESS"
    assert webhook.received[0].path == f"/services/{VALUE}"
    assert webhook.received[0].headers["x-key"].endswith(VALUE)
    assert run["payload"] == {
        **run["payload"],
        "type": "WEBHOOK",
        "url": "********",
        "headers": {"X-Key": "k-********"},
        "synchronized": True,
        "agent": False,
    }
    assert VALUE not in shown(local_port, run["id"])


def test_a_secret_that_comes_back_is_masked(local_port: LocalPort, webhook: Webhook) -> None:
    with_secret(local_port, VALUE)
    webhook.reply = json.dumps({"seen": [f"/services/{VALUE}"], VALUE: 1}).encode()
    body = {"path": "{{ .secrets.HOOK }}"}
    local_port.api("POST", "/actions", action("x", webhook.url, method={"synchronized": True, "body": body}))
    run = local_port.finished(local_port.execute("x"))
    assert run["response"] == {"seen": ["/services/********"], "********": 1}
    open_run = (
        local_port.execute("x2") if local_port.api("POST", "/actions", action("x2", webhook.url)) else ""
    )
    local_port.api("POST", f"/actions/runs/{open_run}/logs", {"message": f"posting to {VALUE}"})
    assert "posting to ********" in local_port.logs(open_run)
    # A changed secret is masked with its new value.
    local_port.api("PATCH", "/organization/secrets/HOOK", {"secretValue": "another-value"})
    local_port.api("POST", f"/actions/runs/{open_run}/logs", {"message": "now another-value"})
    assert "now ********" in local_port.logs(open_run)


@pytest.mark.parametrize(
    "expression", [".secrets.HOOK", '.secrets["HOOK"]', '"a//b" + .secrets.HOOK', ".secrets.HOOK | @uri"]
)
def test_a_missing_secret_ends_the_run_with_a_line_in_its_log(
    local_port: LocalPort, webhook: Webhook, expression: str
) -> None:
    url = f"{webhook.url}/{{{{ {expression} }}}}"
    local_port.api("POST", "/actions", action("x", url, method={"synchronized": True}))
    run = local_port.finished(local_port.execute("x"))
    assert run["status"] == "FAILURE"
    expected = "The invocation could not be evaluated: the secret HOOK does not exist in Port"
    assert any(line.startswith(expected) for line in local_port.logs(run["id"]))
    assert run["summary"].startswith(expected)
    assert webhook.received == []


def test_an_expression_may_provide_for_a_missing_secret(local_port: LocalPort, webhook: Webhook) -> None:
    body = {"key": '{{ .secrets.HOOK // "none" }}'}
    local_port.api("POST", "/actions", action("x", webhook.url, method={"synchronized": True, "body": body}))
    assert local_port.finished(local_port.execute("x"))["status"] == "SUCCESS"
    assert webhook.received[0].json == {"key": "none"}


def test_a_missing_secret_in_an_automation(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port)
    event = {"type": "ENTITY_CREATED", "blueprintIdentifier": "service"}
    local_port.api("POST", "/actions", automation("auto", webhook.url + "/{{ .secrets.HOOK }}", event))
    local_port.api("POST", "/blueprints/service/entities", {"identifier": "a"})
    run = local_port.api("GET", "/actions/runs", params={"action": "auto", "version": "v2"})["runs"][0]
    assert run["status"] == "FAILURE"
    assert any("the secret HOOK does not exist" in line for line in local_port.logs(run["id"]))


def test_a_secret_created_before_the_approval_is_in_time(local_port: LocalPort, webhook: Webhook) -> None:
    document = action("x", webhook.url + "/{{ .secrets.HOOK }}", method={"synchronized": True})
    local_port.api("POST", "/actions", {**document, "requiredApproval": True})
    run_id = local_port.execute("x")
    with_secret(local_port, VALUE)
    local_port.api("PATCH", f"/actions/runs/{run_id}/approval", {"status": "APPROVE"})
    # The run was evaluated without the secret, so only its delivery knows the address.
    local_port.finished(run_id)
    assert webhook.received[0].path == f"/{VALUE}"
    assert VALUE not in shown(local_port, run_id)


def test_a_url_that_yields_null_is_refused(local_port: LocalPort) -> None:
    local_port.api("POST", "/actions", action("x", "{{ .inputs.address }}"))
    reply = local_port.request("POST", "/v1/actions/x/runs", {"properties": {}})
    assert (reply.status_code, reply.json()["error"]) == (422, "invalid_evaluated_invocation_method")
    assert "invocationMethod.url: its expression yields null" in reply.json()["message"]


def test_an_address_that_does_not_answer_is_said_without_the_address(local_port: LocalPort) -> None:
    with_secret(local_port, f"http://127.0.0.1:9/{VALUE}")
    local_port.api("POST", "/actions", action("x", "{{ .secrets.HOOK }}", method={"synchronized": True}))
    run = local_port.finished(local_port.execute("x"))
    assert run["status"] == "FAILURE"
    assert "did not answer: the connection failed: Connection refused" in run["summary"]
    assert VALUE not in shown(local_port, run["id"])


def test_a_missing_secret_does_not_hold_up_the_agent(local_port: LocalPort) -> None:
    with_secret(local_port, VALUE)
    url = "https://internal.example/{{ .secrets.%s }}"
    local_port.api("POST", "/actions", action("good", url % "HOOK", method={"agent": True}))
    local_port.api("POST", "/actions", action("bad", url % "NONE", method={"agent": True}))
    bad, good = local_port.execute("bad"), local_port.execute("good")
    token = local_port.request("GET", "/v1/organization").request.headers["authorization"]
    reply = local_port.request(
        "POST",
        "/v1/actions/runs/claim-pending",
        {"installationId": "_PORT_EXEC_AGENT", "limit": 10},
        headers={"x-port-reserved-usage": "true", "authorization": token},
    ).json()
    assert [(run["id"], run["payload"]["url"]) for run in reply["runs"]] == [
        (good, f"https://internal.example/{VALUE}")
    ]
    assert "the secret NONE does not exist" in local_port.run(bad)["summary"]
