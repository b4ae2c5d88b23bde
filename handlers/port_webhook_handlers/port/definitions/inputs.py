"""User inputs: the form of a self-service action."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from port_webhook_handlers.port.definitions.node import (
    ANY,
    BOOLEAN,
    LIST,
    NUMBER,
    OBJECT,
    STRING,
    STRING_MAP,
    STRINGS,
    Json,
    ListOf,
    MapOf,
    Node,
    NodeOf,
    either,
    needs,
    opt,
)

INPUT_TYPES = ("string", "number", "boolean", "object", "array")
FORMATS = (
    "date-time",
    "url",
    "email",
    "ipv4",
    "ipv6",
    "yaml",
    "entity",
    "user",
    "team",
    "proto",
    "markdown",
    "multi-line",
    "labeled-url",
)
COMBINATORS = ("and", "or")


@dataclass(frozen=True)
class JqQuery(Node):
    """A value that Port computes with JQ while the form is open. It sees `.form`, `.entity` and `.user`."""

    STRICT: ClassVar = False
    MEANING: ClassVar = '{"jqQuery": …}'

    jq_query: str = field(metadata=needs(STRING))


# Only an object with the one key is a query; any other object is a literal value.
QUERY = NodeOf(JqQuery, lambda body: JqQuery if set(body) == {"jqQuery"} else None)
FLAG = either(QUERY, BOOLEAN)
BOUND = either(QUERY, NUMBER)


@dataclass(frozen=True)
class Rule(Node):
    """A comparison in a search: of a property (or a meta property such as `$identifier`) with a value."""

    STRICT: ClassVar = False

    property: str | None = field(default=None, metadata=opt(STRING))
    operator: str | None = field(default=None, metadata=opt(STRING))
    value: JqQuery | Json = field(default=None, metadata=opt(either(QUERY, ANY)))
    blueprint: str | None = field(default=None, metadata=opt(STRING))


RULES = ListOf(NodeOf(Node, lambda body: _rule(body)))


@dataclass(frozen=True)
class RuleGroup(Node):
    """Rules that must all hold (`and`) or of which one must (`or`)."""

    STRICT: ClassVar = False

    combinator: str = field(metadata=needs(STRING, choices=COMBINATORS))
    rules: "Sequence[Rule | RuleGroup] | None" = field(default=None, metadata=opt(RULES))


def _rule(body: Mapping[str, Json]) -> type[Node]:
    return RuleGroup if "rules" in body else Rule


@dataclass(frozen=True)
class Sort(Node):
    """Order of the entities that a form offers."""

    STRICT: ClassVar = False

    property: str = field(metadata=needs(STRING))
    order: str | None = field(default=None, metadata=opt(STRING, choices=("ASC", "DESC")))


@dataclass(frozen=True)
class ClientSideEncryption(Node):
    """Encryption in the browser under an RSA public key (PEM, 2048 bits or more)."""

    STRICT: ClassVar = False

    algorithm: str = field(metadata=needs(STRING, choices=("client-side",)))
    key: str = field(metadata=needs(STRING))


ENCRYPTION = either(NodeOf(ClientSideEncryption), STRING)


@dataclass(frozen=True)
class UserInput(Node):
    """What every input has."""

    STRICT: ClassVar = False
    MEANING: ClassVar = "an input"

    title: str | None = field(default=None, metadata=opt(STRING))
    description: str | None = field(default=None, metadata=opt(STRING))
    icon: str | None = field(default=None, metadata=opt(STRING))
    default: JqQuery | Json = field(default=None, metadata=opt(either(QUERY, ANY)))
    depends_on: Sequence[str] | None = field(default=None, metadata=opt(STRINGS))
    visible: bool | JqQuery | None = field(default=None, metadata=opt(FLAG))
    disabled: bool | JqQuery | None = field(default=None, metadata=opt(FLAG))


@dataclass(frozen=True)
class StringInput(UserInput):
    """Text; with `format="entity"` the identifier of an entity of `blueprint`."""

    TYPE: ClassVar = "string"

    format: str | None = field(default=None, metadata=opt(STRING, choices=FORMATS, closed=False))
    blueprint: str | None = field(default=None, metadata=opt(STRING))
    enum: Sequence[Json] | JqQuery | None = field(default=None, metadata=opt(either(QUERY, LIST)))
    enum_colors: Mapping[str, str] | None = field(default=None, metadata=opt(STRING_MAP))
    pattern: str | JqQuery | None = field(default=None, metadata=opt(either(QUERY, STRING)))
    min_length: float | None = field(default=None, metadata=opt(NUMBER))
    max_length: float | None = field(default=None, metadata=opt(NUMBER))
    dataset: RuleGroup | None = field(default=None, metadata=opt(NodeOf(RuleGroup)))
    sort: Sort | None = field(default=None, metadata=opt(NodeOf(Sort)))
    encryption: str | ClientSideEncryption | None = field(
        default=None, metadata=opt(ENCRYPTION, choices=("aes256-gcm",), closed=False)
    )


@dataclass(frozen=True)
class NumberInput(UserInput):
    """A number."""

    TYPE: ClassVar = "number"

    enum: Sequence[Json] | JqQuery | None = field(default=None, metadata=opt(either(QUERY, LIST)))
    enum_colors: Mapping[str, str] | None = field(default=None, metadata=opt(STRING_MAP))
    minimum: float | None = field(default=None, metadata=opt(NUMBER))
    maximum: float | None = field(default=None, metadata=opt(NUMBER))


@dataclass(frozen=True)
class BooleanInput(UserInput):
    """A switch."""

    TYPE: ClassVar = "boolean"


@dataclass(frozen=True)
class ObjectInput(UserInput):
    """A JSON object; as `items` of an array it may name the properties of its rows."""

    TYPE: ClassVar = "object"

    properties: Mapping[str, Json] | None = field(default=None, metadata=opt(OBJECT))
    format: str | None = field(default=None, metadata=opt(STRING, choices=FORMATS, closed=False))
    encryption: str | ClientSideEncryption | None = field(
        default=None, metadata=opt(ENCRYPTION, choices=("aes256-gcm",), closed=False)
    )


@dataclass(frozen=True)
class ArrayInput(UserInput):
    """A list of the input that `items` describes."""

    TYPE: ClassVar = "array"

    items: UserInput | None = field(
        default=None, metadata=opt(NodeOf(UserInput, lambda body: input_class(body)))
    )
    min_items: float | JqQuery | None = field(default=None, metadata=opt(BOUND))
    max_items: float | JqQuery | None = field(default=None, metadata=opt(BOUND))
    unique_items: bool | None = field(default=None, metadata=opt(BOOLEAN))
    format: str | None = field(default=None, metadata=opt(STRING, choices=FORMATS, closed=False))
    blueprint: str | None = field(default=None, metadata=opt(STRING))
    enum: Sequence[Json] | JqQuery | None = field(default=None, metadata=opt(either(QUERY, LIST)))
    enum_colors: Mapping[str, str] | None = field(default=None, metadata=opt(STRING_MAP))
    dataset: RuleGroup | None = field(default=None, metadata=opt(NodeOf(RuleGroup)))
    sort: Sort | None = field(default=None, metadata=opt(NodeOf(Sort)))


@dataclass(frozen=True)
class OtherInput(UserInput):
    """An input of a type that this model does not know, or of none."""

    type: str = field(metadata=needs(STRING, choices=INPUT_TYPES), kw_only=True)


_INPUTS = {cls.TYPE: cls for cls in (StringInput, NumberInput, BooleanInput, ObjectInput, ArrayInput)}


def input_class(body: Mapping[str, Json]) -> type[UserInput]:
    """The class of an input, by its `type`."""
    name = body.get("type")
    return _INPUTS.get(name, OtherInput) if isinstance(name, str) else OtherInput


@dataclass(frozen=True)
class Step(Node):
    """A page of a form with several steps."""

    STRICT: ClassVar = False

    title: str = field(metadata=needs(STRING))
    order: Sequence[str] | None = field(default=None, metadata=opt(STRINGS))
    visible: bool | JqQuery | None = field(default=None, metadata=opt(FLAG))


@dataclass(frozen=True)
class Heading(Node):
    """A heading between inputs, placed by its key in `order`."""

    STRICT: ClassVar = False

    title: str = field(metadata=needs(STRING))
    description: str | None = field(default=None, metadata=opt(STRING))
    visible: bool | JqQuery | None = field(default=None, metadata=opt(FLAG))


@dataclass(frozen=True)
class UserInputs(Node):
    """The form: inputs by name and how they are laid out. Port takes `order` or `steps`, not both."""

    MEANING: ClassVar = "a form"

    properties: Mapping[str, UserInput] | None = field(
        default=None, metadata=opt(MapOf(NodeOf(UserInput, input_class)))
    )
    required: Sequence[str] | JqQuery | None = field(default=None, metadata=opt(either(QUERY, STRINGS)))
    order: Sequence[str] | None = field(default=None, metadata=opt(STRINGS))
    steps: Sequence[Step] | None = field(default=None, metadata=opt(ListOf(NodeOf(Step))))
    titles: Mapping[str, Heading] | None = field(default=None, metadata=opt(MapOf(NodeOf(Heading))))
