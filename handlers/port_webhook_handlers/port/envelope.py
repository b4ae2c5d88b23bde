"""The body that definitions of this stack's handlers send.

Port signs timestamp and body alone, so the body itself must say which action is meant: `port_context.action` is a
literal that the route compares. Inputs never stand beside it, where an input named `port_context` could replace it.
"""

from typing import Final

from port_webhook_handlers.port.definitions import Json, Webhook
from port_webhook_handlers.port.names import Route
from port_webhook_handlers.port.payload import ENVELOPE, Payload

ACTION_PATH: Final = tuple(str(ENVELOPE.action).split("."))
"""Where the body names its action or automation."""
RUN_ID_PATH: Final = tuple(ENVELOPE.run_id.split("."))
"""Where the body carries the run's id."""


def action_body(identifier: str, *, entity: bool = True) -> dict[str, Json]:
    """The template of a self-service action's body.

    Args:
        entity: send the entity that the action runs on (`{}` for CREATE).
    """
    body = _head(identifier) | {"inputs": "{{ .inputs }}"}
    if entity:
        body["entity"] = "{{ .entity }}"
    return body | {"trigger": "{{ .trigger }}"}


def automation_body(identifier: str) -> dict[str, Json]:
    """The template of an automation's body."""
    return _head(identifier) | {"event": "{{ .event }}", "trigger": "{{ .trigger }}"}


def action_webhook(
    identifier: str,
    *,
    synchronized: bool = False,
    agent: bool = False,
    method: str = "POST",
    entity: bool = True,
) -> Webhook:
    """The invocation of an action's handler, through the route of the same name."""
    return _webhook(
        identifier, action_body(identifier, entity=entity), synchronized, agent, method, automation=False
    )


def automation_webhook(
    identifier: str, *, synchronized: bool = False, agent: bool = False, method: str = "POST"
) -> Webhook:
    """The invocation of an automation's handler, through the route of the same name."""
    return _webhook(identifier, automation_body(identifier), synchronized, agent, method, automation=True)


def foreign_body(identifier: str, payload: Payload, *, automation: bool = False) -> dict[str, Json]:
    """The template of a body in another form than the envelope.

    Raises:
        ValueError: a place of the form lies inside another one, so that no template can fill both.
    """
    values: dict[str, Json] = {"run_id": "{{ .run.id }}", "action": identifier, "trigger": "{{ .trigger }}"}
    if automation:
        values["event"] = "{{ .event }}"
        values["entity"] = "{{ .event.context.entityIdentifier }}"
        values["blueprint"] = "{{ .event.context.blueprintIdentifier }}"
    else:
        values["inputs"] = "{{ .inputs }}"
        values["entity"] = "{{ .entity }}"
        values["blueprint"] = "{{ .action.blueprint }}"
    return payload.body_of(values)


def foreign_webhook(
    identifier: str,
    payload: Payload,
    *,
    automation: bool = False,
    synchronized: bool = False,
    agent: bool = False,
    method: str = "POST",
) -> Webhook:
    """The invocation of a handler whose payload is not the envelope, through the route of the same name."""
    body = foreign_body(identifier, payload, automation=automation)
    webhook = _webhook(identifier, body, synchronized, agent, method, automation=automation)
    return webhook if payload.header is None else webhook.replace(headers={payload.header: "{{ .run.id }}"})


def legacy_body(identifier: str, webhook: Webhook, *, automation: bool = False) -> dict[str, Json]:
    """The members of Port's former fixed envelope.

    Over Kafka, Port's execution agent finds URL, method and the run's id only there.
    """
    if automation:
        entity, blueprint = (
            "{{ .event.context.entityIdentifier }}",
            "{{ .event.context.blueprintIdentifier }}",
        )
        subject: dict[str, Json] = {"entity": None}
        details: dict[str, Json] = {"properties": {}, "censoredProperties": []}
        operation: Json = None
    else:
        entity, blueprint = "{{ .entity.identifier }}", "{{ .action.blueprint }}"
        subject = {"entity": "{{ (if .entity == {} then null else .entity end) }}"}
        details = {"properties": "{{ .inputs }}", "censoredProperties": "{{ .action.encryptedProperties }}"}
        operation = "{{ .trigger.operation }}"
    invocation = {
        "type": "WEBHOOK",
        "agent": True,
        "synchronized": bool(webhook.synchronized),
        "method": webhook.method or "POST",
        "url": webhook.url,
        "headers": dict(webhook.headers or {}),
    }
    return {
        "action": identifier,
        "resourceType": "run",
        "status": "TRIGGERED",
        "trigger": "{{ .trigger }}",
        "context": {"entity": entity, "blueprint": blueprint, "runId": "{{ .run.id }}"},
        "payload": subject | {"action": {"invocationMethod": invocation, "trigger": operation}} | details,
    }


def _head(identifier: str) -> dict[str, Json]:
    return {"port_context": {"action": identifier, "runId": "{{ .run.id }}"}}


def _webhook(
    identifier: str, body: dict[str, Json], synchronized: bool, agent: bool, method: str, *, automation: bool
) -> Webhook:
    webhook = Webhook(Route(identifier), agent=agent, synchronized=synchronized, method=method)
    if agent:
        body = body | legacy_body(identifier, webhook, automation=automation)
    return webhook.replace(body=body)
