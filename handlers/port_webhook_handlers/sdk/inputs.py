"""`Inputs`: the user inputs of an action, declared as a class with type hints."""

from __future__ import annotations

import dataclasses
import functools
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar, Self, dataclass_transform

from port_webhook_handlers.port.names import is_input_name
from port_webhook_handlers.sdk import kinds
from port_webhook_handlers.sdk.errors import HandlerDefinitionError, InputError, SourceLocation
from port_webhook_handlers.sdk.fields import JQ, Field, Step, Title
from port_webhook_handlers.sdk.kinds import Json
from port_webhook_handlers.sdk.typing_kinds import TypeProblemError, kind_of
from port_webhook_handlers.sdk.values import to_json


@dataclass(frozen=True)
class Input:
    """One input of a form.

    Attributes:
        attribute: name in Python.
        key: name in Port.
        kind: what it holds.
        options: what else the form shows.
        optional: whether the handler takes None.
        default: JSON of the constant default; `MISSING` when there is none.
    """

    attribute: str
    key: str
    kind: kinds.Kind
    options: Field
    optional: bool
    default: Any

    MISSING: ClassVar[object] = object()

    @property
    def required(self) -> bool:
        return not self.optional and self.default is Input.MISSING

    @property
    def encrypted(self) -> bool:
        return isinstance(self.kind, kinds.Encrypted)

    def form(self, key_of: Mapping[str, str]) -> Json:
        """Its body in `userInputs.properties`."""
        options = self.options
        body = self.kind.form
        for name, value in (
            ("title", options.title),
            ("description", options.description),
            ("icon", options.icon),
            ("default", options.default if options.default is not None else self._form_default),
            ("dependsOn", None if options.depends_on is None else [key_of[a] for a in options.depends_on]),
            ("visible", options.visible),
            ("disabled", options.disabled),
        ):
            if value is not None:
                body[name] = value.to_json() if isinstance(value, JQ) else value
        return body

    @property
    def _form_default(self) -> Any:
        return None if self.default is Input.MISSING else self.default

    def schema(self, *, encrypted: bool) -> Json:
        kind = self.kind
        schema = kind.plain.schema if isinstance(kind, kinds.Encrypted) and not encrypted else kind.schema
        return schema if self.required else kinds.nullable(schema)


@dataclass(frozen=True)
class Form:
    """All that is known about a class of inputs.

    Attributes:
        inputs: in the order of their declaration.
        required: which inputs the form demands; an expression replaces the constant list (Port's rule).
        order, steps: arrangement, by key; at most one of the two.
        titles: headings by key.
    """

    inputs: tuple[Input, ...] = ()
    required: JQ | None = None
    order: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    titles: Mapping[str, Title] = dataclasses.field(default_factory=dict)

    @property
    def key_of(self) -> dict[str, str]:
        """Port's name by Python name; titles keep theirs."""
        return {item.attribute: item.key for item in self.inputs} | {key: key for key in self.titles}

    def to_port(self) -> Json:
        """Port's `userInputs`."""
        key_of = self.key_of
        body: Json = {"properties": {item.key: item.form(key_of) for item in self.inputs}}
        if self.required is not None:
            body["required"] = self.required.to_json()
        elif required := [item.key for item in self.inputs if item.required]:
            body["required"] = required
        if self.titles:
            body["titles"] = {
                key: _with_visible(title, "title", "description") for key, title in self.titles.items()
            }
        if self.steps:
            body["steps"] = [
                _with_visible(step, "title") | {"order": [key_of[name] for name in step.inputs]}
                for step in self.steps
            ]
        elif self.order:
            body["order"] = [key_of[name] for name in self.order]
        return body

    def schema(self, *, encrypted: bool = True) -> Json:
        """JSON Schema, draft 7, of the inputs of a request.

        Args:
            encrypted: whether encrypted inputs are still so, as in the request, or plain.
        """
        schema: Json = {
            "type": "object",
            "properties": {item.key: item.schema(encrypted=encrypted) for item in self.inputs},
            "additionalProperties": False,
        }
        if required := [item.key for item in self.inputs if item.required]:
            schema["required"] = required
        return schema

    def check_defaults(self) -> None:
        """Refuses a default that the listener would refuse.

        Not part of the declaration, because it needs the validator, which a running handler does without.

        Raises:
            ValueError: names the input and the rule.
        """
        import fastjsonschema

        for item in self.inputs:
            if item.default is Input.MISSING or item.default is None:
                continue
            try:
                fastjsonschema.compile(item.kind.schema)(item.default)
            except fastjsonschema.JsonSchemaValueException as error:
                problem = error.message.removeprefix("data").lstrip()
                raise ValueError(
                    f"{item.attribute}: the default {problem}; nobody could send the form"
                ) from None

    @functools.cached_property
    def encrypted(self) -> tuple[str, ...]:
        """Keys of the inputs that arrive encrypted."""
        return tuple(item.key for item in self.inputs if item.encrypted)

    @functools.cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(item.key for item in self.inputs)

    @functools.cached_property
    def _conversions(self) -> tuple[tuple[str, str, Callable[[object, str], object], bool, bool], ...]:
        return tuple(
            (item.key, item.attribute, item.kind.convert, item.required, item.optional)
            for item in self.inputs
        )

    def convert(self, values: Mapping[str, Any], path: str = "inputs") -> dict[str, Any]:
        """Attributes of the inputs of a request; those it leaves out are not among them.

        Raises:
            InputError: an input is missing, unknown or of another type.
        """
        if not self._keys.issuperset(values):
            key = next(key for key in values if key not in self._keys)
            raise InputError(f"{path}.{key}", "is not an input of this action")
        attributes: dict[str, Any] = {}
        for key, attribute, convert, required, optional in self._conversions:
            value = values.get(key)
            if value is not None:
                attributes[attribute] = convert(value, f"{path}.{key}")
            elif required:
                raise InputError(f"{path}.{key}", "is missing")
            elif optional and key in values:
                attributes[attribute] = None
        return attributes


