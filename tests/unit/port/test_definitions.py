import math

import pytest

from port_webhook_handlers.port.builders import (
    any_entity_change,
    any_run_change,
    entity_created,
    entity_deleted,
    entity_updated,
    jq,
    run_created,
    run_updated,
    self_service,
    timer_expired,
)
from port_webhook_handlers.port.definitions import (
    Action,
    Automation,
    DefinitionError,
    JqCondition,
    Node,
    NumberInput,
    Permissions,
    SearchCondition,
    StringInput,
    UnknownFieldError,
    UpsertEntity,
    UserInputs,
    Webhook,
    definition_from_body,
    definition_to_body,
)
from port_webhook_handlers.port.names import Route


def test_written_in_code_and_sent():
    action = Action(
        "deploy",
        "Deploy",
        trigger=self_service(
            "DAY-2",
            "service",
            inputs={
                "version": StringInput("Version", pattern=r"\d+", min_length=1),
                "n": NumberInput(default=2),
            },
            required=["version"],
        ),
        invocation_method=Webhook(Route("deploy"), synchronized=True),
        required_approval=False,
    )
    body = {
        "identifier": "deploy",
        "title": "Deploy",
        "trigger": {
            "type": "self-service",
            "operation": "DAY-2",
            "blueprintIdentifier": "service",
            "userInputs": {
                "properties": {
                    "version": {"type": "string", "title": "Version", "pattern": r"\d+", "minLength": 1},
                    "n": {"type": "number", "default": 2},
                },
                "required": ["version"],
                "order": ["version", "n"],
            },
        },
        "invocationMethod": {"type": "WEBHOOK", "url": "route:deploy", "synchronized": True},
        "requiredApproval": False,
    }
    assert definition_to_body(action) == body
    assert definition_from_body(body) == action


def test_parsed_fields_are_typed():
    definition = definition_from_body(
        {
            "identifier": "a",
            "trigger": {
                "type": "self-service",
                "operation": "CREATE",
                "userInputs": {
                    "properties": {"v": {"type": "string", "default": {"jqQuery": ".x"}}},
                    "required": {"jqQuery": "[]"},
                },
            },
            "invocationMethod": {
                "type": "WEBHOOK",
                "url": "https://example.com",
                "timeout": 5,
                "agent": None,
            },
        }
    )
    assert isinstance(definition, Action)
    assert definition.trigger is not None
    assert definition.trigger.user_inputs is not None
    assert definition.trigger.user_inputs.required == jq("[]")
    assert definition.trigger.user_inputs.properties["v"] == StringInput(default=jq(".x"))
    assert definition.invocation_method == Webhook("https://example.com", extra={"timeout": 5, "agent": None})


def test_changing_a_parsed_definition_keeps_the_rest():
    body = {"title": None, "identifier": "a", "x": 1, "publish": False, "trigger": {"type": "automation"}}
    changed = definition_from_body(body).replace(title="T", description="D")
    assert list(definition_to_body(changed).items()) == [
        ("title", "T"),
        ("identifier", "a"),
        ("x", 1),
        ("publish", False),
        ("trigger", {"type": "automation"}),
        ("description", "D"),
    ]


def test_bodies_share_nothing_with_the_definition():
    given = {
        "identifier": "a",
        "invocationMethod": {"type": "WEBHOOK", "url": "u", "body": {"list": [1]}},
        "x": {"y": []},
    }
    definition = definition_from_body(given)
    given["invocationMethod"]["body"]["list"].append(2)
    given["x"]["y"].append(3)
    sent = definition_to_body(definition)
    sent["invocationMethod"]["body"]["list"].append(4)
    sent["x"]["y"].append(5)
    assert definition_to_body(definition)["invocationMethod"]["body"] == {"list": [1]}
    assert definition_to_body(definition)["x"] == {"y": []}


@pytest.mark.parametrize("body", [None, [], "x", 5, True])
def test_only_objects_are_definitions(body):
    with pytest.raises(DefinitionError) as caught:
        definition_from_body(body)
    assert caught.value.path == "definition"
    assert caught.value.remedy == "write an object"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"title": math.nan}, "title"),
        ({"trigger": {"type": "automation", "x": {1, 2}}}, "trigger.x"),
        ({"invocationMethod": {"type": "WEBHOOK", "body": {"a": [object()]}}}, "invocationMethod.body.a[0]"),
        ({"x": {"a b": {5: 1}}}, "x['a b']"),
    ],
)
def test_what_json_cannot_express_is_refused_with_its_path(body, path):
    with pytest.raises(DefinitionError) as caught:
        definition_from_body({"identifier": "a", **body})
    assert caught.value.path == path


