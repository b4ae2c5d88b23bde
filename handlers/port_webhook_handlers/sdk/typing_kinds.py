"""From a type hint to a kind of input."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Literal

from port_webhook_handlers.sdk import kinds
from port_webhook_handlers.sdk.errors import InputError
from port_webhook_handlers.sdk.fields import JQ, Blueprint, ClientSideKey, Field, Format
from port_webhook_handlers.sdk.values import Entity, LabeledUrl

_SUPPORTED = (
    "str, int, float, bool, datetime, Literal, Enum, list[…], dict[str, …], another Inputs class, "
    "Annotated[Entity, Blueprint(…)], LabeledUrl, Email, Url, Ipv4, Ipv6, Yaml, Proto, Markdown, MultiLine, "
    "User, Team, each one also with | None"
)
# Options that every input has; the others belong to some kinds only.
_COMMON = {"title", "description", "icon", "key", "default", "depends_on", "visible", "disabled"}
_FITTING: dict[type, set[str]] = {
    kinds.Text: {"pattern", "min_length", "max_length", "enum", "enum_colors", "encrypted"},
    kinds.Number: {"minimum", "maximum", "enum", "enum_colors"},
    kinds.Choice: {"enum_colors"},
    kinds.EntityReference: {"dataset", "sort"},
    kinds.Array: {"min_items", "max_items", "sort"},
    kinds.Object: {"encrypted"},
}
_FORMATS = {"email", "url", "ipv4", "ipv6", "yaml", "proto", "markdown", "multi-line", "user", "team"}


class TypeProblemError(Exception):
    """A type hint or option that no input of Port corresponds to; says what to write instead."""


@dataclass(frozen=True)
class Parsed:
    """What a type hint says.

    Attributes:
        kind: kind of the values.
        options: options given with `Field`.
        optional: whether None is among the values.
    """

    kind: kinds.Kind
    options: Field
    optional: bool


def kind_of(hint: Any, *, inside: str | None = None) -> Parsed:
    """Reads the type hint of an input.

    Args:
        hint: as `typing.get_type_hints(…, include_extras=True)` gives it.
        inside: "list" or "dict" for the hint of its items.

    Raises:
        TypeProblemError: the type or an option does not fit.
    """
    bare, optional, metadata = _unwrap(hint)
    options = [item for item in metadata if isinstance(item, Field)]
    blueprints = [item for item in metadata if isinstance(item, Blueprint)]
    formats = [item.name for item in metadata if isinstance(item, Format)]
    for found, what in ((options, "Field"), (blueprints, "Blueprint"), (formats, "format")):
        if len(found) > 1:
            raise TypeProblemError(f"has more than one {what}; merge them")
    if inside is not None and optional:
        raise TypeProblemError(f"items of a {inside} cannot be None")
    field = options[0] if options else Field()
    kind = _kind(bare, field, blueprints[0] if blueprints else None, formats[0] if formats else None)
    _check(kind, field, inside)
    if field.encrypted:
        kind = kinds.Encrypted(kind, field.encrypted if isinstance(field.encrypted, ClientSideKey) else None)
    return Parsed(kind, field, optional)


def _unwrap(hint: Any) -> tuple[Any, bool, list[Any]]:
    """The bare type, whether None is allowed, and the annotations around it, from the inside out."""
    if typing.get_origin(hint) is Annotated:
        inner, *metadata = typing.get_args(hint)
        bare, optional, around = _unwrap(inner)
        return bare, optional, [*around, *metadata]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not types.NoneType]
        if len(members) == 1 and len(members) < len(typing.get_args(hint)):
            bare, _, metadata = _unwrap(members[0])
            return bare, True, metadata
        raise TypeProblemError("an input has one type, or one type and None; several are not supported")
    return hint, False, []


def _kind(bare: Any, field: Field, blueprint: Blueprint | None, format_: str | None) -> kinds.Kind:
    origin = typing.get_origin(bare)
    if blueprint is not None and bare is not Entity and not _is_list_of_entities(bare):
        raise TypeProblemError("Blueprint belongs to Entity or list[Entity]")
    if format_ is not None and (bare is not str or format_ not in _FORMATS):
        raise TypeProblemError(
            f"the format {format_!r} belongs to str; Port's are {', '.join(sorted(_FORMATS))}"
        )
    if bare is str:
        return kinds.Text(
            format_, field.pattern, field.min_length, field.max_length, _texts(field.enum), _keys(field, str)
        )
    if bare is bool:
        return kinds.Boolean()
    if bare in (int, float):
        return kinds.Number(
            bare is int, field.minimum, field.maximum, _numbers(field.enum), _keys(field, float)
        )
    if bare is datetime:
        return kinds.DateTime()
    if bare is date:
        raise TypeProblemError("Port has no input for a date without time; use datetime")
    if bare is LabeledUrl:
        return kinds.LabeledLink()
    if bare is Entity:
        if blueprint is None:
            raise TypeProblemError('name the blueprint: Annotated[Entity, Blueprint("…")]')
        return kinds.EntityReference(blueprint.identifier, _dataset(field), _sort(field))
    if origin is Literal:
        return _choice(list(typing.get_args(bare)), None, field)
    if isinstance(bare, type) and issubclass(bare, Enum):
        return _choice([member.value for member in bare], bare, field)
    if hasattr(bare, "port_form"):
        return NestedInputs(bare)
    if bare is dict or origin is dict:
        return _object(typing.get_args(bare))
    if bare is list or origin is list:
        return _array(typing.get_args(bare), field, blueprint)
    raise TypeProblemError(f"{_name(bare)} is not supported; use one of {_SUPPORTED}")


@dataclass(frozen=True)
class NestedInputs:
    """An object with declared members: Port's form edits it as JSON, the listener checks the members."""

    inputs: Any

    @property
    def form(self) -> kinds.Json:
        return {"type": "object"}

    @property
    def schema(self) -> kinds.Json:
        schema: kinds.Json = self.inputs.port_form.schema()
        return schema

    def convert(self, value: object, path: str) -> object:
        if not isinstance(value, Mapping):
            raise InputError(path, "must be an object")
        return self.inputs(**self.inputs.port_form.convert(value, path))


