"""Port's objects against an API of Port on the loopback: who owns what, and what is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.component.provider.fake_port import CLIENT_ID, CLIENT_SECRET, Call, FakePort, Reply, error, running

from port_webhook_handlers.port.client import PortClient
from port_webhook_stack.port.actions import Action, Automation
from port_webhook_stack.port.blueprints import Blueprint
from port_webhook_stack.port.configuration import Configuration
from port_webhook_stack.port.entities import Entity
from port_webhook_stack.port.handler import UNKNOWN, Context, Properties, ProviderError, ResourceHandler
from port_webhook_stack.port.organization_secrets import Secret
from port_webhook_stack.port.permissions import ActionPermissions

ACTION: dict[str, Any] = {
    "identifier": "deploy",
    "trigger": {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}},
    "invocationMethod": {"type": "WEBHOOK", "url": "https://hooks.example.com"},
}
AUTOMATION: dict[str, Any] = {
    "identifier": "react",
    "trigger": {"type": "automation", "event": {"type": "ENTITY_UPDATED", "blueprintIdentifier": "service"}},
    "invocationMethod": {"type": "WEBHOOK", "url": "https://hooks.example.com"},
}
BLUEPRINT: dict[str, Any] = {
    "identifier": "service",
    "title": "Service",
    "schema": {"properties": {"tier": {"type": "string"}}},
}
ENTITY: dict[str, Any] = {"blueprint": "service", "identifier": "cart", "properties": {"tier": "gold"}}
SECRET: dict[str, Any] = {"secretName": "TOKEN", "secretValue": "s3cr3t"}

CASES: dict[str, tuple[ResourceHandler, dict[str, Any], str]] = {
    "action": (Action(), ACTION, "actions/deploy"),
    "automation": (Automation(), AUTOMATION, "actions/react"),
    "blueprint": (Blueprint(), BLUEPRINT, "blueprints/service"),
    "entity": (Entity(), ENTITY, "blueprints/service/entities/cart"),
    "secret": (Secret(), SECRET, "organization/secrets/TOKEN"),
}


class Lines:
    """A log that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def debug(self, message: str) -> None:
        self.lines.append(f"debug {message}")

    def info(self, message: str) -> None:
        self.lines.append(f"info {message}")

    def warning(self, message: str) -> None:
        self.lines.append(f"warning {message}")


@pytest.fixture
def port() -> Iterator[FakePort]:
    with running() as fake:
        yield fake


@pytest.fixture
def operation(port: FakePort) -> Iterator[Callable[..., Context]]:
    """Contexts of one operation each, as the engine starts a plugin for each."""
    client = PortClient(port.url, CLIENT_ID, CLIENT_SECRET, backoff=0.001)

    def start(*, port_is_gone: bool = False) -> Context:
        config = Configuration("eu", CLIENT_ID, CLIENT_SECRET, Path("/state"), port.url, port_is_gone)
        return Context(config, client, Lines())

    with client:
        yield start


@pytest.fixture
def ctx(operation: Callable[..., Context]) -> Context:
    return operation()


def said(ctx: Context) -> str:
    assert isinstance(ctx.log, Lines)
    return "\n".join(ctx.log.lines)


