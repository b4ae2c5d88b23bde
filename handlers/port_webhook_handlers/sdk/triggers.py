"""Events that start an automation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EventTrigger:
    """An event of Port.

    Attributes:
        type: Port's name of the event.
        blueprint: of entity and timer events.
        property: the timer of a timer event.
        action: of run events; an action's or an automation's identifier.
    """

    type: str
    blueprint: str | None = None
    property: str | None = None
    action: str | None = None

    def to_json(self) -> dict[str, str]:
        """Port's `trigger.event`."""
        values = {
            "type": self.type,
            "blueprintIdentifier": self.blueprint,
            "propertyIdentifier": self.property,
            "actionIdentifier": self.action,
        }
        return {key: value for key, value in values.items() if value is not None}


def entity_created(blueprint: str) -> EventTrigger:
    """An entity of the blueprint was made."""
    return EventTrigger("ENTITY_CREATED", blueprint=blueprint)


def entity_updated(blueprint: str) -> EventTrigger:
    """An entity of the blueprint changed. Changes of mirrored properties do not count (Port's rule)."""
    return EventTrigger("ENTITY_UPDATED", blueprint=blueprint)


def entity_deleted(blueprint: str) -> EventTrigger:
    """An entity of the blueprint was deleted."""
    return EventTrigger("ENTITY_DELETED", blueprint=blueprint)


def any_entity_change(blueprint: str) -> EventTrigger:
    """An entity of the blueprint was made, changed or deleted."""
    return EventTrigger("ANY_ENTITY_CHANGE", blueprint=blueprint)


def timer_expired(blueprint: str, property: str) -> EventTrigger:
    """A timer property of an entity ran out."""
    return EventTrigger("TIMER_PROPERTY_EXPIRED", blueprint=blueprint, property=property)


def run_created(action: str) -> EventTrigger:
    """A run of the action was made."""
    return EventTrigger("RUN_CREATED", action=action)


def run_updated(action: str) -> EventTrigger:
    """A run of the action changed; log lines do not count (Port's rule)."""
    return EventTrigger("RUN_UPDATED", action=action)


def any_run_change(action: str) -> EventTrigger:
    """A run of the action was made or changed."""
    return EventTrigger("ANY_RUN_CHANGE", action=action)