def test_unknown_field_names_the_nearest():
    with pytest.raises(UnknownFieldError, match="did you mean synchronized") as caught:
        Webhook("https://example.com", synchronised=True)
    assert isinstance(caught.value, TypeError)
    assert caught.value.path == "Webhook.synchronised"
    with pytest.raises(UnknownFieldError, match="did you mean min_length"):
        StringInput(minLength=1)
    with pytest.raises(UnknownFieldError, match="extra="):
        NumberInput(colour="red")


def test_extra_is_the_way_for_keys_of_tomorrow():
    webhook = Webhook("https://example.com", extra={"retries": 3})
    assert webhook.to_body() == {"type": "WEBHOOK", "url": "https://example.com", "retries": 3}


def test_missing_and_wrong_values_name_the_field():
    with pytest.raises(UnknownFieldError, match=r"Webhook\.url: is missing"):
        Webhook(synchronized=True)
    with pytest.raises(UnknownFieldError, match="too many"):
        JqCondition([], "and", "x")
    with pytest.raises(DefinitionError, match=r"Webhook\.url: is a number; write a string"):
        Webhook(5)
    with pytest.raises(DefinitionError, match=r"StringInput\.default: .*object"):
        StringInput(default=object())
    with pytest.raises(DefinitionError, match=r"UserInputs\.required: is a string; write an object|a list"):
        UserInputs(required="version")
    with pytest.raises(DefinitionError, match=r"UserInputs\.properties\.v: is an object; write an input"):
        UserInputs(properties={"v": {"type": "string"}})


def test_definitions_are_frozen():
    with pytest.raises(AttributeError):
        Webhook("u").url = "v"


@pytest.mark.parametrize(
    ("trigger", "event"),
    [
        (entity_created("b"), {"type": "ENTITY_CREATED", "blueprintIdentifier": "b"}),
        (entity_updated("b"), {"type": "ENTITY_UPDATED", "blueprintIdentifier": "b"}),
        (entity_deleted("b"), {"type": "ENTITY_DELETED", "blueprintIdentifier": "b"}),
        (any_entity_change("b"), {"type": "ANY_ENTITY_CHANGE", "blueprintIdentifier": "b"}),
        (run_created("a"), {"type": "RUN_CREATED", "actionIdentifier": "a"}),
        (run_updated("a"), {"type": "RUN_UPDATED", "actionIdentifier": "a"}),
        (any_run_change("a"), {"type": "ANY_RUN_CHANGE", "actionIdentifier": "a"}),
        (
            timer_expired("b", "ttl"),
            {"type": "TIMER_PROPERTY_EXPIRED", "blueprintIdentifier": "b", "propertyIdentifier": "ttl"},
        ),
    ],
)
def test_event_builders(trigger, event):
    assert trigger.to_body() == {"type": "automation", "event": event}


def test_when_adds_conditions():
    trigger = entity_updated("service").when(".a", ".b")
    assert trigger.to_body()["condition"] == {"type": "JQ", "expressions": [".a", ".b"], "combinator": "and"}
    assert trigger.when(".c", combinator="or").condition == JqCondition([".a", ".b", ".c"], "or")
    with pytest.raises(DefinitionError, match="JQ condition"):
        trigger.replace(condition=SearchCondition("and", [])).when(".c")


def test_automation_in_code():
    automation = Automation(
        "a", trigger=entity_created("x"), invocation_method=UpsertEntity("x"), publish=True, source="a.py:3"
    )
    assert "source" not in automation.to_body()
    assert definition_from_body(automation.to_body()) == automation


def test_permissions_round_trip():
    body = {
        "execute": {"users": [], "roles": ["Member"], "teams": [], "ownedByTeam": False, "policy": None},
        "approve": {"users": ["a@example.com"], "policy": {"queries": {}, "conditions": ["true"]}},
    }
    permissions = Permissions.from_body(body)
    assert permissions.approve is not None
    assert permissions.approve.policy is not None
    assert permissions.approve.policy.conditions == ("true",)
    assert permissions.to_body() == body


def test_every_part_of_the_model_is_documented():
    def below(cls):
        return [cls, *(inner for child in cls.__subclasses__() for inner in below(child))]

    undocumented = [
        c.__name__ for c in below(Node) if c.__doc__ is None or c.__doc__.startswith(f"{c.__name__}(")
    ]
    assert undocumented == ["_Document"]
