"""From a handler to Port's action document, and to its route in the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from port_webhook_handlers.port.definitions import Webhook
from port_webhook_handlers.port.envelope import action_webhook, automation_webhook, foreign_webhook
from port_webhook_handlers.port.payload import ENVELOPE
from port_webhook_handlers.sdk.handler import Handler

Json = dict[str, Any]


def definition(handler: Handler) -> Json:
    """Port's action document, with `route:NAME` in place of the address that only the stack knows."""
    body: Json = {"identifier": handler.identifier}
    _add(body, title=handler.title, description=handler.description, icon=handler.icon)
    body["trigger"] = _automation(handler) if handler.kind == "automation" else _self_service(handler)
    body["invocationMethod"] = _webhook(handler).to_body()
    approval = handler.required_approval
    _add(
        body,
        requiredApproval={"type": approval} if isinstance(approval, str) else approval,
        approvalNotification=handler.approval_notification,
        publish=handler.publish,
        allowAnyoneToViewRuns=handler.allow_anyone_to_view_runs,
    )
    return body


def route(handler: Handler, source: str) -> Json:
    """The handler's entry in `manifest.json`.

    Args:
        source: `file:line`, relative to the bundle.
    """
    if handler.kind == "action":
        schema, encrypted = handler.form.schema(), list(handler.form.encrypted)
    else:
        schema, encrypted = {"type": "object"}, []
    return {
        "kind": handler.kind,
        "action": handler.identifier,
        "method": handler.method,
        "mode": handler.mode,
        "scheme": handler.scheme,
        "payload": handler.payload.to_json(),
        "inputs_schema": schema,
        "encrypted_inputs": encrypted,
        "handler": handler.target,
        "timeout_seconds": handler.timeout_seconds,
        "privilege_group": handler.privilege_group,
        "on_interrupt": handler.on_interrupt,
        "max_attempts": handler.max_attempts,
        "max_concurrency": handler.max_concurrency,
        "secrets": list(handler.secrets),
        "source": source,
    }


def _webhook(handler: Handler) -> Webhook:
    synchronized, agent, method = handler.mode == "sync", handler.agent, handler.method
    automation = handler.kind == "automation"
    if handler.payload != ENVELOPE:
        return foreign_webhook(
            handler.identifier,
            handler.payload,
            automation=automation,
            synchronized=synchronized,
            agent=agent,
            method=method,
        )
    webhook = automation_webhook if automation else action_webhook
    return webhook(handler.identifier, synchronized=synchronized, agent=agent, method=method)


def _self_service(handler: Handler) -> Json:
    trigger: Json = {"type": "self-service", "operation": handler.operation}
    condition = handler.condition
    if condition is not None and not isinstance(condition, Mapping):
        condition = {"type": "SEARCH", "combinator": "and", "rules": [dict(rule) for rule in condition]}
    _add(
        trigger,
        blueprintIdentifier=handler.blueprint,
        userInputs=handler.form.to_port(),
        condition=None if condition is None else dict(condition),
        actionCardButtonText=handler.card_button,
        executeActionButtonText=handler.execute_button,
    )
    return trigger


def _automation(handler: Handler) -> Json:
    trigger: Json = {"type": "automation", "event": handler.trigger.to_json() if handler.trigger else {}}
    if handler.condition:
        trigger["condition"] = {"type": "JQ", "combinator": "and", "expressions": list(handler.condition)}
    return trigger


def _add(body: Json, **values: object) -> None:
    body.update({key: value for key, value in values.items() if value is not None})
