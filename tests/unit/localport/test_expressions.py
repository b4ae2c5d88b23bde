from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from port_webhook_localport.expressions import ExpressionError, evaluate
from port_webhook_localport.templates import render, render_masked, split

CONTEXT: dict[str, Any] = {
    "inputs": {"reason": "why", "count": 3, "tags": ["a", "b"], "none": None, "on": True},
    "entity": {"identifier": "cart", "properties": {"incidents": [{"status": "open"}]}},
    "run": {"id": "r_1"},
    "secrets": {"TOKEN": "t0ken", "my-name": "x"},
}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        (".inputs.reason", "why"),
        ("  .inputs.count ", 3),
        (".inputs.none.deeper", None),
        (".absent", None),
        ('.secrets["my-name"]', "x"),
        (".entity.properties.incidents.0.status", "open"),
        (".entity.properties.incidents[0].status", "open"),
        ('".a.0.b"', ".a.0.b"),
        (".inputs.count * 1.5", 4.5),
        (".inputs.tags | map(ascii_upcase)", ["A", "B"]),
        ("empty", None),
        ("if .entity == {} then null else .entity.identifier end", "cart"),
    ],
)
def test_expressions(expression: str, result: Any) -> None:
    assert evaluate(expression, CONTEXT) == result


@pytest.mark.parametrize(
    "expression", ["action.identifier", ".a |", ".inputs.reason.deeper", "error(.inputs)", ""]
)
def test_expressions_that_fail(expression: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(expression, CONTEXT)


def test_an_error_does_not_quote_the_value() -> None:
    with pytest.raises(ExpressionError) as raised:
        evaluate(".secrets.TOKEN | fromjson", CONTEXT)
    assert "t0ken" not in str(raised.value)
    for expression in (".secrets.TOKEN.x", "error(.secrets.TOKEN)", ".inputs.tags[.secrets.TOKEN]"):
        with pytest.raises(ExpressionError) as raised:
            evaluate(expression, CONTEXT)
        assert "t0ken" not in str(raised.value)


def test_an_error_names_the_expression_and_jqs_reason() -> None:
    with pytest.raises(ExpressionError, match=r"\.inputs\.count \| keys: number has no keys"):
        evaluate(".inputs.count | keys", CONTEXT)


@pytest.mark.parametrize(
    ("template", "result"),
    [
        ("plain", "plain"),
        ("{{ .inputs.count }}", 3),
        ("{{.inputs}}", CONTEXT["inputs"]),
        ("{{ .inputs.on }}", True),
        ("{{ .inputs.none }}", None),
        ("run {{ .run.id }} of {{.entity.identifier}}", "run r_1 of cart"),
        ("{{ .inputs.none }}/{{ .inputs.count }}/{{ .inputs.tags }}", 'null/3/["a","b"]'),
        (" {{ .inputs.count }}", " 3"),
        ("{{ {a: {b: .run.id}} }}", {"a": {"b": "r_1"}}),
        ("{{ .run | {id}}}", {"id": "r_1"}),
        ('{{ "}}" }}', "}}"),
        (r'{{ "\(.run.id + ")}}")" }}', "r_1)}}"),
        ({"{{ .inputs.none }}": 1, "{{ .run.id }}": 2}, {"r_1": 2}),
        (
            {"first": 1, "{{ spreadValue() }}": "{{ .run }}", "last": 2},
            {"first": 1, "id": "r_1", "last": 2},
        ),
        ({"{{spreadValue()}}": {"a": "{{ .run.id }}"}}, {"a": "r_1"}),
        ({"{{ spreadValue() }}": "{{ .inputs.none }}"}, {}),
        (["{{ .run.id }}", 1, None], ["r_1", 1, None]),
        (
            {'{{if (.inputs | has("reason")) then "reason" else null end}}': "{{ .inputs.reason }}"},
            {"reason": "why"},
        ),
    ],
)
def test_templates(template: Any, result: Any) -> None:
    rendered = render(template, CONTEXT)
    assert rendered == result
    assert list(rendered) == list(result) if isinstance(result, dict) else True


@pytest.mark.parametrize(
    "template",
    ["{{ .a", "{{ .run.id }", {"{{ .inputs.count }}": 1}, {"{{ spreadValue() }}": "text"}, "{{action.x}}"],
)
def test_templates_that_fail(template: Any) -> None:
    with pytest.raises(ExpressionError):
        render(template, CONTEXT)


def test_masked_rendering_shows_the_mask_where_masked_secrets_break_an_expression() -> None:
    masked = {**CONTEXT, "secrets": {"TOKEN": "****"}}
    template = {
        "a": "Bearer {{ .secrets.TOKEN }}",
        "b": "{{ .secrets.TOKEN | fromjson }}",
        "{{ spreadValue() }}": "{{ .secrets.TOKEN | fromjson }}",
    }
    assert render_masked(template, masked, "****") == {"a": "Bearer ****", "b": "****"}


@given(st.text(alphabet='{}"\\( )a.b', max_size=40))
def test_any_text_splits_or_is_refused(text: str) -> None:
    try:
        parts = split(text)
    except ExpressionError:
        assert "{{" in text
        return
    assert "".join(part for is_expression, part in parts if not is_expression) in text or len(parts) > 2
    assert all(part for is_expression, part in parts if not is_expression)
