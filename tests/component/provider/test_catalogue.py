"""Blueprints with everything that they compute, and ingest webhooks, against a local Port."""

from __future__ import annotations

from typing import Any

import pytest
from tests.contract.test_wishes import Make, edit, local_port, make
from tests.fixtures_localport import LocalPort

from port_webhook_stack.port.handler import UNKNOWN, Kind, ProviderError
from port_webhook_stack.port.provider import handler, package_schema

__all__ = ["local_port", "make"]

SYSTEM = {"identifier": "system", "title": "System", "schema": {"properties": {"owner": {"type": "string"}}}}
SERVICE: dict[str, Any] = {
    "identifier": "service",
    "title": "Service",
    "schema": {"properties": {"tier": {"type": "string"}, "load": {"type": "number"}}, "required": ["tier"]},
    "relations": {"system": {"target": "system", "title": "System", "required": False, "many": False}},
    "mirrorProperties": {"owner": {"title": "Owner", "path": "system.owner"}},
    "calculationProperties": {
        "label": {"title": "Label", "type": "string", "calculation": '.properties.tier + "!"'}
    },
    "aggregationProperties": {
        "peers": {
            "title": "Peers",
            "target": "system",
            "calculationSpec": {"func": "count", "calculationBy": "entities"},
        }
    },
}
WEBHOOK: dict[str, Any] = {
    "identifier": "github",
    "title": "GitHub",
    "enabled": True,
    "security": {"secret": "planted-secret", "signatureHeaderName": "X-Hub-Signature-256"},
    "mappings": [
        {
            "blueprint": "system",
            "filter": '.headers."X-GitHub-Event" == "repository"',
            "operation": "create",
            "entity": {"identifier": ".body.repository.name", "properties": {"owner": ".body.sender.login"}},
        }
    ],
}


def test_a_blueprint_keeps_all_that_it_computes(make: Make, local_port: LocalPort) -> None:
    make("Blueprint", SYSTEM)
    made = make("Blueprint", SERVICE)
    make(
        "Entity",
        {"blueprint": "system", "identifier": "shop", "title": "Shop", "properties": {"owner": "ann"}},
    )
    make(
        "Entity",
        {
            "blueprint": "service",
            "identifier": "cart",
            "title": "Cart",
            "properties": {"tier": "gold"},
            "relations": {"system": "shop"},
        },
    )
    shown = local_port.api("GET", "/blueprints/service/entities/cart")["entity"]["properties"]
    assert (shown["owner"], shown["label"]) == ("ann", "gold!")
    assert made.refresh() is not None
    assert made.changes(SERVICE) == {}
    imported = made.handler.read(made.context, "service", {}, {})
    assert imported is not None
    assert not made.handler.diff(made.context, "service", imported.outputs, SERVICE).changes

    changed = {**SERVICE, "mirrorProperties": {"owner": {"title": "Owned by", "path": "system.owner"}}}
    assert made.changes(changed) == {"mirrorProperties.owner.title": Kind.UPDATE}
    made.update(changed)
    stored = local_port.api("GET", "/blueprints/service")["blueprint"]
    assert stored["mirrorProperties"]["owner"]["title"] == "Owned by"
    assert stored["aggregationProperties"] == SERVICE["aggregationProperties"]
    edit(local_port, "blueprint", "service", {"calculationProperties": {"label": {"calculation": ".title"}}})
    made.refresh()
    assert made.changes(changed) == {"calculationProperties.label.calculation": Kind.UPDATE}


def test_a_blueprint_that_actions_use_says_so_when_it_is_deleted(make: Make, local_port: LocalPort) -> None:
    made = make("Blueprint", {**SYSTEM, "forceDestroy": True})
    make(
        "Action",
        {
            "identifier": "restart",
            "trigger": {
                "type": "self-service",
                "operation": "DAY-2",
                "blueprintIdentifier": "system",
                "userInputs": {"properties": {}},
            },
            "invocationMethod": {"type": "WEBHOOK", "url": "https://hooks.example.com"},
        },
    )
    with pytest.raises(ProviderError, match=r"blueprint system is still used .* the action restart"):
        made.delete()


