"""Requests of actions that exist in Port already, in each form of their bodies that Port's own material shows."""

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.runtime.kit import envelope, route
from tests.unit.runtime.test_receiver import Bench, bench, sign

from port_webhook_handlers.port.encryption import encrypt_aes256_gcm
from port_webhook_handlers.port.payload import ENVELOPE, LEGACY, SNAKE_CASE, UI, Payload
from port_webhook_handlers.runtime.child import completed
from port_webhook_handlers.runtime.execution import handler_request
from port_webhook_handlers.runtime.manifest import Manifest, Route, parse

CART = {"identifier": "cart", "blueprint": "service"}
TRIGGER = {"by": {"userId": "auth0|y"}, "origin": "UI"}
OWN = Payload(run_id="meta.run", action="meta.name", inputs="data", entity="on", event="event")


def legacy(action: str = "svc_legacy", run_id: object = "r_1", **inputs: Any) -> dict[str, Any]:
    return {
        "action": action,
        "resourceType": "run",
        "status": "TRIGGERED",
        "trigger": TRIGGER,
        "context": {"entity": "cart", "blueprint": "svc", "runId": run_id},
        "payload": {
            "entity": CART,
            "action": {"invocationMethod": {"type": "WEBHOOK"}, "trigger": "DAY-2"},
            "properties": inputs,
            "censoredProperties": [],
        },
    }


ROUTES = (
    route("svc_legacy", payload=LEGACY),
    route("ui", payload=UI),
    route("snake", payload=SNAKE_CASE, mode="sync"),
    route("own", payload=OWN),
)

# Route, body, the inputs in it, and the context that the handler gets.
FORMS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (
        "svc_legacy",
        legacy(text="a"),
        {"text": "a"},
        {"entity": CART, "blueprint": "service", "trigger": TRIGGER},
    ),
    (
        "svc_legacy",
        # Port's template for migrated actions takes the blueprint off the identifier; CREATE has no entity.
        {**legacy("legacy"), "payload": {"entity": None, "properties": {"text": "a"}}},
        {"text": "a"},
        {"entity": None, "blueprint": "svc", "trigger": TRIGGER},
    ),
    (
        "ui",
        {"text": "a", "port_context": {"runId": "r_1"}},
        {"text": "a"},
        {"entity": None, "blueprint": None},
    ),
    (
        "ui",
        {"port_context": {"entity": "cart", "runId": "r_1", "blueprint": "service", "x": 1}, "text": "b"},
        {"text": "b"},
        {"entity": "cart", "blueprint": "service"},
    ),
    ("snake", {"text": "a", "count": 2, "port_context": {"run_id": "r_1"}}, {"text": "a", "count": 2}, {}),
    (
        "own",
        {"meta": {"run": "r_1", "name": "own"}, "data": {"text": "a"}, "on": {}, "event": {"x": 1}},
        {"text": "a"},
        {"entity": None, "event": {"x": 1}, "trigger": None},
    ),
]


def run(
    folder: Path, scenario: Callable[[Bench], Awaitable[None]], routes: tuple[Route, ...] = ROUTES
) -> None:
    async def main() -> None:
        async with bench(folder, routes) as built:
            await scenario(built)

    asyncio.run(main())


@pytest.mark.parametrize(("name", "body", "inputs", "context"), FORMS)
def test_a_form_is_accepted_and_understood(
    tmp_path: Path, name: str, body: dict[str, Any], inputs: dict[str, Any], context: dict[str, Any]
) -> None:
    found = next(item for item in ROUTES if item.name == name)
    # What the receiver works with has been through the manifest.
    found = parse(Manifest({}, {name: found}).dumps()).routes[name]

    async def scenario(b: Bench) -> None:
        text = json.dumps(body).encode()
        if found.mode == "async":
            assert await b.post(name, text) == (202, {"accepted": True, "runId": "r_1"})
            assert b.recorder.started == [("r_1", name)]
            assert (await b.ledger.queued()) == [("r_1", name)]
        assert b.receiver._refusal(b.receiver._invocation(found, "POST", sign(text), text)) is None

    run(tmp_path, scenario, (found,))
    constants: dict[str, Any] = {"attempt": 1, "deadline": 5.0}
    whole = handler_request("r_1", found, body, **constants, secrets={}, decryption=(), settings={})
    sent = {
        "run": {"id": "r_1", "action": name, **constants},
        "payload": found.payload.to_json(),
        "body": body,
    }
    for request in (whole, completed(json.loads(json.dumps(sent)))):
        assert request["inputs"] == inputs
        assert {key: request["run"][key] for key in context} == context


