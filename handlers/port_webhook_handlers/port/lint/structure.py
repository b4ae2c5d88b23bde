"""PW1xx: keys and values of the document, as Port's API takes them."""

import re
from collections.abc import Iterator
from typing import Any

from port_webhook_handlers.port.definitions import (
    Action,
    ApprovalNotification,
    ArrayInput,
    Automation,
    AutomationTrigger,
    BooleanInput,
    Event,
    IntegrationAction,
    Node,
    NumberInput,
    ObjectInput,
    OtherMethod,
    SelfServiceTrigger,
    StringInput,
    UpsertEntity,
    UserInput,
    UserInputs,
)
from port_webhook_handlers.port.definitions.methods import FLAG_OR_TEMPLATE, METHODS
from port_webhook_handlers.port.definitions.node import (
    ANY,
    DefinitionError,
    Either,
    NodeOf,
    Spec,
    join,
    kind,
    nearest,
    specs,
)
from port_webhook_handlers.port.definitions.triggers import ENTITY_EVENTS, RUN_EVENTS, TIMER_EVENT
from port_webhook_handlers.port.lint.finding import Context, Finding, suggestion
from port_webhook_handlers.port.names import is_identifier, is_input_name
from port_webhook_handlers.port.templates import has_template

_SERVER_KEYS = {"id", "_id", "orgId", "createdAt", "createdBy", "updatedAt", "updatedBy"}
_V1_KEYS = {"userInputs", "blueprint", "order"}
_TEMPLATE = re.compile(r"\s*\{\{.*\}\}\s*", re.DOTALL)
_BUTTON = re.compile(r"\S(?:.*\S)", re.DOTALL)

# Objects and names that Port demands beside the required strings of the model.
_REQUIRED: dict[type[Node], tuple[str, ...]] = {
    Action: ("trigger", "invocationMethod"),
    Automation: ("trigger", "invocationMethod"),
    AutomationTrigger: ("event",),
    UserInputs: ("properties",),
    UpsertEntity: ("mapping",),
    IntegrationAction: ("integrationActionExecutionProperties",),
}


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """The parts of a definition with their paths, outermost first."""
    yield path, node
    for spec in specs(type(node)).values():
        yield from _below(getattr(node, spec.name), join(path, spec.key))


def _below(value: Any, path: str) -> Iterator[tuple[str, Node]]:
    match value:
        case Node():
            yield from walk(value, path)
        case tuple():
            for index, item in enumerate(value):
                yield from _below(item, join(path, index))
        case dict():
            for key, item in value.items():
                yield from _below(item, join(path, key))


def check(context: Context) -> Iterator[Finding]:
    """Unknown, missing and wrong keys and values."""
    for path, node in walk(context.definition):
        yield from _extra(context, path, node)
        yield from _required(context, path, node)
        yield from _values(context, path, node)
    yield from _names(context)


def _extra(context: Context, path: str, node: Node) -> Iterator[Finding]:
    known = specs(type(node))
    for key, value in node.extra.items():
        where = join(path, key)
        spec = known.get(key)
        if spec is None:
            if not isinstance(node, OtherMethod):
                yield _unknown(context, where, key, node)
        elif value is None:
            if not _takes_null(spec) and not _is_required(node, spec):
                yield context.warning("PW103", where, "is null", "leave the key out")
        else:
            try:
                spec.codec.parse(value, where)
            except DefinitionError as error:
                if key == "trigger":
                    yield _wrong_trigger(context, where, value)
                else:
                    yield context.error("PW103", error.path, error.problem, error.remedy)


def _unknown(context: Context, where: str, key: str, node: Node) -> Finding:
    if isinstance(node, Action | Automation):
        if key in _SERVER_KEYS:
            return context.error("PW101", where, "is added by Port to its replies", "leave it out")
        if key in _V1_KEYS:
            return context.error(
                "PW101",
                where,
                "belongs to Port's retired v1 form",
                "move it into trigger, as the v2 form has it",
            )
    if isinstance(node, UserInput) and node.TYPE and any(key in specs(cls) for cls in _INPUTS):
        return context.warning(
            "PW101",
            where,
            f"does not apply to an input of type {node.TYPE}",
            "leave it out or change the type",
        )
    known = [*specs(type(node)), *(["type"] if node.TYPE else [])]
    near = nearest(key, known)
    remedy = f"did you mean {near}?" if near else f"write one of {', '.join(known)}"
    if node.STRICT or near:
        return context.error("PW101", where, f"is not a key of {_called(node)}", remedy)
    return context.warning("PW101", where, f"is not a key that Port documents for {_called(node)}", remedy)


def _called(node: Node) -> str:
    return f"type {node.TYPE}" if node.TYPE else node.MEANING


_INPUTS = (StringInput, NumberInput, BooleanInput, ObjectInput, ArrayInput)


def _is_required(node: Node, spec: Spec) -> bool:
    return spec.required or spec.key in _REQUIRED.get(type(node), ())


def _takes_null(spec: Spec) -> bool:
    return isinstance(spec.codec, Either) and ANY in spec.codec.forms


