"""A run in the child: what a handler gets, what it sends, and that exactly one result ends it."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pytest

from port_webhook_handlers.sdk import (
    Entity,
    Failure,
    Field,
    InputError,
    Inputs,
    Result,
    RetryableError,
    Run,
    Success,
    action,
    automation,
    triggers,
)
from port_webhook_handlers.sdk.invoke import run_request
from port_webhook_handlers.sdk.testing import invoke


class Color(Enum):
    RED = "red"


class Deploy(Inputs):
    version: Annotated[str, Field(pattern=r"\d+")]
    token: Annotated[str | None, Field(encrypted=True, min_length=6)] = None
    config: Annotated[dict[str, Any] | None, Field(encrypted=True)] = None


@action("deploy", blueprint="service", operation="DAY-2", secrets=["TOKEN", "OTHER"])
def deploy(inputs: Deploy, run: Run) -> Result:
    run.progress("Working")
    run.log(f"version {inputs.version} of {run.entity.title} with {run.secret('TOKEN')}")
    run.link("https://a.b/1")
    run.link("https://a.b/2")
    run.summary("so far")
    run.upsert_entity(
        "deployment",
        "d1",
        title="D",
        properties={"at": datetime(2026, 1, 2, tzinfo=UTC), "color": Color.RED, "note": run.secret("TOKEN")},
        relations={"service": run.entity, "others": [Entity("x")]},
    )
    run.delete_entity("deployment", "d0")
    return Success("done", link="https://a.b", response={"ok": True})


ENTITY = {"identifier": "cart", "title": "Cart", "blueprint": "service", "properties": {"tier": "gold"}}


def test_messages_of_a_run() -> None:
    outcome = invoke(deploy, inputs={"version": "7"}, entity=ENTITY, secrets={"TOKEN": "t0psecret"})
    assert outcome.messages == [
        {"progress": "Working"},
        {"log": "version 7 of Cart with ***"},
        {"link": "https://a.b/1"},
        {"link": ["https://a.b/1", "https://a.b/2"]},
        {"summary": "so far"},
        {
            "entity": {
                "op": "upsert",
                "blueprint": "deployment",
                "body": {
                    "identifier": "d1",
                    "title": "D",
                    "properties": {"at": "2026-01-02T00:00:00.000Z", "color": "red", "note": "***"},
                    "relations": {"service": "cart", "others": ["x"]},
                },
                "ref": 1,
            }
        },
        {"entity": {"op": "delete", "blueprint": "deployment", "body": {"identifier": "d0"}, "ref": 2}},
        {
            "result": {
                "status": "SUCCESS",
                "summary": "done",
                "link": "https://a.b",
                "response": {"ok": True},
                "retryable": False,
                "error_type": None,
            }
        },
    ]
    assert outcome.result == Success("done", "https://a.b", {"ok": True})
    assert outcome.links == ["https://a.b/1", "https://a.b/2"]
    assert outcome.logs == ["version 7 of Cart with ***"]
    assert outcome.progress == ["Working"]
    assert [entity["op"] for entity in outcome.entities] == ["upsert", "delete"]


@action("reads", blueprint="service", operation="DAY-2")
async def reads(run: Run) -> Success:
    await asyncio.sleep(0)
    return Success(
        response={
            "id": run.id,
            "action": run.action,
            "email": run.trigger.email,
            "origin": run.trigger.origin,
            "attempt": run.attempt,
            "key": run.idempotency_key,
            "left": run.seconds_left,
            "settings": dict(run.settings),
            "tier": run.entity.properties["tier"],
            "event": run.event is None,
        }
    )


def test_what_an_async_handler_reads() -> None:
    outcome = invoke(
        reads,
        entity=Entity("cart", properties={"tier": "gold"}),
        trigger={"by": {"orgId": "o", "userId": "u", "user": {"email": "a@b.c"}}, "origin": "UI"},
        settings={"a": {"b": 1}},
        attempt=2,
        run_id="r_1",
        seconds=50,
    )
    response = outcome.result.response
    assert 40 < response.pop("left") <= 50
    assert response == {
        "id": "r_1",
        "action": "reads",
        "email": "a@b.c",
        "origin": "UI",
        "attempt": 2,
        "key": "r_1",
        "settings": {"a": {"b": 1}},
        "tier": "gold",
        "event": True,
    }


@automation("reacts", trigger=triggers.entity_updated("service"))
def reacts(run: Run) -> Success:
    assert run.event is not None
    assert run.event.before_entity is None
    return Success(
        response=[run.event.action, run.event.context["entityIdentifier"], str(run.event.after_entity)]
    )


def test_an_automation_reads_its_event() -> None:
    event = {
        "action": "CREATE",
        "resourceType": "entity",
        "context": {"entityIdentifier": "cart"},
        "diff": {"before": None, "after": {"identifier": "cart", "properties": {}}},
    }
    assert invoke(reacts, event=event).result.response == ["CREATE", "cart", "cart"]


class Fails(Inputs):
    how: str


class Tells(Inputs):
    token: Annotated[str, Field(encrypted=True)]


@action("fails", secrets=["TOKEN", "LINES"])
def fails(inputs: Fails, run: Run) -> Any:
    match inputs.how:
        case "error":
            raise ValueError(f"no {run.secret('TOKEN')}")
        case "multi":
            raise ValueError("line-two-x of it")
        case "retry":
            raise RetryableError("try later")
        case "failure":
            return Failure("known problem", link="https://a.b", response={"code": 1})
        case "exit":
            sys.exit(3)
        case "wrong":
            return "text"
        case "undeclared":
            return Success(run.secret("OTHER"))
        case "unset":
            return Success(run.secret("LINES"))
        case "no-json":
            return Success(response={"a": object()})
        case "nan":
            return Success(response=float("nan"))
        case "entity":
            return Success(str(run.entity))
        case "naive":
            run.upsert_entity("b", "i", properties={"at": datetime(2026, 1, 1)})
        case "long":
            run.log("x" * 50_000)
            return Failure("y" * 50_000)
        case "large":
            run.upsert_entity("b", "i", properties={"a": "x" * 2**20})
        case "large-response":
            return Success(response=["x" * 2**20])
        case "empty":
            run.upsert_entity("b", "")
    return None


FAILURES = [
    ("error", "ValueError: no ***", "ValueError"),
    ("multi", "ValueError: *** of it", "ValueError"),
    ("retry", "try later", "RetryableError"),
    ("failure", "known problem", None),
    ("exit", "SystemExit: the handler ended its process (exit 3); return a result instead", "SystemExit"),
    (
        "wrong",
        "TypeError: the handler returned str; return Success(…), Failure(…), HandedOver(…) or None",
        "TypeError",
    ),
    ("undeclared", "secret OTHER is not declared; add it to secrets=[…] of fails", "UndeclaredSecretError"),
    ("no-json", "TypeError: response.a is a object, which has no JSON form", "TypeError"),
    ("nan", "TypeError: response is nan, which JSON cannot hold", "TypeError"),
    ("entity", "LookupError: the run has no entity; only actions", "LookupError"),
    ("naive", "TypeError: properties.at is a date without time zone", "TypeError"),
    ("large", "ValueError: entity i of b has 10486", "ValueError"),
    ("large-response", "ValueError: the response has 10485", "ValueError"),
    ("empty", "ValueError: an entity needs a blueprint and an identifier", "ValueError"),
]


@pytest.mark.parametrize(("how", "summary", "error_type"), FAILURES)
def test_failures(how: str, summary: str, error_type: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    secrets = {"TOKEN": "t0psecret", "LINES": "line-one-x\nline-two-x"}
    outcome = invoke(fails, inputs={"how": how}, secrets=secrets)
    assert isinstance(outcome.result, Failure)
    assert outcome.result.summary.startswith(summary)
    assert outcome.error_type == error_type
    assert outcome.retryable is (how == "retry")
    assert [message for message in outcome.messages if "result" in message] == outcome.messages[-1:]
    log = capfd.readouterr().err
    assert ("Traceback" in log) is (error_type is not None)
    assert "t0psecret" not in log + json.dumps(outcome.messages)


def test_long_texts_are_cut() -> None:
    outcome = invoke(fails, inputs={"how": "long"})
    assert outcome.logs == ["x" * 32_768 + "… (cut)"]
    assert outcome.result.summary == "y" * 32_768 + "… (cut)"


def test_a_declared_secret_without_value() -> None:
    outcome = invoke(fails, inputs={"how": "unset"})
    assert isinstance(outcome.result, Failure)
    assert outcome.result.summary == "secret LINES has no value; set it in the configuration of the stack"


def test_encrypted_inputs_are_checked_once_they_are_plain() -> None:
    secrets = {"TOKEN": "t0psecret"}

    def outcome(**inputs: Any) -> Any:
        messages: list[dict[str, Any]] = []
        run_request(
            {
                "run": {"id": "r", "action": "deploy", "entity": ENTITY},
                "inputs": {"version": "1", **inputs},
                "handler": f"{__name__}:deploy",
                "secrets": secrets,
            },
            messages.append,
        )
        return messages[-1]["result"]

    assert outcome(token="longer", config='{"a": 1}')["status"] == "SUCCESS"
    short = outcome(token="short")
    assert short["error_type"] == "InputError"
    assert short["summary"].startswith("inputs.token must be longer")
    assert outcome(config="[1]")["summary"] == "inputs.config must be object or null"
    assert outcome(config="{")["summary"] == "inputs.config must be an object in JSON"


@action("tells")
def tells(inputs: Tells, run: Run) -> Success:
    run.log(f"the token is {inputs.token}")
    return Success(inputs.token)


def test_plain_values_of_encrypted_inputs_are_masked() -> None:
    outcome = invoke(tells, inputs={"token": "t0psecret"})
    assert outcome.logs == ["the token is ***"]
    assert outcome.result.summary == "***"


def test_the_kit_refuses_what_the_listener_refuses() -> None:
    with pytest.raises(InputError, match=r"^inputs\.version must match pattern"):
        invoke(deploy, inputs={"version": "x"}, entity="cart")
    with pytest.raises(InputError, match=r"^inputs must not contain"):
        invoke(deploy, inputs={"version": "1", "other": 1}, entity="cart")
    with pytest.raises(LookupError, match="decorate it"):
        invoke(test_failures)


def _request(handler: str) -> dict[str, Any]:
    return {
        "run": {"id": "r_1", "action": "x"},
        "inputs": {},
        "handler": handler,
        "secrets": {},
        "settings": {},
    }


def test_handlers_are_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_module_one.py").write_text(
        "from port_webhook_handlers.sdk import Run, Success, action\n"
        "@action('x')\n"
        "def x(run: Run) -> Success:\n"
        "    return Success(run.id)\n"
        "plain = 1\n"
    )
    (tmp_path / "user_module_two.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    for handler, status, summary in [
        ("user_module_one:x", "SUCCESS", "r_1"),
        ("user_module_one:y", "FAILURE", "cannot load user_module_one:y: AttributeError"),
        (
            "user_module_one:plain",
            "FAILURE",
            "cannot load user_module_one:plain: LookupError: 1 is no handler",
        ),
        ("user_module_two:x", "FAILURE", "cannot load user_module_two:x: ModuleNotFoundError"),
        ("user_module_three:x", "FAILURE", "cannot load user_module_three:x: ModuleNotFoundError"),
    ]:
        messages: list[dict[str, Any]] = []
        run_request(_request(handler), messages.append)
        assert len(messages) == 1, handler
        assert messages[0]["result"]["status"] == status
        assert messages[0]["result"]["summary"].startswith(summary)


def test_a_broken_request_still_gets_a_result() -> None:
    cases: list[dict[str, Any]] = [{}, {"run": {}, "handler": f"{__name__}:deploy"}]
    for broken in cases:
        messages: list[dict[str, Any]] = []
        run_request(broken, messages.append)
        assert [list(message) for message in messages] == [["result"]]
        assert messages[0]["result"]["status"] == "FAILURE"


@action("late")
def late(run: Run) -> None:
    started, go = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go.wait(5)
        run.log("too late")

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(5)
    LATE.append((thread, go))


LATE: list[tuple[threading.Thread, threading.Event]] = []


def test_nothing_follows_the_result() -> None:
    messages: list[dict[str, Any]] = []
    run_request(_request(f"{__name__}:late"), messages.append)
    thread, go = LATE.pop()
    go.set()
    thread.join(5)
    assert not thread.is_alive()
    assert [list(message) for message in messages] == [["result"]]


def test_seconds_left_is_never_negative() -> None:
    run = Run({"id": "r", "action": "a", "deadline": time.time() - 5}, lambda message: None)
    assert run.seconds_left == 0
