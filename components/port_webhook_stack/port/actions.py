"""Actions and automations: one REST resource of Port's, two resource types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from port_webhook_handlers.port.client import quote
from port_webhook_stack.port.handler import UNKNOWN, Context, Failure, Properties, ProviderError, ReadResult
from port_webhook_stack.port.normalise import Body, canonical_action
from port_webhook_stack.port.objects import ANY, BOOLEAN, MAP, OWNERSHIP, STRING, PortObject, schema_of

# Port's rule for identifiers of actions, with \p{L} written as "word character".
_IDENTIFIER = re.compile(r"(?!\.{1,2}$)[\w0-9@.+:=-]+")

_INPUTS: Mapping[str, Any] = {
    "identifier": {**STRING, "description": "Identifier in Port. Changing it renames the object in place."},
    "title": STRING,
    "icon": STRING,
    "description": STRING,
    "trigger": {**MAP, "description": "When it runs."},
    "invocationMethod": {**MAP, "description": "What Port does then."},
    "requiredApproval": {**ANY, "description": "true, false, or a map with type ANY or ALL."},
    "approvalNotification": MAP,
    "publish": {**BOOLEAN, "description": "false keeps an automation inactive."},
    "allowAnyoneToViewRuns": BOOLEAN,
    **OWNERSHIP,
}
_REQUIRED = ["identifier", "trigger", "invocationMethod"]
_OUTPUTS: Mapping[str, Any] = {"adopted": BOOLEAN}


def check_definition(body: Mapping[str, Any]) -> list[Failure]:
    """What Port would refuse in a single definition; values that are `UNKNOWN` are skipped."""
    failures = [Failure(name, "is required") for name in _REQUIRED if body.get(name) in (None, "", {})]
    identifier = body.get("identifier")
    if isinstance(identifier, str) and identifier and not _IDENTIFIER.fullmatch(identifier):
        failures.append(
            Failure("identifier", f"{identifier!r} is not allowed by Port: use letters, digits and @_.+:=-")
        )
    for name in ("trigger", "invocationMethod"):
        part = body.get(name)
        if part and part is not UNKNOWN:
            if not isinstance(part, Mapping):
                failures.append(Failure(name, "must be a map"))
            elif not part.get("type"):
                failures.append(Failure(f"{name}.type", "is required"))
    trigger = body.get("trigger")
    if isinstance(trigger, Mapping):
        failures += _check_trigger(trigger)
    return failures


def _check_trigger(trigger: Mapping[str, Any]) -> list[Failure]:
    failures: list[Failure] = []
    if trigger.get("type") == "self-service":
        operations = ("CREATE", "DAY-2", "DELETE")
        operation = trigger.get("operation")
        if operation is not UNKNOWN and operation not in operations:
            failures.append(Failure("trigger.operation", f"must be one of {', '.join(operations)}"))
        form = trigger.get("userInputs")
        if form is None:
            failures.append(
                Failure("trigger.userInputs", "is required; without inputs it is {properties: {}}")
            )
        elif isinstance(form, Mapping) and "order" in form and "steps" in form:
            failures.append(Failure("trigger.userInputs.order", "excludes steps: remove one of them"))
    elif trigger.get("type") == "automation":
        event = trigger.get("event")
        if event is None or (isinstance(event, Mapping) and not event.get("type")):
            failures.append(Failure("trigger.event.type", "is required, for example ENTITY_UPDATED"))
    return failures


class _Definition(PortObject):
    kind = "action"
    trigger_type: str
    other: str

    def canonical(self, body: Mapping[str, Any]) -> Body:
        return canonical_action(body)

    def item(self, id: str) -> str:
        return f"/v1/actions/{quote(id)}"

    def collection(self, inputs: Properties) -> str:
        return "/v1/actions"

    def failures(self, inputs: Properties, olds: Properties) -> list[Failure]:
        body = self.body(inputs)
        found = check_definition(body)
        trigger = body.get("trigger")
        if isinstance(trigger, Mapping) and isinstance(trigger.get("type"), str):
            actual = trigger["type"]
            if actual != self.trigger_type:
                found.append(
                    Failure(
                        "trigger.type", f"is {actual!r}, but must be {self.trigger_type!r} in an {self.noun}"
                    )
                )
        return found

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        result = super().read(ctx, id, state, inputs)
        if result is None:
            return None
        trigger = result.outputs.get("trigger")
        actual = trigger.get("type") if isinstance(trigger, Mapping) else None
        if not state and actual != self.trigger_type:
            raise ProviderError(
                f"{id} has a trigger of type {actual!r}: import it as port-webhook:index:{self.other}"
            )
        return result

    @property
    def noun(self) -> str:
        return type(self).__name__


class Action(_Definition):
    """`port-webhook:index:Action`, a self-service action."""

    trigger_type = "self-service"
    other = "Automation"
    schema = schema_of("A self-service action of Port.", _INPUTS, _REQUIRED, _OUTPUTS)


class Automation(_Definition):
    """`port-webhook:index:Automation`."""

    trigger_type = "automation"
    other = "Action"
    schema = schema_of("An automation of Port.", _INPUTS, _REQUIRED, _OUTPUTS)
