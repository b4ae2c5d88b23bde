from __future__ import annotations

import time

import pytest
import requests
from tests.fixtures_localport import LocalPort, eventually
from tests.unit.localport.definitions import action, automation, blueprint, with_service

URL = "http://127.0.0.1:9/"


@pytest.mark.parametrize("status", [401, 409, 422, 429, 500, 503])
def test_the_next_calls_of_a_prefix_fail(local_port: LocalPort, status: int) -> None:
    local_port.api("GET", "/organization")
    rule = {"prefix": "/v1/actions", "status": status, "count": 2}
    local_port.admin("PUT", "/faults", {"api": [rule]})
    headers = local_port.request("GET", "/v1/organization").request.headers
    statuses = [
        requests.get(local_port.url + path, headers=dict(headers), timeout=5).status_code
        for path in ("/v1/actions", "/v1/blueprints", "/v1/actions/x", "/v1/actions")
    ]
    assert statuses == [status, 200, status, 200]
    assert local_port.admin("GET", "/faults")["faults"]["api"][0]["left"] == 0


def test_a_share_of_the_calls_fails(local_port: LocalPort) -> None:
    local_port.admin(
        "PUT", "/faults", {"api": [{"prefix": "/v1/", "method": "GET", "status": 500, "percent": 50}]}
    )
    statuses = [local_port.request("GET", "/v1/actions").status_code for _ in range(100)]
    assert 10 < statuses.count(500) < 90
    local_port.admin("DELETE", "/faults")
    assert local_port.request("GET", "/v1/actions").ok


@pytest.mark.parametrize(("unit", "low", "high"), [("delay", 3, 7), ("epoch", 1.7e9, 1e11)])
def test_both_units_of_the_reset_header(local_port: LocalPort, unit: str, low: float, high: float) -> None:
    rule = {
        "prefix": "/v1/actions", "status": 429, "count": 1, "reset": unit, "resetSeconds": 5,
        "retryAfterSeconds": 5,
    }  # fmt: skip
    local_port.admin("PUT", "/faults", {"api": [rule]})
    reply = local_port.request("GET", "/v1/actions")
    assert reply.status_code == 429
    assert low <= float(reply.headers["x-ratelimit-reset"]) <= high
    assert reply.headers["retry-after"] == "5"
    local_port.admin("PUT", "/settings", {"rateLimitReset": unit, "rateLimitPeriodSeconds": 5})
    assert low <= float(local_port.request("GET", "/v1/actions").headers["x-ratelimit-reset"]) <= high


def test_the_rate_limit_is_enforced_and_ends(local_port: LocalPort) -> None:
    local_port.api("GET", "/actions")
    local_port.admin("PUT", "/settings", {"rateLimit": 3, "rateLimitPeriodSeconds": 1.5})
    replies = [local_port.request("GET", "/v1/actions") for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    assert replies[-1].headers["x-ratelimit-remaining"] == "0"
    eventually(lambda: local_port.request("GET", "/v1/actions").ok)


def test_a_fault_after_the_work_loses_only_the_reply(local_port: LocalPort) -> None:
    local_port.api("GET", "/actions")
    local_port.admin(
        "PUT", "/faults", {"api": [{"prefix": "/v1/actions", "status": 500, "count": 1, "after": True}]}
    )
    assert local_port.error("POST", "/actions", action("x", URL)) == (500, "internal_error")
    assert local_port.api("GET", "/actions/x")


def test_slow_and_dropped_calls(local_port: LocalPort) -> None:
    local_port.admin("PUT", "/faults", {"api": [{"prefix": "/v1/actions", "count": 1, "delaySeconds": 5}]})
    with pytest.raises(requests.ReadTimeout):
        local_port.request("GET", "/v1/actions", timeout=0.2)
    local_port.admin("PUT", "/faults", {"api": [{"prefix": "/v1/actions", "count": 1, "delaySeconds": 0.2}]})
    started = time.monotonic()
    assert local_port.request("GET", "/v1/actions").ok
    assert time.monotonic() - started >= 0.2
    local_port.admin("PUT", "/faults", {"api": [{"prefix": "/v1/actions", "count": 1, "drop": True}]})
    with pytest.raises(requests.ConnectionError):
        local_port.request("GET", "/v1/actions")
    assert local_port.request("GET", "/v1/actions").ok


def test_calls_are_counted_by_route(local_port: LocalPort) -> None:
    local_port.api("POST", "/actions", action("x", URL))
    local_port.api("GET", "/actions/x")
    local_port.api("GET", "/actions/x")
    calls = local_port.calls()
    assert calls["POST /v1/actions"] >= 1
    assert calls["GET /v1/actions/{action}"] == 2
    local_port.admin("DELETE", "/calls")
    assert local_port.calls() == {}


def test_edits_behind_the_back_of_the_api(local_port: LocalPort) -> None:
    with_service(local_port, "a", tier="gold")
    local_port.api("POST", "/actions", action("x", URL, title="X"))
    patch = {"title": None, "requiredApproval": False, "trigger": {"operation": "DELETE"}}
    local_port.admin("POST", "/edit", {"kind": "action", "identifier": "x", "patch": patch})
    edited = local_port.api("GET", "/actions/x")["action"]
    assert "title" not in edited
    assert (edited["requiredApproval"], edited["trigger"]["operation"]) == (False, "DELETE")
    assert edited["updatedBy"] == "ui"
    local_port.admin(
        "POST",
        "/edit",
        {
            "kind": "entity",
            "blueprint": "service",
            "identifier": "a",
            "patch": {"properties": {"tier": "silver"}},
        },
    )
    assert local_port.api("GET", "/blueprints/service/entities/a")["entity"]["properties"]["tier"] == "silver"
    local_port.admin("POST", "/edit", {"kind": "blueprint", "identifier": "service", "patch": {"title": "T"}})
    assert local_port.api("GET", "/blueprints/service")["blueprint"]["title"] == "T"
    local_port.admin("POST", "/edit", {"kind": "action", "identifier": "x", "delete": True})
    assert local_port.error("GET", "/actions/x") == (404, "not_found")


def test_an_edited_automation_is_noticed(local_port: LocalPort) -> None:
    with_service(local_port)
    event = {"type": "ENTITY_CREATED", "blueprintIdentifier": "service"}
    local_port.api("POST", "/actions", automation("auto", URL, event, publish=False))
    local_port.api("POST", "/blueprints/service/entities", {"identifier": "a"})
    local_port.admin("POST", "/edit", {"kind": "action", "identifier": "auto", "patch": {"publish": True}})
    local_port.api("POST", "/blueprints/service/entities", {"identifier": "b"})
    assert len(local_port.api("GET", "/actions/runs")["runs"]) == 1


def test_reset_forgets_state_but_not_who_it_is(local_port: LocalPort) -> None:
    organization = local_port.api("GET", "/organization")["organization"]["id"]
    local_port.api("POST", "/blueprints", blueprint())
    local_port.admin("PUT", "/faults", {"api": [{"prefix": "/v1/x", "status": 500}]})
    local_port.admin("POST", "/reset")
    assert local_port.admin("GET", "/faults")["faults"] == {"api": [], "delivery": []}
    assert local_port.api("GET", "/blueprints")["blueprints"] == []
    assert local_port.api("GET", "/organization")["organization"]["id"] == organization
