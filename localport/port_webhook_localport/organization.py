"""Authentication, the organisation and its secrets."""

from __future__ import annotations

import hmac
from typing import Any

from port_webhook_localport import schemas
from port_webhook_localport.encryption import seal
from port_webhook_localport.port import Port
from port_webhook_localport.schemas import check
from port_webhook_localport.web import (
    ApiError,
    Call,
    Reply,
    compact,
    identifier_taken,
    not_found,
    not_supported,
    now,
)


def authenticate(port: Port, call: Call) -> Reply:
    check(schemas.AUTHENTICATION, call.body)
    known = port.credentials
    id_matches = hmac.compare_digest(call.body["clientId"].encode(), known.client_id.encode())
    if not (known.accepts(call.body["clientSecret"]) and id_matches):
        raise ApiError(401, "unauthorized", "clientId or clientSecret is wrong")
    token, expires_in = port.tokens.issue(port.organization_id, port.settings.token_lifetime_seconds)
    return Reply({"accessToken": token, "expiresIn": expires_in, "tokenType": "Bearer"})


def get_organization(port: Port, call: Call) -> Reply:
    return Reply({"organization": port.organization()})


def patch_organization(port: Port, call: Call) -> Reply:
    check(schemas.ORGANIZATION, call.body)
    document = port.organization()
    settings = {**document["settings"], **call.body.get("settings", {})}
    port.store.set_meta("organization", {**document, **call.body, "settings": settings})
    return Reply({})


def kafka_credentials(port: Port, call: Call) -> Reply:
    kafka = port.kafka
    if kafka is None:
        raise not_supported("GET /v1/kafka-credentials until brokers are set through PUT /_local/kafka")
    names = ("brokers", "username", "password")
    return Reply({"credentials": {name: kafka[name] for name in names}})


def create_secret(port: Port, call: Call) -> Reply:
    check(schemas.SECRET, call.body)
    name = call.body["secretName"]
    if port.store.row("SELECT 1 FROM secrets WHERE name = ?", (name,)):
        raise identifier_taken("Secret", name)
    moment = now()
    document = {
        "secretName": name,
        "description": call.body.get("description", ""),
        "createdAt": moment,
        "updatedAt": moment,
    }
    port.store.run(
        "INSERT INTO secrets (name, value, doc) VALUES (?, ?, ?)",
        (name, _sealed(port, name, call.body["secretValue"]), compact(document)),
    )
    port.secrets_changed()
    return Reply({"secret": document})


def list_secrets(port: Port, call: Call) -> Reply:
    return Reply({"secrets": port.store.documents("SELECT doc FROM secrets ORDER BY name")})


def get_secret(port: Port, call: Call) -> Reply:
    return Reply({"secret": _secret(port, call.path["name"])})


def patch_secret(port: Port, call: Call) -> Reply:
    check(schemas.SECRET_CHANGE, call.body)
    name = call.path["name"]
    document = {**_secret(port, name), "updatedAt": now()}
    if "description" in call.body:
        document["description"] = call.body["description"]
    port.store.run("UPDATE secrets SET doc = ? WHERE name = ?", (compact(document), name))
    if "secretValue" in call.body:
        sealed = _sealed(port, name, call.body["secretValue"])
        port.store.run("UPDATE secrets SET value = ? WHERE name = ?", (sealed, name))
        port.secrets_changed()
    return Reply({"secret": document})


def delete_secret(port: Port, call: Call) -> Reply:
    _secret(port, call.path["name"])
    port.store.run("DELETE FROM secrets WHERE name = ?", (call.path["name"],))
    port.secrets_changed()
    return Reply({})


def _secret(port: Port, name: str) -> dict[str, Any]:
    document = port.store.document("SELECT doc FROM secrets WHERE name = ?", (name,))
    if document is None:
        raise not_found("Secret", name, "secretName")
    return document


def _sealed(port: Port, name: str, value: str) -> bytes:
    return seal(value, bytes.fromhex(port.credentials.storage_key), name)
