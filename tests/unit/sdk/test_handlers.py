"""Decorators: the definition in Port and the route in the manifest that a function gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import pytest

from port_webhook_handlers.port.definitions import definition_from_body, definition_to_body
from port_webhook_handlers.port.payload import at
from port_webhook_handlers.runtime.manifest import Route
from port_webhook_handlers.sdk import (
    Field,
    HandlerDefinitionError,
    Inputs,
    Payload,
    Result,
    Run,
    Success,
    action,
    automation,
    payloads,
    triggers,
)
from port_webhook_handlers.sdk.definition import definition, route
from port_webhook_handlers.sdk.handler import handler_of


class Restart(Inputs):
    reason: Annotated[str, Field(title="Reason")]
    token: Annotated[str | None, Field(encrypted=True)] = None


@action(
    "restart",
    title="Restart",
    description="Restarts it",
    icon="Service",
    blueprint="service",
    operation="DAY-2",
    condition=[{"property": "tier", "operator": "=", "value": "gold"}],
    secrets=["TOKEN"],
    timeout_seconds=60,
    privilege_group="ops",
    on_interrupt="retry",
    max_concurrency=2,
    required_approval="ANY",
    approval_notification={"type": "email"},
    allow_anyone_to_view_runs=False,
    card_button="Restart",
    execute_button="Go",
    permissions={"execute": {"roles": ["Admin"]}},
)
def restart(inputs: Restart, run: Run) -> Result:
    return Success()


@action("ping", mode="sync", method="PUT", agent=True, scheme="official-agent")
async def ping() -> None: ...


@automation(
    "on_change",
    trigger=triggers.entity_updated("service"),
    condition=".diff.after.properties.tier",
    publish=False,
)
def on_change(run: Run) -> None: ...


def test_definition_of_an_action() -> None:
    assert definition(handler_of(restart)) == {
        "identifier": "restart",
        "title": "Restart",
        "description": "Restarts it",
        "icon": "Service",
        "trigger": {
            "type": "self-service",
            "operation": "DAY-2",
            "blueprintIdentifier": "service",
            "userInputs": {
                "properties": {
                    "reason": {"type": "string", "title": "Reason"},
                    "token": {"type": "string", "encryption": "aes256-gcm"},
                },
                "required": ["reason"],
                "order": ["reason", "token"],
            },
            "condition": {
                "type": "SEARCH",
                "combinator": "and",
                "rules": [{"property": "tier", "operator": "=", "value": "gold"}],
            },
            "actionCardButtonText": "Restart",
            "executeActionButtonText": "Go",
        },
        "invocationMethod": {
            "type": "WEBHOOK",
            "url": "route:restart",
            "agent": False,
            "synchronized": False,
            "method": "POST",
            "body": {
                "port_context": {"action": "restart", "runId": "{{ .run.id }}"},
                "inputs": "{{ .inputs }}",
                "entity": "{{ .entity }}",
                "trigger": "{{ .trigger }}",
            },
        },
        "requiredApproval": {"type": "ANY"},
        "approvalNotification": {"type": "email"},
        "allowAnyoneToViewRuns": False,
    }


def test_definition_of_an_automation() -> None:
    body = definition(handler_of(on_change))
    assert body["trigger"] == {
        "type": "automation",
        "event": {"type": "ENTITY_UPDATED", "blueprintIdentifier": "service"},
        "condition": {"type": "JQ", "combinator": "and", "expressions": [".diff.after.properties.tier"]},
    }
    assert body["publish"] is False
    assert body["invocationMethod"]["body"] == {
        "port_context": {"action": "on_change", "runId": "{{ .run.id }}"},
        "event": "{{ .event }}",
        "trigger": "{{ .trigger }}",
    }


@pytest.mark.parametrize("function", [restart, ping, on_change])
def test_port_model_knows_every_key(function: Callable[..., Any]) -> None:
    body = definition(handler_of(function))
    assert definition_to_body(definition_from_body(body)) == body


@pytest.mark.parametrize("function", [restart, ping, on_change])
def test_manifest_takes_the_route(function: Callable[..., Any]) -> None:
    from port_webhook_handlers.runtime import manifest

    handler = handler_of(function)
    body = route(handler, "a.py:1")
    listed = manifest.Manifest({}, {handler.identifier: Route(handler.identifier, "action", "a", "m:f")})
    assert set(body) == set(listed.routes[handler.identifier].to_json())


def test_route_of_an_action() -> None:
    body = route(handler_of(restart), "ops.py:31")
    assert body["handler"] == f"{__name__}:restart"
    assert body["encrypted_inputs"] == ["token"]
    assert body["timeout_seconds"] == 60
    assert body["max_attempts"] == 3
    assert body["secrets"] == ["TOKEN"]
    assert body["inputs_schema"]["required"] == ["reason"]


def test_route_defaults() -> None:
    body = route(handler_of(ping), "ops.py:1")
    assert body["inputs_schema"] == {"type": "object", "properties": {}, "additionalProperties": False}
    assert (body["timeout_seconds"], body["max_attempts"], body["on_interrupt"]) == (25, 1, "fail")
    assert (body["mode"], body["method"], body["scheme"]) == ("sync", "PUT", "official-agent")


def test_definition_of_a_sync_action_through_the_agent() -> None:
    invocation = definition(handler_of(ping))["invocationMethod"]
    assert invocation["agent"] is True
    assert invocation["synchronized"] is True
    assert invocation["body"]["port_context"]["action"] == "ping"
    assert invocation["body"]["context"]["runId"] == "{{ .run.id }}"


DAY_2: dict[str, Any] = {"blueprint": "service", "operation": "DAY-2"}
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"tile": "x"}, "unknown option tile; did you mean title?"),
    ({"zzz": "x"}, "unknown option zzz; known are"),
    ({"operation": "DAY-2"}, "name its blueprint"),
    ({"operation": "UPDATE"}, "operation is 'UPDATE'; use one of CREATE, DAY-2, DELETE"),
    ({"method": "HEAD"}, "method is 'HEAD'; use one of"),
    ({"condition": [{}]}, "operation DAY-2 or DELETE"),
    ({**DAY_2, "condition": "x"}, "list of rules"),
    ({"secrets": "TOKEN"}, r"write secrets=\['TOKEN'\]"),
    ({"secrets": ["A B"]}, "may hold letters"),
    ({"secrets": ["A", "A"]}, "listed twice"),
    ({"timeout_seconds": 0}, "timeout_seconds must be above 0"),
    ({"mode": "sync", "timeout_seconds": 60}, "at most 29"),
    ({"mode": "sync", "on_interrupt": "retry"}, 'needs mode="async"'),
    ({"mode": "sync", "max_attempts": 2}, 'needs mode="async"'),
    ({"max_concurrency": 0}, "max_concurrency must be a whole number"),
    ({"max_attempts": True}, "max_attempts must be a whole number"),
    ({"privilege_group": "A"}, "privilege_group may hold"),
    ({"scheme": "official-agent"}, "needs agent=True"),
    ({"required_approval": "SOME"}, "required_approval is"),
    ({"card_button": "x"}, "2 to 15 characters"),
    ({"permissions": {"read": {}}}, "keys execute and approve"),
    ({"payload": "context.runId"}, "payload is 'context.runId'; use a Payload"),
    ({"payload": payloads.RUN_ID_HEADER, "agent": True}, "agents pass on bodies"),
    ({"method": "GET"}, "method GET sends no body"),
    ({"manage": False, "permissions": {"execute": {}}}, "manage=False leaves to others"),
    ({"manage": "no"}, "manage is 'no'"),
    ({"payload": Payload(run_id="a.b", inputs="a"), "manage": True}, "lies inside another place"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HandlerDefinitionError, match=message) as caught:

        @action("wrong", **options)
        def wrong(run: Run) -> None: ...

    assert str(caught.value).startswith(f"{__file__}:")
    assert caught.value.problem.startswith("@action 'wrong': ")


def test_the_default_is_the_envelope_declared_by_the_stack() -> None:
    handler = handler_of(restart)
    assert (handler.payload, handler.manage) == (payloads.ENVELOPE, True)
    assert route(handler, "")["payload"] == payloads.ENVELOPE.to_json()


@pytest.mark.parametrize("form", [payloads.UI, payloads.SNAKE_CASE, payloads.RUN_ID_HEADER, payloads.LEGACY])
def test_a_foreign_definition_is_served_but_not_declared(form: Payload) -> None:
    @action("foreign", payload=form, operation="DAY-2")
    def foreign(inputs: Restart) -> None: ...

    @automation("foreign_event", payload=form)
    def foreign_event(run: Run) -> None: ...

    for function in (foreign, foreign_event):
        assert handler_of(function).manage is False
        assert Payload(**route(handler_of(function), "")["payload"]) == form


@pytest.mark.parametrize("form", [payloads.UI, payloads.SNAKE_CASE, payloads.RUN_ID_HEADER, payloads.LEGACY])
def test_a_form_that_is_declared_is_what_the_route_reads(form: Payload) -> None:
    @action("form", payload=form, manage=True)
    def declared(inputs: Restart) -> None: ...

    found = definition(handler_of(declared))
    assert definition_to_body(definition_from_body(found)) == found
    method = found["invocationMethod"]
    body = dict(method["body"])
    if "{{ spreadValue() }}" in body:
        assert body.pop("{{ spreadValue() }}") == "{{ .inputs }}"
        assert form.inputs_of(body) == {}
    else:
        assert form.inputs_of(body) == "{{ .inputs }}"
    assert form.context_of(body)["entity"] == "{{ .entity }}"
    assert form.names(body, "form")
    if form.header:
        assert method["headers"] == {"RUN_ID": "{{ .run.id }}"}
    else:
        assert at(body, form.run_id) == "{{ .run.id }}"


def test_an_input_that_the_form_would_hide() -> None:
    class Hidden(Inputs):
        port_context: str

    with pytest.raises(HandlerDefinitionError, match="port_context has another meaning"):

        @action("hidden", payload=payloads.UI)
        def hidden(inputs: Hidden) -> None: ...


@pytest.mark.parametrize("identifier", ["", ".", "a b", "a/b", "_verification"])
def test_identifiers_that_port_or_the_listener_refuse(identifier: str) -> None:
    with pytest.raises(HandlerDefinitionError, match="the identifier"):
        action(identifier)(lambda: None)


def test_automations_need_an_event_and_have_no_inputs() -> None:
    with pytest.raises(HandlerDefinitionError, match="event of the triggers module"):
        automation("wrong", trigger="service")(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(HandlerDefinitionError, match="automations have no inputs"):

        @automation("wrong", trigger=triggers.run_updated("x"))
        def wrong(inputs: Restart) -> None: ...


def untyped(run) -> None: ...  # type: ignore[no-untyped-def]
def wrong_type(run: str) -> None: ...
def variadic(*runs: Run) -> None: ...
def twice(a: Run, b: Run) -> None: ...
def base(inputs: Inputs) -> None: ...
def undefined(run: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (untyped, "parameter run has no type"),
        (wrong_type, "parameter run is <class 'str'>; annotate it"),
        (variadic, "parameter runs"),
        (twice, "parameter b: there is a parameter of that kind already"),
        (base, "derive a class from Inputs"),
        (undefined, "name 'Missing' is not defined"),
    ],
)
def test_signatures_that_cannot_be_filled(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(HandlerDefinitionError, match=message) as caught:
        action("wrong")(function)
    assert caught.value.location.line == function.__code__.co_firstlineno


def test_a_function_is_one_handler() -> None:
    with pytest.raises(HandlerDefinitionError, match="is a handler already"):
        action("again")(restart)


def test_a_default_that_the_listener_would_refuse() -> None:
    class Wrong(Inputs):
        version: Annotated[str, Field(pattern=r"\d+")] = "latest"

    with pytest.raises(HandlerDefinitionError, match="inputs version: the default must match pattern"):

        @action("wrong")
        def wrong(inputs: Wrong) -> None: ...


@pytest.mark.parametrize(
    ("trigger", "event"),
    [
        (triggers.entity_created("b"), {"type": "ENTITY_CREATED", "blueprintIdentifier": "b"}),
        (triggers.entity_deleted("b"), {"type": "ENTITY_DELETED", "blueprintIdentifier": "b"}),
        (triggers.any_entity_change("b"), {"type": "ANY_ENTITY_CHANGE", "blueprintIdentifier": "b"}),
        (
            triggers.timer_expired("b", "ttl"),
            {"type": "TIMER_PROPERTY_EXPIRED", "blueprintIdentifier": "b", "propertyIdentifier": "ttl"},
        ),
        (triggers.run_created("a"), {"type": "RUN_CREATED", "actionIdentifier": "a"}),
        (triggers.run_updated("a"), {"type": "RUN_UPDATED", "actionIdentifier": "a"}),
        (triggers.any_run_change("a"), {"type": "ANY_RUN_CHANGE", "actionIdentifier": "a"}),
    ],
)
def test_events(trigger: triggers.EventTrigger, event: dict[str, str]) -> None:
    assert trigger.to_json() == event