@pytest.mark.parametrize(
    ("name", "body", "status", "reason"),
    [
        ("svc_legacy", legacy("other", text="a"), 403, "wrong_route"),
        ("svc_legacy", legacy("vc_legacy", text="a"), 403, "wrong_route"),
        ("svc_legacy", {**legacy(text="a"), "action": ["svc_legacy"]}, 403, "wrong_route"),
        (
            "svc_legacy",
            {**legacy("legacy"), "context": {"blueprint": "other", "runId": "r_1"}},
            403,
            "wrong_route",
        ),
        ("svc_legacy", {**legacy(), "port_context": {"action": "ui"}}, 403, "wrong_route"),
        ("svc_legacy", json.loads(envelope("svc_legacy", "r_1", text="a")), 403, "wrong_route"),
        ("svc_legacy", legacy(run_id=None), 400, "missing_run_id"),
        ("svc_legacy", legacy(run_id={"id": "r_1"}), 400, "invalid_run_id"),
        ("svc_legacy", {**legacy(), "context": "r_1"}, 400, "missing_run_id"),
        ("ui", {"text": "a", "port_context": {"run_id": "r_1"}}, 400, "missing_run_id"),
        ("ui", {"text": "a", "port_context": {"runId": "r/1"}}, 400, "invalid_run_id"),
        ("ui", {"text": "a", "port_context": {"runId": "r_1", "action": "own"}}, 403, "wrong_route"),
        ("ui", {"text": "a", "runId": "r_1"}, 400, "missing_run_id"),
        ("snake", {"text": "a", "port_context": {"runId": "r_1"}}, 400, "missing_run_id"),
        ("snake", {"text": 1, "port_context": {"run_id": "r_1"}}, 422, "invalid_inputs"),
        ("snake", {"text": "a", "entity": {}, "port_context": {"run_id": "r_1"}}, 422, "invalid_inputs"),
        ("own", {"meta": {"run": "r_1"}, "data": {"text": "a"}}, 403, "wrong_route"),
    ],
)
def test_a_form_that_is_not_the_routes(
    tmp_path: Path, name: str, body: dict[str, Any], status: int, reason: str
) -> None:
    async def scenario(b: Bench) -> None:
        found, answer = await b.post(name, json.dumps(body).encode())
        assert (found, answer["error"]) == (status, reason)
        assert b.recorder.started == []
        assert b.recorder.answers == 0

    run(tmp_path, scenario)


def test_bad_inputs_of_every_form_end_the_run(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        wrong = {
            "svc_legacy": legacy(run_id="r_1", text=1),
            "ui": {"colour": "red", "port_context": {"runId": "r_2"}},
            "own": {"meta": {"run": "r_3", "name": "own"}},
        }
        for number, (name, body) in enumerate(wrong.items(), 1):
            status, answer = await b.post(name, json.dumps(body).encode())
            assert (status, answer["accepted"], answer["error"]) == (202, False, "invalid_inputs"), name
            assert "text" in answer["fields"]
            (report,) = await b.ledger.reports(f"r_{number}")
            assert report.body["status"] == "FAILURE"
        assert b.recorder.started == []

    run(tmp_path, scenario)


@pytest.mark.parametrize("payload", [LEGACY, UI, OWN])
def test_encrypted_inputs_are_opened_in_every_form(payload: Payload) -> None:
    key = "decryption-key-of-at-least-32-bytes!"
    sealed = encrypt_aes256_gcm(b"plain", key)
    found = route("x", payload=payload, encrypted_inputs=("text",))
    body = {"text": sealed, "data": {"text": sealed}, "payload": {"properties": {"text": sealed}}}
    request = handler_request(
        "r_1", found, body, attempt=1, deadline=5.0, secrets={}, decryption=[key], settings={}
    )
    assert request["inputs"]["text"] == "plain"
    assert sealed in json.dumps(body), "what was signed stays as it is"


def test_a_form_survives_the_manifest() -> None:
    manifest = Manifest({}, {item.name: item for item in (*ROUTES, route("usual"))})
    found = parse(manifest.dumps())
    assert found == manifest
    assert found.routes["usual"].payload is ENVELOPE
    assert found.dumps() == manifest.dumps()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"run_id": ""}, "payload.run_id"),
        ({"run_id": "a..b"}, "payload.run_id"),
        ({"run_id": None}, "payload.run_id"),
        ({"run_id": "*"}, "payload.run_id"),
        ({"run_id": "header:"}, "payload.run_id"),
        ({"run_id": "header:a b"}, "payload.run_id"),
        ({"run_id": "header:X-Port-Signature"}, "payload.run_id"),
        ({"inputs": None}, "payload.inputs"),
        ({"action": "header:ACTION"}, "payload.action"),
        ({"entity": 7}, "payload.entity"),
        ({"empty_body": "yes"}, "payload.empty_body"),
        ({"empty_body": True}, "payload.empty_body"),
    ],
)
def test_a_form_that_cannot_be(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(LEGACY, **changes)