def test_life_of_a_webhook(make: Make, local_port: LocalPort) -> None:
    make("Blueprint", SYSTEM)
    made = make("Webhook", WEBHOOK)
    assert made.state["url"].endswith(made.state["webhookKey"])
    assert made.refresh() is not None
    assert made.inputs == WEBHOOK
    assert made.changes(WEBHOOK) == {}
    # `create` is what a mapping without an operation does, and an absent `enabled` is false.
    (mapping,) = WEBHOOK["mappings"]
    same = {key: value for key, value in mapping.items() if key != "operation"}
    assert made.changes({**WEBHOOK, "mappings": [same]}) == {}
    off = {key: value for key, value in WEBHOOK.items() if key != "enabled"}
    assert set(made.changes(off)) == {"enabled"}

    url = made.state["url"]
    made.update({**off, "title": "Code"})
    assert made.state["url"] == url
    stored = local_port.api("GET", "/webhooks/github")["integration"]
    assert (stored["title"], "enabled" in stored) == ("Code", False)
    assert made.handler.diff(made.context, "github", made.state, {**off, "identifier": "x"}).replaces == [
        "identifier"
    ]
    made.delete()
    assert local_port.api("GET", "/webhooks")["integrations"] == []


def test_a_webhook_that_exists_is_not_overwritten(make: Make, local_port: LocalPort) -> None:
    local_port.api("POST", "/webhooks", {"identifier": "github", "title": "Theirs"})
    with pytest.raises(ProviderError, match="webhook github exists already in Port and differs in"):
        make("Webhook", {"identifier": "github", "title": "Ours"})


def test_the_address_of_a_webhook_is_a_secret() -> None:
    kind = handler("port-webhook:index:Webhook")
    assert {"security", "url", "webhookKey"} <= kind.secrets
    properties = package_schema({})["resources"]["port-webhook:index:Webhook"]["properties"]
    assert properties["url"]["secret"] is True


@pytest.mark.parametrize(
    ("patch", "path", "reason"),
    [
        ({"identifier": "a b"}, "identifier", "characters that Port refuses"),
        ({"security": {"sekret": "x"}}, "security.sekret", "write any of secret"),
        ({"mappings": [{"blueprint": "system"}]}, "mappings[0].entity", "is required by Port"),
        (
            {"mappings": [{**WEBHOOK["mappings"][0], "filtr": "x"}]},
            "mappings[0].filtr",
            "write any of blueprint",
        ),
        (
            {"mappings": [{**WEBHOOK["mappings"][0], "operation": "drop"}]},
            "mappings[0].operation",
            "create or delete",
        ),
        ({"mappings": [{**WEBHOOK["mappings"][0], "filter": ".a =="}]}, "mappings[0].filter", "is not jq"),
        ({"mappings": ["x"]}, "mappings[0]", "must be a map"),
    ],
)
def test_mistakes_in_a_webhook_are_found_at_preview(
    make: Make, patch: dict[str, Any], path: str, reason: str
) -> None:
    kind = handler("port-webhook:index:Webhook")
    made = make("Secret", {"secretName": "X", "secretValue": "v"})
    failures = kind.check(made.context, {**WEBHOOK, **patch}, {}).failures
    assert [(failure.property, reason in failure.reason) for failure in failures] == [(path, True)]
    assert "planted-secret" not in str(failures)


def test_unknown_values_of_a_webhook_are_not_judged(make: Make) -> None:
    kind = handler("port-webhook:index:Webhook")
    made = make("Secret", {"secretName": "X", "secretValue": "v"})
    unknown = {
        "identifier": UNKNOWN,
        "security": UNKNOWN,
        "mappings": [UNKNOWN, {**WEBHOOK["mappings"][0], "filter": UNKNOWN}],
    }
    assert kind.check(made.context, unknown, {}).failures == []
