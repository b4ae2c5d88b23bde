"""Actions and automations: one kind of document in Port, told apart by their trigger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from port_webhook_handlers.port.definitions.methods import METHOD, InvocationMethod
from port_webhook_handlers.port.definitions.node import (
    BOOLEAN,
    OBJECT,
    STRING,
    STRINGS,
    DefinitionError,
    Json,
    Node,
    NodeOf,
    either,
    kind,
    needs,
    opt,
)
from port_webhook_handlers.port.definitions.triggers import AutomationTrigger, SelfServiceTrigger


@dataclass(frozen=True)
class Approval(Node):
    """Whose approval a run needs: of any approver, or of all."""

    MEANING: ClassVar = '{"type": "ANY"} or {"type": "ALL"}'

    type: str = field(metadata=needs(STRING, choices=("ANY", "ALL")))


@dataclass(frozen=True)
class ApprovalNotification(Node):
    """How approvers are told: by e-mail, or by a webhook in Port's JSON or Slack's."""

    MEANING: ClassVar = '{"type": "email"} or {"type": "webhook", "url": …, "format": "json" or "slack"}'

    type: str = field(metadata=needs(STRING, choices=("email", "webhook")))
    url: str | None = field(default=None, metadata=opt(STRING))
    format: str | None = field(default=None, metadata=opt(STRING, choices=("json", "slack")))


@dataclass(frozen=True)
class _Document(Node):
    identifier: str = field(metadata=needs(STRING))
    title: str | None = field(default=None, metadata=opt(STRING))
    icon: str | None = field(default=None, metadata=opt(STRING))
    description: str | None = field(default=None, metadata=opt(STRING))


@dataclass(frozen=True)
class Action(_Document):
    """A self-service action.

    Attributes:
        trigger: None only in a fragment, or in the form of Port's retired v1 API.
        required_approval: a run waits for approval before it is invoked.
        allow_anyone_to_view_runs: Port treats an absent value as true.
        source: where the definition was written (`deploy.py:31`), for messages; never sent.
    """

    MEANING: ClassVar = "an action"

    trigger: SelfServiceTrigger | None = field(
        default=None,
        metadata=opt(
            NodeOf(
                SelfServiceTrigger,
                lambda body: SelfServiceTrigger if body.get("type") == "self-service" else None,
            )
        ),
    )
    invocation_method: InvocationMethod | None = field(default=None, metadata=opt(METHOD))
    required_approval: bool | Approval | None = field(
        default=None, metadata=opt(either(BOOLEAN, NodeOf(Approval)))
    )
    approval_notification: ApprovalNotification | None = field(
        default=None, metadata=opt(NodeOf(ApprovalNotification))
    )
    publish: bool | None = field(default=None, metadata=opt(BOOLEAN))
    allow_anyone_to_view_runs: bool | None = field(default=None, metadata=opt(BOOLEAN))
    source: str | None = field(default=None, kw_only=True, compare=False)


@dataclass(frozen=True)
class Automation(_Document):
    """An automation. It runs only if `publish` is true.

    Attributes:
        source: where the definition was written (`deploy.py:31`), for messages; never sent.
    """

    MEANING: ClassVar = "an automation"

    trigger: AutomationTrigger | None = field(
        default=None,
        metadata=opt(
            NodeOf(
                AutomationTrigger,
                lambda body: AutomationTrigger if body.get("type") == "automation" else None,
            )
        ),
    )
    invocation_method: InvocationMethod | None = field(default=None, metadata=opt(METHOD))
    required_approval: bool | Approval | None = field(
        default=None, metadata=opt(either(BOOLEAN, NodeOf(Approval)))
    )
    approval_notification: ApprovalNotification | None = field(
        default=None, metadata=opt(NodeOf(ApprovalNotification))
    )
    publish: bool | None = field(default=None, metadata=opt(BOOLEAN))
    allow_anyone_to_view_runs: bool | None = field(default=None, metadata=opt(BOOLEAN))
    source: str | None = field(default=None, kw_only=True, compare=False)


Definition = Action | Automation


def definition_from_body(body: Mapping[str, Json]) -> Definition:
    """The typed form of an action or automation as Port's API has it.

    Nothing is refused that JSON can express as an object: what no typed field can hold is kept in `extra`, and
    `definition_to_body` gives an equal body back.

    Raises:
        DefinitionError: not an object, or a value in it that is not JSON.
    """
    if not isinstance(body, Mapping):
        raise DefinitionError("definition", f"is {kind(body)}", "write an object")
    trigger = body.get("trigger")
    if isinstance(trigger, Mapping) and trigger.get("type") == "automation":
        return Automation.from_body(body)
    return Action.from_body(body)


def definition_to_body(definition: Definition) -> dict[str, Json]:
    """The document that Port's API takes, in plain JSON types."""
    return definition.to_body()


@dataclass(frozen=True)
class Policy(Node):
    """Who may act, computed from queries with JQ conditions."""

    queries: Mapping[str, Json] | None = field(default=None, metadata=opt(OBJECT))
    conditions: Sequence[str] | None = field(default=None, metadata=opt(STRINGS))


@dataclass(frozen=True)
class Grant(Node):
    """Users, roles and teams that may execute or approve."""

    users: Sequence[str] | None = field(default=None, metadata=opt(STRINGS))
    roles: Sequence[str] | None = field(default=None, metadata=opt(STRINGS))
    teams: Sequence[str] | None = field(default=None, metadata=opt(STRINGS))
    owned_by_team: bool | None = field(default=None, metadata=opt(BOOLEAN))
    policy: Policy | None = field(default=None, metadata=opt(NodeOf(Policy)))


@dataclass(frozen=True)
class Permissions(Node):
    """The permissions of an action, as `…/permissions` has them."""

    execute: Grant | None = field(default=None, metadata=opt(NodeOf(Grant)))
    approve: Grant | None = field(default=None, metadata=opt(NodeOf(Grant)))
