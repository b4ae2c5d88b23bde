"""The blueprints of the bundled handlers, under their own names and under those of an organisation."""

from __future__ import annotations

from typing import Any

import pytest

from port_webhook_handlers.bundled import notify
from port_webhook_handlers.bundled.catalog import NAMES, Catalog
from port_webhook_handlers.bundled.deploy import blueprints as deploy_blueprints
from port_webhook_handlers.bundled.deploy import deploy_microservice
from port_webhook_handlers.bundled.expire import expire_resource
from port_webhook_handlers.bundled.resource.blueprints import RESOURCE
from port_webhook_handlers.bundled.running import what_runs_where
from port_webhook_handlers.sdk import SettingError
from port_webhook_handlers.sdk.definition import definition
from port_webhook_handlers.sdk.handler import handler_of

MAPPED: dict[str, Any] = {
    "service": {"blueprint": "microservice", "properties": {"passed": "healthy", "url": None}},
    "environment": {"blueprint": "stage", "entity": "production"},
    "deployment": {
        "blueprint": "release",
        "properties": {"status": "state", "run": None},
        "relations": {"service": "of", "environment": "stage"},
    },
    "resource": {"properties": {"expiresAt": "ttl", "owner": None}, "relations": {"environment": None}},
}


def of(**catalog: Any) -> Catalog:
    return Catalog.of({"catalog": catalog})


def test_without_settings_the_set_is_what_it_always_was() -> None:
    assert of().blueprints(["service", "deployment"]) == list(deploy_blueprints.BLUEPRINTS)
    assert of().blueprints(["resource", "environment"]) == [RESOURCE]
    for handler in (deploy_microservice, expire_resource, what_runs_where):
        body = definition(handler_of(handler))
        assert of().renamed(body) == body


def test_everything_has_the_organisations_names() -> None:
    service, stage, release, resource = of(**MAPPED).blueprints(NAMES)
    assert [body["identifier"] for body in (service, stage, release, resource)] == [
        "microservice",
        "stage",
        "release",
        "resource",
    ]
    assert set(service["schema"]["properties"]) == {"language", "healthy"}
    assert set(release["schema"]["properties"]) == {"version", "state", "url", "deployedAt"}
    assert release["schema"]["required"] == ["version", "state"]
    assert {name: item["target"] for name, item in release["relations"].items()} == {
        "of": "microservice",
        "stage": "stage",
    }
    assert resource["relations"] == {}
    # What a relation points at comes along.
    assert [body["identifier"] for body in of(**MAPPED).blueprints(["deployment"])] == [
        "microservice",
        "stage",
        "release",
    ]


def test_definitions_follow() -> None:
    catalog = of(**MAPPED)
    deploy = catalog.renamed(definition(handler_of(deploy_microservice)))
    assert deploy["trigger"]["blueprintIdentifier"] == "microservice"
    look = catalog.renamed(definition(handler_of(what_runs_where)))
    assert look["trigger"]["userInputs"]["properties"]["service"]["blueprint"] == "microservice"
    expire = catalog.renamed(definition(handler_of(expire_resource)))
    assert expire["trigger"]["event"] == {
        "type": "TIMER_PROPERTY_EXPIRED",
        "blueprintIdentifier": "resource",
        "propertyIdentifier": "ttl",
    }
    failing = notify.on_service_failure(catalog=catalog).to_body()["trigger"]
    assert failing["event"]["blueprintIdentifier"] == "microservice"
    assert '.diff.after.properties.healthy == "Not passed"' in failing["condition"]["expressions"]


@pytest.mark.parametrize(
    ("catalog", "message"),
    [
        ({"servce": {}}, "catalog.servce: unknown key"),
        ({"service": {"bluprint": "x"}}, "catalog.service.bluprint: unknown key"),
        ({"service": []}, "catalog.service: must be a map"),
        (
            {"deployment": {"properties": {"state": "x"}}},
            "catalog.deployment.properties.state: is none of the set",
        ),
        ({"deployment": {"properties": {"run": ""}}}, "catalog.deployment.properties.run: must be the name"),
        ({"deployment": {"properties": {"run": "url"}}}, "url is given twice"),
        ({"deployment": {"relations": {"environment": "e"}}}, "relations.environment: is none of the set"),
        ({"environment": {}}, "catalog.environment.entity: must be a text"),
        ({"deployment": {"blueprint": "service"}}, "blueprint: service is another blueprint of the set too"),
    ],
)
def test_what_cannot_be_used_is_named(catalog: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        of(**catalog)
    assert message in str(caught.value)


def test_what_a_definition_is_about_must_be_there() -> None:
    catalog = of(resource={"properties": {"expiresAt": None}}, service={"properties": {"passed": None}})
    with pytest.raises(SettingError, match="expire_resource is about it"):
        catalog.renamed(definition(handler_of(expire_resource)))
    with pytest.raises(SettingError, match=r"catalog.service.properties.passed: is null"):
        notify.definitions(catalog=catalog)
