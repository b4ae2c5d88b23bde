"""Annotations of inputs: what Port's form shows, beyond the type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal


@dataclass(frozen=True, slots=True)
class JQ:
    """An expression that Port evaluates in the form; it sees `.form`, `.entity` and `.user` (Port's rule).

    Attributes:
        expression: JQ, without braces.
    """

    expression: str

    def to_json(self) -> dict[str, str]:
        return {"jqQuery": self.expression}


def jq(expression: str) -> JQ:
    """A value that Port computes in the form, such as `jq('.form.environment == "production"')`."""
    return JQ(expression)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """The blueprint whose entities an `Entity` input offers: `Annotated[Entity, Blueprint("region")]`."""

    identifier: str


@dataclass(frozen=True, slots=True)
class Format:
    """A format of Port for a string input; the named types of this module cover those that Port has."""

    name: str


@dataclass(frozen=True, slots=True)
class ClientSideKey:
    """Encryption in the browser, with an RSA key of which Port never sees the private half.

    Attributes:
        public_key: PEM, SubjectPublicKeyInfo, 2048 bits or more (Port's rule).
    """

    public_key: str


Email = Annotated[str, Format("email")]
Url = Annotated[str, Format("url")]
Ipv4 = Annotated[str, Format("ipv4")]
Ipv6 = Annotated[str, Format("ipv6")]
Yaml = Annotated[str, Format("yaml")]
Proto = Annotated[str, Format("proto")]
Markdown = Annotated[str, Format("markdown")]
MultiLine = Annotated[str, Format("multi-line")]
User = Annotated[str, Format("user")]
"""A user of the organisation, by e-mail address."""
Team = Annotated[str, Format("team")]
"""A team of the organisation, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Options of one input. Those that are None are not sent to Port.

    Attributes:
        title: label; by default Port shows the key.
        description: help text.
        icon: name of one of Port's icons.
        key: the input's key in Port, where it cannot be a Python name.
        default: an expression that fills the form; a constant default is the attribute's own.
        pattern: regular expression that the whole text must match, in the syntax common to JavaScript
            and Python; an expression is checked by the form only.
        min_length, max_length: characters.
        minimum, maximum: bounds, inclusive.
        min_items, max_items: length of a list; expressions are checked by the form only.
        enum: allowed values; an expression is checked by the form only. Fixed values are better written
            as `Literal` or `Enum`.
        enum_colors: colour by value.
        depends_on: attributes whose change resets this input.
        visible, disabled: constants or expressions. A request may lack an input that was hidden, so give it
            a default or let it be None.
        dataset: which entities are offered: a list of rules (all must hold) or Port's own
            `{"combinator": …, "rules": […]}`; values may be expressions.
        sort: order of the offered entities: property and "ASC" or "DESC".
        encrypted: True (AES-256-GCM with the organisation's secret) or a `ClientSideKey`. Port neither
            stores nor logs such an input; the handler gets it decrypted.
    """

    title: str | None = None
    description: str | None = None
    icon: str | None = None
    key: str | None = None
    default: JQ | None = None
    pattern: str | JQ | None = None
    min_length: int | None = None
    max_length: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_items: int | JQ | None = None
    max_items: int | JQ | None = None
    enum: Sequence[str | int | float] | JQ | None = None
    enum_colors: Mapping[str | int | float, str] | None = None
    depends_on: Sequence[str] | None = None
    visible: bool | JQ | None = None
    disabled: bool | JQ | None = None
    dataset: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    sort: tuple[str, Literal["ASC", "DESC"]] | None = None
    encrypted: bool | ClientSideKey = False


@dataclass(frozen=True, slots=True)
class Step:
    """A page of the form.

    Attributes:
        title: heading of the page.
        inputs: attributes and keys of titles on it, in order.
        visible: constant or expression.
    """

    title: str
    inputs: Sequence[str]
    visible: bool | JQ | None = None


@dataclass(frozen=True, slots=True)
class Title:
    """A heading between inputs, placed by its key in `input_order` or in a step.

    Attributes:
        title: 1 to 140 characters (Port's rule).
        description: at most 1000 characters (Port's rule).
        visible: constant or expression.
    """

    title: str
    description: str | None = None
    visible: bool | JQ | None = None
