"""PW2xx: forms and conditions that contradict themselves."""

from collections.abc import Collection, Iterator, Mapping

from port_webhook_handlers.port.definitions import (
    Action,
    Automation,
    JqCondition,
    Json,
    SearchCondition,
    SelfServiceTrigger,
    UserInputs,
)
from port_webhook_handlers.port.definitions.node import join
from port_webhook_handlers.port.lint.finding import Context, Finding, suggestion

_FORM = "trigger.userInputs"
_STEP_TITLE = 25


def form_names(body: Mapping[str, Json]) -> Collection[str] | None:
    """The names of a definition's inputs; None if it has no form that could be read."""
    value: Json = body
    for key in ("trigger", "userInputs", "properties"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return tuple(value) if isinstance(value, Mapping) else None


def check(context: Context) -> Iterator[Finding]:
    """Forms and conditions."""
    definition = context.definition
    if isinstance(definition, Automation):
        if definition.trigger and isinstance(definition.trigger.condition, SearchCondition):
            yield _wrong_condition(context, "JQ")
        return
    if definition.trigger is None:
        return
    yield from _trigger(context, definition, definition.trigger)
    if definition.trigger.user_inputs is not None:
        yield from _form(context, definition.trigger.user_inputs)


def _trigger(context: Context, action: Action, trigger: SelfServiceTrigger) -> Iterator[Finding]:
    if trigger.operation in {"DAY-2", "DELETE"} and not trigger.blueprint_identifier:
        yield context.warning(
            "PW203",
            "trigger.blueprintIdentifier",
            f"is missing, so there is no entity that {trigger.operation} could run on",
            "name the blueprint, or make the operation CREATE",
        )
    if trigger.condition is not None:
        if trigger.operation == "CREATE":
            yield context.error(
                "PW204", "trigger.condition", "is set on a CREATE action, which has no entity", "leave it out"
            )
        elif isinstance(trigger.condition, JqCondition):
            yield _wrong_condition(context, "SEARCH")


def _wrong_condition(context: Context, expected: str) -> Finding:
    return context.warning(
        "PW205",
        "trigger.condition.type",
        f"is not {expected}, the kind of condition that Port documents for this trigger",
        f"write a condition of type {expected}",
    )


def _form(context: Context, form: UserInputs) -> Iterator[Finding]:
    if form.order is not None and form.steps is not None:
        yield context.error("PW201", f"{_FORM}.order", "stands beside steps", "keep either order or steps")
    for number, step in enumerate(form.steps or ()):
        if len(step.title) > _STEP_TITLE:
            where = f"{_FORM}.steps[{number}].title"
            yield context.warning(
                "PW206", where, f"has {len(step.title)} characters", f"write {_STEP_TITLE} or less"
            )
    inputs = form_names(context.body)
    if inputs is None:
        return
    headings = tuple(form.titles or ())
    places: list[tuple[str, Collection[str], Collection[str]]] = [
        (f"{_FORM}.order", form.order or (), headings)
    ]
    if isinstance(form.required, tuple):
        places.append((f"{_FORM}.required", form.required, ()))
    for number, step in enumerate(form.steps or ()):
        places.append((f"{_FORM}.steps[{number}].order", step.order or (), headings))
    for name, item in (form.properties or {}).items():
        places.append((join(join(f"{_FORM}.properties", name), "dependsOn"), item.depends_on or (), ()))
    for path, names, others in places:
        for number, name in enumerate(names):
            if name not in inputs and name not in others:
                yield context.error(
                    "PW202",
                    join(path, number),
                    f"names {name!r}, which is not an input of the form",
                    suggestion(name, (*inputs, *others), "add the input or leave the name out"),
                )
