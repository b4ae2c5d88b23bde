"""Blueprints."""

from __future__ import annotations

from typing import Any

from port_webhook_localport import entities, schemas
from port_webhook_localport.port import Port
from port_webhook_localport.schemas import check
from port_webhook_localport.web import (
    ApiError,
    Call,
    Reply,
    identifier_taken,
    invalid_request,
    make_id,
    not_found,
    not_supported,
    now,
)

_STAMPS = ("createdAt", "createdBy", "updatedAt", "updatedBy")


def create(port: Port, call: Call) -> Reply:
    call.flag("create_catalog_page", True)
    _check(port, call.body)
    identifier = call.body["identifier"]
    if port.store.row("SELECT 1 FROM blueprints WHERE identifier = ?", (identifier,)):
        raise identifier_taken("Blueprint", identifier)
    return Reply({"blueprint": _save(port, call.body, None)}, 201)


def list_all(port: Port, call: Call) -> Reply:
    return Reply({"blueprints": port.store.documents("SELECT doc FROM blueprints ORDER BY rowid")})


def get(port: Port, call: Call) -> Reply:
    return Reply({"blueprint": entities.blueprint(port, call.path["blueprint"])})


def put(port: Port, call: Call) -> Reply:
    existing = entities.blueprint(port, call.path["blueprint"])
    _check(port, call.body)
    _refuse_rename(existing, call.body)
    return Reply({"blueprint": _save(port, call.body, existing)})


def patch(port: Port, call: Call) -> Reply:
    existing = entities.blueprint(port, call.path["blueprint"])
    check(schemas.OBJECT, call.body)
    body = {**existing, **call.body}
    _check(port, body)
    _refuse_rename(existing, body)
    return Reply({"blueprint": _save(port, body, existing)})


def delete(port: Port, call: Call) -> Reply:
    identifier = call.path["blueprint"]
    entities.blueprint(port, identifier)
    if port.store.row("SELECT 1 FROM entities WHERE blueprint = ? LIMIT 1", (identifier,)):
        raise _has_dependents(identifier, "entities")
    _delete(port, identifier, delete_actions=call.flag("delete_actions"))
    return Reply({})


def delete_all_entities(port: Port, call: Call) -> Reply:
    identifier = call.path["blueprint"]
    entities.blueprint(port, identifier)
    delete_blueprint = call.flag("delete_blueprint")
    for (entity,) in port.store.rows("SELECT identifier FROM entities WHERE blueprint = ?", (identifier,)):
        entities.remove(port, identifier, entity, call, force=True)
    if delete_blueprint:
        _delete(port, identifier, delete_actions=False)
    moment = now()
    migration = {
        "id": make_id("migration"),
        "actor": port.user_id,
        "sourceBlueprint": identifier,
        "status": "COMPLETED",
        "createdAt": moment,
        "updatedAt": moment,
    }
    port.store.put("migrations", migration["id"], migration)
    return Reply({"migrationId": migration["id"]})


def get_migration(port: Port, call: Call) -> Reply:
    migration = port.store.document("SELECT doc FROM migrations WHERE id = ?", (call.path["migration"],))
    if migration is None:
        raise not_found("Migration", call.path["migration"], "id")
    return Reply({"migration": migration})


def _check(port: Port, body: Any) -> None:
    check(schemas.BLUEPRINT, body)
    definition = body["schema"]
    missing = [name for name in definition.get("required", []) if name not in definition["properties"]]
    if missing:
        raise invalid_request(f"schema.required: {missing[0]} is not a property")
    problem = schemas.defect(entities.properties_schema(body))
    if problem is not None:
        raise invalid_request(f"schema.{problem}")
    for relation in body.get("relations", {}).values():
        if relation["target"] != body["identifier"]:
            entities.blueprint(port, relation["target"])


def _refuse_rename(existing: dict[str, Any], body: dict[str, Any]) -> None:
    if body["identifier"] != existing["identifier"]:
        raise not_supported("renaming a blueprint")


def _save(port: Port, body: dict[str, Any], existing: dict[str, Any] | None) -> dict[str, Any]:
    moment = now()
    made = existing or {"createdAt": moment, "createdBy": port.user_id}
    document = {
        **{key: value for key, value in body.items() if key not in _STAMPS},
        "createdAt": made["createdAt"],
        "createdBy": made["createdBy"],
        "updatedAt": moment,
        "updatedBy": port.user_id,
    }
    port.store.put("blueprints", document["identifier"], document)
    return document


def _delete(port: Port, identifier: str, *, delete_actions: bool) -> None:
    for other in port.store.documents("SELECT doc FROM blueprints WHERE identifier <> ?", (identifier,)):
        if any(relation["target"] == identifier for relation in other.get("relations", {}).values()):
            raise _has_dependents(identifier, f"a relation of the blueprint {other['identifier']}")
    attached = port.store.rows(
        "SELECT identifier FROM actions WHERE json_extract(doc, '$.trigger.blueprintIdentifier') = ?",
        (identifier,),
    )
    if attached and not delete_actions:
        raise _has_dependents(identifier, f"the action {attached[0][0]}")
    for (action,) in attached:
        port.store.run("DELETE FROM actions WHERE identifier = ?", (action,))
        port.store.run("DELETE FROM permissions WHERE action = ?", (action,))
    port.definitions_changed()
    port.store.run("DELETE FROM blueprints WHERE identifier = ?", (identifier,))


def _has_dependents(identifier: str, dependents: str) -> ApiError:
    return ApiError(
        409, "has_dependents", f'Blueprint "{identifier}" has dependents: {dependents}. Delete them first'
    )
