"""The kinds of input: for each one, its form in Port, its JSON Schema and its Python value.

The three stand side by side because they must agree: what the form lets through the schema accepts, and
what the schema accepts converts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

from port_webhook_handlers.sdk.errors import InputError
from port_webhook_handlers.sdk.fields import JQ, ClientSideKey
from port_webhook_handlers.sdk.values import Entity, LabeledUrl

Json = dict[str, Any]


class Kind(Protocol):
    """One kind of input."""

    @property
    def form(self) -> Json:
        """Its keys in `userInputs.properties` (Port's names)."""

    @property
    def schema(self) -> Json:
        """JSON Schema, draft 7, of its value in a request."""

    def convert(self, value: object, path: str) -> object:
        """The Python value of a value that the schema accepts.

        Raises:
            InputError: the value does not have this kind.
        """


_EMAIL = r"[^@\s]+@[^@\s.]+(?:\.[^@\s.]+)*"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
# Checked in the listener; Port's other string formats only choose an editor.
_FORMAT_PATTERNS = {
    "email": _EMAIL,
    "url": r"[A-Za-z][A-Za-z0-9+.\-]*:[^\s]+",
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
}
_DATE_TIME = (
    r"(?!0000)\d{4}-\d\d-\d\d[Tt]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?([Zz]|[+\-]([01]\d|2[0-3]):[0-5]\d)"
)


def whole(pattern: str) -> str:
    r"""`pattern` for the listener's validator: the whole text must match.

    `\Z` instead of `$`, which would let a newline through after it; ASCII classes, because `\d` means
    0 to 9 in Port's form.
    """
    return rf"^(?a:{pattern})\Z"


def _anchored(pattern: str) -> str:
    anchored = pattern.startswith("^") and pattern.endswith("$") and "|" not in pattern
    return pattern if anchored else f"^(?:{pattern})$"


def _present(**values: object) -> Json:
    """The given values without those that are None; expressions in Port's form."""
    return {
        key: value.to_json() if isinstance(value, JQ) else value
        for key, value in values.items()
        if value is not None
    }


def _constant(value: object) -> object | None:
    """None for an expression, which only Port's form can evaluate."""
    return None if isinstance(value, JQ) else value


@dataclass(frozen=True)
class Text:
    """A string, with one of Port's formats."""

    format: str | None = None
    pattern: str | JQ | None = None
    min_length: int | None = None
    max_length: int | None = None
    enum: Sequence[str] | JQ | None = None
    enum_colors: Mapping[str, str] | None = None

    @property
    def form(self) -> Json:
        pattern = _anchored(self.pattern) if isinstance(self.pattern, str) else self.pattern
        return {"type": "string"} | _present(
            format=self.format,
            pattern=pattern,
            minLength=self.min_length,
            maxLength=self.max_length,
            enum=self.enum if isinstance(self.enum, JQ) or self.enum is None else list(self.enum),
            enumColors=None if self.enum_colors is None else dict(self.enum_colors),
        )

    @property
    def schema(self) -> Json:
        schema = {"type": "string"} | _present(
            minLength=self.min_length,
            maxLength=self.max_length,
            enum=None if isinstance(self.enum, JQ) or self.enum is None else list(self.enum),
        )
        patterns = [_FORMAT_PATTERNS[self.format]] if self.format in _FORMAT_PATTERNS else []
        if isinstance(self.pattern, str):
            patterns.append(self.pattern)
        match patterns:
            case [one]:
                schema["pattern"] = whole(one)
            case [first, second]:
                schema["pattern"] = rf"^(?=(?a:{first})\Z)(?a:{second})\Z"
        if self.format == "ipv6":
            schema["format"] = "ipv6"
        return schema

    def convert(self, value: object, path: str) -> str:
        if not isinstance(value, str):
            raise InputError(path, "must be text")
        return value


@dataclass(frozen=True)
class Number:
    """A number; Port's form knows no whole numbers, the listener does."""

    whole: bool
    minimum: float | None = None
    maximum: float | None = None
    enum: Sequence[float] | JQ | None = None
    enum_colors: Mapping[Any, str] | None = None

    @property
    def form(self) -> Json:
        return {"type": "number"} | _present(
            minimum=self.minimum,
            maximum=self.maximum,
            enum=self.enum if isinstance(self.enum, JQ) or self.enum is None else list(self.enum),
            enumColors=_colors(self.enum_colors),
        )

    @property
    def schema(self) -> Json:
        return {"type": "integer" if self.whole else "number"} | _present(
            minimum=self.minimum,
            maximum=self.maximum,
            enum=None if isinstance(self.enum, JQ) or self.enum is None else list(self.enum),
        )

    def convert(self, value: object, path: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(path, "must be a number")
        if not self.whole:
            return float(value)
        if isinstance(value, float) and not value.is_integer():
            raise InputError(path, "must be a whole number")
        return int(value)


@dataclass(frozen=True)
class Boolean:
    """A switch."""

    @property
    def form(self) -> Json:
        return {"type": "boolean"}

    @property
    def schema(self) -> Json:
        return {"type": "boolean"}

    def convert(self, value: object, path: str) -> bool:
        if not isinstance(value, bool):
            raise InputError(path, "must be true or false")
        return value


@dataclass(frozen=True)
class Choice:
    """One of fixed values, all of them strings or all of them numbers."""

    values: Sequence[str] | Sequence[float]
    enum_class: type[Enum] | None = None
    enum_colors: Mapping[Any, str] | None = None

    @property
    def form(self) -> Json:
        return {"type": self._type, "enum": list(self.values)} | _present(
            enumColors=_colors(self.enum_colors)
        )

    @property
    def schema(self) -> Json:
        return {"type": self._type, "enum": list(self.values)}

    @property
    def _type(self) -> str:
        return "string" if isinstance(self.values[0], str) else "number"

    def convert(self, value: object, path: str) -> object:
        for allowed in self.values:
            # bool equals int in Python, and 1.0 equals 1 in JSON too.
            if allowed == value and not isinstance(value, bool):
                return allowed if self.enum_class is None else self.enum_class(allowed)
        raise InputError(path, f"must be one of {', '.join(map(str, self.values))}")


@dataclass(frozen=True)
class DateTime:
    """A point in time, always with a time zone."""

    @property
    def form(self) -> Json:
        return {"type": "string", "format": "date-time"}

    @property
    def schema(self) -> Json:
        # The format checks the calendar, the pattern what the format leaves open.
        return {"type": "string", "format": "date-time", "pattern": whole(_DATE_TIME)}

    def convert(self, value: object, path: str) -> datetime:
        try:
            moment = datetime.fromisoformat(value.upper()) if isinstance(value, str) else None
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise InputError(path, "must be a date and time with time zone, such as 2026-01-02T03:04:05Z")
        return moment


@dataclass(frozen=True)
class EntityReference:
    """An entity of one blueprint: Port's form sends an object, a caller of its API an identifier."""

    blueprint: str
    dataset: Json | None = None
    sort: Json | None = None

    @property
    def form(self) -> Json:
        return {"type": "string", "format": "entity", "blueprint": self.blueprint} | _present(
            dataset=self.dataset, sort=self.sort
        )

    @property
    def schema(self) -> Json:
        return {
            "type": ["object", "string"],
            "minLength": 1,
            "required": ["identifier"],
            "properties": {"identifier": {"type": "string", "minLength": 1}},
        }

    def convert(self, value: object, path: str) -> Entity:
        return Entity.from_json(value, blueprint=self.blueprint, path=path)


@dataclass(frozen=True)
class LabeledLink:
    """A link with a text; callers may send the address alone."""

    @property
    def form(self) -> Json:
        return {"type": "string", "format": "labeled-url"}

    @property
    def schema(self) -> Json:
        return {
            "type": ["object", "string"],
            "pattern": whole(_FORMAT_PATTERNS["url"]),
            "required": ["url"],
            "properties": {
                "url": {"type": "string", "pattern": whole(_FORMAT_PATTERNS["url"])},
                "displayText": {"type": ["string", "null"]},
            },
        }

    def convert(self, value: object, path: str) -> LabeledUrl:
        if isinstance(value, str):
            return LabeledUrl(value)
        if isinstance(value, Mapping) and isinstance(value.get("url"), str):
            text = value.get("displayText")
            return LabeledUrl(value["url"], text if isinstance(text, str) else None)
        raise InputError(path, "must be an address, or an object with url and displayText")


@dataclass(frozen=True)
class Object:
    """A JSON object; its values are of one kind, or anything."""

    values: Kind | None = None

    @property
    def form(self) -> Json:
        return {"type": "object"}

    @property
    def schema(self) -> Json:
        return {"type": "object"} | (
            {} if self.values is None else {"additionalProperties": self.values.schema}
        )

    def convert(self, value: object, path: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise InputError(path, "must be an object")
        if self.values is None:
            return dict(value)
        return {key: self.values.convert(item, f"{path}.{key}") for key, item in value.items()}


@dataclass(frozen=True)
class Array:
    """A list of values of one kind."""

    items: Kind
    min_items: int | JQ | None = None
    max_items: int | JQ | None = None
    sort: Json | None = None

    @property
    def form(self) -> Json:
        return {"type": "array", "items": self.items.form} | _present(
            minItems=self.min_items, maxItems=self.max_items, sort=self.sort
        )

    @property
    def schema(self) -> Json:
        return {"type": "array", "items": self.items.schema} | _present(
            minItems=_constant(self.min_items), maxItems=_constant(self.max_items)
        )

    def convert(self, value: object, path: str) -> list[object]:
        if not isinstance(value, list | tuple):
            raise InputError(path, "must be a list")
        return [self.items.convert(item, f"{path}[{index}]") for index, item in enumerate(value)]


@dataclass(frozen=True)
class Anything:
    """Any JSON value inside an object or a list."""

    @property
    def form(self) -> Json:
        return {"type": "object"}

    @property
    def schema(self) -> Json:
        return {}

    def convert(self, value: object, path: str) -> object:
        return value


@dataclass(frozen=True)
class Encrypted:
    """A text or an object that arrives encrypted; the listener decrypts it before the handler starts.

    `schema` describes the encrypted value, which is what the receiver sees; `plain` the value itself.
    """

    plain: Kind
    key: ClientSideKey | None = None

    @property
    def form(self) -> Json:
        if self.key is None:
            return self.plain.form | {"encryption": "aes256-gcm"}
        return self.plain.form | {"encryption": {"algorithm": "client-side", "key": self.key.public_key}}

    @property
    def schema(self) -> Json:
        # Base64 of at least an initialisation vector and a tag.
        return {"type": "string", "minLength": 44, "pattern": whole(r"[A-Za-z0-9+/]+={0,2}")}

    def convert(self, value: object, path: str) -> object:
        import json

        if self.plain.form["type"] == "object" and isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise InputError(path, "must be an object in JSON") from None
        return self.plain.convert(value, path)


def nullable(schema: Json) -> Json:
    """`schema`, accepting null as well: the form may leave an input out in either way."""
    types = schema.get("type")
    if types is None:
        return schema
    schema = schema | {"type": [*([types] if isinstance(types, str) else types), "null"]}
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema


def check_pattern(pattern: str) -> None:
    """Refuses a regular expression that the listener could not use.

    Raises:
        ValueError: why, with the remedy.
    """
    try:
        re.compile(whole(pattern))
    except re.error as error:
        raise ValueError(f"the pattern is not a regular expression that Python can use: {error}") from None
    try:
        # The validator reads every unescaped dollar sign as the end of the text, even in brackets.
        re.compile(re.sub(r"(?<!\\)\$", r"\\Z", whole(pattern)))
    except re.error:
        raise ValueError(r"the pattern has $ in brackets; write \$ there") from None


def _colors(colors: Mapping[Any, str] | None) -> Json | None:
    return None if colors is None else {str(key): color for key, color in colors.items()}
