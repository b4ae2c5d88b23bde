"""Port's own execution agent as its counterparts see it: what it sends, and what Port sends to it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import requests


def signature(secret: str, timestamp: str, text: str) -> str:
    digest = hmac.new(secret.encode(), f"{timestamp}.{text}".encode(), hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def outgoing(secret: str, body: Any, at: float | None = None) -> dict[str, str]:
    """Headers of a delivery: signed is compact JSON with ASCII escapes, whatever is sent."""
    timestamp = str(int(time.time() if at is None else at))
    text = json.dumps(body, separators=(",", ":"))
    return {"X-Port-Timestamp": timestamp, "X-Port-Signature": signature(secret, timestamp, text)}


def wire(body: Any, url: str = "http://hooks.invalid/") -> bytes:
    """The bytes that it sends for a body."""
    data = requests.Request("POST", url, json=body).prepare().body
    assert isinstance(data, bytes)
    return data


def deliver(url: str, secret: str, body: Any, at: float | None = None, **headers: str) -> requests.Response:
    """One delivery as it makes it."""
    with requests.Session() as session:
        session.trust_env = False
        signed = {**headers, **outgoing(secret, body, at)}
        return session.post(url, json=body, headers=signed, timeout=20)


def topic_text(message: dict[str, Any], secret: str, timestamp: str, *, headers_signed: bool = True) -> str:
    """A message of the topic of runs as Port writes it.

    Args:
        message: without the member `headers`, or with the action's own.
        headers_signed: False for GITLAB, whose signature leaves `headers` out altogether.
    """
    whole = {**message, "headers": message.get("headers", {})}
    signed = whole if headers_signed else {key: item for key, item in message.items() if key != "headers"}
    text = json.dumps(signed, ensure_ascii=False, separators=(",", ":"))
    own = {"X-Port-Signature": signature(secret, timestamp, text), "X-Port-Timestamp": int(timestamp)}
    whole["headers"] = {**whole["headers"], **own}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))


def run_event(method: dict[str, Any] | None = None) -> dict[str, Any]:
    """The message of the agent's published signature vector: an older form, with the whole action in it."""
    people = {"createdAt": "2022-11-15T09:58:52.863Z", "createdBy": "test_user"}
    changed = {"updatedAt": "2022-11-15T09:58:52.863Z", "updatedBy": "test_user"}
    properties = {name: {"type": kind, "description": "Description"} for name, kind in _INPUTS}
    action = {
        "id": "action_34aweFQtayw7SCVb",
        "identifier": "Create",
        "title": "Create",
        "icon": "DefaultBlueprint",
        "userInputs": {"properties": properties, "required": []},
        "invocationMethod": method
        or {"type": "WEBHOOK", "agent": True, "url": "http://localhost:80/api/test"},
        "trigger": "CREATE",
        "description": "",
        "blueprint": "Service",
        **people,
        **changed,
    }
    return {
        "action": "Create",
        "resourceType": "run",
        "status": "TRIGGERED",
        "trigger": {
            "by": {"orgId": "test_org", "userId": "test_user"},
            "origin": "UI",
            "at": "2022-11-16T16:31:32.447Z",
        },
        "context": {"entity": None, "blueprint": "Service", "runId": "r_jE5FhDURh4Uen2Qr"},
        "payload": {"entity": None, "action": action, "properties": {}},
    }


_INPUTS = (("foo", "string"), ("bar", "number"))


def today(run_id: str, method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The newer form: two keys of the action, the user in full, the entity of a DAY-2 action."""
    user = {"email": "zoe@example.com", "firstName": "Zoë", "status": "ACTIVE", "providers": ["port"]}
    return {
        "action": "ship",
        "resourceType": "run",
        "status": "TRIGGERED",
        "trigger": {
            "by": {"orgId": "org_1", "userId": "auth0|1", "user": user},
            "origin": "UI",
            "at": "2026-01-02T03:04:05.678Z",
        },
        "context": {"entity": "svc-1", "blueprint": "service", "runId": run_id},
        "payload": {
            "entity": {"identifier": "svc-1", "blueprint": "service", "team": [], "properties": {}},
            "action": {
                "invocationMethod": {"type": "WEBHOOK", "agent": True, **method},
                "trigger": "DAY-2",
            },
            "properties": {"reason": "Zoë ✓", "ratio": 1.5},
            "censoredProperties": [],
        },
        **changes,
    }
