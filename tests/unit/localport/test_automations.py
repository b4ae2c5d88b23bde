from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.fixtures_localport import LocalPort, eventually
from tests.unit.localport.definitions import action, automation, blueprint, with_service
from tests.unit.localport.webhook import Webhook

ENTITIES = "/blueprints/service/entities"


def on(kind: str, **more: str) -> dict[str, Any]:
    return {"type": kind, "blueprintIdentifier": "service", **more}


def events(webhook: Webhook, count: int) -> list[dict[str, Any]]:
    eventually(lambda: len(webhook.received) >= count, message=f"{count} events did not arrive")
    return [request.json["event"] for request in webhook.received]


def test_entity_events(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port)
    for kind in ("ENTITY_CREATED", "ENTITY_UPDATED", "ENTITY_DELETED", "ANY_ENTITY_CHANGE"):
        local_port.api("POST", "/actions", automation(kind, webhook.url + "/" + kind, on(kind)))
    local_port.api("POST", "/blueprints", blueprint("other"))
    local_port.api("POST", "/blueprints/other/entities", {"identifier": "o"})
    local_port.api("POST", ENTITIES, {"identifier": "a", "properties": {"tier": "gold"}})
    events(webhook, 2)
    local_port.api("PATCH", ENTITIES + "/a", {"properties": {"tier": "silver"}})
    events(webhook, 4)
    local_port.api("DELETE", ENTITIES + "/a")
    events(webhook, 6)
    seen = {request.path: request.json for request in webhook.received}
    assert [request.path for request in webhook.received].count("/ANY_ENTITY_CHANGE") == 3
    created, updated, deleted = (
        seen[path]["event"] for path in ("/ENTITY_CREATED", "/ENTITY_UPDATED", "/ENTITY_DELETED")
    )
    assert (created["action"], created["resourceType"], created["diff"]["before"]) == (
        "CREATE",
        "entity",
        None,
    )
    assert created["context"] == {
        "blueprintIdentifier": "service",
        "entityIdentifier": "a",
        "propertyIdentifier": None,
    }
    assert created["trigger"]["by"]["orgId"].startswith("org_")
    assert updated["diff"]["before"]["properties"] == {"tier": "gold"}
    assert updated["diff"]["after"]["properties"] == {"tier": "silver"}
    assert deleted["diff"]["after"] is None
    assert seen["/ENTITY_CREATED"]["action"] == {"identifier": "automation"}


def test_the_run_of_an_automation(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port)
    local_port.api(
        "POST",
        "/actions",
        automation("auto", webhook.url, on("ENTITY_CREATED"), method={"synchronized": True}),
    )
    local_port.api("POST", ENTITIES, {"identifier": "a"})
    events(webhook, 1)
    run = local_port.finished(webhook.received[0].json["runId"])
    assert (run["source"], run["status"], run["response"]) == ("AUTOMATION", "SUCCESS", {"done": True})
    assert run["action"]["identifier"] == "auto"
    assert local_port.error("POST", "/actions/auto/runs", {"properties": {}}) == (
        422,
        "run_non_self_service_error",
    )


@pytest.mark.parametrize(
    ("expressions", "combinator", "fires"),
    [
        (['.diff.after.properties.tier == "gold"'], "and", True),
        (['.diff.after.properties.tier == "silver"'], "and", False),
        (["true", "false"], "and", False),
        (["true", "false"], "or", True),
        ([".diff.after.identifier"], "and", False),
        (["not jq ("], "and", False),
        ([], "and", True),
    ],
)
def test_conditions(
    local_port: LocalPort, webhook: Webhook, expressions: list[str], combinator: str, fires: bool
) -> None:
    with_service(local_port)
    condition = {"type": "JQ", "combinator": combinator, "expressions": expressions}
    local_port.api(
        "POST",
        "/actions",
        automation("auto", webhook.url, on("ENTITY_CREATED"), trigger={"condition": condition}),
    )
    local_port.api("POST", ENTITIES, {"identifier": "a", "properties": {"tier": "gold"}})
    runs = local_port.api("GET", "/actions/runs", params={"action": "auto"})["runs"]
    assert len(runs) == (1 if fires else 0)


def test_unpublished_and_deleted_automations_do_nothing(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port)
    local_port.api("POST", "/actions", automation("off", webhook.url, on("ENTITY_CREATED"), publish=False))
    local_port.api("POST", "/actions", automation("gone", webhook.url, on("ENTITY_CREATED")))
    local_port.api("DELETE", "/actions/gone")
    local_port.api("POST", ENTITIES, {"identifier": "a"})
    assert local_port.api("GET", "/actions/runs")["runs"] == []
    local_port.api("PUT", "/actions/off", automation("off", webhook.url, on("ENTITY_CREATED")))
    local_port.api("POST", ENTITIES, {"identifier": "b"})
    assert len(local_port.api("GET", "/actions/runs")["runs"]) == 1


def test_run_events(local_port: LocalPort, webhook: Webhook) -> None:
    local_port.api("POST", "/actions", action("x", "http://127.0.0.1:9/"))
    for kind in ("RUN_CREATED", "RUN_UPDATED", "ANY_RUN_CHANGE"):
        event = {"type": kind, "actionIdentifier": "x"}
        local_port.api("POST", "/actions", automation(kind, webhook.url + "/" + kind, event))
    run_id = local_port.execute("x")
    events(webhook, 2)
    eventually(lambda: local_port.logs(run_id))
    local_port.api("POST", f"/actions/runs/{run_id}/logs", {"message": "m"})
    local_port.api("PATCH", f"/actions/runs/{run_id}", {"summary": "s"})
    events(webhook, 4)
    assert sorted(request.path for request in webhook.received) == [
        "/ANY_RUN_CHANGE",
        "/ANY_RUN_CHANGE",
        "/RUN_CREATED",
        "/RUN_UPDATED",
    ]
    updated = next(request.json["event"] for request in webhook.received if request.path == "/RUN_UPDATED")
    assert updated["resourceType"] == "run"
    assert updated["id"].startswith("event_")
    assert updated["context"]["action"]["identifier"] == "x"
    assert updated["diff"]["before"]["summary"] == ""
    assert updated["diff"]["after"]["summary"] == "s"
    assert updated["diff"]["after"]["id"] == run_id