def _choice(values: list[Any], enum_class: type[Enum] | None, field: Field) -> kinds.Choice:
    text = all(isinstance(value, str) for value in values)
    number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not values or not (text or number):
        raise TypeProblemError("the values of a choice must be all strings or all numbers, and at least one")
    return kinds.Choice(values, enum_class, _colors(field, values))


def _object(arguments: tuple[Any, ...]) -> kinds.Kind:
    if not arguments:
        return kinds.Object()
    key, value = arguments
    if key is not str:
        raise TypeProblemError("the keys of an object are strings; use dict[str, …]")
    if value is Any or value is object:
        return kinds.Object()
    return kinds.Object(_item(value, "dict"))


def _array(arguments: tuple[Any, ...], field: Field, blueprint: Blueprint | None) -> kinds.Kind:
    if not arguments:
        raise TypeProblemError("name the type of the items: list[str]")
    item = arguments[0]
    if item is Any:
        raise TypeProblemError("Port needs the type of the items; use list[str] or list[dict[str, Any]]")
    return kinds.Array(
        _item(Annotated[item, blueprint] if blueprint is not None else item, "list"),
        field.min_items,
        field.max_items,
        _sort(field),
    )


def _item(hint: Any, inside: str) -> kinds.Kind:
    try:
        kind = kind_of(hint, inside=inside).kind
    except TypeProblemError as error:
        raise TypeProblemError(f"items: {error}") from None
    if isinstance(kind, kinds.Array) and inside == "list":
        raise TypeProblemError("Port has no lists of lists; use list[dict[str, Any]]")
    return kind


