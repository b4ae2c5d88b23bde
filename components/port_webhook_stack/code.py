"""Python for existing definitions: typed where that says the same, else Port's body."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import port_webhook_handlers.port as port
from port_webhook_handlers.port import definitions
from port_webhook_handlers.port.definitions import (
    Action,
    Automation,
    AutomationTrigger,
    DefinitionError,
    JqCondition,
    JqQuery,
    Node,
    SelfServiceTrigger,
    definition_from_body,
)
from port_webhook_stack.port.normalise import canonical_action, same, with_order

_WIDTH = 100
_EVENTS: Mapping[str, str] = {
    "ENTITY_CREATED": "entity_created",
    "ENTITY_UPDATED": "entity_updated",
    "ENTITY_DELETED": "entity_deleted",
    "ANY_ENTITY_CHANGE": "any_entity_change",
    "TIMER_PROPERTY_EXPIRED": "timer_expired",
    "RUN_CREATED": "run_created",
    "RUN_UPDATED": "run_updated",
    "ANY_RUN_CHANGE": "any_run_change",
}


def module(bodies: Iterable[Mapping[str, Any]]) -> str:
    """A module whose `DEFINITIONS` are these actions and automations, in this order."""
    used: set[str] = set()
    items = []
    for body in bodies:
        # Builders say the order of inputs, and so does a resource.
        text, names = _definition(with_order(body))
        used |= names
        items.append(text)
    lines = ['"""Actions and automations that existed in Port; pass DEFINITIONS to WebhookStack."""', ""]
    imports = [
        _import("port_webhook_handlers.port", sorted(used & set(port.__all__))),
        _import("port_webhook_handlers.port.definitions", sorted(used - set(port.__all__))),
    ]
    lines += [line for line in imports if line]
    lines += ["", "DEFINITIONS = [", *(f"{_indented(item, 4)}," for item in items), "]"]
    return "\n".join(lines) + "\n"


def _import(package: str, names: list[str]) -> str:
    line = f"from {package} import {', '.join(names)}"
    if not names or len(line) <= _WIDTH:
        return line if names else ""
    return "\n".join([f"from {package} import (", *(f"    {name}," for name in names), ")"])


def _definition(body: Mapping[str, Any]) -> tuple[str, set[str]]:
    """One definition as an expression, and the names that it uses."""
    try:
        renderer = _Renderer()
        text = renderer.render(definition_from_body(body))
        names = {name: getattr(port, name, None) or getattr(definitions, name) for name in renderer.used}
        made = eval(text, {"__builtins__": {}}, names)  # noqa: S307 - what was rendered here, from quoted data
        if same(canonical_action(made.to_body()), canonical_action(body)):
            return text, renderer.used
    except DefinitionError:
        pass  # what no typed field can hold is written as Port has it
    return _Renderer().render(body), set()


class _Renderer:
    """Renders values as Python expressions, one line if it fits, else one line for each part."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def render(self, value: Any) -> str:
        match value:
            case Node():
                return self._node(value)
            case Mapping():
                pairs = [f"{self.render(key)}: {self.render(item)}" for key, item in value.items()]
                return _bracketed("{", pairs, "}")
            case list() | tuple():
                return _bracketed("[", [self.render(item) for item in value], "]")
            case str():
                # As a formatter would: double quotes unless that means more escapes.
                text = json.dumps(value, ensure_ascii=False)
                return repr(value) if '"' in value and "'" not in value else text
            case _:
                return repr(value)

    def _node(self, node: Node) -> str:
        for form in (self._jq, self._self_service, self._automation):
            text = form(node)
            if text is not None:
                return text
        values = _values(node)
        positional = []
        if isinstance(node, Action | Automation):
            positional.append(self.render(values.pop("identifier")))
        return self._call(type(node).__name__, positional, values)

    def _jq(self, node: Node) -> str | None:
        if not isinstance(node, JqQuery) or node.extra:
            return None
        return self._call("jq", [self.render(node.jq_query)], {})

    def _self_service(self, node: Node) -> str | None:
        """The builder has no words for button texts, headings and keys beside Port's."""
        if not isinstance(node, SelfServiceTrigger) or node.user_inputs is None:
            return None
        values, form = _values(node), _values(node.user_inputs)
        arguments = [values.pop("operation", ""), values.pop("blueprint_identifier", None)]
        condition = values.pop("condition", None)
        del values["user_inputs"]
        inputs = form.pop("properties", None)
        keywords = {
            "inputs": inputs or None,
            **{name: form.pop(name, None) for name in ("required", "order", "steps")},
            "condition": condition,
        }
        if values or form:
            return None
        if inputs and list(keywords["order"] or ()) == list(inputs):
            keywords["order"] = None  # what the builder does by itself
        positional = [self.render(argument) for argument in arguments if argument is not None]
        return self._call(
            "self_service", positional, {key: value for key, value in keywords.items() if value is not None}
        )

    def _automation(self, node: Node) -> str | None:
        if not isinstance(node, AutomationTrigger) or node.event is None or node.extra or node.event.extra:
            return None
        event = _values(node.event)
        builder = _EVENTS.get(event.pop("type"))
        subject = event.pop("blueprint_identifier", None) or event.pop("action_identifier", None)
        timer = event.pop("property_identifier", None)
        if builder is None or subject is None or event or (timer is not None) != (builder == "timer_expired"):
            return None
        text = self._call(builder, [self.render(item) for item in (subject, timer) if item is not None], {})
        condition = node.condition
        if condition is None:
            return text
        if not isinstance(condition, JqCondition) or condition.extra or not condition.expressions:
            return None
        conditions = [self.render(expression) for expression in condition.expressions]
        if condition.combinator == "or":
            conditions.append('combinator="or"')
        return _bracketed(f"{text}.when(", conditions, ")")

    def _call(self, name: str, positional: list[str], keywords: Mapping[str, Any]) -> str:
        self.used.add(name)
        parts = [*positional, *(f"{key}={self.render(value)}" for key, value in keywords.items())]
        return _bracketed(f"{name}(", parts, ")")


def _values(node: Node) -> dict[str, Any]:
    """Fields that differ from their defaults."""
    found = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if field.name not in ("key_order", "source") and (default is dataclasses.MISSING or value != default):
            found[field.name] = value
    return found


def _bracketed(opening: str, parts: list[str], closing: str) -> str:
    line = f"{opening}{', '.join(parts)}{closing}"
    if not parts or (len(line) <= _WIDTH and "\n" not in line):
        return line
    return "\n".join([opening, *(f"{_indented(part, 4)}," for part in parts), closing])


def _indented(text: str, width: int) -> str:
    return "\n".join(" " * width + line for line in text.split("\n"))
