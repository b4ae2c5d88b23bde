"""A first look at inputs that costs no compiled validator: most are plain, and a cold start has to be short."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_IGNORED: Final = frozenset({"title", "description", "default", "examples", "$comment", "$schema", "$id"})
_KNOWN: Final = frozenset(
    {
        "type", "properties", "required", "additionalProperties", "enum", "items", "minItems", "maxItems",
        "minLength", "maxLength", "pattern", "minimum", "maximum",
    }
)  # fmt: skip


def surely_valid(schema: Any, value: Any) -> bool:
    """Whether a value certainly satisfies a JSON Schema of draft 7.

    False means only that it takes a full validator to tell: the value is wrong, or the schema says something that
    this function does not know.
    """
    if not isinstance(schema, Mapping):
        return False
    if any(key not in _KNOWN and key not in _IGNORED for key in schema):
        return False
    kinds = schema.get("type", ())
    if kinds and not any(_is(kind, value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if "enum" in schema and not _among(schema["enum"], value):
        return False
    if isinstance(value, str):
        return _text(schema, value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int | float):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, list):
        long_enough = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return long_enough and (
            "items" not in schema or all(surely_valid(schema["items"], item) for item in value)
        )
    return isinstance(value, dict) and _object(schema, value)


def _is(kind: object, value: Any) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    return False


def _among(choices: Any, value: Any) -> bool:
    # Python's 1 equals True and 1.0, JSON's does not.
    return any(type(choice) is type(value) and choice == value for choice in choices) and not isinstance(
        value, list | dict
    )


def _text(schema: Mapping[str, Any], value: str) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return False
    pattern = schema.get("pattern")
    # Python's $ would also match before a line feed at the end.
    return pattern is None or re.search(pattern.replace("$", r"\Z"), value) is not None


def _object(schema: Mapping[str, Any], value: dict[str, Any]) -> bool:
    properties = schema.get("properties", {})
    further = schema.get("additionalProperties", True)
    if any(name not in value for name in schema.get("required", ())):
        return False
    for name, item in value.items():
        if name in properties:
            if not surely_valid(properties[name], item):
                return False
        elif further is not True:
            return False
    return True