@pytest.mark.parametrize("name", CASES)
def test_life_with_one_call_each(name: str, port: FakePort, operation: Callable[..., Context]) -> None:
    handler, body, key = CASES[name]
    collection = f"/v1/{key.rpartition('/')[0]}"
    if name == "blueprint":
        changed = {**body, "title": "Other"}
    elif name == "entity":
        changed = {**body, "properties": {"tier": "silver"}}
    elif name == "secret":
        changed = {**body, "secretValue": "other"}
    else:
        changed = {**body, "title": "Other"}

    checked = handler.check(operation(), {**body, "adopt": None}, {})
    assert checked.failures == []
    assert checked.inputs == body
    created = handler.create(operation(), checked.inputs, False)
    assert port.calls_of() == [f"POST {collection}"]
    assert created.outputs["adopted"] is False
    assert handler.diff(operation(), created.id, created.outputs, body).changes == {}

    seen = handler.read(operation(), created.id, created.outputs, body)
    assert port.calls_of("GET") == [f"GET /v1/{key}"]
    assert seen is not None
    assert (seen.id, seen.outputs, seen.inputs) == (created.id, created.outputs, body)

    assert len(handler.diff(operation(), created.id, created.outputs, changed).changes) == 1
    state = handler.update(operation(), created.id, created.outputs, changed, False)
    assert len(port.calls_of("PUT", "PATCH")) == 1
    assert handler.diff(operation(), created.id, state, changed).changes == {}

    handler.delete(operation(), created.id, state)
    assert port.calls_of("DELETE") == [f"DELETE /v1/{key}"]
    assert port.objects == {}
    assert handler.read(operation(), created.id, state, changed) is None
    handler.delete(operation(), created.id, state)  # that it is gone already is a success


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_written_at_preview(name: str, port: FakePort, ctx: Context) -> None:
    handler, body, _ = CASES[name]
    created = handler.create(ctx, body, True)
    handler.update(ctx, created.id, {**body, "adopted": False}, {**body, "title": UNKNOWN}, True)
    assert port.calls == []
    assert created.outputs["adopted"] is UNKNOWN


def test_an_unknown_identifier_has_no_id_yet(ctx: Context) -> None:
    assert Action().create(ctx, {**ACTION, "identifier": UNKNOWN}, True).id == ""
    assert Entity().create(ctx, {**ENTITY, "blueprint": UNKNOWN}, True).id == ""


@pytest.mark.parametrize("name", ["action", "automation", "blueprint", "entity"])
def test_an_interrupted_deployment_is_continued(name: str, port: FakePort, ctx: Context) -> None:
    handler, body, key = CASES[name]

    def act_and_die(call: Call) -> Reply:
        port.objects[key] = {**call.body, "createdAt": "x", "team": []}
        return Reply(200, drop=True)

    port.on(f"POST /v1/{key.rpartition('/')[0]}", act_and_die)
    created = handler.create(ctx, body, False)
    assert created.outputs == {**body, "adopted": False}
    assert port.calls_of("PUT", "PATCH") == []
    assert "is taken over" in said(ctx)


def test_a_secret_whose_reply_was_lost_is_its_own(port: FakePort, ctx: Context) -> None:
    def act_and_die(call: Call) -> Reply:
        port.objects["organization/secrets/TOKEN"] = call.body
        return Reply(200, drop=True)

    port.on("POST /v1/organization/secrets", act_and_die)
    assert Secret().create(ctx, SECRET, False).outputs["adopted"] is False
    assert port.objects["organization/secrets/TOKEN"]["secretValue"] == "s3cr3t"


def test_an_entity_that_others_have_filled_in_is_never_taken_over_silently(
    port: FakePort, ctx: Context
) -> None:
    key = "blueprints/service/entities/cart"
    port.objects[key] = {
        "identifier": "cart",
        "title": "cart",
        "properties": {"tier": "gold", "owner": "somebody"},
    }
    with pytest.raises(ProviderError, match=r"differs in properties\.owner"):
        Entity().create(ctx, ENTITY, False)
    Entity().create(ctx, {**ENTITY, "adopt": True}, False)
    assert port.objects[key]["properties"] == {"tier": "gold", "owner": "somebody"}
    # Unless this very deployment has made it and lost the reply while a run filled it in.
    del port.objects[key]

    def act_and_die(call: Call) -> Reply:
        port.objects[key] = {**call.body, "properties": {"tier": "gold", "owner": "somebody"}}
        return Reply(200, drop=True)

    port.on("POST /v1/blueprints/service/entities", act_and_die)
    assert Entity().create(ctx, ENTITY, False).outputs["adopted"] is False