def _with_visible(part: Step | Title, *names: str) -> Json:
    body: Json = {}
    for name in (*names, "visible"):
        value = getattr(part, name)
        if value is not None:
            body[name] = value.to_json() if isinstance(value, JQ) else value
    return body


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
class Inputs:
    """Base of a class whose annotated attributes are the user inputs of an action.

    A subclass is a frozen dataclass: `class Deploy(Inputs): version: str`. An attribute without default
    that does not take None is required. Arguments of the class statement arrange the form:

    - `input_order`: attributes and keys of titles, in order; by default that of their declaration.
    - `steps`: `Step`s, in place of `input_order`.
    - `titles`: `Title` by key.
    - `required`: a `jq` expression that yields the keys that the form demands.

    Raises:
        HandlerDefinitionError: when the class is declared, for a type that Port has no input for, or an
            option that does not fit.
    """

    port_form: ClassVar[Form] = Form()

    def __init_subclass__(
        cls,
        *,
        input_order: Sequence[str] | None = None,
        steps: Sequence[Step] | None = None,
        titles: Mapping[str, Title] | None = None,
        required: JQ | None = None,
    ) -> None:
        super().__init_subclass__()
        frame = sys._getframe(1)
        location = SourceLocation(frame.f_code.co_filename, frame.f_lineno)
        try:
            # The values of encrypted inputs must not end up in a log.
            dataclass(frozen=True, kw_only=True, repr=False)(cls)
            cls.port_form = _arrange(_inputs_of(cls, frame), input_order, steps, titles or {}, required)
        except (TypeProblemError, ValueError, TypeError) as error:
            raise HandlerDefinitionError(location, f"inputs {cls.__name__}: {_remedy(error)}") from None

    def __repr__(self) -> str:
        shown = (
            f"{item.attribute}={'***' if item.encrypted else repr(getattr(self, item.attribute))}"
            for item in self.port_form.inputs
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def to_json(self) -> Json:
        """The inputs as a request holds them, encrypted ones in plain."""
        return {item.key: to_json(getattr(self, item.attribute), item.key) for item in self.port_form.inputs}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """An instance from the inputs of a request, of which encrypted ones are decrypted.

        Raises:
            InputError: an input is missing, unknown or of another type.
        """
        return cls(**cls.port_form.convert(values))


def _remedy(error: Exception) -> str:
    text = str(error)
    if "mutable default" in text:
        return f"{text.split(':')[0]}; use dataclasses.field(default_factory=…)"
    return text


def _inputs_of(cls: type[Inputs], frame: FrameType) -> tuple[Input, ...]:
    try:
        hints = typing.get_type_hints(cls, localns=dict(frame.f_locals), include_extras=True)
    except NameError as error:
        raise ValueError(f"{error}; types of inputs must be defined above the class") from None
    inputs: list[Input] = []
    for attribute in dataclasses.fields(cls):  # type: ignore[arg-type]
        if hasattr(Inputs, attribute.name):
            raise ValueError(
                f"{attribute.name}: the name is taken; use another with Field(key={attribute.name!r})"
            )
        try:
            parsed = kind_of(hints[attribute.name])
        except TypeProblemError as error:
            raise TypeProblemError(f"{attribute.name}: {error}") from None
        options = parsed.options
        key = options.key or attribute.name
        if not is_input_name(key):
            raise ValueError(f"{attribute.name}: the key {key!r} may hold letters, digits and @ _ = - only")
        if any(other.key == key for other in inputs):
            raise ValueError(
                f"{attribute.name}: the key {key!r} is used twice; give another with Field(key=…)"
            )
        default = _default_of(attribute)
        item = Input(attribute.name, key, parsed.kind, options, parsed.optional, default)
        _check_default(item)
        inputs.append(item)
    return tuple(inputs)


def _default_of(attribute: dataclasses.Field[Any]) -> Any:
    if attribute.default is not dataclasses.MISSING:
        value = attribute.default
    elif attribute.default_factory is not dataclasses.MISSING:
        value = attribute.default_factory()
    else:
        return Input.MISSING
    if isinstance(value, Field | JQ):
        raise TypeError(
            f"{attribute.name}: {type(value).__name__} is no default; write Annotated[type, Field(…)], "
            "and Field(default=jq(…)) for an expression"
        )
    return to_json(value, attribute.name)


def _check_default(item: Input) -> None:
    if item.default is Input.MISSING:
        return
    if item.default is None:
        if not item.optional:
            raise ValueError(f"{item.attribute}: the default is None; declare the type as … | None")
        return
    if item.encrypted:
        raise ValueError(
            f"{item.attribute}: an encrypted input cannot have a default, everyone could read it"
        )
    try:
        item.kind.convert(item.default, item.attribute)
    except InputError as error:
        raise ValueError(f"{item.attribute}: the default {error.problem}") from None


def _arrange(
    inputs: tuple[Input, ...],
    order: Sequence[str] | None,
    steps: Sequence[Step] | None,
    titles: Mapping[str, Title],
    required: JQ | None,
) -> Form:
    attributes = [item.attribute for item in inputs]
    if order is not None and steps is not None:
        raise ValueError("input_order and steps exclude each other; give one of them")
    for key, title in titles.items():
        if key in attributes or any(item.key == key for item in inputs):
            raise ValueError(f"titles: {key!r} is an input; give the title a key of its own")
        if not 1 <= len(title.title) <= 140 or len(title.description or "") > 1000:
            raise ValueError(f"titles.{key}: a title has 1 to 140 characters, its description at most 1000")
    for item in inputs:
        for name in item.options.depends_on or ():
            if name not in attributes or name == item.attribute:
                raise ValueError(
                    f"{item.attribute}: depends_on names {name!r}, which is no other input of the class"
                )
    if required is not None and not isinstance(required, JQ):
        raise TypeError("required: must be a jq expression; a constant list follows from the types")
    placed = [name for step in steps for name in step.inputs] if steps is not None else list(order or ())
    for name in placed:
        if name not in attributes and name not in titles:
            raise ValueError(
                f"{'steps' if steps is not None else 'input_order'}: {name!r} is neither an input nor a title"
            )
        if placed.count(name) > 1:
            raise ValueError(f"{name!r} is placed twice; once is enough")
    if order is None and steps is None:
        if titles:
            raise ValueError("titles: place them by their keys in input_order or steps")
        return Form(inputs, required, tuple(attributes))
    missing = [name for name in (*attributes, *titles) if name not in placed]
    if missing:
        raise ValueError(f"{', '.join(missing)} is not placed; name every input and title")
    if steps is not None:
        return Form(inputs, required, (), tuple(steps), dict(titles))
    return Form(inputs, required, tuple(placed), (), dict(titles))
