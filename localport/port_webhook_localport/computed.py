"""Mirror and calculation properties: part of an entity when it is read, never stored."""

from __future__ import annotations

from typing import Any

from port_webhook_localport.expressions import ExpressionError, evaluate
from port_webhook_localport.port import Port

# Properties that every entity has, by the names that Port's paths and searches use.
META = {
    "$identifier": "identifier",
    "$blueprint": "blueprint",
    "$title": "title",
    "$team": "team",
    "$icon": "icon",
    "$createdAt": "createdAt",
    "$updatedAt": "updatedAt",
    "$createdBy": "createdBy",
    "$updatedBy": "updatedBy",
}


def with_computed(port: Port, model: dict[str, Any], entity: dict[str, Any]) -> dict[str, Any]:
    """The entity with its mirror properties, and calculations on top of those; null what has no value.

    Aggregation properties are not computed.
    """
    mirrors, calculations = model.get("mirrorProperties", {}), model.get("calculationProperties", {})
    if not mirrors and not calculations:
        return entity
    shown = {**entity, "properties": dict(entity["properties"])}
    for name, rule in mirrors.items():
        path = rule.get("path") if isinstance(rule, dict) else None
        shown["properties"][name] = _mirror(port, model, entity, path) if isinstance(path, str) else None
    for name, rule in calculations.items():
        expression = rule.get("calculation") if isinstance(rule, dict) else None
        if isinstance(expression, str):
            shown["properties"][name] = _calculate(expression, shown)
    return shown


def _mirror(port: Port, model: dict[str, Any], entity: dict[str, Any], path: str) -> Any:
    head, _, rest = path.partition(".")
    if not rest:
        return entity.get(META[head]) if head in META else entity["properties"].get(head)
    relation = model.get("relations", {}).get(head)
    target = entity["relations"].get(head)
    if relation is None or target is None:
        return None
    other = port.store.document("SELECT doc FROM blueprints WHERE identifier = ?", (relation["target"],))
    if other is None:
        return None

    def follow(identifier: str) -> Any:
        found = port.store.document(
            "SELECT doc FROM entities WHERE blueprint = ? AND identifier = ?",
            (relation["target"], identifier),
        )
        return None if found is None else _mirror(port, other, found, rest)

    return [follow(item) for item in target] if isinstance(target, list) else follow(target)


def _calculate(expression: str, entity: dict[str, Any]) -> Any:
    try:
        return evaluate(expression, entity)
    except ExpressionError:
        return None