def _wrong_trigger(context: Context, where: str, value: Any) -> Finding:
    if not isinstance(value, dict):
        return context.error(
            "PW103",
            where,
            f"is {kind(value)}",
            'write an object with a type, as Port\'s v2 form has it ({"type": "self-service", "operation": …})',
        )
    if "type" not in value:
        return context.error("PW102", join(where, "type"), "is missing", "write self-service or automation")
    return context.error(
        "PW104",
        join(where, "type"),
        f"is {value['type']!r}",
        suggestion(str(value["type"]), ("self-service", "automation"), "write self-service or automation"),
    )


def _required(context: Context, path: str, node: Node) -> Iterator[Finding]:
    for spec in specs(type(node)).values():
        if spec.required and getattr(node, spec.name) == "" and node.extra.get(spec.key) is None:
            problem = "is null" if spec.key in node.extra else "is missing"
            if spec.key in node.key_order and spec.key not in node.extra:
                problem = "is empty"
            yield context.error("PW102", join(path, spec.key), problem, _expected(spec))
    for key in _REQUIRED.get(type(node), ()):
        spec = specs(type(node))[key]
        if getattr(node, spec.name) is None and node.extra.get(key) is None:
            problem = "is null" if key in node.extra else "is missing"
            yield context.error("PW102", join(path, key), problem, _expected(spec))
    match node:
        case SelfServiceTrigger(user_inputs=None) if "userInputs" not in node.extra:
            # Port's API reference demands it, yet its guides show actions without a form.
            yield context.warning(
                "PW102",
                join(path, "userInputs"),
                "is missing",
                'write {"properties": {}} for a form without inputs',
            )
        case Event():
            for key in _event_keys(node.type):
                if not getattr(node, specs(Event)[key].name) and key not in node.extra:
                    yield context.error("PW102", join(path, key), "is missing", f"{node.type} needs it")
        case ApprovalNotification(type="webhook"):
            for key in ("url", "format"):
                if getattr(node, key) is None and key not in node.extra:
                    yield context.error(
                        "PW102", join(path, key), "is missing", "a notification by webhook needs it"
                    )
        case StringInput(format="entity", blueprint=None) if "blueprint" not in node.extra:
            yield context.error(
                "PW102",
                join(path, "blueprint"),
                "is missing",
                "an input of format entity needs its blueprint",
            )
        case IntegrationAction(integration_action_type="dispatch_workflow"):
            workflow = node.integration_action_execution_properties
            for key in ("org", "repo", "workflow") if workflow else ():
                if getattr(workflow, key) is None and workflow and key not in workflow.extra:
                    where = join(join(path, "integrationActionExecutionProperties"), key)
                    yield context.error("PW102", where, "is missing", "dispatch_workflow needs it")


def _event_keys(event: str) -> tuple[str, ...]:
    if event == TIMER_EVENT:
        return ("blueprintIdentifier", "propertyIdentifier")
    if event in ENTITY_EVENTS:
        return ("blueprintIdentifier",)
    return ("actionIdentifier",) if event in RUN_EVENTS else ()


def _expected(spec: Spec) -> str:
    if spec.choices:
        return f"write one of {', '.join(spec.choices)}"
    return f"write {spec.codec.base.MEANING}" if isinstance(spec.codec, NodeOf) else "write it"


def _values(context: Context, path: str, node: Node) -> Iterator[Finding]:
    for spec in specs(type(node)).values():
        value = getattr(node, spec.name)
        if not isinstance(value, str):
            continue
        where = join(path, spec.key)
        if spec.choices and value and value not in spec.choices and not has_template(value):
            near = nearest(value, spec.choices)
            report = context.error if spec.closed or near else context.warning
            remedy = f"did you mean {near}?" if near else f"write one of {', '.join(spec.choices)}"
            yield report("PW104", where, f"is {value!r}", remedy)
        if spec.codec is FLAG_OR_TEMPLATE and not _TEMPLATE.fullmatch(value):
            yield context.error(
                "PW107", where, f"is the text {value!r}", "write true, false or one {{ … }} template"
            )
    if isinstance(node, SelfServiceTrigger):
        for key in ("actionCardButtonText", "executeActionButtonText"):
            text = getattr(node, specs(SelfServiceTrigger)[key].name)
            if text is not None and not (len(text) <= 15 and _BUTTON.fullmatch(text)):
                yield context.error(
                    "PW108",
                    join(path, key),
                    f"has {len(text)} characters",
                    "write 2 to 15, no blank at either end",
                )
    if isinstance(node, OtherMethod) and node.type:
        yield context.warning(
            "PW106",
            join(path, "type"),
            f"is {node.type!r}, which Port's API reference does not list",
            suggestion(node.type, METHODS, f"write one of {', '.join(METHODS)} if you can"),
        )


def _names(context: Context) -> Iterator[Finding]:
    identifier = context.definition.identifier
    if identifier and not is_identifier(identifier):
        yield context.error(
            "PW105", "identifier", f"is {identifier!r}", "use letters, digits and @ _ . + : = - only"
        )
    for path, node in walk(context.definition):
        if isinstance(node, UserInputs):
            for name in node.properties or ():
                if not is_input_name(name):
                    yield context.error(
                        "PW105",
                        join(join(path, "properties"), name),
                        "is not a name for an input",
                        "use ASCII letters, digits and @ _ = - only",
                    )
