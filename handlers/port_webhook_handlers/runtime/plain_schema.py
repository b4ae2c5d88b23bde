"""A first look at inputs, which is all that most of them need: quick to make and quick to apply.

A full validator takes tens of milliseconds to compile, which a cold start would feel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Check = Callable[[Any], bool]

_IGNORED: Final = frozenset({"title", "description", "default", "examples", "$comment", "$schema", "$id"})
_KNOWN: Final = frozenset(
    {
        "type", "properties", "required", "additionalProperties", "enum", "items", "minItems", "maxItems",
        "minLength", "maxLength", "pattern", "minimum", "maximum",
    }
)  # fmt: skip

# A number without a fraction is an integer as well, but which library agrees with that is a matter of chance.
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}


def plain_check(schema: Any) -> Check:
    """A function that tells whether a value certainly satisfies a JSON Schema of draft 7; neither of them raises.

    Its False means only that it takes a full validator to tell: the value is wrong, or the schema says something
    that is not known here.
    """
    try:
        checks = _checks(schema)
    except (TypeError, ValueError, AttributeError, re.error):
        # It is no schema; the full validator says what is wrong with it.
        checks = {}

    def check(value: Any) -> bool:
        found = checks.get(type(value))
        return found is not None and found(value)

    return check


def _checks(schema: Any) -> dict[type, Check]:
    """What is checked of a value, by its type; other types are not known to be right."""
    if not isinstance(schema, Mapping) or any(key not in _KNOWN and key not in _IGNORED for key in schema):
        return {}
    kinds = schema.get("type", list(_TYPES))
    names = [kinds] if isinstance(kinds, str) else kinds
    types = [kind for name in names for kind in _TYPES.get(name, ())]
    checks: dict[type, Check] = {kind: _MAKERS[kind](schema) for kind in types}
    if "enum" in schema:
        return {kind: _among(schema["enum"], kind, check) for kind, check in checks.items()}
    return checks


def _anything(value: Any) -> bool:
    return True


def _nothing(value: Any) -> bool:
    return False


def _among(choices: Any, kind: type, check: Check) -> Check:
    if kind in (list, dict):
        return _nothing
    # Python's 1 equals True and 1.0, JSON's does not.
    allowed = frozenset(choice for choice in choices if type(choice) is kind)
    return lambda value: value in allowed and check(value)


def _bounds(schema: Mapping[str, Any], lowest: str, highest: str) -> tuple[float, float]:
    low, high = schema.get(lowest, -math.inf), schema.get(highest, math.inf)
    if not all(isinstance(bound, int | float) for bound in (low, high)):
        # Here, where it is noticed, and not when a request is compared with it.
        raise TypeError(f"{lowest} and {highest} are numbers")
    return low, high


def _text(schema: Mapping[str, Any]) -> Check:
    low, high = _bounds(schema, "minLength", "maxLength")
    pattern = schema.get("pattern")
    if pattern is None:
        return lambda value: low <= len(value) <= high
    body = pattern.removesuffix("$")
    if "$" in body or (body != pattern and body.endswith("\\")):
        return _nothing
    # Python's $ would also match before a line feed at the end.
    search = re.compile(pattern if body == pattern else body + r"\Z").search
    return lambda value: low <= len(value) <= high and search(value) is not None


def _number(schema: Mapping[str, Any]) -> Check:
    low, high = _bounds(schema, "minimum", "maximum")
    return lambda value: low <= value <= high


def _array(schema: Mapping[str, Any]) -> Check:
    low, high = _bounds(schema, "minItems", "maxItems")
    items = plain_check(schema["items"]) if "items" in schema else _anything
    return lambda value: low <= len(value) <= high and all(map(items, value))


def _object(schema: Mapping[str, Any]) -> Check:
    properties = {name: _checks(item) for name, item in schema.get("properties", {}).items()}
    required = frozenset(schema.get("required", ()))
    open_ended = schema.get("additionalProperties", True) is True

    def check(value: dict[str, Any]) -> bool:
        if not required <= value.keys():
            return False
        for name, item in value.items():
            checks = properties.get(name)
            if checks is None:
                if not open_ended:
                    return False
                continue
            found = checks.get(type(item))
            if found is None or not found(item):
                return False
        return True

    return check


_MAKERS: Final[Mapping[type, Callable[[Mapping[str, Any]], Check]]] = {
    str: _text,
    bool: lambda schema: _anything,
    type(None): lambda schema: _anything,
    int: _number,
    float: _number,
    list: _array,
    dict: _object,
}
