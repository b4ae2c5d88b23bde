"""Actions and automations, and their permissions."""

from __future__ import annotations

import time
from typing import Any

from port_webhook_localport import entities, inputs, schemas
from port_webhook_localport.port import Port
from port_webhook_localport.schemas import check, check_action
from port_webhook_localport.web import (
    Call,
    Reply,
    identifier_taken,
    invalid_request,
    make_id,
    not_found,
    now,
)


def find(port: Port, identifier: str) -> dict[str, Any]:
    """An action's document as it is shown.

    Raises:
        ApiError: 404.
    """
    document = port.store.document("SELECT doc FROM actions WHERE identifier = ?", (identifier,))
    if document is None:
        raise not_found("Action", identifier)
    return document


def create(port: Port, call: Call) -> Reply:
    _check(port, call.body)
    identifier = call.body["identifier"]
    if _exists(port, identifier):
        raise identifier_taken("Action", identifier)
    moment = now()
    document = {
        "id": make_id("action"),
        **call.body,
        "createdAt": moment,
        "createdBy": port.user_id,
        "updatedAt": moment,
        "updatedBy": port.user_id,
    }
    port.store.put("actions", identifier, document)
    port.store.put("permissions", identifier, _default_permissions(port))
    port.definitions_changed()
    return Reply({"action": document})


def put(port: Port, call: Call) -> Reply:
    identifier = call.path["action"]
    old = find(port, identifier)
    _check(port, call.body)
    renamed = call.body["identifier"]
    if renamed != identifier:
        if _exists(port, renamed):
            raise identifier_taken("Action", renamed)
        for table, column in (("actions", "identifier"), ("permissions", "action"), ("runs", "action")):
            port.store.run(
                f"UPDATE {table} SET {column} = ? WHERE {column} = ?",  # noqa: S608 - names of our own
                (renamed, identifier),
            )
    document = {
        "id": old["id"],
        **call.body,
        "createdAt": old["createdAt"],
        "createdBy": old["createdBy"],
        "updatedAt": now(),
        "updatedBy": port.user_id,
    }
    port.store.put("actions", renamed, document)
    port.definitions_changed()
    return Reply({"action": document})


def get(port: Port, call: Call) -> Reply:
    return Reply({"action": find(port, call.path["action"])})


def delete(port: Port, call: Call) -> Reply:
    identifier = call.path["action"]
    find(port, identifier)
    port.store.run("DELETE FROM actions WHERE identifier = ?", (identifier,))
    port.store.run("DELETE FROM permissions WHERE action = ?", (identifier,))
    port.definitions_changed()
    return Reply({})


def list_all(port: Port, call: Call) -> Reply:
    """All actions that pass every filter."""
    if call.query.get("version", "v2") not in ("v1", "v2"):
        raise invalid_request("query parameter version must be v1 or v2")
    kind = call.query.get("trigger_type")
    if kind not in (None, "self-service", "automation"):
        raise invalid_request("query parameter trigger_type must be self-service or automation")
    published = call.flag("published") if "published" in call.query else None
    wanted: list[tuple[str, Any]] = [
        ("action_identifier", lambda doc: doc["identifier"]),
        ("blueprint_identifier", _blueprint_of),
        ("operation", lambda doc: doc["trigger"].get("operation")),
        ("trigger_event", lambda doc: doc["trigger"].get("event", {}).get("type")),
        (
            "trigger_event_action_identifier",
            lambda doc: doc["trigger"].get("event", {}).get("actionIdentifier"),
        ),
    ]
    filters = [(set(call.lists[name]), take) for name, take in wanted if name in call.lists]
    found = [
        document
        for document in port.store.documents("SELECT doc FROM actions ORDER BY rowid")
        if (kind is None or document["trigger"]["type"] == kind)
        and (published is None or document.get("publish", True) == published)
        and all(take(document) in values for values, take in filters)
    ]
    return Reply({"actions": found})


def get_permissions(port: Port, call: Call) -> Reply:
    return Reply({"permissions": _shown(_permissions(port, call.path["action"]))})


def patch_permissions(port: Port, call: Call) -> Reply:
    stored = _permissions(port, call.path["action"])
    check(schemas.PERMISSIONS, call.body)
    for part in ("execute", "approve"):
        stored[part] = {**stored[part], **call.body.get(part, {})}
    port.store.put("permissions", call.path["action"], stored)
    return Reply({"permissions": _shown(stored)})


def permissions_of(port: Port, identifier: str) -> dict[str, Any]:
    """Who may execute and approve; the defaults of Port when nothing is stored."""
    stored = port.store.document("SELECT doc FROM permissions WHERE action = ?", (identifier,))
    return stored or _default_permissions(port)


def _permissions(port: Port, identifier: str) -> dict[str, Any]:
    find(port, identifier)
    stored = permissions_of(port, identifier)
    # Port makes this object a moment after the action.
    if stored["appears"] > time.time():
        raise not_found("ActionPermissions", identifier)
    return stored


def _default_permissions(port: Port) -> dict[str, Any]:
    return {
        "appears": time.time() + port.settings.permissions_delay_seconds,
        "execute": {"users": [], "roles": ["Member"], "teams": [], "ownedByTeam": False, "policy": None},
        "approve": {"users": [], "roles": ["Admin"], "teams": [], "policy": None},
    }


def _shown(stored: dict[str, Any]) -> dict[str, Any]:
    return {"execute": stored["execute"], "approve": stored["approve"]}


def _check(port: Port, body: Any) -> None:
    check_action(body)
    trigger = body["trigger"]
    blueprint = _blueprint_of(body)
    if blueprint is not None:
        entities.blueprint(port, blueprint)
    if trigger["type"] == "self-service":
        inputs.check_definition(trigger["userInputs"])
        if "condition" in trigger and trigger["operation"] == "CREATE":
            raise invalid_request("trigger.condition: is for the operations DAY-2 and DELETE")


def _blueprint_of(document: dict[str, Any]) -> str | None:
    trigger = document["trigger"]
    source = trigger.get("event", {}) if trigger["type"] == "automation" else trigger
    found = source.get("blueprintIdentifier")
    return found if isinstance(found, str) else None


def _exists(port: Port, identifier: str) -> bool:
    return port.store.row("SELECT 1 FROM actions WHERE identifier = ?", (identifier,)) is not None
