"""The first look at inputs, held against the full validator."""

from __future__ import annotations

from typing import Any

import fastjsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from port_webhook_handlers.runtime.inputs import InputsValidator
from port_webhook_handlers.runtime.plain_schema import plain_check

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, -2.0]),
    st.sampled_from(["", "a", "ab\n", "1.2"]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
    ),
    max_leaves=6,
)
TYPES = ["string", "number", "integer", "boolean", "null", "array", "object"]


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(TYPES)
            | st.lists(st.sampled_from(TYPES), min_size=1, max_size=2, unique=True),
            "enum": st.lists(scalars, min_size=1, max_size=3),
            "minLength": st.integers(0, 2),
            "maxLength": st.integers(0, 3),
            "pattern": st.sampled_from([r"^a$", r"\d", "b?$"]),
            "minimum": st.integers(-2, 2),
            "maximum": st.integers(-2, 2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(0, 2),
            "items": inner,
            "properties": st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
            "required": st.lists(st.sampled_from(["a", "b"]), max_size=2, unique=True),
            "additionalProperties": st.booleans(),
            "title": st.just("t"),
            "format": st.just("email"),
        },
    )


@settings(max_examples=150, deadline=None)
@given(st.recursive(schemas(st.just({})), schemas, max_leaves=3), values)
def test_what_it_accepts_the_full_validator_accepts(schema: dict[str, Any], value: Any) -> None:
    if plain_check(schema)(value):
        try:
            validate = fastjsonschema.compile(schema)
        except fastjsonschema.JsonSchemaDefinitionException:
            # It requires what it does not allow: no form of ours can be like that.
            return
        validate(value)


@pytest.mark.parametrize(
    ("schema", "value", "sure"),
    [
        ({"type": "string", "pattern": r"^\d+$"}, "12", True),
        ({"type": "string", "pattern": r"^\d+$"}, "12\n", False),
        ({"type": "integer"}, True, False),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, {"a": "x"}, True),
        ({"type": "object", "additionalProperties": False}, {"a": 1}, False),
        ({"enum": [1]}, True, False),
        ({"anyOf": [{}]}, 1, False),
        (True, 1, False),
        ({"type": "string", "pattern": "[$]"}, "$", False),
        ({"type": "string", "pattern": r"\\$"}, "\\", False),
        ({"type": "string", "pattern": "("}, "(", False),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, {}, False),
        ({"type": "string", "minLength": 1}, "", False),
        ({"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 2}, [1, 2], True),
        ({"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 2}, [1, 0], False),
        ({"type": ["string", "null"], "enum": ["a", None]}, None, True),
        ({"enum": [[1]]}, [1], False),
        ({"type": "number", "maximum": 1}, 1.5, False),
        ({"type": "unheard of"}, "a", False),
        ({"properties": 5}, {}, False),
        ({"type": "string", "maxLength": "3"}, "a", False),
        ({"type": "integer", "minimum": None}, 1, False),
        ({"type": "integer"}, 10**400, True),
    ],
)
def test_it_is_sure_of_plain_cases_only(schema: Any, value: Any, sure: bool) -> None:
    assert plain_check(schema)(value) is sure


def test_a_lazy_validator_tells_the_same_errors() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    lazy, eager = InputsValidator(schema, eager=False), InputsValidator(schema)
    for inputs in ({"n": 1}, {"n": "x"}, {}, {"n": 1, "m": 2}, []):
        assert lazy.errors(inputs) == eager.errors(inputs)