@pytest.mark.parametrize(
    ("name", "identifier"),
    [("blueprint", "a b"), ("blueprint", "x" * 101), ("blueprint", ".."), ("entity", "a|b")],
)
def test_identifiers_that_port_refuses_are_found_by_check(name: str, identifier: str, ctx: Context) -> None:
    handler, body, _ = CASES[name]
    failures = handler.check(ctx, {**body, "identifier": identifier}, {}).failures
    assert [failure.property for failure in failures] == ["identifier"]


def test_other_errors_of_port_name_the_object(port: FakePort, ctx: Context) -> None:
    port.on("POST /v1/actions", error(403, "missing_permissions", "not allowed"))
    with pytest.raises(ProviderError, match="action deploy: Port answered 403 missing_permissions"):
        Action().create(ctx, ACTION, False)


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "action": ({**ACTION, "title": "Foreign"}, "differs in title"),
    "automation": ({**AUTOMATION, "title": "Foreign"}, "differs in title"),
    "blueprint": ({**BLUEPRINT, "title": "Foreign"}, "differs in title"),
    "entity": ({"identifier": "cart", "properties": {"tier": "silver"}}, "differs in properties.tier"),
    "secret": ({"secretName": "TOKEN"}, "cannot be compared"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_object_is_adopted_only_on_request_and_kept(
    name: str, port: FakePort, operation: Callable[..., Context]
) -> None:
    handler, body, key = CASES[name]
    port.objects[key], hint = dict(FOREIGN[name][0]), FOREIGN[name][1]
    with pytest.raises(ProviderError) as refused:
        handler.create(operation(), body, False)
    assert hint in str(refused.value)
    assert "`adopt`" in str(refused.value)
    assert "s3cr3t" not in str(refused.value)
    assert port.calls_of("PUT", "PATCH") == []

    created = handler.create(operation(), {**body, "adopt": True}, False)
    assert created.outputs["adopted"] is True
    assert len(port.calls_of("PUT", "PATCH")) == 1
    keeping = operation()
    handler.delete(keeping, created.id, created.outputs)
    assert key in port.objects
    assert "was adopted" in said(keeping)
    handler.delete(operation(), created.id, {**created.outputs, "deleteAdopted": True})
    assert port.objects == {}


@pytest.mark.parametrize("name", CASES)
def test_a_new_logical_name_does_not_delete_its_own_object(name: str, port: FakePort, ctx: Context) -> None:
    handler, body, key = CASES[name]
    old = handler.create(ctx, body, False)
    ctx.memory.clear()  # the next operation: the engine creates the new name, then deletes the old one
    new = handler.create(ctx, {**body, "adopt": True}, False)
    handler.delete(ctx, old.id, old.outputs)
    assert key in port.objects
    assert "alias" in said(ctx)
    assert new.id == old.id


def test_renaming_an_action_is_a_put_under_the_old_name(
    port: FakePort, operation: Callable[..., Context]
) -> None:
    handler = Action()
    created = handler.create(operation(), ACTION, False)
    renamed = {**ACTION, "identifier": "release"}
    diff = handler.diff(operation(), created.id, created.outputs, renamed)
    assert (list(diff.changes), list(diff.replaces)) == (["identifier"], [])
    state = handler.update(operation(), created.id, created.outputs, renamed, False)
    assert port.calls_of("PUT") == ["PUT /v1/actions/deploy"]
    seen = handler.read(operation(), "deploy", state, renamed)
    assert seen is not None
    assert seen.id == "release"
    handler.delete(operation(), "deploy", state)
    assert port.objects == {}


def test_renaming_onto_a_taken_identifier_names_it(port: FakePort, ctx: Context) -> None:
    handler = Action()
    port.objects["actions/release"] = {"identifier": "release"}
    created = handler.create(ctx, ACTION, False)
    with pytest.raises(ProviderError, match="action release: this identifier is taken"):
        handler.update(ctx, created.id, created.outputs, {**ACTION, "identifier": "release"}, False)


@pytest.mark.parametrize("name", ["blueprint", "entity", "secret"])
def test_identifiers_that_port_cannot_change_replace(name: str, ctx: Context) -> None:
    handler, body, _ = CASES[name]
    key = "secretName" if name == "secret" else "identifier"
    diff = handler.diff(ctx, "x", {**body, "adopted": False}, {**body, key: "other"})
    assert list(diff.replaces) == [key]


@pytest.mark.parametrize("name", ["action", "entity", "secret"])
def test_updating_an_object_that_somebody_deleted_makes_it_again(
    name: str, port: FakePort, ctx: Context
) -> None:
    handler, body, key = CASES[name]
    olds = {**body, "adopted": False, "title": "Old", "description": "old"}
    handler.update(ctx, "x", olds, body, False)
    assert key in port.objects
    assert "created again" in said(ctx)


def test_an_update_of_our_own_settings_does_not_call_port(port: FakePort, ctx: Context) -> None:
    handler = Action()
    olds = {**ACTION, "adopted": True}
    news = {**ACTION, "deleteAdopted": True}
    assert list(handler.diff(ctx, "deploy", olds, news).changes) == ["deleteAdopted"]
    state = handler.update(ctx, "deploy", olds, news, False)
    assert state == {**news, "adopted": True}
    assert port.calls == []
    assert handler.diff(ctx, "deploy", state, {**ACTION, "deleteAdopted": True, "adopt": False}).changes == {}


def test_a_refusal_of_port_names_the_object_and_the_field(port: FakePort, ctx: Context) -> None:
    port.on("POST /v1/actions", error(422, "invalid_request", "body/trigger/operation must be CREATE"))
    with pytest.raises(ProviderError) as refused:
        Action().create(ctx, ACTION, False)
    assert str(refused.value).startswith("action deploy: trigger.operation: Port refuses it: ")
    assert "trace-1" in str(refused.value)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "identifier"),
        ({**ACTION, "identifier": "a b"}, "identifier"),
        ({**ACTION, "trigger": {**ACTION["trigger"], "operation": "DAY2"}}, "trigger.operation"),
        ({**ACTION, "invocationMethod": {"type": "WEBHOOK"}}, "invocationMethod.url"),
        (AUTOMATION, "trigger.type"),
    ],
)
def test_check_finds_what_port_would_refuse(ctx: Context, body: dict[str, Any], path: str) -> None:
    failures = Action().check(ctx, body, {}).failures
    assert path in [failure.property for failure in failures]