def test_a_synchronous_end_fires_with_its_response(local_port: LocalPort, webhook: Webhook) -> None:
    local_port.api("POST", "/actions", action("x", webhook.url + "/x", method={"synchronized": True}))
    event = {"type": "RUN_UPDATED", "actionIdentifier": "x"}
    body = {"id": "{{ .event.diff.after.response.done }}"}
    local_port.api(
        "POST", "/actions", automation("next", webhook.url + "/next", event, method={"body": body})
    )
    local_port.execute("x")
    eventually(lambda: len(webhook.received) == 2)
    assert webhook.received[1].json == {"id": True}


def test_timers(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port)
    event = on("TIMER_PROPERTY_EXPIRED", propertyIdentifier="expires")
    local_port.api("POST", "/actions", automation("timer", webhook.url, event))
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    past = (datetime.now(UTC) - timedelta(seconds=60)).isoformat()
    local_port.api("POST", ENTITIES, {"identifier": "past", "properties": {"expires": past}})
    local_port.api("POST", ENTITIES, {"identifier": "a", "properties": {"expires": soon}})
    fired = events(webhook, 1)[0]
    assert fired["context"]["entityIdentifier"] == "a"
    assert fired["context"]["propertyIdentifier"] == "expires"
    assert fired["diff"].keys() == {"after"}
    local_port.api("PATCH", ENTITIES + "/a", {"properties": {"expires": soon}})
    assert len(local_port.api("GET", "/actions/runs")["runs"]) == 1


# --- Port's own API, and loops ------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["own", "https://api.getport.io", "https://api.us.port.io"])
def test_an_automation_calls_ports_own_api(local_port: LocalPort, webhook: Webhook, host: str) -> None:
    with_service(local_port)
    local_port.api("POST", "/actions", action("x", webhook.url))
    base = local_port.url if host == "own" else host
    method = {
        "synchronized": True,
        "headers": {"Authorization": "ignored"},
        "body": {"properties": {"reason": "{{ .event.context.entityIdentifier }}"}},
    }
    local_port.api(
        "POST",
        "/actions",
        automation("auto", f"{base}/v1/actions/x/runs?run_as=a@b.c", on("ENTITY_CREATED"), method=method),
    )
    local_port.api("POST", ENTITIES, {"identifier": "a"})
    eventually(lambda: webhook.received)
    assert webhook.received[0].json["reason"] == "a"
    run = local_port.api("GET", "/actions/runs", params={"action": "x", "version": "v2"})["runs"][0]
    assert (run["source"], run["createdBy"]) == ("AUTOMATION", "local|a@b.c")
    auto = local_port.api("GET", "/actions/runs", params={"action": "auto"})["runs"][0]
    ended = local_port.finished(auto["id"])
    assert (ended["status"], ended["response"]["run"]["id"]) == ("SUCCESS", run["id"])


def test_an_automation_is_not_started_by_its_own_run(local_port: LocalPort) -> None:
    with_service(local_port)
    document = automation("self", "", on("ANY_ENTITY_CHANGE"))
    document["invocationMethod"] = {
        "type": "UPSERT_ENTITY",
        "blueprintIdentifier": "service",
        "mapping": {"identifier": "{{ .event.context.entityIdentifier }}", "properties": {"replicas": 1}},
    }
    local_port.api("POST", "/actions", document)
    local_port.api("POST", ENTITIES, {"identifier": "a"})
    runs = local_port.api("GET", "/actions/runs")["runs"]
    assert len(runs) == 1
    local_port.finished(runs[0]["id"])
    assert any("its own run caused the event" in line for line in local_port.logs(runs[0]["id"]))
    assert len(local_port.api("GET", "/actions/runs")["runs"]) == 1


def test_a_ring_of_automations_ends(local_port: LocalPort) -> None:
    with_service(local_port)
    local_port.api("POST", "/blueprints", blueprint("other"))
    for source, target in (("service", "other"), ("other", "service")):
        document = automation(source, "", {"type": "ANY_ENTITY_CHANGE", "blueprintIdentifier": source})
        document["invocationMethod"] = {
            "type": "UPSERT_ENTITY",
            "blueprintIdentifier": target,
            "mapping": {"identifier": "a"},
        }
        local_port.api("POST", "/actions", document)
    local_port.api("POST", ENTITIES, {"identifier": "a"})

    def refused() -> bool:
        runs = local_port.api("GET", "/actions/runs")["runs"]
        return any("8 automations in a row" in line for line in local_port.logs(runs[0]["id"]))

    eventually(refused)
    assert len(local_port.api("GET", "/actions/runs")["runs"]) == 8


def test_a_report_of_a_handler_belongs_to_its_run(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port)
    local_port.api("POST", "/actions", automation("auto", webhook.url, on("ANY_ENTITY_CHANGE")))
    local_port.api("POST", ENTITIES, {"identifier": "a"})
    events(webhook, 1)
    run_id = webhook.received[0].json["runId"]
    local_port.api("POST", ENTITIES, {"identifier": "b"}, params={"run_id": run_id})
    assert len(local_port.api("GET", "/actions/runs")["runs"]) == 1
    assert any("was not started" in line for line in local_port.logs(run_id))
