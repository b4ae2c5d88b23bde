"""For any value: the form, the schema and the conversion of an input agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

import fastjsonschema
import hypothesis.strategies as st
import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings

from port_webhook_handlers.sdk import (
    Blueprint,
    Email,
    Entity,
    Field,
    InputError,
    Inputs,
    Ipv4,
    Ipv6,
    LabeledUrl,
    Markdown,
    Url,
)
from port_webhook_handlers.sdk.typing_kinds import kind_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 20) | st.floats(-5, 20) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["identifier", "url", "displayText", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
MOMENTS = st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat())
# What is close to the border of what the types below accept.
NEAR = (
    st.from_regex(r"\A\d{1,2}\.\d{1,2}\n?\Z")
    | st.sampled_from(
        ["a", "b", "A", "", "1.5", "v1\n", "٣.٣", "x@y", "x@y.z", "@", "::1", "1.2.3.4", "http://a"]
    )
    | MOMENTS
    | MOMENTS.map(lambda text: text.replace("+00:00", "Z"))
    | st.from_regex(r"\A\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)?\Z")
)
HINTS: list[Any] = [
    str,
    Annotated[str, Field(pattern=r"\d+\.\d+")],
    Annotated[str, Field(pattern=r"a|b", max_length=1)],
    Annotated[str, Field(pattern=r"^\d+\.\d+$", min_length=4)],
    Annotated[str, Field(enum=["a", "1.5"])],
    int,
    float,
    Annotated[int, Field(minimum=0, maximum=9)],
    bool,
    datetime,
    Email,
    Annotated[Email, Field(pattern=r".*\.z")],
    Url,
    Ipv4,
    Ipv6,
    Markdown,
    LabeledUrl,
    Literal["a", "b"],
    Literal[1, 2, 0],
    Annotated[Entity, Blueprint("b")],
    list[int],
    Annotated[list[Annotated[str, Field(pattern="a*")]], Field(min_items=1, max_items=2)],
    Annotated[list[Entity], Blueprint("b")],
    dict[str, Any],
    dict[str, bool],
]


def _accepts(schema: dict[str, Any]) -> Callable[[Any], bool]:
    validate = fastjsonschema.compile(schema)

    def accepts(value: Any) -> bool:
        try:
            validate(value)
        except fastjsonschema.JsonSchemaValueException:
            return False
        return True

    return accepts


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_what_the_schema_accepts_converts_and_comes_back(hint: Any) -> None:
    kind = kind_of(hint).kind
    accepts = _accepts(kind.schema)
    namespace = {"__annotations__": {"x": hint}, "__module__": __name__}
    cls: type[Inputs] = type("Case", (Inputs,), namespace)
    whole = _accepts(cls.port_form.schema())

    @settings(max_examples=40, deadline=None)
    @given(JSON | NEAR | st.lists(NEAR, max_size=2))
    def check(value: Any) -> None:
        assert whole({"x": value}) == accepts(value)
        if not accepts(value):
            return
        inputs = cls.from_json({"x": value})
        again = inputs.to_json()
        # An entity comes back as its identifier, a moment in UTC; both are the same input.
        assert whole(again)
        assert cls.from_json(again).to_json() == again

    check()


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_the_form_and_the_schema_accept_the_same(hint: Any) -> None:
    kind = kind_of(hint).kind
    accepts = _accepts(kind.schema)
    form = jsonschema.Draft7Validator(_checked_by_port(kind.form))

    @settings(max_examples=40, deadline=None)
    @given(NEAR | st.integers(-2, 12) | st.booleans() | st.lists(NEAR | st.integers(0, 3), max_size=3))
    def check(value: Any) -> None:
        by_form = form.is_valid(value)
        if accepts(value):
            assert by_form
        elif by_form:
            # The listener is stricter where Port's form only chooses an editor, and about line ends and
            # digits, which Python's expressions read more widely than a browser's.
            assert kind.form.get("format") or _wide(value), value

    check()


def _checked_by_port(form: dict[str, Any]) -> dict[str, Any]:
    checked = {
        "type",
        "enum",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
    }
    schema = {key: value for key, value in form.items() if key in checked}
    if "items" in form:
        schema["items"] = _checked_by_port(form["items"])
    if form.get("format") == "labeled-url":
        schema["type"] = ["string", "object"]
    return schema


def _wide(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return any(
        isinstance(text, str) and (text.endswith("\n") or not text.isascii() or not text) for text in texts
    )


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), JSON))
def test_conversion_alone_never_raises_anything_else(values: dict[str, Any]) -> None:
    class Case(Inputs):
        a: datetime
        b: Annotated[Entity, Blueprint("b")] | None = None

    with contextlib.suppress(InputError):
        inputs = Case.from_json(values)
        assert inputs.a.tzinfo is not None
        assert inputs.b is None or inputs.b.identifier