def test_check_says_nothing_about_unknown_values(ctx: Context) -> None:
    body = {**ACTION, "invocationMethod": {"type": "WEBHOOK", "url": UNKNOWN, "body": {"a": UNKNOWN}}}
    assert Action().check(ctx, body, {}).failures == []
    assert Action().check(ctx, {**ACTION, "identifier": UNKNOWN, "trigger": UNKNOWN}, {}).failures == []


def test_rules_can_be_switched_off(ctx: Context) -> None:
    body = {**ACTION, "invocationMethod": {"type": "WEBHOOK", "url": "https://x/{{ .inputs"}}
    (failure,) = Action().check(ctx, body, {}).failures
    rule = failure.reason.rpartition("[")[2].rstrip("]")
    assert Action().check(ctx, {**body, "lintDisabled": [rule]}, {}).failures == []
    assert Action().check(ctx, {**body, "lintDisabled": ["PW999"]}, {}).failures[0].property == "lintDisabled"


def test_importing_strips_what_port_adds(port: FakePort, ctx: Context) -> None:
    port.objects["actions/deploy"] = {**ACTION, "id": "x", "createdAt": "x", "requiredApproval": False}
    seen = Action().read(ctx, "deploy", {}, {})
    assert seen is not None
    assert (seen.id, seen.inputs) == ("deploy", ACTION)
    assert seen.outputs == {**ACTION, "adopted": False}
    with pytest.raises(ProviderError, match="import it as port-webhook:index:Action"):
        Automation().read(ctx, "deploy", {}, {})


