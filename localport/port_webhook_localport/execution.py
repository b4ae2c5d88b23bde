"""Executing a self-service action."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from port_webhook_localport import (
    actions,
    automations,
    entities,
    inputs,
    invocations,
    runstate,
    schemas,
    search,
)
from port_webhook_localport.computed import with_computed
from port_webhook_localport.port import Port
from port_webhook_localport.schemas import check
from port_webhook_localport.web import ApiError, Call, Reply, invalid_request, not_supported


def execute(port: Port, call: Call) -> Reply:
    """Starts a run: 202 before anything is delivered.

    Order of checks: permissions, entity, condition, inputs, expressions, destination. Sources about Port
    list the errors in this order without promising it.
    """
    version = run_version(call)
    action = actions.find(port, call.path["action"])
    check(schemas.EXECUTE, call.body)
    trigger = action["trigger"]
    if trigger["type"] != "self-service":
        raise ApiError(
            422,
            "run_non_self_service_error",
            f'"{action["identifier"]}" is an automation: it starts by its event only',
        )
    run_as = call.query.get("run_as")
    user = _user(port, run_as)
    if run_as is not None:
        _check_permission(port, action["identifier"], run_as)
    entity = _entity(port, trigger, call.body.get("entity"))
    accepted = inputs.accept(port, trigger["userInputs"], call.body["properties"])
    blueprint_id = trigger.get("blueprintIdentifier")
    model = entities.blueprint(port, blueprint_id) if blueprint_id is not None else None
    source = "AUTOMATION" if call.causing_run else "API"
    doc = runstate.new(
        port,
        action,
        blueprint=None if model is None else _reference(model),
        entity=None if entity is None else _reference(entity),
        properties=accepted.expanded,
        rawProperties=accepted.raw,
        source=source,
        createdBy=user["id"],
        updatedBy=user["id"],
        impersonatedBy=None if run_as is None else port.user_id,
    )
    context = {
        "inputs": accepted.expanded,
        "trigger": {
            "by": {"orgId": port.organization_id, "userId": user["id"], "user": user},
            "origin": source,
            "at": doc["createdAt"],
            "operation": trigger["operation"],
        },
        "event": None,
        "entity": entity or {},
        "action": {
            "identifier": action["identifier"],
            "blueprint": blueprint_id,
            "encryptedProperties": accepted.encrypted,
        },
        "run": {"id": doc["id"]},
    }
    method = action["invocationMethod"]
    try:
        evaluated = invocations.evaluate(port, method, context)
    except invocations.SecretMissingError:
        # Secrets are a matter of the delivery, which fails with a line in the log of the run.
        evaluated = None
    webhook = evaluated if isinstance(evaluated, invocations.Webhook) else None
    if webhook is not None and port.settings.destination_check and not webhook.agent:
        _check_destination(webhook.url)
    doc["payload"] = invocations.masked(port, method, context)
    internal = {
        "chain": list(call.chain),
        "context": context,
        "method": method,
        "synchronized": doc["payload"].get("synchronized") is True,
        "agent": doc["payload"].get("agent") is True,
    }
    run = runstate.Run(doc["id"], action["identifier"], doc, "none", internal)
    waits = action.get("requiredApproval", False) not in (False, None)
    if waits:
        doc["status"] = "WAITING_FOR_APPROVAL"
    runstate.insert(port, run)
    if waits:
        runstate.add_log(port, run.id, "Waiting for approval. Local Port notifies nobody.")
    if not waits:
        invocations.launch(port, run)
    automations.run_changed(port, run, None)
    return Reply({"run": runstate.view(port, run, version)}, 202)


def run_version(call: Call) -> str:
    """Shape of run objects: v1 unless the caller asks for v2 (Port's default).

    Raises:
        ApiError: 422, another value.
    """
    version = call.query.get("version", "v1")
    if version not in ("v1", "v2"):
        raise invalid_request("query parameter version must be v1 or v2")
    return version


def _user(port: Port, run_as: str | None) -> dict[str, Any]:
    moment = port.organization().get("createdAt", "2024-01-01T00:00:00.000Z")
    name, _, _ = (run_as or "local-port@localhost").partition("@")
    return {
        "email": run_as or "local-port@localhost",
        "firstName": name,
        "lastName": "",
        "phoneNumber": "",
        "picture": "",
        "providers": [],
        "status": "ACTIVE",
        "id": port.user_id if run_as is None else f"local|{run_as}",
        "createdAt": moment,
        "updatedAt": moment,
    }


def _check_permission(port: Port, identifier: str, email: str) -> None:
    """A user named by run_as is a member of no team; the token itself may execute everything."""
    if "@" not in email:
        raise invalid_request("query parameter run_as must be an e-mail address")
    execute_rules = actions.permissions_of(port, identifier)["execute"]
    if execute_rules["policy"] is not None:
        raise not_supported("execution policies of permissions")
    if email not in execute_rules["users"] and "Member" not in execute_rules["roles"]:
        raise ApiError(403, "missing_permissions", f'{email} may not execute the action "{identifier}"')


def _entity(port: Port, trigger: dict[str, Any], identifier: str | None) -> dict[str, Any] | None:
    if trigger["operation"] == "CREATE":
        return None
    blueprint = trigger.get("blueprintIdentifier")
    if not identifier:
        if blueprint is None:
            return None
        raise ApiError(
            422,
            "missing_self_service_action_entity",
            f"entity: is required, because the operation is {trigger['operation']}",
        )
    if blueprint is None:
        raise invalid_request("entity: the action has no blueprint")
    model = entities.blueprint(port, blueprint)
    entity = with_computed(port, model, entities.existing(port, blueprint, identifier))
    condition = trigger.get("condition")
    if condition is not None and not search.matches(condition, entity):
        raise ApiError(
            422,
            "entity_does_not_pass_condition",
            f'Entity "{identifier}" does not pass the condition of the action',
        )
    return entity


def _reference(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "identifier": document["identifier"],
        "title": document.get("title"),
        "icon": document.get("icon"),
        "deleted": False,
    }


def _check_destination(url: str) -> None:
    """Port reaches public addresses only."""
    host = urlsplit(url).hostname or ""
    try:
        found = {item[4][0] for item in socket.getaddrinfo(host, None)}
    except OSError:
        raise ApiError(
            403, "not_resolvable_destination", f"{host} does not resolve to a public address"
        ) from None
    if any(not ipaddress.ip_address(str(address).partition("%")[0]).is_global for address in found):
        raise ApiError(403, "private_destination", f"{host} resolves to a private address")
