import pytest
from hypothesis import given
from hypothesis import strategies as st

from port_webhook_handlers.port.templates import (
    Expression,
    TemplateError,
    has_template,
    parse_template,
    templates,
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("plain } text }}", ("plain } text }}",)),
        ("{{ .run.id }}", (Expression(".run.id"),)),
        ("{{.a}}{{\n.b\n}}", (Expression(".a"), Expression(".b"))),
        ("a {{ .b }} c", ("a ", Expression(".b"), " c")),
        ("{{ .trigger | {by, at} }}", (Expression(".trigger | {by, at}"),)),
        ("{{ {a: {b: 1}} }}!", (Expression("{a: {b: 1}}"), "!")),
        ("{{{a:{b:1}}}}", (Expression("{a:{b:1}}"),)),
        ("{{{a:1}}}x", (Expression("{a:1}"), "x")),
        ('{{ "}}" }}', (Expression('"}}"'),)),
        (r'{{ "\"}}" + .a }}', (Expression(r'"\"}}" + .a'),)),
        ("{{ spreadValue() }}", (Expression("spreadValue()"),)),
        ("{{ if .a == {} then 1 else 2 end }}", (Expression("if .a == {} then 1 else 2 end"),)),
        ("{{ {a }} b", (Expression("{a"), " b")),
        ('{{ "a }} b', (Expression('"a'), " b")),
    ],
)
def test_parts(text, parts):
    assert parse_template(text).parts == parts


@pytest.mark.parametrize("text", ["{{", "a {{ .b }", "{{ .a }} {{ .b", "{{}}", "{{  }}", "x{{\n}}y"])
def test_broken(text):
    with pytest.raises(TemplateError):
        parse_template(text)


def test_single_expression_keeps_its_type():
    assert parse_template("{{ .inputs }}").is_single
    assert not parse_template(" {{ .inputs }}").is_single
    assert not parse_template("{{ .a }}{{ .b }}").is_single
    assert parse_template("x {{ .a }}{{ .b }}").expressions == (Expression(".a"), Expression(".b"))


def test_templates_in_keys_and_values():
    body = {"{{ .k }}": 1, "a": ["x", {"b c": "{{ .v }}"}], "d": None}
    assert list(templates(body, "body")) == [
        ("body['{{ .k }}']", "{{ .k }}", True),
        ("body.a[1]['b c']", "{{ .v }}", False),
    ]


@given(st.text(alphabet='{}" .a\\'))
def test_parts_cover_the_text(text):
    try:
        parts = parse_template(text).parts
    except TemplateError:
        assert has_template(text)
        return
    rebuilt = "".join(part if isinstance(part, str) else "{{" + part.jq + "}}" for part in parts)
    assert rebuilt.replace(" ", "") == text.replace(" ", "")