def test_importing_an_entity(port: FakePort, ctx: Context) -> None:
    port.objects["blueprints/a b/entities/x|y"] = {"identifier": "x|y", "properties": {"tier": "gold"}}
    seen = Entity().read(ctx, "a b|x|y", {}, {})
    assert seen is not None
    assert seen.id == "a b|x|y"
    assert seen.inputs == {"blueprint": "a b", "identifier": "x|y", "properties": {"tier": "gold"}}
    for wrong in ("cart", "|cart", "service|"):
        with pytest.raises(ProviderError, match=r"<blueprint>\|<identifier>"):
            Entity().read(ctx, wrong, {}, {})


def test_an_imported_secret_ignores_its_value(port: FakePort, operation: Callable[..., Context]) -> None:
    handler = Secret()
    port.objects["organization/secrets/TOKEN"] = {"secretName": "TOKEN", "description": "d", "updatedAt": "t"}
    seen = handler.read(operation(), "TOKEN", {}, {})
    assert seen is not None
    assert seen.inputs == {"secretName": "TOKEN", "description": "d"}
    assert handler.check(operation(), seen.inputs, seen.inputs).failures == []
    news = {**SECRET, "description": "d"}
    assert handler.diff(operation(), "TOKEN", seen.outputs, news).changes == {}
    state = handler.update(operation(), "TOKEN", seen.outputs, {**news, "description": "e"}, False)
    assert port.body_of("PATCH /v1/organization/secrets/TOKEN") == {"description": "e"}
    assert "secretValue" not in state


def test_a_secret_changed_outside_is_reported(port: FakePort, operation: Callable[..., Context]) -> None:
    handler = Secret()
    created = handler.create(operation(), SECRET, False)
    operation().port.request("PATCH", "/v1/organization/secrets/TOKEN", json={"secretValue": "theirs"})
    ctx = operation()
    seen = handler.read(ctx, "TOKEN", created.outputs, SECRET)
    assert seen is not None
    assert "changed outside" in said(ctx)
    assert seen.inputs == SECRET


@pytest.mark.parametrize("description", ["described", None])
def test_a_description_of_a_secret_can_be_cleared(
    port: FakePort, ctx: Context, description: str | None
) -> None:
    olds = Secret().create(ctx, {**SECRET, "description": "old"}, False).outputs
    news = SECRET if description is None else {**SECRET, "description": description}
    Secret().update(ctx, "TOKEN", olds, news, False)
    assert port.objects["organization/secrets/TOKEN"]["description"] == (description or "")


def test_refresh_of_an_entity_shows_only_what_was_declared(port: FakePort, ctx: Context) -> None:
    created = Entity().create(ctx, ENTITY, False)
    entity = port.objects["blueprints/service/entities/cart"]
    entity["properties"]["owner"] = "a run"
    entity |= {"title": "cart", "team": ["ops"], "relations": {"region": None}}
    seen = Entity().read(ctx, created.id, created.outputs, ENTITY)
    assert seen is not None
    assert seen.inputs == ENTITY


def test_an_entity_update_clears_what_is_no_longer_declared(port: FakePort, ctx: Context) -> None:
    full = {**ENTITY, "title": "Cart", "properties": {"tier": "gold", "owner": "x"}}
    created = Entity().create(ctx, full, False)
    port.objects["blueprints/service/entities/cart"]["properties"]["cost"] = 1
    Entity().update(ctx, created.id, created.outputs, ENTITY, False)
    properties = port.objects["blueprints/service/entities/cart"]["properties"]
    assert properties == {"tier": "gold", "owner": None, "cost": 1}
    assert port.body_of("PATCH /v1/blueprints/service/entities/cart")["title"] is None


