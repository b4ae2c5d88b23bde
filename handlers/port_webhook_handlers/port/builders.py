"""Short ways to write triggers."""

from collections.abc import Mapping, Sequence

from port_webhook_handlers.port.definitions import (
    AutomationTrigger,
    Condition,
    Event,
    JqQuery,
    SelfServiceTrigger,
    Step,
    UserInput,
    UserInputs,
)


def jq(query: str) -> JqQuery:
    """A value of a form that Port computes with JQ over `.form`, `.entity` and `.user`."""
    return JqQuery(query)


def self_service(
    operation: str,
    blueprint: str | None = None,
    *,
    inputs: Mapping[str, UserInput] | None = None,
    required: Sequence[str] | JqQuery | None = None,
    order: Sequence[str] | None = None,
    steps: Sequence[Step] | None = None,
    condition: Condition | None = None,
) -> SelfServiceTrigger:
    """A self-service trigger.

    Args:
        operation: CREATE, or DAY-2 or DELETE of an entity of the blueprint.
        inputs: the form; in the order given unless `order` or `steps` say otherwise.
        condition: which entities offer the action (not for CREATE).
    """
    if inputs and order is None and steps is None:
        order = tuple(inputs)
    form = UserInputs(properties=inputs or {}, required=required, order=order, steps=steps)
    return SelfServiceTrigger(operation, blueprint, form, condition)


def _entity_event(kind: str, blueprint: str) -> AutomationTrigger:
    return AutomationTrigger(Event(kind, blueprint_identifier=blueprint))


def _run_event(kind: str, action: str) -> AutomationTrigger:
    return AutomationTrigger(Event(kind, action_identifier=action))


def entity_created(blueprint: str) -> AutomationTrigger:
    """An entity of the blueprint was created; `.diff.before` is null."""
    return _entity_event("ENTITY_CREATED", blueprint)


def entity_updated(blueprint: str) -> AutomationTrigger:
    """An entity of the blueprint was changed."""
    return _entity_event("ENTITY_UPDATED", blueprint)


def entity_deleted(blueprint: str) -> AutomationTrigger:
    """An entity of the blueprint was deleted; `.diff.after` is null."""
    return _entity_event("ENTITY_DELETED", blueprint)


def any_entity_change(blueprint: str) -> AutomationTrigger:
    """An entity of the blueprint was created, changed or deleted."""
    return _entity_event("ANY_ENTITY_CHANGE", blueprint)


def timer_expired(blueprint: str, property: str) -> AutomationTrigger:
    """A timer property of an entity of the blueprint expired."""
    return AutomationTrigger(
        Event("TIMER_PROPERTY_EXPIRED", blueprint_identifier=blueprint, property_identifier=property)
    )


def run_created(action: str) -> AutomationTrigger:
    """A run of the action or automation was created."""
    return _run_event("RUN_CREATED", action)


def run_updated(action: str) -> AutomationTrigger:
    """A run of the action or automation changed, for example its status; log lines do not count."""
    return _run_event("RUN_UPDATED", action)


def any_run_change(action: str) -> AutomationTrigger:
    """A run of the action or automation was created or changed."""
    return _run_event("ANY_RUN_CHANGE", action)
