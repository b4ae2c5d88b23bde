"""Definitions survive the way through the model unchanged: those written here and those Port's docs show."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.definitions import ODD, VALID

from port_webhook_handlers.port import Action, Automation, definition_from_body, definition_to_body

CORPUS = Path(
    os.environ.get("PORT_DEFINITIONS_CORPUS")
    or Path(__file__).parents[3] / "shared" / "corpus" / "definitions.json"
)


def corpus() -> list[Any]:
    if not CORPUS.is_file():
        reason = (
            f"no corpus at {CORPUS.name}; set PORT_DEFINITIONS_CORPUS to a list of {{source, definition}}"
        )
        return [pytest.param({}, marks=pytest.mark.skip(reason=reason), id="corpus")]
    entries = json.loads(CORPUS.read_text())
    return [
        pytest.param(
            entry["definition"], id=f"{Path(entry['source']).stem}:{entry['definition']['identifier']}"
        )
        for entry in entries
    ]


def same(left: Any, right: Any) -> bool:
    """Equal to the last bit: types (1 is not true) and order of keys too."""
    return json.dumps(left) == json.dumps(right)


@pytest.mark.parametrize("body", corpus())
def test_documentation_survives(body: dict[str, Any]) -> None:
    before = json.dumps(body)
    assert json.dumps(definition_to_body(definition_from_body(body))) == before
    assert json.dumps(body) == before


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in {**VALID, **ODD}.items()])
def test_every_form_survives(body: dict[str, Any]) -> None:
    definition = definition_from_body(body)
    assert same(definition_to_body(definition), body)
    assert definition_from_body(definition_to_body(definition)) == definition


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in VALID.items()])
def test_valid_definitions_are_typed_throughout(body: dict[str, Any]) -> None:
    """Whatever the model knows ends up in a field; `extra` holds only what it must."""
    expected = Automation if body["trigger"]["type"] == "automation" else Action
    definition = definition_from_body(body)
    assert type(definition) is expected
    left_over = [extra for extra in _extras(definition) if any(value is not None for value in extra.values())]
    assert left_over == []


def _extras(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [extra for item in value.values() for extra in _extras(item)]
    if isinstance(value, tuple):
        return [extra for item in value for extra in _extras(item)]
    if hasattr(value, "key_order"):
        members = [item for name, item in vars(value).items() if name not in {"extra", "key_order"}]
        return [value.extra, *(extra for item in members for extra in _extras(item))]
    return []


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
KEYS = st.sampled_from(
    [
        "type",
        "identifier",
        "title",
        "trigger",
        "event",
        "condition",
        "userInputs",
        "properties",
        "required",
        "order",
        "steps",
        "titles",
        "rules",
        "invocationMethod",
        "url",
        "agent",
        "body",
        "headers",
        "mapping",
        "default",
        "enum",
        "items",
        "dataset",
        "jqQuery",
        "visible",
        "value",
        "integrationActionExecutionProperties",
        "requiredApproval",
        "approvalNotification",
    ]
)
WORDS = st.sampled_from(
    [
        "self-service",
        "automation",
        "WEBHOOK",
        "UPSERT_ENTITY",
        "GITHUB",
        "KAFKA",
        "INTEGRATION_ACTION",
        "JQ",
        "SEARCH",
        "string",
        "number",
        "array",
        "object",
        "boolean",
        "CREATE",
        "ENTITY_UPDATED",
    ]
)
JSON = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(), inner, max_size=6),
    max_leaves=30,
)


@given(st.dictionaries(KEYS | st.text(), JSON, max_size=6))
def test_any_object_survives(body: dict[str, Any]) -> None:
    assert same(definition_to_body(definition_from_body(body)), body)


@st.composite
def shaped(draw: st.DrawFn) -> dict[str, Any]:
    """A valid definition with some values anywhere replaced or removed."""
    body = json.loads(json.dumps(draw(st.sampled_from(list(VALID.values())))))
    for _ in range(draw(st.integers(1, 4))):
        place = body
        while True:
            key = (
                draw(st.sampled_from(sorted(place)))
                if isinstance(place, dict)
                else draw(st.integers(0, len(place) - 1))
            )
            inner = place[key]
            if not inner or not isinstance(inner, dict | list) or draw(st.booleans()):
                break
            place = inner
        if isinstance(place, dict) and len(place) > 1 and draw(st.booleans()):
            del place[key]
        else:
            place[key] = draw(JSON)
    return body


@given(shaped())
def test_damaged_definitions_survive(body: dict[str, Any]) -> None:
    assert same(definition_to_body(definition_from_body(body)), body)