def test_a_put_of_a_blueprint_keeps_what_was_added_in_port(port: FakePort, ctx: Context) -> None:
    created = Blueprint().create(ctx, BLUEPRINT, False)
    aggregation = {"count": {"target": "service"}}
    port.objects["blueprints/service"]["aggregationProperties"] = aggregation
    Blueprint().update(ctx, "service", created.outputs, {**BLUEPRINT, "title": "Other"}, False)
    assert port.objects["blueprints/service"]["aggregationProperties"] == aggregation
    assert set(port.body_of("PUT /v1/blueprints/service")) == {*BLUEPRINT, "aggregationProperties"}


def test_an_adopted_blueprint_is_merged_and_its_other_properties_are_no_drift(
    port: FakePort, ctx: Context
) -> None:
    foreign = {"type": "string", "title": "Theirs"}
    port.objects["blueprints/service"] = {
        "identifier": "service",
        "title": "Theirs",
        "schema": {"properties": {"theirs": foreign}},
    }
    inputs = {**BLUEPRINT, "adopt": True}
    created = Blueprint().create(ctx, inputs, False)
    present = port.objects["blueprints/service"]
    assert present["schema"]["properties"] == {"theirs": foreign, "tier": {"type": "string"}}
    assert port.calls_of("PUT") == []
    seen = Blueprint().read(ctx, "service", created.outputs, inputs)
    assert seen is not None
    assert seen.inputs == inputs
    Blueprint().update(ctx, "service", created.outputs, {**inputs, "title": "Ours"}, False)
    assert port.calls_of("PUT") == []
    assert port.objects["blueprints/service"]["title"] == "Ours"


def test_an_existing_blueprint_is_checked_and_never_written(port: FakePort, ctx: Context) -> None:
    inputs = {**BLUEPRINT, "manage": "existing"}
    with pytest.raises(ProviderError, match="does not exist"):
        Blueprint().create(ctx, inputs, True)
    port.objects["blueprints/service"] = {
        "identifier": "service",
        "title": "Theirs",
        "schema": {"properties": {"tier": {"type": "number"}}},
    }
    with pytest.raises(ProviderError, match="tier is a number, not a string"):
        Blueprint().create(ctx, inputs, False)
    port.objects["blueprints/service"]["schema"]["properties"] = {
        "tier": {"type": "string"},
        "more": {"type": "object"},
    }
    created = Blueprint().create(ctx, inputs, False)
    seen = Blueprint().read(ctx, "service", created.outputs, inputs)
    assert seen is not None
    assert "more" not in seen.inputs["schema"]["properties"]
    Blueprint().update(ctx, "service", created.outputs, {**inputs, "title": "Mine"}, False)
    Blueprint().delete(ctx, "service", created.outputs)
    assert port.calls_of("PUT", "PATCH", "POST", "DELETE") == []


def test_a_blueprint_with_entities_is_deleted_only_by_force(
    port: FakePort, operation: Callable[..., Context]
) -> None:
    created = Blueprint().create(operation(), BLUEPRINT, False)
    for number in range(7):
        port.objects[f"blueprints/service/entities/e{number}"] = {"identifier": f"e{number}"}
    with pytest.raises(ProviderError) as refused:
        Blueprint().delete(operation(), "service", created.outputs)
    assert "e0, e1, e2, e3, e4 and 2 more" in str(refused.value)
    assert "`forceDestroy`" in str(refused.value)
    migrations = [Reply(200, {"ok": True, "migration": {"status": status}}) for status in ("RUNNING",)]
    port.on("GET /v1/migrations/m_1", *migrations)
    Blueprint().delete(operation(), "service", {**created.outputs, "forceDestroy": True})
    assert port.objects == {}
    assert port.calls_of().count("GET /v1/migrations/m_1") == 2


def test_a_blueprint_that_actions_of_others_use_is_not_deleted_by_force_either(
    port: FakePort, ctx: Context
) -> None:
    state = {**Blueprint().create(ctx, BLUEPRINT, False).outputs, "forceDestroy": True}
    ctx.memory.clear()
    port.objects["blueprints/service/entities/e"] = {"identifier": "e"}
    port.on("DELETE /v1/blueprints/service", *[error(409, "has_dependents")] * 2)
    port.on("DELETE /v1/blueprints/service/all-entities", error(409, "has_dependents"))
    with pytest.raises(ProviderError, match="still used by other objects") as refused:
        Blueprint().delete(ctx, "service", state)
    assert "forceDestroy" not in str(refused.value)


