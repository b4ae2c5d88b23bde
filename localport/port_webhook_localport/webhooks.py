"""Ingest webhooks as objects. Documents that are posted to their address are not taken: that answers 404."""

from __future__ import annotations

import secrets
from typing import Any

from port_webhook_localport import entities, schemas
from port_webhook_localport.port import Port
from port_webhook_localport.schemas import check
from port_webhook_localport.web import Call, Reply, identifier_taken, invalid_request, make_id, not_found, now

_STAMPS = ("id", "webhookKey", "url", "createdAt", "createdBy")


def create(port: Port, call: Call) -> Reply:
    _check(port, call.body)
    body = {"identifier": make_id("webhook"), **call.body}
    if port.store.row("SELECT 1 FROM webhooks WHERE identifier = ?", (body["identifier"],)):
        raise identifier_taken("Webhook", body["identifier"])
    key = secrets.token_urlsafe(24)
    moment = now()
    made = {
        "id": make_id("integration"),
        "webhookKey": key,
        # Port's own host for this, so that nobody takes it for an address that local Port answers at.
        "url": f"https://ingest.getport.io/{key}",
        "createdAt": moment,
        "createdBy": port.user_id,
    }
    return Reply({"integration": _save(port, body, made)}, 201)


def list_all(port: Port, call: Call) -> Reply:
    return Reply({"integrations": port.store.documents("SELECT doc FROM webhooks ORDER BY rowid")})


def get(port: Port, call: Call) -> Reply:
    return Reply({"integration": _find(port, call.path["webhook"])})


def put(port: Port, call: Call) -> Reply:
    existing = _find(port, call.path["webhook"])
    _check(port, call.body)
    body = {"identifier": existing["identifier"], **call.body}
    if body["identifier"] != existing["identifier"]:
        raise invalid_request("identifier: cannot be changed")
    return Reply({"integration": _save(port, body, {key: existing[key] for key in _STAMPS})})


def delete(port: Port, call: Call) -> Reply:
    _find(port, call.path["webhook"])
    port.store.run("DELETE FROM webhooks WHERE identifier = ?", (call.path["webhook"],))
    return Reply({})


def _find(port: Port, identifier: str) -> dict[str, Any]:
    document = port.store.document("SELECT doc FROM webhooks WHERE identifier = ?", (identifier,))
    if document is None:
        raise not_found("Webhook", identifier)
    return document


def _check(port: Port, body: Any) -> None:
    check(schemas.WEBHOOK, body)
    for mapping in body.get("mappings", []):
        entities.blueprint(port, mapping["blueprint"])


def _save(port: Port, body: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    document = {**body, **made, "updatedAt": now(), "updatedBy": port.user_id}
    port.store.put("webhooks", document["identifier"], document)
    return document
