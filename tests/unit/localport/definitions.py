"""Definitions that the tests build on."""

from __future__ import annotations

from typing import Any

from tests.fixtures_localport import LocalPort

PORT_BODY = {"port_context": {"runId": "{{ .run.id }}"}, "{{ spreadValue() }}": "{{ .inputs }}"}


def blueprint(identifier: str = "service", **changes: Any) -> dict[str, Any]:
    properties = {
        "tier": {"type": "string", "enum": ["gold", "silver"]},
        "replicas": {"type": "number"},
        "expires": {"type": "string", "format": "timer"},
    }
    return {"identifier": identifier, "title": identifier, "schema": {"properties": properties}, **changes}


def action(identifier: str, url: str, **changes: Any) -> dict[str, Any]:
    """A CREATE action with one input, `reason`. Keys of the trigger go into `trigger`, of the webhook `method`."""
    trigger = {
        "type": "self-service",
        "operation": "CREATE",
        "userInputs": {"properties": {"reason": {"type": "string"}}},
        **changes.pop("trigger", {}),
    }
    method = {"type": "WEBHOOK", "url": url, "body": PORT_BODY, **changes.pop("method", {})}
    return {"identifier": identifier, "trigger": trigger, "invocationMethod": method, **changes}


def automation(identifier: str, url: str, event: dict[str, Any], **changes: Any) -> dict[str, Any]:
    trigger = {"type": "automation", "event": event, **changes.pop("trigger", {})}
    body = {"event": "{{ .event }}", "action": "{{ .action }}", "runId": "{{ .run.id }}"}
    method = {"type": "WEBHOOK", "url": url, "body": body, **changes.pop("method", {})}
    return {
        "identifier": identifier,
        "trigger": trigger,
        "invocationMethod": method,
        "publish": True,
        **changes,
    }


def with_service(port: LocalPort, *identifiers: str, **properties: Any) -> None:
    """Creates the blueprint `service` and entities of it."""
    port.api("POST", "/blueprints", blueprint())
    for identifier in identifiers:
        port.api("POST", "/blueprints/service/entities", {"identifier": identifier, "properties": properties})