def test_a_failed_or_cancelled_deletion_of_entities_says_so(port: FakePort, ctx: Context) -> None:
    state = {**Blueprint().create(ctx, BLUEPRINT, False).outputs, "forceDestroy": True}
    ctx.memory.clear()
    port.objects["blueprints/service/entities/e"] = {"identifier": "e"}
    port.on("DELETE /v1/blueprints/service", *[error(409, "has_dependents")] * 2)
    port.on("GET /v1/migrations/m_1", Reply(200, {"ok": True, "migration": {"status": "FAILURE"}}))
    with pytest.raises(ProviderError, match="FAILURE"):
        Blueprint().delete(ctx, "service", state)
    port.objects["blueprints/service"] = dict(BLUEPRINT)
    port.on("GET /v1/migrations/m_1", Reply(200, {"ok": True, "migration": {"status": "RUNNING"}}))
    ctx.cancelled.set()
    with pytest.raises(ProviderError, match="cancelled"):
        Blueprint().delete(ctx, "service", state)


@pytest.mark.parametrize("name", CASES)
def test_objects_of_a_local_port_that_was_removed_are_gone(
    name: str, port: FakePort, operation: Callable[..., Context]
) -> None:
    handler, body, key = CASES[name]
    port.objects[key] = dict(body)  # already made again in the new local Port, by another process
    gone = operation(port_is_gone=True)
    state: Properties = {**body, "adopted": False}
    assert handler.read(gone, "x", state, body) is None
    handler.delete(gone, "x", state)
    assert key in port.objects


def test_permissions_are_managed_as_a_whole_and_their_order_is_no_change(
    port: FakePort, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("port_webhook_stack.port.permissions._APPEAR_SECONDS", 0.01)
    handler = ActionPermissions()
    key = "actions/deploy/permissions"
    port.objects["actions/deploy"] = dict(ACTION)
    port.objects[key] = {"execute": {"roles": ["Member"], "users": []}, "approve": {"roles": ["Admin"]}}
    inputs = {"action": "deploy", "execute": {"teams": ["ops", "dev"]}}
    assert handler.check(ctx, inputs, {}).failures == []
    port.on(f"PATCH /v1/{key}", error(404, "not_found"))  # Port makes them a moment after the action
    created = handler.create(ctx, inputs, False)
    assert port.objects[key]["execute"] == {
        "users": [],
        "roles": [],
        "teams": ["ops", "dev"],
        "ownedByTeam": False,
        "policy": None,
    }
    assert port.objects[key]["approve"] == {"roles": ["Admin"]}

    port.objects[key]["execute"]["teams"].reverse()
    seen = handler.read(ctx, created.id, created.outputs, inputs)
    assert seen is not None
    assert seen.inputs == inputs
    port.objects[key]["execute"]["users"] = ["somebody"]
    seen = handler.read(ctx, created.id, created.outputs, inputs)
    assert seen is not None
    assert list(handler.diff(ctx, created.id, seen.outputs, inputs).changes) == ["execute.users"]

    state = handler.update(ctx, created.id, seen.outputs, {**inputs, "execute": {}}, False)
    assert port.objects[key]["execute"]["teams"] == []
    handler.delete(ctx, created.id, state)
    del port.objects["actions/deploy"]
    assert handler.read(ctx, created.id, state, inputs) is None


def test_permissions_are_checked(ctx: Context) -> None:
    inputs = {"execute": {"team": ["ops"], "users": "me"}, "approve": []}
    failures = ActionPermissions().check(ctx, inputs, {}).failures
    assert [failure.property for failure in failures] == [
        "action",
        "execute.team",
        "execute.users",
        "approve",
    ]
