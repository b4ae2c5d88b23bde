"""A blueprint's `changelogDestination`; over a broker it is tested with the agent."""

from __future__ import annotations

import pytest
from tests.fixtures_localport import LocalPort, eventually
from tests.unit.localport.definitions import blueprint, with_service
from tests.unit.localport.webhook import Webhook

from port_webhook_localport.signature import sign

ENTITIES = "/blueprints/service/entities"


def test_changes_go_to_the_url_in_their_order(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port)
    destination = {"type": "WEBHOOK", "url": f"{webhook.url}/changes"}
    local_port.api("PATCH", "/blueprints/service", {"changelogDestination": destination})
    webhook.gate.clear()
    local_port.api("POST", ENTITIES, {"identifier": "a", "properties": {"tier": "gold"}})
    local_port.api("PATCH", f"{ENTITIES}/a", {"properties": {"tier": "silver"}})
    local_port.api("DELETE", f"{ENTITIES}/a")
    webhook.gate.set()
    eventually(lambda: len(webhook.received) == 3)
    created, updated, deleted = (request.json for request in webhook.received)
    assert [change["action"] for change in (created, updated, deleted)] == ["CREATE", "UPDATE", "DELETE"]
    assert created["context"] == {"entity": "a", "blueprint": "service"}
    assert (created["resourceType"], created["status"]) == ("entity", "SUCCESS")
    assert created["changelogDestination"] == destination
    assert created["diff"]["before"] is None
    assert updated["diff"]["before"]["properties"] == {"tier": "gold"}
    assert updated["diff"]["after"]["properties"] == {"tier": "silver"}
    assert deleted["diff"]["after"] is None
    for request in webhook.received:
        expected = sign(local_port.client_secret, request.headers["x-port-timestamp"], request.body)
        assert request.headers["x-port-signature"] == expected


def test_a_destination_that_fails_holds_up_nothing(local_port: LocalPort, webhook: Webhook) -> None:
    with_service(local_port)
    gone = {"type": "WEBHOOK", "url": "http://127.0.0.1:9/gone"}
    local_port.api("PATCH", "/blueprints/service", {"changelogDestination": gone})
    local_port.api("POST", ENTITIES, {"identifier": "a", "properties": {}})
    there = {"type": "WEBHOOK", "url": f"{webhook.url}/changes"}
    local_port.api("PATCH", "/blueprints/service", {"changelogDestination": there})
    local_port.api("POST", ENTITIES, {"identifier": "b", "properties": {}})
    eventually(lambda: len(webhook.received) == 1)
    assert webhook.received[0].json["context"]["entity"] == "b"


@pytest.mark.parametrize(
    "destination", [{"type": "WEBHOOK"}, {"type": "SLACK", "url": "http://x"}, {"type": "KAFKA", "url": "x"}]
)
def test_a_destination_of_another_form_is_refused(local_port: LocalPort, destination: dict[str, str]) -> None:
    body = {**blueprint("service"), "changelogDestination": destination}
    assert local_port.error("POST", "/blueprints", body) == (422, "invalid_request")
