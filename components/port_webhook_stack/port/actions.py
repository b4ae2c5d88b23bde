"""Actions and automations: one REST resource of Port's, two resource types."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from port_webhook_handlers.port.client import quote
from port_webhook_stack.port.handler import (
    UNKNOWN,
    Context,
    Failure,
    Properties,
    ProviderError,
    ReadResult,
    has_unknown,
)
from port_webhook_stack.port.normalise import Body, canonical_action, with_order
from port_webhook_stack.port.objects import ANY, BOOLEAN, MAP, OWNERSHIP, STRING, PortObject, schema_of

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
    "lintDisabled": {
        "type": "array",
        "items": STRING,
        "description": "Rules of lint that this definition is not checked for.",
    },
    **OWNERSHIP,
}
_REQUIRED = ["identifier", "trigger", "invocationMethod"]
_OUTPUTS: Mapping[str, Any] = {"adopted": BOOLEAN}


# Stands for an unknown value while a definition is examined, so that nothing is said about it.
_PLACEHOLDER = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"


def check_definition(body: Mapping[str, Any], disabled: Collection[str] = ()) -> list[Failure]:
    """The errors that lint finds in a single definition; nothing is said about values that are `UNKNOWN`.

    Args:
        body: Port's body of an action or automation.
        disabled: rules of lint to leave out.
    """
    from port_webhook_handlers.port.lint import lint

    try:
        findings = lint([_known(body)], disable=disabled, unknown=_PLACEHOLDER)
    except ValueError as error:
        return [Failure("lintDisabled", str(error))]
    return [
        Failure(finding.path, f"{finding.message}; {finding.remedy} [{finding.rule}]")
        for finding in findings
        if finding.severity == "error"
    ]


def _known(value: Any) -> Any:
    if value is UNKNOWN:
        return _PLACEHOLDER
    if isinstance(value, Mapping):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_known(item) for item in value]
    return value


class _Definition(PortObject):
    kind = "action"
    control = PortObject.control | {"lintDisabled"}
    trigger_type: str
    other: str

    def canonical(self, body: Mapping[str, Any]) -> Body:
        return canonical_action(body)

    def item(self, id: str) -> str:
        return f"/v1/actions/{quote(id)}"

    def collection(self, inputs: Properties) -> str:
        return "/v1/actions"

    def completed(self, present: Body, written: Body) -> Body:
        # Programs in Python always say the order; those in other languages need not.
        return with_order(present) if not written or with_order(written) == written else present

    def failures(self, inputs: Properties, olds: Properties) -> list[Failure]:
        body = self.body(inputs)
        disabled = inputs.get("lintDisabled") or ()
        found = check_definition(body, [] if has_unknown(disabled) else disabled)
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
