"""PW4xx: how definitions fit together, and to what exists in Port."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from port_webhook_handlers.port.definitions import (
    Action,
    Automation,
    EntityMapping,
    StringInput,
    UpsertEntity,
    Webhook,
)
from port_webhook_handlers.port.definitions.inputs import ArrayInput, Rule, RuleGroup
from port_webhook_handlers.port.definitions.node import join
from port_webhook_handlers.port.definitions.triggers import ENTITY_EVENTS, RUN_EVENTS, TIMER_EVENT
from port_webhook_handlers.port.lint.expressions import uses
from port_webhook_handlers.port.lint.finding import BlueprintShape, Context, Finding, Known, suggestion
from port_webhook_handlers.port.lint.structure import walk
from port_webhook_handlers.port.names import action_run_by, port_api_path, route_name
from port_webhook_handlers.port.templates import has_template

_ENTITY_MEMBER = re.compile(r"(?<![\w\"\])?])\.entity\.(properties|relations)\.([A-Za-z_]\w*)")
_DIFF_MEMBER = re.compile(
    r"(?<![\w\"\])?])(?:\.event)?\.diff\.(?:before|after)\.(properties|relations)\.([A-Za-z_]\w*)"
)
# Writing an entity never creates it twice, so ENTITY_CREATED cannot come back from an upsert of the same one.
_FIRED_BY_UPSERT = {"ENTITY_UPDATED", "ANY_ENTITY_CHANGE"}


def check(context: Context) -> Iterator[Finding]:
    """One definition among the others."""
    yield from _port_api(context)
    yield from _loops(context)
    yield from _actions(context)
    yield from _routes(context)
    yield from _blueprints(context)
    yield from _properties(context)


def check_set(contexts: Sequence[Context], known: Known) -> Iterator[Finding]:
    """What only the whole set shows."""
    counts = Counter(context.definition.identifier for context in contexts)
    for context in contexts:
        identifier = context.definition.identifier
        if identifier and counts[identifier] > 1:
            yield context.error(
                "PW402",
                "identifier",
                f"{identifier!r} is defined {counts[identifier]} times",
                "rename all but one",
            )
    used = {route_name(_url(context) or "") for context in contexts}
    for route in sorted(set(known.routes or ()) - used - set(known.unmanaged)):
        yield Finding(
            "PW408",
            "warning",
            f"routes.{route}",
            "is served by a handler, but no definition invokes it",
            f"write an action whose url is route:{route}",
        )


def _url(context: Context) -> str | None:
    method = context.definition.invocation_method
    return method.url if isinstance(method, Webhook) else None


def _port_api(context: Context) -> Iterator[Finding]:
    method = context.definition.invocation_method
    if (
        isinstance(context.definition, Automation)
        and isinstance(method, Webhook)
        and port_api_path(method.url) is not None
        and method.synchronized in (None, False)
    ):
        yield context.warning(
            "PW401",
            "invocationMethod.synchronized",
            "is not true, so the automation's run stays in progress",
            "write true: Port then ends the run by its API's answer",
        )


def _loops(context: Context) -> Iterator[Finding]:
    definition = context.definition
    if (
        not isinstance(definition, Automation)
        or definition.trigger is None
        or definition.trigger.event is None
    ):
        return
    event, method = definition.trigger.event, definition.invocation_method
    if (
        event.type in RUN_EVENTS
        and event.action_identifier
        and event.action_identifier == definition.identifier
    ):
        yield context.error(
            "PW403",
            "trigger.event.actionIdentifier",
            "is the automation itself, so each of its runs starts another",
            "name another action",
        )
    unconditional = definition.trigger.condition is None and "condition" not in definition.trigger.extra
    if (
        event.type in _FIRED_BY_UPSERT
        and isinstance(method, UpsertEntity)
        and method.blueprint_identifier == event.blueprint_identifier
        and unconditional
    ):
        yield context.warning(
            "PW403",
            "trigger.condition",
            f"is missing, and the automation writes the {event.blueprint_identifier} entities that start it",
            "add a condition that is false after its own change",
        )


def _actions(context: Context) -> Iterator[Finding]:
    known = context.known.actions
    if known is None:
        return
    actions = {*known, *context.identifiers}
    definition, method = context.definition, context.definition.invocation_method
    named: list[tuple[str, str | None]] = []
    if isinstance(definition, Automation) and definition.trigger and definition.trigger.event:
        named.append(("trigger.event.actionIdentifier", definition.trigger.event.action_identifier))
    if isinstance(method, Webhook):
        named.append(("invocationMethod.url", action_run_by(method.url)))
    for path, name in named:
        if name and name not in actions:
            yield context.error(
                "PW406",
                path,
                f"names the action {name!r}, which does not exist",
                suggestion(name, actions, "define it"),
            )


def _routes(context: Context) -> Iterator[Finding]:
    routes, url = context.known.routes, _url(context)
    name = route_name(url) if url else None
    if routes is not None and name is not None and name not in routes:
        yield context.error(
            "PW407",
            "invocationMethod.url",
            f"is the route {name!r}, which no handler serves",
            suggestion(name, routes, "write the handler"),
        )


def _blueprints(context: Context) -> Iterator[Finding]:
    known = context.known.blueprints
    if known is None:
        return
    for path, node in walk(context.definition):
        for key, attribute in (("blueprintIdentifier", "blueprint_identifier"), ("blueprint", "blueprint")):
            name = getattr(node, attribute, None)
            if isinstance(name, str) and _is_name(name) and name not in known:
                yield context.error(
                    "PW404",
                    join(path, key),
                    f"names the blueprint {name!r}, which does not exist",
                    suggestion(name, known, "create it"),
                )


def _is_name(text: str) -> bool:
    """Whether a text names a blueprint of the user's: no template, no placeholder, none of Port's own."""
    return bool(text) and not has_template(text) and text[0] not in "_<"


def _properties(context: Context) -> Iterator[Finding]:
    known = context.known.blueprints or {}
    definition, method = context.definition, context.definition.invocation_method
    if (
        isinstance(method, UpsertEntity)
        and method.mapping
        and (shape := known.get(method.blueprint_identifier))
    ):
        yield from _mapping(context, method.blueprint_identifier, method.mapping, shape)
    subject: str | None = None
    if isinstance(definition, Action) and definition.trigger:
        subject = definition.trigger.blueprint_identifier
    elif isinstance(definition, Automation) and definition.trigger and (event := definition.trigger.event):
        if event.type in {*ENTITY_EVENTS, TIMER_EVENT}:
            subject = event.blueprint_identifier
        shape = known.get(subject or "")
        timer = event.property_identifier
        if shape and timer and timer not in shape.writable | shape.computed:
            yield _lacks(
                context, "trigger.event.propertyIdentifier", subject, "property", timer, shape, error=True
            )
    if subject and (shape := known.get(subject)):
        pattern = _ENTITY_MEMBER if isinstance(definition, Action) else _DIFF_MEMBER
        for use in uses(context):
            for kind, name in dict.fromkeys(pattern.findall(use.jq)):
                members = shape.relations if kind == "relations" else shape.writable | shape.computed
                if name not in members:
                    yield _lacks(context, use.path, subject, kind, name, shape, error=False)
    for path, node in walk(definition):
        if (
            isinstance(node, StringInput | ArrayInput)
            and node.dataset
            and (shape := known.get(_of(node) or ""))
        ):
            yield from _dataset(context, join(path, "dataset"), _of(node), node.dataset, shape)


def _of(node: StringInput | ArrayInput) -> str | None:
    items = node.items if isinstance(node, ArrayInput) else None
    return node.blueprint or (items.blueprint if isinstance(items, StringInput) else None)


def _mapping(
    context: Context, blueprint: str, mapping: EntityMapping, shape: BlueprintShape
) -> Iterator[Finding]:
    path = "invocationMethod.mapping"
    for name in mapping.properties or ():
        if not has_template(name) and name not in shape.writable:
            yield _lacks(
                context, join(f"{path}.properties", name), blueprint, "properties", name, shape, error=True
            )
    for name in mapping.relations or ():
        if not has_template(name) and name not in shape.relations:
            yield _lacks(
                context, join(f"{path}.relations", name), blueprint, "relations", name, shape, error=True
            )


def _dataset(
    context: Context, path: str, blueprint: str | None, group: RuleGroup, shape: BlueprintShape
) -> Iterator[Finding]:
    for number, rule in enumerate(group.rules or ()):
        where = join(join(path, "rules"), number)
        if isinstance(rule, RuleGroup):
            yield from _dataset(context, where, blueprint, rule, shape)
        elif isinstance(rule, Rule) and rule.property and rule.blueprint in (None, blueprint):
            name = rule.property
            if not name.startswith("$") and name not in shape.writable | shape.computed | shape.relations:
                yield _lacks(
                    context, join(where, "property"), blueprint, "properties", name, shape, error=False
                )


def _lacks(
    context: Context,
    path: str,
    blueprint: str | None,
    kind: str,
    name: str,
    shape: BlueprintShape,
    *,
    error: bool,
) -> Finding:
    report = context.error if error else context.warning
    if kind == "relations":
        remedy = suggestion(name, shape.relations, "add it to the blueprint")
        return report("PW405", path, f"names the relation {name!r}, which {blueprint} lacks", remedy)
    if name in shape.computed:
        return report("PW405", path, f"writes {name!r}, which {blueprint} computes", "leave it out")
    remedy = suggestion(name, shape.writable | shape.computed, "add it to the blueprint")
    return report("PW405", path, f"names the property {name!r}, which {blueprint} lacks", remedy)
