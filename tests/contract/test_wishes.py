"""What users of other ways to manage Port as code ran into, and what happens here instead.

The resource types run in this process, against a local Port over HTTP; `edit` changes objects behind the API's
back, as somebody in Port's UI does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.definitions import VALID, WEBHOOK, action
from tests.fixtures_localport import LocalPort, local_port

from port_webhook_handlers.port import StringInput
from port_webhook_handlers.port.client import PortClient
from port_webhook_handlers.port.definitions import ClientSideEncryption, DefinitionError
from port_webhook_handlers.port.lint import lint
from port_webhook_stack.errors import SettingsError
from port_webhook_stack.port.configuration import LOCAL, Configuration
from port_webhook_stack.port.handler import Context, Kind, Properties, ProviderError, ReadResult
from port_webhook_stack.port.provider import handler
from port_webhook_stack.settings import parse

__all__ = ["local_port"]

BLUEPRINT = {
    "identifier": "service",
    "title": "Service",
    "schema": {
        "properties": {"tier": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}}
    },
}
FORM = {
    "properties": {"a": {"type": "string"}, "b": {"type": "string"}, "c": {"type": "number"}},
    "required": ["a", "b"],
    "order": ["a", "b", "c"],
}
ACTION: dict[str, Any] = {
    "identifier": "deploy",
    "title": "Deploy",
    "trigger": {"type": "self-service", "operation": "CREATE", "userInputs": FORM},
    "invocationMethod": {
        "type": "WEBHOOK",
        "url": "https://hooks.example.com",
        "body": {"query": "a < b && b > c", "n": 1, "nested": {"x": 1, "y": [1, 2]}},
    },
}


class Silence:
    """A log that nobody reads."""

    def debug(self, message: str) -> None: ...

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...


class Resource:
    """One resource through its life, as the engine leads it."""

    def __init__(self, context: Context, kind: str, inputs: Properties) -> None:
        self.handler = handler(f"port-webhook:index:{kind}")
        self.context = context
        checked = self.handler.check(context, inputs, {})
        assert checked.failures == [], checked.failures
        made = self.handler.create(context, checked.inputs, False)
        self.id, self.state, self.inputs = made.id, made.outputs, checked.inputs

    def refresh(self) -> ReadResult | None:
        found = self.handler.read(self.context, self.id, self.state, self.inputs)
        if found is not None:
            self.id, self.state, self.inputs = found.id, found.outputs, found.inputs
        return found

    def changes(self, news: Properties) -> dict[str, Kind]:
        """What a preview of `news` would show."""
        return dict(self.handler.diff(self.context, self.id, self.state, news).changes)

    def update(self, news: Properties) -> None:
        self.state = self.handler.update(self.context, self.id, self.state, news, False)
        self.id, self.inputs = str(news.get("identifier", self.id)), news

    def delete(self) -> None:
        self.context.memory.clear()
        self.handler.delete(self.context, self.id, self.state)


Make = Callable[[str, Properties], Resource]


@pytest.fixture
def make(local_port: LocalPort) -> Iterator[Make]:
    with PortClient(local_port.url, local_port.client_id, local_port.client_secret) as client:
        config = Configuration(LOCAL, "id", "secret", Path("/state"), client.base_url)
        yield lambda kind, inputs: Resource(Context(config, client, Silence()), kind, inputs)


def edit(port: LocalPort, kind: str, identifier: str, patch: dict[str, Any], **more: Any) -> None:
    port.admin("POST", "/edit", {"kind": kind, "identifier": identifier, "patch": patch, **more})


# Quirks that cost users time (drift, identity, defaults).


def test_free_json_is_compared_as_json(make: Make, local_port: LocalPort) -> None:
    made = make("Action", ACTION)
    local_port.api("PUT", "/actions/deploy", _reordered(ACTION))  # same content, other order of keys
    assert made.refresh() is not None
    assert made.changes(ACTION) == {}
    assert made.inputs["invocationMethod"]["body"]["query"] == "a < b && b > c"


def _reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reordered(value[key]) for key in reversed(value)}
    return value


def test_a_change_deep_in_the_body_is_one_path(make: Make, local_port: LocalPort) -> None:
    made = make("Action", ACTION)
    changed = copy.deepcopy(ACTION)
    changed["invocationMethod"]["body"]["nested"]["y"][1] = 3
    assert made.changes(changed) == {"invocationMethod.body.nested.y[1]": Kind.UPDATE}


def test_what_a_blueprint_has_beside_the_definition_survives_an_update(
    make: Make, local_port: LocalPort
) -> None:
    made = make("Blueprint", BLUEPRINT)
    calculated = {"upper": {"title": "Upper", "type": "string", "calculation": ".properties.tier"}}
    edit(local_port, "blueprint", "service", {"calculationProperties": calculated})
    made.update({**BLUEPRINT, "title": "A service"})
    stored = local_port.api("GET", "/blueprints/service")["blueprint"]
    assert stored["title"] == "A service"
    assert stored["calculationProperties"] == calculated
    # A nested key that no model of ours knows reaches Port and is compared.
    assert stored["schema"]["properties"]["tags"]["items"] == {"type": "string"}


def test_an_object_that_is_gone_is_created_again(make: Make, local_port: LocalPort) -> None:
    made = make("Action", ACTION)
    local_port.api("DELETE", "/actions/deploy")
    assert made.refresh() is None
    made.update({**ACTION, "title": "Again"})  # without a refresh in between
    assert local_port.api("GET", "/actions/deploy")["action"]["title"] == "Again"


def test_an_action_is_renamed_in_place_and_a_secret_is_replaced(make: Make, local_port: LocalPort) -> None:
    made = make("Action", ACTION)
    before = local_port.api("GET", "/actions/deploy")["action"]["id"]
    made.update({**ACTION, "identifier": "release"})
    assert local_port.api("GET", "/actions/release")["action"]["id"] == before
    assert local_port.error("GET", "/actions/deploy")[0] == 404

    secret = make("Secret", {"secretName": "OLD", "secretValue": "v"})
    diff = secret.handler.diff(
        secret.context, secret.id, secret.state, {"secretName": "NEW", "secretValue": "v"}
    )
    assert diff.replaces == ["secretName"]


def test_defaults_that_the_ui_makes_explicit_are_no_drift(make: Make, local_port: LocalPort) -> None:
    made = make("Action", ACTION)
    method = {
        **ACTION["invocationMethod"],
        "agent": False,
        "synchronized": False,
        "method": "POST",
        "headers": {},
    }
    edit(
        local_port,
        "action",
        "deploy",
        {
            "requiredApproval": False,
            "publish": True,
            "allowAnyoneToViewRuns": True,
            "invocationMethod": method,
        },
    )
    assert made.refresh() is not None
    assert made.changes(ACTION) == {}
    assert made.inputs == ACTION


def test_order_has_a_meaning_and_required_has_none(make: Make, local_port: LocalPort) -> None:
    made = make("Action", ACTION)
    form = {**FORM, "required": ["b", "a"]}
    edit(local_port, "action", "deploy", {"trigger": {**ACTION["trigger"], "userInputs": form}})
    made.refresh()
    assert made.changes(ACTION) == {}
    edit(
        local_port,
        "action",
        "deploy",
        {"trigger": {**ACTION["trigger"], "userInputs": {**FORM, "order": ["c", "b", "a"]}}},
    )
    made.refresh()
    path = "trigger.userInputs.order"
    assert set(made.changes(ACTION)) == {f"{path}[0]", f"{path}[2]"}


def test_steps_of_a_form_are_not_sorted_away(make: Make, local_port: LocalPort) -> None:
    steps = [{"title": "One", "order": ["a"]}, {"title": "Two", "order": ["b", "c"]}]
    form = {key: value for key, value in FORM.items() if key != "order"} | {"steps": steps}
    inputs = {**ACTION, "trigger": {**ACTION["trigger"], "userInputs": form}}
    made = make("Action", inputs)
    edited = {**ACTION["trigger"], "userInputs": {**form, "steps": steps[::-1]}}
    edit(local_port, "action", "deploy", {"trigger": edited})
    made.refresh()
    assert made.changes(inputs)


def test_an_address_that_port_will_refuse_is_found_before_anything_runs() -> None:
    # Port checks an address only when a run is executed; the stack knows when it cannot work.
    values = {"port-webhook:region": "eu", "port-webhook:clientId": "i", "port-webhook:clientSecret": "s"}
    with pytest.raises(SettingsError, match=r"port-webhook-stack:listener\.publicUrl: is missing"):
        parse("dev", values, frozenset(), {}, Path("/project"))


# Wishes about definitions.


def test_the_whole_life_of_a_secret(make: Make, local_port: LocalPort) -> None:
    made = make("Secret", {"secretName": "TOKEN", "secretValue": "one", "description": "first"})
    made.update({"secretName": "TOKEN", "secretValue": "two"})
    assert local_port.api("GET", "/organization/secrets/TOKEN")["secret"]["description"] == ""
    assert made.refresh() is not None
    assert made.changes({"secretName": "TOKEN", "secretValue": "two"}) == {}
    assert made.changes({"secretName": "TOKEN", "secretValue": "three"}) == {"secretValue": Kind.UPDATE}
    made.delete()
    assert local_port.api("GET", "/organization/secrets")["secrets"] == []


@pytest.mark.parametrize(
    "patch",
    [
        {"title": "Edited"},
        {"description": "Added in the UI"},
        {"title": None},
        {"trigger": {**ACTION["trigger"], "userInputs": {"properties": {"new": {"type": "string"}}}}},
        {"invocationMethod": {**ACTION["invocationMethod"], "headers": {"X": "1"}}},
        {"requiredApproval": {"type": "ALL"}},
        {"allowAnyoneToViewRuns": False},
    ],
)
def test_every_edit_in_the_ui_is_seen_and_mended(
    make: Make, local_port: LocalPort, patch: dict[str, Any]
) -> None:
    made = make("Action", ACTION)
    before = local_port.api("GET", "/actions/deploy")["action"]
    edit(local_port, "action", "deploy", patch)
    made.refresh()
    assert made.changes(ACTION)
    made.update(ACTION)
    after = local_port.api("GET", "/actions/deploy")["action"]
    stamps = ("updatedAt", "updatedBy")
    assert {k: v for k, v in after.items() if k not in stamps} == {
        k: v for k, v in before.items() if k not in stamps
    }
    assert made.refresh() is not None
    assert made.changes(ACTION) == {}


def test_lists_that_port_returns_in_another_order_are_no_change(make: Make, local_port: LocalPort) -> None:
    make("Action", ACTION)
    inputs = {"action": "deploy", "execute": {"roles": ["Member", "Admin"], "users": ["b@x.io", "a@x.io"]}}
    made = make("ActionPermissions", inputs)
    reordered = {"execute": {"roles": ["Admin", "Member"], "users": ["a@x.io", "b@x.io"]}}
    local_port.api("PATCH", "/actions/deploy/permissions", reordered)
    made.refresh()
    assert made.changes(inputs) == {}
    assert made.inputs == inputs


def test_permissions_are_patched_once_and_not_with_every_deployment(
    make: Make, local_port: LocalPort
) -> None:
    make("Action", ACTION)
    inputs = {"action": "deploy", "execute": {"teams": ["ops"]}, "approve": {"roles": ["Admin"]}}
    made = make("ActionPermissions", inputs)
    stored = local_port.api("GET", "/actions/deploy/permissions")["permissions"]
    assert stored["execute"]["teams"] == ["ops"]
    assert stored["execute"]["roles"] == []  # what is left out loses the right
    assert made.changes(inputs) == {}
    local_port.api("PATCH", "/actions/deploy/permissions", {"execute": {"roles": ["Member"]}})
    made.refresh()
    assert made.changes(inputs)


def test_permissions_wait_for_the_action_that_port_is_still_making(make: Make, local_port: LocalPort) -> None:
    local_port.admin("PUT", "/settings", {"permissionsDelaySeconds": 0.4})
    make("Action", ACTION)
    made = make("ActionPermissions", {"action": "deploy", "execute": {"teams": ["ops"]}})
    assert made.state["execute"] == {"teams": ["ops"]}


def test_secret_inputs_are_typed_and_checked() -> None:
    assert StringInput(encryption="aes256-gcm").to_body() == {"type": "string", "encryption": "aes256-gcm"}
    sealed = StringInput(encryption=ClientSideEncryption("client-side", "PEM")).to_body()
    assert sealed["encryption"] == {"algorithm": "client-side", "key": "PEM"}
    body = copy.deepcopy(ACTION)
    body["trigger"]["userInputs"]["properties"]["a"]["encryption"] = "aes-256"
    assert [str(finding.rule) for finding in lint([body])] == ["PW104"]


def test_the_shape_of_an_option_is_said_instead_of_being_guessed() -> None:
    approval = action(WEBHOOK, requiredApproval="ANY")
    (finding,) = lint([approval])
    assert finding.path == "requiredApproval"
    assert finding.remedy == 'write true or false or {"type": "ANY"} or {"type": "ALL"}'
    with pytest.raises(DefinitionError, match=r"StringInput\.fromat: is not a field; did you mean format\?"):
        StringInput(fromat="url")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("Action", ACTION),
        ("Automation", {**VALID["RUN_CREATED"], "identifier": "on_run"}),
        (
            "Blueprint",
            {**BLUEPRINT, "relations": {"next": {"target": "service", "required": False, "many": False}}},
        ),
        ("Secret", {"secretName": "TOKEN", "secretValue": "v", "description": "d"}),
        ("Webhook", {"identifier": "github", "enabled": True, "mappings": []}),
    ],
)
def test_existing_objects_can_be_imported(
    make: Make, local_port: LocalPort, kind: str, inputs: Properties
) -> None:
    made = make(kind, inputs)
    imported = made.handler.read(made.context, made.id, {}, {})
    assert imported is not None
    assert dict(made.handler.diff(made.context, made.id, imported.outputs, imported.inputs).changes) == {}
    # What the program says is what was imported, apart from a secret's value, which Port never returns.
    assert dict(made.handler.diff(made.context, made.id, imported.outputs, inputs).changes) == {}


def test_an_existing_object_is_never_overwritten_by_surprise(make: Make, local_port: LocalPort) -> None:
    local_port.api("POST", "/actions", {**ACTION, "title": "Somebody else's"})
    with pytest.raises(
        ProviderError, match=r"action deploy exists already in Port and differs in title\. Set `adopt`"
    ):
        make("Action", ACTION)
    assert local_port.api("GET", "/actions/deploy")["action"]["title"] == "Somebody else's"
    adopted = make("Action", {**ACTION, "adopt": True})
    assert local_port.api("GET", "/actions/deploy")["action"]["title"] == "Deploy"
    adopted.delete()
    assert local_port.api("GET", "/actions/deploy")["ok"]
