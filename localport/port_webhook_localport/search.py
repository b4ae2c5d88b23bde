"""Conditions of type SEARCH and entity searches, for the rules that need one entity alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from port_webhook_localport.computed import META
from port_webhook_localport.web import invalid_request, not_supported


def matches(query: dict[str, Any], entity: dict[str, Any]) -> bool:
    """Whether an entity passes a query `{combinator, rules}`; rules may be nested queries.

    Raises:
        ApiError: 422 for a malformed query, 501 for rules that local Port does not evaluate.
    """
    rules = query.get("rules")
    if not isinstance(rules, list):
        raise invalid_request("rules must be a list of conditions")
    combinator = query.get("combinator", "and")
    if combinator not in ("and", "or"):
        raise invalid_request("combinator must be and or or")
    results = [matches(rule, entity) if "rules" in rule else _passes(rule, entity) for rule in rules]
    return all(results) if combinator == "and" else any(results)


def _passes(rule: dict[str, Any], entity: dict[str, Any]) -> bool:
    operator = rule.get("operator")
    name = rule.get("property")
    if not isinstance(operator, str):
        raise invalid_request("a rule needs an operator")
    if not isinstance(name, str):
        raise not_supported(f"a search rule with operator {operator} and no plain property")
    actual = entity.get(META[name]) if name in META else entity["properties"].get(name)
    if operator == "isEmpty":
        return actual in (None, "", [], {})
    if operator == "isNotEmpty":
        return actual not in (None, "", [], {})
    expected = rule.get("value")
    if isinstance(expected, dict) and "jqQuery" in expected:
        raise not_supported("a search rule with a jqQuery value")
    compare = _OPERATORS.get(operator)
    if compare is None:
        raise not_supported(f"the search operator {operator}")
    return compare(actual, expected)


def _equal(actual: Any, expected: Any) -> bool:
    if isinstance(actual, bool) or isinstance(expected, bool):
        return actual is expected
    return bool(actual == expected)


def _ordered(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(actual: Any, expected: Any) -> bool:
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (actual, expected))
        texts = isinstance(actual, str) and isinstance(expected, str)
        return (numbers or texts) and test(actual, expected)

    return compare


def _contains(actual: Any, expected: Any) -> bool:
    if isinstance(actual, str):
        return isinstance(expected, str) and expected in actual
    return isinstance(actual, list) and any(_equal(item, expected) for item in actual)


def _within(actual: Any, expected: Any) -> bool:
    return isinstance(expected, list) and any(_equal(actual, item) for item in expected)


def _contains_any(actual: Any, expected: Any) -> bool:
    return isinstance(expected, list) and any(_contains(actual, item) for item in expected)


def _text(test: Callable[[str, str], bool]) -> Callable[[Any, Any], bool]:
    return lambda actual, expected: (
        isinstance(actual, str) and isinstance(expected, str) and test(actual, expected)
    )


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": _equal,
    "!=": lambda actual, expected: not _equal(actual, expected),
    ">": _ordered(lambda actual, expected: bool(actual > expected)),
    "<": _ordered(lambda actual, expected: bool(actual < expected)),
    ">=": _ordered(lambda actual, expected: bool(actual >= expected)),
    "<=": _ordered(lambda actual, expected: bool(actual <= expected)),
    "contains": _contains,
    "doesNotContains": lambda actual, expected: not _contains(actual, expected),
    "containsAny": _contains_any,
    "in": _within,
    "notIn": lambda actual, expected: not _within(actual, expected),
    "beginsWith": _text(str.startswith),
    "doesNotBeginsWith": lambda actual, expected: not _text(str.startswith)(actual, expected),
    "endsWith": _text(str.endswith),
    "doesNotEndsWith": lambda actual, expected: not _text(str.endswith)(actual, expected),
}
