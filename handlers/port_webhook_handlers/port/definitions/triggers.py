"""What starts an action or automation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from port_webhook_handlers.port.definitions.inputs import COMBINATORS, RULES, Rule, RuleGroup, UserInputs
from port_webhook_handlers.port.definitions.node import (
    STRING,
    STRINGS,
    DefinitionError,
    Json,
    Node,
    NodeOf,
    needs,
    opt,
)

OPERATIONS = ("CREATE", "DAY-2", "DELETE")
ENTITY_EVENTS = ("ENTITY_CREATED", "ENTITY_UPDATED", "ENTITY_DELETED", "ANY_ENTITY_CHANGE")
RUN_EVENTS = ("RUN_CREATED", "RUN_UPDATED", "ANY_RUN_CHANGE")
TIMER_EVENT = "TIMER_PROPERTY_EXPIRED"


@dataclass(frozen=True)
class SearchCondition(Node):
    """Which entities offer an action (DAY-2 and DELETE only)."""

    TYPE: ClassVar = "SEARCH"

    combinator: str | None = field(default=None, metadata=opt(STRING, choices=COMBINATORS))
    rules: Sequence[Rule | RuleGroup] | None = field(default=None, metadata=opt(RULES))


@dataclass(frozen=True)
class JqCondition(Node):
    """Which events start an automation: JQ over the event itself, so paths begin at `.diff` or `.context`."""

    TYPE: ClassVar = "JQ"

    expressions: Sequence[str] | None = field(default=None, metadata=opt(STRINGS))
    combinator: str | None = field(default=None, metadata=opt(STRING, choices=COMBINATORS))


@dataclass(frozen=True)
class OtherCondition(Node):
    """A condition of a type that this model does not know."""

    type: str = field(metadata=needs(STRING, choices=("SEARCH", "JQ")))


def _condition(body: Mapping[str, Json]) -> type[Node]:
    match body.get("type"):
        case "SEARCH":
            return SearchCondition
        case "JQ":
            return JqCondition
        case _:
            return OtherCondition


CONDITION = NodeOf(Node, _condition)
Condition = SearchCondition | JqCondition | OtherCondition


@dataclass(frozen=True)
class Event(Node):
    """An event that starts an automation.

    Attributes:
        blueprint_identifier: for entity and timer events.
        property_identifier: the timer property, for TIMER_PROPERTY_EXPIRED.
        action_identifier: an action or another automation, for run events.
    """

    MEANING: ClassVar = "an event"

    type: str = field(metadata=needs(STRING, choices=(*ENTITY_EVENTS, TIMER_EVENT, *RUN_EVENTS)))
    blueprint_identifier: str | None = field(default=None, metadata=opt(STRING))
    property_identifier: str | None = field(default=None, metadata=opt(STRING))
    action_identifier: str | None = field(default=None, metadata=opt(STRING))


@dataclass(frozen=True)
class SelfServiceTrigger(Node):
    """A person (or a caller of Port's API) executes the action."""

    TYPE: ClassVar = "self-service"
    MEANING: ClassVar = "a self-service trigger"

    operation: str = field(metadata=needs(STRING, choices=OPERATIONS))
    blueprint_identifier: str | None = field(default=None, metadata=opt(STRING))
    user_inputs: UserInputs | None = field(default=None, metadata=opt(NodeOf(UserInputs)))
    condition: Condition | None = field(default=None, metadata=opt(CONDITION))
    action_card_button_text: str | None = field(default=None, metadata=opt(STRING))
    execute_action_button_text: str | None = field(default=None, metadata=opt(STRING))


@dataclass(frozen=True)
class AutomationTrigger(Node):
    """An event in Port starts the automation."""

    TYPE: ClassVar = "automation"
    MEANING: ClassVar = "an automation trigger"

    event: Event | None = field(default=None, metadata=opt(NodeOf(Event)))
    condition: Condition | None = field(default=None, metadata=opt(CONDITION))

    def when(self, *expressions: str, combinator: str | None = None) -> "AutomationTrigger":
        """A copy with a JQ condition, added to the one it has.

        Args:
            expressions: JQ over the event itself: paths begin at `.diff`, `.context` or `.trigger`.
            combinator: `and` (all must be true, the default) or `or`.

        Raises:
            DefinitionError: the trigger has a condition of another kind.
        """
        present = self.condition
        if present is None:
            present = JqCondition(expressions=[], combinator="and")
        if not isinstance(present, JqCondition):
            raise DefinitionError(
                "trigger.condition", "is not a JQ condition", "start from a trigger without a condition"
            )
        condition = present.replace(
            expressions=(*(present.expressions or ()), *expressions),
            combinator=combinator or present.combinator,
        )
        return self.replace(condition=condition)