def _check(kind: kinds.Kind, field: Field, inside: str | None) -> None:
    fitting = _FITTING.get(type(kind), set()) | ({"encrypted"} if isinstance(kind, NestedInputs) else set())
    for option in fields(Field):
        if getattr(field, option.name) == option.default:
            continue
        if inside is not None and (option.name in _COMMON or option.name == "encrypted"):
            raise TypeProblemError(f"items: {option.name} belongs to the {inside}, not to its items")
        if option.name not in _COMMON and option.name not in fitting:
            hint = (
                "; put it on the items: list[Annotated[…, Field(…)]]" if isinstance(kind, kinds.Array) else ""
            )
            raise TypeProblemError(f"{option.name} does not apply to this type{hint}")
    if isinstance(field.pattern, str):
        try:
            kinds.check_pattern(field.pattern)
        except ValueError as error:
            raise TypeProblemError(str(error)) from None
    for low, high in (("min_length", "max_length"), ("minimum", "maximum"), ("min_items", "max_items")):
        lowest, highest = getattr(field, low), getattr(field, high)
        if (
            None not in (lowest, highest)
            and not isinstance(lowest, JQ)
            and not isinstance(highest, JQ)
            and lowest > highest
        ):
            raise TypeProblemError(f"{low} is above {high}")
    if field.default is not None and not isinstance(field.default, JQ):
        raise TypeProblemError("Field(default=…) takes a jq expression; write a constant default as = value")


def _texts(enum: Sequence[str | int | float] | JQ | None) -> Sequence[str] | JQ | None:
    if enum is None or isinstance(enum, JQ):
        return enum
    values = [value for value in enum if isinstance(value, str)]
    if not values or len(values) != len(enum):
        raise TypeProblemError("enum must list strings, at least one")
    return values


def _numbers(enum: Sequence[str | int | float] | JQ | None) -> Sequence[float] | JQ | None:
    if enum is None or isinstance(enum, JQ):
        return enum
    values = [value for value in enum if isinstance(value, int | float) and not isinstance(value, bool)]
    if not values or len(values) != len(enum):
        raise TypeProblemError("enum must list numbers, at least one")
    return values


def _keys(field: Field, kind: type) -> Mapping[Any, str] | None:
    if field.enum_colors is None:
        return None
    if field.enum is None:
        raise TypeProblemError("enum_colors needs an enum; use Literal or Enum as the type")
    return field.enum_colors if isinstance(field.enum, JQ) else _colors(field, list(field.enum))


def _colors(field: Field, values: Sequence[Any]) -> Mapping[Any, str] | None:
    if field.enum_colors is None:
        return None
    colors = {key.value if isinstance(key, Enum) else key: color for key, color in field.enum_colors.items()}
    unknown = [key for key in colors if key not in values]
    if unknown:
        raise TypeProblemError(f"enum_colors names {unknown[0]!r}, which is not among the values")
    return colors


def _dataset(field: Field) -> kinds.Json | None:
    if field.dataset is None:
        return None
    dataset = (
        field.dataset if isinstance(field.dataset, Mapping) else {"combinator": "and", "rules": field.dataset}
    )
    rules = dataset.get("rules")
    if set(dataset) != {"combinator", "rules"} or not isinstance(rules, Sequence) or isinstance(rules, str):
        raise TypeProblemError('dataset must be a list of rules or {"combinator": …, "rules": […]}')
    rendered: kinds.Json = _render(dataset)
    return rendered


def _render(value: Any) -> Any:
    if isinstance(value, JQ):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _render(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_render(item) for item in value]
    return value


def _sort(field: Field) -> kinds.Json | None:
    if field.sort is None:
        return None
    name, order = field.sort
    if order not in ("ASC", "DESC"):
        raise TypeProblemError("sort is a property and ASC or DESC")
    return {"property": name, "order": order}


def _is_list_of_entities(bare: Any) -> bool:
    return typing.get_origin(bare) is list and _unwrap(typing.get_args(bare)[0])[0] is Entity


def _name(bare: Any) -> str:
    return bare.__name__ if isinstance(bare, type) else str(bare)
