"""Inputs: the form, the schema and the typed values that one class gives."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal

import fastjsonschema
import pytest

from port_webhook_handlers.port.definitions import UserInputs
from port_webhook_handlers.sdk import (
    Blueprint,
    ClientSideKey,
    Email,
    Entity,
    Field,
    HandlerDefinitionError,
    InputError,
    Inputs,
    Ipv4,
    Ipv6,
    LabeledUrl,
    Markdown,
    MultiLine,
    Proto,
    Step,
    Team,
    Title,
    Url,
    User,
    Yaml,
    jq,
)


class Stage(Enum):
    TEST = "test"
    LIVE = "live"


class Size(IntEnum):
    SMALL = 1
    LARGE = 4


class Limits(Inputs):
    cpu: float
    memory: int = 512


class Everything(Inputs):
    text: str
    version: Annotated[str, Field(title="Version", pattern=r"v\d+", min_length=2, max_length=9)]
    count: Annotated[int, Field(minimum=1, maximum=9)]
    ratio: float
    switch: bool
    level: Annotated[Literal["low", "high"], Field(enum_colors={"low": "green", "high": "red"})]
    stage: Annotated[Stage, Field(enum_colors={Stage.LIVE: "red"})] = Stage.TEST
    size: Size = Size.SMALL
    tier: Annotated[str, Field(enum=jq('["a","b"]'))]
    when: datetime
    mail: Email
    link: Url
    four: Ipv4
    six: Ipv6
    yaml: Yaml
    proto: Proto
    note: Markdown
    long: MultiLine
    user: User
    team: Team
    label: LabeledUrl
    region: Annotated[
        Entity,
        Blueprint("region"),
        Field(
            dataset=[{"property": "$team", "operator": "=", "value": jq(".user.team")}], sort=("title", "ASC")
        ),
    ]
    zones: Annotated[list[Entity], Blueprint("zone"), Field(min_items=1, max_items=jq("3"))]
    users: list[Annotated[User, Field(min_length=3)]]
    tags: list[str] = dataclasses.field(default_factory=list)
    anything: dict[str, Any] = dataclasses.field(default_factory=dict)
    numbers: dict[str, int] = dataclasses.field(default_factory=dict)
    limits: Limits | None = None
    token: Annotated[str, Field(encrypted=True)]
    config: Annotated[dict[str, Any], Field(encrypted=ClientSideKey("PEM"))]
    comment: Annotated[str | None, Field(visible=jq(".form.switch"), depends_on=["switch"])] = None
    team_key: Annotated[int, Field(key="team-key", disabled=True, icon="Key", description="d")] = 3


VALUES: dict[str, Any] = {
    "text": "t",
    "version": "v1",
    "count": 2,
    "ratio": 1,
    "switch": False,
    "level": "low",
    "tier": "c",
    "when": "2026-01-02T03:04:05.678Z",
    "mail": "a@b.c",
    "link": "https://a.b/c",
    "four": "10.0.0.1",
    "six": "::1",
    "yaml": "a: 1",
    "proto": "x",
    "note": "# x",
    "long": "a\nb",
    "user": "a@b.c",
    "team": "core",
    "label": {"url": "https://a.b", "displayText": "A"},
    "region": {"identifier": "eu", "title": "Europe", "properties": {"a": 1}},
    "zones": ["z1", {"identifier": "z2"}],
    "users": ["a@b.c"],
    "token": "s3cret",
    "config": '{"a": 1}',
}


def test_form_of_every_type() -> None:
    body = Everything.port_form.to_port()
    properties = body["properties"]
    assert properties["version"] == {
        "type": "string",
        "pattern": r"^(?:v\d+)$",
        "minLength": 2,
        "maxLength": 9,
        "title": "Version",
    }
    assert properties["count"] == {"type": "number", "minimum": 1, "maximum": 9}
    assert properties["ratio"] == {"type": "number"}
    assert properties["switch"] == {"type": "boolean"}
    assert properties["level"] == {
        "type": "string",
        "enum": ["low", "high"],
        "enumColors": {"low": "green", "high": "red"},
    }
    assert properties["stage"] == {
        "type": "string",
        "enum": ["test", "live"],
        "enumColors": {"live": "red"},
        "default": "test",
    }
    assert properties["size"] == {"type": "number", "enum": [1, 4], "default": 1}
    assert properties["tier"] == {"type": "string", "enum": {"jqQuery": '["a","b"]'}}
    assert properties["region"] == {
        "type": "string",
        "format": "entity",
        "blueprint": "region",
        "dataset": {
            "combinator": "and",
            "rules": [{"property": "$team", "operator": "=", "value": {"jqQuery": ".user.team"}}],
        },
        "sort": {"property": "title", "order": "ASC"},
    }
    assert properties["zones"] == {
        "type": "array",
        "items": {"type": "string", "format": "entity", "blueprint": "zone"},
        "minItems": 1,
        "maxItems": {"jqQuery": "3"},
    }
    assert properties["users"] == {
        "type": "array",
        "items": {"type": "string", "format": "user", "minLength": 3},
    }
    assert properties["limits"] == {"type": "object"}
    assert properties["numbers"] == {"type": "object", "default": {}}
    assert properties["token"] == {"type": "string", "encryption": "aes256-gcm"}
    assert properties["config"] == {
        "type": "object",
        "encryption": {"algorithm": "client-side", "key": "PEM"},
    }
    assert properties["comment"] == {
        "type": "string",
        "dependsOn": ["switch"],
        "visible": {"jqQuery": ".form.switch"},
    }
    assert properties["team-key"] == {
        "type": "number",
        "default": 3,
        "disabled": True,
        "icon": "Key",
        "description": "d",
    }
    formats = {
        "when": "date-time",
        "mail": "email",
        "link": "url",
        "four": "ipv4",
        "six": "ipv6",
        "yaml": "yaml",
        "proto": "proto",
        "note": "markdown",
        "long": "multi-line",
        "user": "user",
        "team": "team",
        "label": "labeled-url",
    }
    for name, format_ in formats.items():
        assert properties[name] == {"type": "string", "format": format_}, name
    assert set(body["required"]) == set(VALUES)
    assert body["order"] == list(properties)


def test_port_model_knows_every_key() -> None:
    body = Everything.port_form.to_port()
    assert UserInputs.from_body(body).to_body() == body


def test_values_are_typed() -> None:
    inputs = Everything.from_json(VALUES)
    assert inputs.stage is Stage.TEST
    assert inputs.size is Size.SMALL
    assert inputs.when == datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    assert inputs.region == Entity("eu", title="Europe", blueprint="region", properties={"a": 1})
    assert inputs.zones == [Entity("z1", blueprint="zone"), Entity("z2", blueprint="zone")]
    assert inputs.label == LabeledUrl("https://a.b", "A")
    assert type(inputs.ratio) is float
    assert inputs.config == {"a": 1}
    assert inputs.limits is None
    assert inputs.team_key == 3


def test_plain_schema_accepts_the_values_and_the_request_schema_their_encrypted_form() -> None:
    plain = VALUES | {"config": {"a": 1}}
    fastjsonschema.compile(Everything.port_form.schema(encrypted=False))(plain)
    with pytest.raises(fastjsonschema.JsonSchemaValueException, match="token"):
        fastjsonschema.compile(Everything.port_form.schema())(plain)
    sealed = "AAECAwQFBgcICQoLDA0OD75fD3qQcY7d3qL79ThJB7WMVxEC+n4="
    fastjsonschema.compile(Everything.port_form.schema())(VALUES | {"token": sealed, "config": sealed})
    assert Everything.port_form.encrypted == ("token", "config")


def test_nested_inputs_are_typed_and_checked() -> None:
    inputs = Everything.from_json(VALUES | {"limits": {"cpu": 2}})
    assert inputs.limits == Limits(cpu=2.0, memory=512)
    with pytest.raises(InputError, match=r"^inputs\.limits\.cpu is missing$"):
        Everything.from_json(VALUES | {"limits": {}})


def test_encrypted_values_are_not_shown() -> None:
    text = repr(Everything.from_json(VALUES))
    assert "token=***" in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "v1\n"}, "version"),
        ({"version": "xv1"}, "version"),
        ({"version": "v١"}, "version"),
        ({"count": 1.5}, "count"),
        ({"count": True}, "count"),
        ({"count": 10}, "count"),
        ({"switch": 0}, "switch"),
        ({"switch": None}, "switch"),
        ({"level": "other"}, "level"),
        ({"when": "2026-02-30T00:00:00Z"}, "when"),
        ({"when": "2026-01-01T00:00:00"}, "when"),
        ({"when": "2026-01-01"}, "when"),
        ({"mail": "a"}, "mail"),
        ({"link": "no url"}, "link"),
        ({"four": "1.2.3.256"}, "four"),
        ({"six": "1.2.3"}, "six"),
        ({"region": {"title": "Europe"}}, "region"),
        ({"region": ""}, "region"),
        ({"zones": []}, "zones"),
        ({"zones": [None]}, "zones"),
        ({"numbers": {"a": "b"}}, "numbers"),
        ({"limits": {"cpu": 1, "gpu": 1}}, "limits"),
        ({"unknown": 1}, "additional|unknown"),
    ],
)
def test_schema_refuses(changes: dict[str, Any], message: str) -> None:
    validate = fastjsonschema.compile(Everything.port_form.schema(encrypted=False))
    good = VALUES | {"config": {"a": 1}}
    validate(good)
    with pytest.raises(fastjsonschema.JsonSchemaValueException, match=message):
        validate(good | changes)


@pytest.mark.parametrize("name", [name for name in VALUES if name not in ("config",)])
def test_schema_requires(name: str) -> None:
    values = {key: value for key, value in (VALUES | {"config": {}}).items() if key != name}
    with pytest.raises(fastjsonschema.JsonSchemaValueException, match=name):
        fastjsonschema.compile(Everything.port_form.schema(encrypted=False))(values)


def test_null_means_the_default_or_none() -> None:
    inputs = Everything.from_json(VALUES | {"comment": None, "stage": None, "team-key": None})
    assert inputs.comment is None
    assert inputs.stage is Stage.TEST
    assert inputs.team_key == 3


class Paged(
    Inputs,
    steps=[Step("One", ["head", "a"]), Step("Two", ["b"], visible=jq(".form.a != null"))],
    titles={"head": Title("Heading", description="Text", visible=True)},
    required=jq('["a"]'),
):
    a: str | None = None
    b: Annotated[str | None, Field(key="b-b")] = None


def test_steps_and_titles() -> None:
    assert Paged.port_form.to_port() == {
        "properties": {"a": {"type": "string"}, "b-b": {"type": "string"}},
        "required": {"jqQuery": '["a"]'},
        "titles": {"head": {"title": "Heading", "description": "Text", "visible": True}},
        "steps": [
            {"title": "One", "order": ["head", "a"]},
            {"title": "Two", "visible": {"jqQuery": ".form.a != null"}, "order": ["b-b"]},
        ],
    }


class Ordered(Inputs, input_order=["b", "a"]):
    a: str
    b: str


class Extended(Ordered):
    c: int = 1


def test_order_and_inheritance() -> None:
    assert Ordered.port_form.to_port()["order"] == ["b", "a"]
    assert Extended.port_form.to_port()["order"] == ["a", "b", "c"]


def test_instances_are_frozen_and_comparable() -> None:
    inputs = Extended(a="1", b="2")
    assert inputs == Extended.from_json({"a": "1", "b": "2"})
    assert inputs.to_json() == {"a": "1", "b": "2", "c": 1}
    with pytest.raises(dataclasses.FrozenInstanceError):
        inputs.a = "3"  # type: ignore[misc]


DECLARATIONS = [
    ("x: set[str]", {}, "set.* is not supported; use one of str"),
    ("x: int | str", {}, "several are not supported"),
    ("x: Annotated[str, Field(minimum=3)]", {}, "minimum does not apply"),
    ("x: Annotated[list[str], Field(pattern='a')]", {}, r"put it on the items"),
    ("x: list[Annotated[str, Field(title='a')]]", {}, "title belongs to the list"),
    ("x: list[list[str]]", {}, "lists of lists"),
    ("x: list", {}, "name the type of the items"),
    ("x: list[str] = []", {}, "dataclasses.field"),
    ("x: str = None", {}, r"declare the type as … \| None"),
    ("x: str = 5", {}, "default must be text"),
    ("x: str = Field(title='a')", {}, r"write Annotated\[type, Field"),
    ("x: Annotated[str, Field(default='a')]", {}, "takes a jq expression"),
    ("x: Entity", {}, "name the blueprint"),
    ("x: Annotated[str, Blueprint('a')]", {}, "belongs to Entity"),
    ("x: Annotated[str, Field(pattern='[')]", {}, "not a regular expression"),
    ("x: Annotated[str, Field(pattern='[$]a')]", {}, r"write \\\$ there"),
    ("x: Annotated[str, Field(encrypted=True)] = 'a'", {}, "cannot have a default"),
    ("x: Annotated[int, Field(encrypted=True)]", {}, "encrypted does not apply"),
    ("x: Annotated[str, Field(depends_on=['y'])]", {}, "names 'y'"),
    ("x: Annotated[str, Field(min_length=3, max_length=2)]", {}, "min_length is above"),
    ("x: Annotated[str, Field(key='a b')]", {}, "may hold letters"),
    ("x: Annotated[str, Field(key='y')]\n y: str", {}, "used twice"),
    ("x: Literal['a', 1]", {}, "all strings or all numbers"),
    ("x: Annotated[Literal['a'], Field(enum_colors={'b': 'red'})]", {}, "names 'b'"),
    ("to_json: str", {}, "the name is taken"),
    ("x: 'Missing'", {}, "must be defined above the class"),
    ("x: dict[int, str]", {}, "keys of an object are strings"),
    ("x: date", {}, "use datetime"),
    ("x: str", {"input_order": ["x", "y"]}, "'y' is neither"),
    ("x: str\n y: str", {"input_order": ["x"]}, "y is not placed"),
    ("x: str", {"input_order": ["x"], "steps": [Step("a", ["x"])]}, "exclude each other"),
    ("x: str", {"titles": {"t": Title("a")}}, "place them by their keys"),
    ("x: str", {"titles": {"x": Title("a")}, "input_order": ["x"]}, "is an input"),
    ("x: str", {"required": ["x"]}, "must be a jq expression"),
]


@pytest.mark.parametrize(("body", "options", "message"), DECLARATIONS)
def test_mistakes_name_the_class_and_the_remedy(body: str, options: dict[str, Any], message: str) -> None:
    source = f"from datetime import date\n\n\nclass Wrong(Inputs, **options):\n {body}\n"
    scope = dict(globals()) | {"options": options}
    # The annotations of this file's future import must not leak into the declaration.
    code = compile(source, "wrong.py", "exec", dont_inherit=True)
    with pytest.raises(HandlerDefinitionError, match=message) as caught:
        exec(code, scope)  # noqa: S102 - a class statement is what is tested
    assert str(caught.value).startswith("wrong.py:4: inputs Wrong: ")
