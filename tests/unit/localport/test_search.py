from __future__ import annotations

from typing import Any

import pytest

from port_webhook_localport.search import matches
from port_webhook_localport.web import ApiError

ENTITY: dict[str, Any] = {
    "identifier": "cart",
    "title": "Cart",
    "team": ["a"],
    "properties": {"tier": "gold", "replicas": 3, "tags": ["x", "y"], "on": True, "empty": ""},
}


@pytest.mark.parametrize(
    ("name", "operator", "value", "result"),
    [
        ("tier", "=", "gold", True),
        ("tier", "!=", "gold", False),
        ("on", "=", True, True),
        ("on", "=", 1, False),
        ("replicas", ">", 2, True),
        ("replicas", ">=", 3, True),
        ("replicas", "<", "9", False),
        ("absent", ">", 1, False),
        ("tags", "contains", "x", True),
        ("tags", "doesNotContains", "z", True),
        ("tags", "containsAny", ["z", "y"], True),
        ("tier", "contains", "ol", True),
        ("tier", "in", ["gold", "silver"], True),
        ("tier", "notIn", ["silver"], True),
        ("tier", "beginsWith", "go", True),
        ("tier", "endsWith", "go", False),
        ("empty", "isEmpty", None, True),
        ("absent", "isNotEmpty", None, False),
        ("$identifier", "=", "cart", True),
        ("$team", "contains", "a", True),
    ],
)
def test_rules(name: str, operator: str, value: Any, result: bool) -> None:
    rule = {"property": name, "operator": operator, "value": value}
    assert matches({"combinator": "and", "rules": [rule]}, ENTITY) is result


def test_combinators_and_nesting() -> None:
    yes = {"property": "tier", "operator": "=", "value": "gold"}
    no = {"property": "tier", "operator": "=", "value": "tin"}
    assert matches({"combinator": "or", "rules": [no, yes]}, ENTITY)
    assert not matches({"combinator": "and", "rules": [no, yes]}, ENTITY)
    assert matches({"combinator": "and", "rules": [yes, {"combinator": "or", "rules": [no, yes]}]}, ENTITY)


@pytest.mark.parametrize(
    "rule",
    [
        {"operator": "relatedTo", "blueprint": "service", "value": "x"},
        {"property": "tier", "operator": "sounds like", "value": "x"},
        {"property": "tier", "operator": "=", "value": {"jqQuery": ".x"}},
    ],
)
def test_what_is_not_evaluated_says_so(rule: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as raised:
        matches({"rules": [rule]}, ENTITY)
    assert raised.value.status == 501
