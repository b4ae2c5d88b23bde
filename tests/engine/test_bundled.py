"""The bundled handlers end to end: real engine, local Port, listener, child processes; success and failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.engine.bundled_page import BASE, definitions, essence, sections, steady, transcripts
from tests.engine.bundled_stack import TOKEN, Stack, deployed

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with deployed(tmp_path_factory.mktemp("bundled")) as found:
        yield found


@dataclass
class Shown:
    """What runs of every handler printed, and what there was after them."""

    transcripts: dict[str, str]
    resources: dict[str, dict[str, Any]]
    stacks: dict[str, bool]


@pytest.fixture(scope="module")
def shown(stack: Stack) -> Shown:
    """Every handler, once, as the page of the docs shows it."""
    found = Shown({}, {}, {})
    file = stack.project.state / "resources" / "state" / ".pulumi" / "stacks" / "thing" / "t-reports.json"

    def observe(name: str) -> None:
        if name.endswith("_resource"):
            entities = {entity["identifier"]: entity for entity in stack.entities("resource")}
            found.resources[name] = entities.get("reports", {}).get("properties", {})
            found.stacks[name] = file.exists()

    found.transcripts = transcripts(stack, observe)
    return found


@pytest.mark.parametrize("name", definitions())
def test_the_page_shows_what_happens(name: str, shown: Shown, stack: Stack) -> None:
    definition, transcript = sections()[name]
    assert essence(steady(shown.transcripts[name])) == essence(transcript)
    # What Port has is what the page shows, but for the address.
    stored = stack.project.port("GET", f"/v1/actions/{name}")["action"]
    url = stored["invocationMethod"]["url"]
    stored["invocationMethod"]["url"] = BASE + url[url.index("/webhooks/") :]
    assert {key: stored[key] for key in definition} == definition


def test_what_the_runs_have_left(shown: Shown, stack: Stack) -> None:
    assert shown.resources["create_resource"]["outputs"] == {"url": "https://cloud/t-reports/small"}
    assert shown.stacks == {"create_resource": True, "delete_resource": False} | {
        name: exists for name, exists in shown.stacks.items() if name == "expire_resource"
    }
    assert shown.resources["delete_resource"] == {}
    by_status = {entity["properties"]["status"]: entity for entity in stack.entities("deployment")}
    assert {key: item["properties"]["version"] for key, item in by_status.items()} == {
        "Running": "1.1.0",
        "Replaced": "1.0.0",
    }
    seen = stack.ended("what_runs_where", {"service": "shop"})["response"]["services"]["shop"]
    assert (seen["version"], seen["replicas"], seen["healthy"]) == ("1.1.0", 2, 2)
    assert by_status["Running"]["properties"]["url"] == seen["url"]
    posts = {request.path: request for request in stack.web.received}
    assert posts["/tickets"].headers["authorization"] == f"Bearer {TOKEN}"
    assert posts["/tasks"].json["report"]["method"] == "PATCH"
    for path in ("/services/s3cr3t", "/workflows/s3cr3t"):
        assert "Cart is slow" in posts[path].body.decode()
    assert {message["Subject"] for _, message in stack.smtp.mails} == {"Cart", "Resource trial has expired"}
    assert TOKEN not in json.dumps(shown.transcripts)


def test_an_api_that_refuses_is_a_failure(stack: Stack) -> None:
    stack.web.status, stack.web.reply = 403, TOKEN.encode()
    run = stack.ended("call_http_api", {"method": "POST", "url": f"{stack.web.url}/t"})
    assert run["status"] == "FAILURE"
    assert "answered 403" in run["summary"]
    assert TOKEN not in json.dumps(run)


def test_a_service_that_cannot_be_scaled_says_why(stack: Stack) -> None:
    assert stack.ended("scale_service", {"replicas": 2}, "cart")["summary"].startswith("cart is not deployed")
    assert "may have 1 to 2 copies" in stack.ended("scale_service", {"replicas": 3}, "cart")["summary"]


@pytest.mark.parametrize("channel", ["slack", "teams"])
def test_a_chat_that_refuses_is_a_failure(stack: Stack, channel: str) -> None:
    stack.web.status, stack.web.reply = 400, b"invalid_payload"
    run = stack.ended(f"notify_by_{channel}", {"message": "hello"})
    assert (run["status"], run["summary"]) == (
        "FAILURE",
        f"{stack.web.url[7:]} answered 400: invalid_payload.",
    )


def test_a_mail_that_is_refused_is_a_failure(stack: Stack) -> None:
    stack.smtp.refuse = {"DATA": "552 too large"}
    run = stack.ended("notify_by_mail", {"to": ["ops@example.com"], "subject": "Cart", "message": "is down"})
    stack.smtp.refuse = {}
    assert run["status"] == "FAILURE"
    assert "127.0.0.1 refused the message (552): too large." in run["summary"]


def test_programs_that_fail_or_take_too_long(stack: Stack) -> None:
    inputs = {"identifier": "big", "kind": "thing", "parameters": {"size": "huge"}}
    run = stack.ended("create_resource", inputs)
    assert run["status"] == "FAILURE"
    assert "quota exceeded" in run["summary"]
    assert "exists already" in stack.ended("create_resource", inputs)["summary"]
    inputs = {"identifier": "slow", "kind": "hasty", "parameters": {"size": "slow"}}
    run = stack.ended("create_resource", inputs)
    assert run["status"] == "FAILURE"
    assert run["summary"].startswith("the program did not end within 4 s and was stopped")
    # Nothing is locked: it can be deleted at once, within the same time.
    run = stack.ended("delete_resource", {}, "slow")
    assert "locked" not in run["summary"]


def test_a_run_that_nobody_takes_over_is_a_failure(stack: Stack) -> None:
    stack.web.status = 401
    failed = stack.ended("enqueue_by_http", {"task": "rotate-keys"})
    assert (failed["status"], failed["summary"]) == (
        "FAILURE",
        f"{stack.web.url[7:]} answered 401, so nobody goes on with the run.",
    )
