"""Requests of actions that exist in Port already, in each form of their bodies that Port's own material shows."""

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.runtime.kit import FakePort, envelope, fake_port, route, write_secrets
from tests.unit.runtime.test_receiver import Bench, bench, sign

from port_webhook_handlers.port.encryption import encrypt_aes256_gcm
from port_webhook_handlers.port.payload import ENVELOPE, LEGACY, RUN_ID_HEADER, SNAKE_CASE, UI, Payload
from port_webhook_handlers.runtime.child import completed
from port_webhook_handlers.runtime.confirmation import BlockingConfirmation, Confirmation
from port_webhook_handlers.runtime.execution import handler_request
from port_webhook_handlers.runtime.manifest import Manifest, Route, parse
from port_webhook_handlers.runtime.port_calls import LoopCalls
from port_webhook_handlers.runtime.receiver import Headers
from port_webhook_handlers.runtime.secret_file import LiveSecrets

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


NOT_THE_ROUTES: list[tuple[str, dict[str, Any], int, str]] = [
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
]


def test_a_form_that_is_not_the_routes(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        for name, body, status, reason in NOT_THE_ROUTES:
            found, answer = await b.post(name, json.dumps(body).encode())
            assert (found, answer["error"]) == (status, reason), (name, body)
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


IN_HEADER = Payload(run_id="header:RUN_ID", inputs="inputs")
HEADER_ROUTES = (
    route("header", payload=RUN_ID_HEADER),
    route("answers", payload=RUN_ID_HEADER, mode="sync"),
    route(
        "erase", payload=dataclasses.replace(IN_HEADER, empty_body=True), inputs_schema={}, method="DELETE"
    ),
    route("usual"),
)
TEXT = b'{"text":"a"}'


@pytest.fixture
def port() -> Iterator[FakePort]:
    with fake_port() as fake:
        for name in ("header", "answers", "erase"):
            action = {"identifier": name}
            fake.runs[f"r_{name}"] = {"id": f"r_{name}", "status": "IN_PROGRESS", "action": action}
            fake.runs[f"r_ended_{name}"] = {"id": f"r_ended_{name}", "status": "SUCCESS", "action": action}
        yield fake


def ask(folder: Path, port: FakePort | None, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    """With a listener that asks Port from the loop, and once more with one that has no loop to ask from."""

    async def main() -> None:
        url = "http://127.0.0.1:9" if port is None else port.url
        for name, blocking in (("loop", False), ("function", True)):
            secrets = LiveSecrets(write_secrets(folder / name))
            calls = LoopCalls(secrets, url)
            confirm = BlockingConfirmation(secrets, url) if blocking else Confirmation(calls)
            async with bench(folder / name, HEADER_ROUTES, confirm) as built:
                await scenario(built)
            await calls.close()
            if isinstance(confirm, BlockingConfirmation):
                confirm.close()

    asyncio.run(main())


def with_run(run_id: str, body: bytes = TEXT) -> Headers:
    return [*sign(body), (b"run_id", run_id.encode())]


def test_a_run_that_only_a_header_names_is_confirmed_by_port(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        port.calls.clear()
        for _ in range(2):
            # Port has ended the run by the time of the repeat, which gets the first answer nevertheless.
            found = await b.post("header", TEXT, with_run("r_header"))
            assert found == (202, {"accepted": True, "runId": "r_header"})
            port.runs["r_header"]["status"] = "SUCCESS"
        port.runs["r_header"]["status"] = "IN_PROGRESS"
        assert [call[:2] for call in port.calls] == [("GET", "/v1/actions/runs/r_header")]
        assert "version=v2" in port.queries
        assert b.recorder.started == [("r_header", "header")]
        changed = await b.post("header", b'{"text":"b"}', with_run("r_header", b'{"text":"b"}'))
        assert (changed[0], changed[1]["error"]) == (409, "run_id_reused")
        assert not b.receiver.serve("POST", "/webhooks/header", [], TEXT, lambda _: None)
        await b.ledger.queued()

    ask(tmp_path, port, scenario)


NOT_CONFIRMED: list[tuple[list[str], int, str]] = [
    (["r_unknown"], 403, "unconfirmed_run"),
    (["r_answers"], 403, "unconfirmed_run"),
    (["r_ended_header"], 403, "unconfirmed_run"),
    (["r_header", "r_header"], 400, "duplicate_header"),
    (["r_header", "r_answers"], 400, "duplicate_header"),
    ([], 400, "missing_run_id"),
    ([""], 400, "invalid_run_id"),
    (["r_header, r_header"], 400, "invalid_run_id"),
    (["../runs"], 400, "invalid_run_id"),
]


def test_a_run_that_port_does_not_confirm(tmp_path: Path, port: FakePort) -> None:
    port.fault = lambda _, path: (
        (404, {}, {"ok": False, "error": "not_found", "message": "no such run"})
        if "unknown" in path
        else None
    )

    async def scenario(b: Bench) -> None:
        for run_ids, status, reason in NOT_CONFIRMED:
            headers = [(b"run_id", run_id.encode()) for run_id in run_ids]
            # Nor is a run failed that may be somebody else's, whatever the inputs are.
            for body in (TEXT, b"{}"):
                found, answer = await b.post("header", body, [*sign(body), *headers])
                assert (found, answer["error"]) == (status, reason), run_ids
            assert (await b.post("header", TEXT, headers))[1]["error"] == "missing_signature"
        assert (b.recorder.started, b.recorder.ended, b.recorder.failed) == ([], [], [])

    ask(tmp_path, port, scenario)


def failing(status: int) -> Callable[..., tuple[int, dict[str, str], dict[str, Any]]]:
    return lambda *_: (status, {}, {"ok": False, "error": "x", "message": "y"})


def test_nothing_starts_when_port_cannot_be_asked(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        for answer in (500, 401, 403, 429):
            port.fault = failing(answer)
            await refused(b, "header", "answers")
        assert (await b.post("usual", envelope("usual", "r_1", text="a")))[0] == 202, "others need no Port"

    async def refused(b: Bench, *names: str) -> None:
        for name in names:
            status, body = await b.post(name, TEXT, with_run(f"r_{name}"))
            assert (status, body["error"]) == (503, "not_confirmed")
        assert (b.recorder.started, b.recorder.answers, await b.ledger.queued()) == ([], 0, [])

    ask(tmp_path, port, scenario)
    ask(tmp_path / "away", None, lambda b: refused(b, "header"))


def test_bad_inputs_of_a_confirmed_run_end_it(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        status, answer = await b.post("header", b"{}", with_run("r_header", b"{}"))
        assert (status, answer["accepted"], answer["fields"]) == (202, False, {"text": "is required"})
        assert b.recorder.ended == ["r_header"]
        assert (await b.post("answers", b"{}", with_run("r_answers", b"{}")))[0] == 422

    ask(tmp_path, port, scenario)


def test_a_request_without_a_body(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        # Signed over nothing or over an empty object: Port does not say which.
        for signed in (b"", b"{}"):
            found = await b.post("erase", b"", with_run("r_erase", signed), method="DELETE")
            assert found == (202, {"accepted": True, "runId": "r_erase"})
        assert await b.post("erase", b"{}", with_run("r_erase", b"{}"), method="DELETE") == found
        assert b.recorder.started == [("r_erase", "erase")]
        (run,) = [await b.ledger.start(run_id) for run_id, _ in await b.ledger.queued()]
        assert run is not None
        assert run.payload == b"{}"
        for run_id, status, reason in (
            ("r_header", 403, "unconfirmed_run"),
            ("r_ended_erase", 403, "unconfirmed_run"),
            ("", 400, "invalid_run_id"),
        ):
            answer = await b.post("erase", b"", with_run(run_id, b""), method="DELETE")
            assert (answer[0], answer[1]["error"]) == (status, reason)
        for headers in (with_run("r_erase", b"x"), [(b"run_id", b"r_erase")]):
            assert (await b.post("erase", b"", headers, method="DELETE"))[0] == 401
        assert (await b.post("erase", b"", with_run("r_erase", b"")))[0] == 405
        for name in ("header", "usual"):
            for signed in (b"", b"{}"):
                assert (await b.post(name, b"", with_run(f"r_{name}", signed)))[0] in (400, 401)
            assert (await b.post(name, b"", with_run(f"r_{name}", b"")))[1]["error"] == "invalid_json"

    ask(tmp_path, port, scenario)
