"""When two bodies mean the same to Port."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from port_webhook_stack.port.handler import UNKNOWN, Kind
from port_webhook_stack.port.normalise import (
    canonical_action,
    canonical_blueprint,
    canonical_entity,
    changes,
    reconcile,
    same,
)

ACTION: dict[str, Any] = {
    "identifier": "deploy",
    "trigger": {
        "type": "self-service",
        "operation": "DAY-2",
        "userInputs": {
            "properties": {
                "version": {"type": "string", "pattern": "[0-9]+"},
                "region": {"type": "string", "enum": ["b", "a"], "dependsOn": ["version", "size"]},
            },
            "required": ["version", "region"],
            "order": ["version", "region"],
        },
    },
    "invocationMethod": {
        "type": "WEBHOOK",
        "url": "https://hooks.example.com",
        "body": {"a": None, "agent": False},
    },
}


def with_value(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(body)
    *steps, last = path.split(".")
    target = result
    for step in steps:
        target = target[step]
    target[last] = value
    return result


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    found = changes(canonical_action(old), canonical_action(new))
    return {path: kind.value for path, kind in found.items()}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("id", "action_abc"),
        ("createdAt", "2026-01-01T00:00:00Z"),
        ("updatedBy", "somebody"),
        ("orgId", "org_1"),
        ("requiredApproval", False),
        ("allowAnyoneToViewRuns", True),
        ("publish", True),
        ("description", ""),
        ("icon", None),
        ("trigger.condition", {"type": "SEARCH", "combinator": "and", "rules": []}),
        ("trigger.userInputs.required", ["region", "version"]),
        ("trigger.userInputs.titles", {}),
        ("trigger.userInputs.properties.version.dependsOn", []),
        ("trigger.userInputs.properties.version.visible", True),
        ("trigger.userInputs.properties.version.disabled", False),
        ("trigger.userInputs.properties.version.title", None),
        ("trigger.userInputs.properties.region.dependsOn", ["size", "version"]),
        ("invocationMethod.agent", False),
        ("invocationMethod.synchronized", False),
        ("invocationMethod.method", "POST"),
        ("invocationMethod.headers", {}),
    ],
)
def test_defaults_and_what_port_adds_are_no_change(path: str, value: Any) -> None:
    other = with_value(ACTION, path, value)
    assert difference(ACTION, other) == {}
    assert difference(other, ACTION) == {}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("title", "Deploy", {"title": "add"}),
        ("requiredApproval", True, {"requiredApproval": "add"}),
        ("publish", False, {"publish": "add"}),
        ("invocationMethod.agent", True, {"invocationMethod.agent": "add"}),
        ("invocationMethod.method", "PUT", {"invocationMethod.method": "add"}),
        ("invocationMethod.body.agent", True, {"invocationMethod.body.agent": "update"}),
        ("invocationMethod.body.a", "x", {"invocationMethod.body.a": "update"}),
        (
            "trigger.userInputs.properties.version.pattern",
            "v.*",
            {"trigger.userInputs.properties.version.pattern": "update"},
        ),
        (
            "trigger.userInputs.order",
            ["region", "version"],
            {"trigger.userInputs.order[0]": "update", "trigger.userInputs.order[1]": "update"},
        ),
        (
            "trigger.userInputs.properties.region.enum",
            ["a", "b"],
            {
                "trigger.userInputs.properties.region.enum[0]": "update",
                "trigger.userInputs.properties.region.enum[1]": "update",
            },
        ),
        ("trigger.userInputs.required", ["version"], {"trigger.userInputs.required": "update"}),
        (
            "trigger.userInputs.properties.version.title",
            "V",
            {"trigger.userInputs.properties.version.title": "add"},
        ),
    ],
)
def test_a_real_change_is_named_by_its_path(path: str, value: Any, expected: dict[str, str]) -> None:
    assert difference(ACTION, with_value(ACTION, path, value)) == expected


def test_removing_a_value_is_a_change() -> None:
    assert difference(with_value(ACTION, "title", "Deploy"), ACTION) == {"title": "delete"}


def test_the_order_of_conditions_counts_and_their_default_combinator_does_not() -> None:
    def automation(**condition: Any) -> dict[str, Any]:
        event = {"type": "ENTITY_UPDATED", "blueprintIdentifier": "service"}
        return {"trigger": {"type": "automation", "event": event, "condition": {"type": "JQ", **condition}}}

    assert difference(automation(expressions=["a"]), automation(expressions=["a"], combinator="and")) == {}
    assert difference(automation(expressions=["a", "b"]), automation(expressions=["b", "a"])) != {}
    # An automation is inactive without `publish: true`, for all that is known: it is never left out.
    assert difference({**automation(), "publish": True}, automation()) == {"publish": "delete"}


def test_unknown_values_always_count_as_a_change() -> None:
    new = with_value(ACTION, "invocationMethod.url", UNKNOWN)
    assert difference(new, new) == {"invocationMethod.url": "update"}


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (0, False, False),
        (None, "", False),
        ([1], [1, 2], False),
        ({}, [], False),
    ],
)
def test_equality_is_that_of_json(left: Any, right: Any, expected: bool) -> None:
    assert same(left, right) is expected
    assert same(right, left) is expected


def test_blueprints_and_entities() -> None:
    blueprint = {"identifier": "b", "title": "B", "schema": {"properties": {"t": {"type": "string"}}}}
    shown = {
        **blueprint,
        "schema": {"properties": {"t": {"type": "string", "title": None}}, "required": []},
        "relations": {},
        "mirrorProperties": {},
        "aggregationProperties": {},
        "createdAt": "x",
    }
    assert changes(canonical_blueprint(blueprint), canonical_blueprint(shown)) == {}
    related = {**blueprint, "relations": {"r": {"target": "x"}}}
    explicit = {**blueprint, "relations": {"r": {"target": "x", "many": False, "required": False}}}
    assert changes(canonical_blueprint(related), canonical_blueprint(explicit)) == {}

    one, many = (
        {"identifier": "e", "team": "a"},
        {"identifier": "e", "team": ["a"], "properties": {"x": None}},
    )
    assert changes(canonical_entity(one), canonical_entity(many)) == {}
    assert changes(canonical_entity({"team": ["b", "a"]}), canonical_entity({"team": ["a", "b"]})) == {}
    assert changes(canonical_entity(one), canonical_entity({**one, "properties": {"x": 1}})) == {
        "properties": Kind.ADD
    }


def test_reconciling_keeps_the_words_of_the_user() -> None:
    written = with_value(ACTION, "requiredApproval", False)
    present = with_value(
        with_value(ACTION, "trigger.userInputs.required", ["region", "version"]), "createdAt", "x"
    )
    assert reconcile(written, present, canonical_action) == written


def test_reconciling_takes_over_exactly_what_was_changed() -> None:
    written = with_value(ACTION, "requiredApproval", False)
    present = with_value(ACTION, "trigger.userInputs.properties.version.pattern", "v.*")
    present["title"] = "New"
    present["invocationMethod"] = {**present["invocationMethod"], "method": "POST"}
    merged = reconcile(written, present, canonical_action)
    assert merged == {
        **with_value(written, "trigger.userInputs.properties.version.pattern", "v.*"),
        "title": "New",
    }


def test_reconciling_a_subset_ignores_what_was_never_declared() -> None:
    written = {"identifier": "cart", "properties": {"tier": "gold"}}
    present: dict[str, Any] = {
        "identifier": "cart",
        "title": "Cart",
        "properties": {"tier": "gold", "owner": "x"},
        "team": ["t"],
    }
    assert reconcile(written, present, canonical_entity, subset=True) == written
    present["properties"]["tier"] = "silver"
    assert reconcile(written, present, canonical_entity, subset=True)["properties"] == {"tier": "silver"}
    del present["properties"]["tier"]
    assert "tier" not in reconcile(written, present, canonical_entity, subset=True)["properties"]


def test_without_anything_written_the_result_is_the_object_itself() -> None:
    present = with_value(with_value(ACTION, "createdAt", "x"), "requiredApproval", False)
    assert difference(reconcile({}, present, canonical_action), ACTION) == {}


scalars = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "POST", "a"])
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)
methods = st.fixed_dictionaries(
    {"type": st.just("WEBHOOK"), "url": st.just("https://x")},
    optional={
        "agent": st.booleans(),
        "synchronized": st.booleans(),
        "method": st.sampled_from(["POST", "PUT"]),
        "headers": st.dictionaries(st.sampled_from("ab"), st.text(max_size=2), max_size=2),
        "body": json_values,
    },
)
inputs = st.fixed_dictionaries(
    {"type": st.just("string")},
    optional={
        "visible": st.booleans(),
        "dependsOn": st.lists(st.sampled_from("abc"), unique=True),
        "enum": st.lists(st.sampled_from("abc")),
        "default": json_values,
    },
)
actions = st.fixed_dictionaries(
    {
        "identifier": st.just("a"),
        "invocationMethod": methods,
        "trigger": st.fixed_dictionaries(
            {
                "type": st.just("self-service"),
                "userInputs": st.fixed_dictionaries(
                    {"properties": st.dictionaries(st.sampled_from("abc"), inputs, max_size=3)},
                    optional={
                        "required": st.lists(st.sampled_from("abc"), unique=True),
                        "order": st.permutations("abc"),
                    },
                ),
            }
        ),
    },
    optional={
        "requiredApproval": st.booleans(),
        "title": st.sampled_from(["", "T"]),
        "publish": st.booleans(),
    },
)


@given(actions)
def test_a_canonical_form_is_its_own(body: dict[str, Any]) -> None:
    assert same(canonical_action(canonical_action(body)), canonical_action(body))
    assert changes(canonical_action(body), canonical_action(body)) == {}


@given(actions, actions)
def test_a_reconciled_body_means_what_port_has(written: dict[str, Any], present: dict[str, Any]) -> None:
    merged = reconcile(written, present, canonical_action)
    assert same(canonical_action(merged), canonical_action(present))
    # And after a refresh, the program's own definition shows the differences to Port, no more and no less.
    assert difference(merged, written) == difference(present, written)


@given(actions)
def test_nothing_changes_when_nothing_was_changed(written: dict[str, Any]) -> None:
    assert reconcile(written, canonical_action(written), canonical_action) == written


@given(actions, actions)
def test_no_change_means_equal_forms(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert (difference(left, right) == {}) == same(canonical_action(left), canonical_action(right))
