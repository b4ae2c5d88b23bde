"""The bundled handlers end to end: real engine, local Port, listener, child processes; success and failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.engine.project import Project, eventually, fresh
from tests.unit.bundled.smtp_server import PASSWORD, USER, SmtpServer, certificate
from tests.unit.localport.webhook import Webhook

pytestmark = [pytest.mark.engine, pytest.mark.slow]

BUNDLED = "port_webhook_handlers.bundled"
TOKEN = "b34rer-t0ken"
PROGRAM = """\
import time

import pulumi

size = pulumi.Config("thing").require("size")
if size == "huge":
    raise RuntimeError("quota exceeded")
if size == "slow":
    time.sleep(60)
pulumi.ComponentResource("thing:index:Thing", pulumi.get_stack())
pulumi.export("url", f"https://cloud/{pulumi.get_stack()}/{size}")
pulumi.export("password", pulumi.Output.secret("hidden"))
"""


class Stack:
    """A deployed stack with every handler that needs no cloud, and the systems that they call."""

    def __init__(self, project: Project, web: Webhook, smtp: SmtpServer) -> None:
        self.project = project
        self.web = web
        self.smtp = smtp

    def ended(self, action: str, properties: dict[str, Any], entity: str | None = None) -> dict[str, Any]:
        """The run of an action once it has ended."""
        body = {"properties": properties, **({"entity": entity} if entity else {})}
        started = self.project.port("POST", f"/v1/actions/{action}/runs", json=body)
        assert started["ok"], started
        path = f"/v1/actions/runs/{started['run']['id']}"

        def ended() -> bool:
            status: str = self.project.port("GET", path)["run"]["status"]
            return status != "IN_PROGRESS"

        eventually(ended, 60)
        run: dict[str, Any] = self.project.port("GET", path)["run"]
        return run

    def entities(self, blueprint: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.project.port("GET", f"/v1/blueprints/{blueprint}/entities")[
            "entities"
        ]
        return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("bundled")
    pem: Path = certificate(folder)
    web, smtp = Webhook(), SmtpServer(pem)
    try:
        for project in fresh(folder):
            host = web.url[7:]
            project.environment |= {
                "HTTP_API_TOKEN": TOKEN,
                "SLACK_URL": f"{web.url}/services/s3cr3t",
                "TEAMS_URL": f"{web.url}/workflows/s3cr3t",
                "SMTP_PASSWORD": PASSWORD,
                "RESOURCE_SECRET": "passphrase-of-things",
                "ENQUEUE_TOKEN": TOKEN,
            }
            service = {
                "artefact": "examples/microservice",
                "command": ["{python}", "server.py"],
                "health": "/health",
            }
            program = project.folder / "thing"
            program.mkdir()
            (program / "Pulumi.yaml").write_text("name: thing\nruntime: python\n", encoding="utf-8")
            (program / "__main__.py").write_text(PROGRAM, encoding="utf-8")
            thing = {
                "parameters": {"size": {"default": "small"}},
                "program": {
                    "folder": "thing",
                    "stack": "t-{identifier}",
                    "config": {"thing:size": "{size}"},
                },
            }
            things = {"thing": thing, "hasty": thing | {"timeout_seconds": 4}}
            mail = {
                "server": "127.0.0.1",
                "port": smtp.port,
                "ca_file": str(pem),
                "user": USER,
                "sender": "port@example.com",
                "recipients": ["example.com"],
            }
            names = ("deploy", "http_call", "running", "scale_restart", "resource", "expire", "enqueue.web")
            chats = ("notify.slack", "notify.teams", "notify.mail")
            project.configure(
                {
                    "port-webhook-stack:handlers": [f"{BUNDLED}.{name}" for name in (*names, *chats)],
                    "port-webhook-stack:secrets": {
                        name: {"fromEnv": name}
                        for name in (
                            "HTTP_API_TOKEN",
                            "SLACK_URL",
                            "TEAMS_URL",
                            "SMTP_PASSWORD",
                            "RESOURCE_SECRET",
                            "ENQUEUE_TOKEN",
                        )
                    },
                    "port-webhook-stack:handlerSettings": {
                        "*": {"services": {"cart": service}, "kinds": things},
                        "scale_service": {"bounds": {"cart": {"maximum": 2}}},
                        "call_http_api": {
                            "hosts": {
                                host: {
                                    "methods": ["POST"],
                                    "private": True,
                                    "plain": True,
                                    "token": {"prefix": "Bearer "},
                                    "summary": "Ticket {key}",
                                }
                            }
                        },
                        "enqueue_by_http": {"url": f"{web.url}/tasks", "private": True},
                        "notify_by_slack": {"hosts": [host], "private": True},
                        "notify_by_teams": {"hosts": [host], "private": True},
                        "notify_by_mail": mail,
                        "expire_resource": mail,
                    },
                }
            )
            project.cli("up")
            yield Stack(project, web, smtp)
    finally:
        web.close()
        smtp.close()


def test_an_http_api_is_called_with_the_token(stack: Stack) -> None:
    stack.web.status, stack.web.reply = 201, b'{"key": "OPS-1"}'
    run = stack.ended("call_http_api", {"method": "POST", "url": f"{stack.web.url}/t", "body": {"a": 1}})
    assert (run["status"], run["summary"]) == ("SUCCESS", "Ticket OPS-1")
    assert stack.web.received[-1].headers["authorization"] == f"Bearer {TOKEN}"
    stack.web.status, stack.web.reply = 403, TOKEN.encode()
    run = stack.ended("call_http_api", {"method": "POST", "url": f"{stack.web.url}/t"})
    assert run["status"] == "FAILURE"
    assert "answered 403" in run["summary"]
    assert TOKEN not in json.dumps(run)


def test_a_service_is_deployed_scaled_restarted_and_seen(stack: Stack) -> None:
    assert stack.ended("scale_service", {"replicas": 2}, "cart")["summary"].startswith("cart is not deployed")
    assert stack.ended("deploy_microservice", {"version": "1.0.0"}, "cart")["status"] == "SUCCESS"
    run = stack.ended("scale_service", {"replicas": 2}, "cart")
    assert (run["status"], run["summary"]) == ("SUCCESS", "cart runs 2 copies of 1.0.0")
    assert "may have 1 to 2 copies" in stack.ended("scale_service", {"replicas": 3}, "cart")["summary"]
    seen = stack.ended("what_runs_where", {"service": "cart"})
    before = seen["response"]["services"]["cart"]
    assert (before["version"], before["replicas"], before["healthy"]) == ("1.0.0", 2, 2)
    assert stack.ended("restart_service", {}, "cart")["status"] == "SUCCESS"
    after = stack.ended("what_runs_where", {})["response"]["services"]["cart"]
    assert after["url"] != before["url"]
    (deployment,) = stack.entities("deployment")
    assert deployment["properties"]["url"] == after["url"]


@pytest.mark.parametrize("channel", ["slack", "teams"])
def test_a_chat_is_told(stack: Stack, channel: str) -> None:
    stack.web.status, stack.web.reply = 200, b"ok"
    assert stack.ended(f"notify_by_{channel}", {"message": "hello"})["status"] == "SUCCESS"
    assert "hello" in stack.web.received[-1].body.decode()
    stack.web.status, stack.web.reply = 400, b"invalid_payload"
    run = stack.ended(f"notify_by_{channel}", {"message": "hello"})
    assert (run["status"], run["summary"]) == (
        "FAILURE",
        f"{stack.web.url[7:]} answered 400: invalid_payload.",
    )


def test_a_mail_is_sent(stack: Stack) -> None:
    inputs = {"to": ["ops@example.com"], "subject": "Cart", "message": "is down"}
    assert stack.ended("notify_by_mail", inputs)["status"] == "SUCCESS"
    assert stack.smtp.mails[-1][1]["Subject"] == "Cart"
    stack.smtp.refuse = {"DATA": "452 full"}
    run = stack.ended("notify_by_mail", inputs)
    stack.smtp.refuse = {}
    assert run["status"] == "FAILURE"
    assert "127.0.0.1 refused the message (452): full." in run["summary"]


def test_a_resource_is_made_by_a_program_and_deleted(stack: Stack) -> None:
    inputs = {"identifier": "logs", "kind": "thing", "owner": "ann@example.com"}
    run = stack.ended("create_resource", inputs)
    assert run["status"] == "SUCCESS", run["summary"]
    assert run["summary"] == "thing logs is ready: url = https://cloud/t-logs/small"
    (entity,) = stack.entities("resource")
    assert entity["properties"]["outputs"] == {"url": "https://cloud/t-logs/small"}
    assert "exists already" in stack.ended("create_resource", inputs)["summary"]
    files = stack.project.state / "resources" / "state" / ".pulumi" / "stacks" / "thing"
    assert (files / "t-logs.json").exists()
    run = stack.ended("delete_resource", {}, "logs")
    assert (run["status"], run["summary"]) == ("SUCCESS", "thing logs is deleted")
    assert stack.entities("resource") == []
    assert not (files / "t-logs.json").exists()


def test_a_program_that_fails_says_why(stack: Stack) -> None:
    inputs = {"identifier": "big", "kind": "thing", "parameters": {"size": "huge"}}
    run = stack.ended("create_resource", inputs)
    assert run["status"] == "FAILURE"
    assert "quota exceeded" in run["summary"]


def test_a_program_that_takes_too_long_is_stopped_and_expires_like_any_other(stack: Stack) -> None:
    inputs = {
        "identifier": "slow",
        "kind": "hasty",
        "parameters": {"size": "slow"},
        "owner": "ann@example.com",
    }
    stack.smtp.mails.clear()
    run = stack.ended("create_resource", inputs)
    assert run["status"] == "FAILURE"
    assert run["summary"].startswith("the program did not end within 4 s and was stopped")
    entity = "/v1/blueprints/resource/entities/slow"
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat().replace("+00:00", "Z")
    stack.project.port("PATCH", entity, json={"properties": {"expiresAt": soon}})

    def told() -> bool:
        return bool(stack.smtp.mails)

    eventually(told, 90)
    recipients, message = stack.smtp.mails[0]
    # Its lock was gone.
    assert (recipients, message["Subject"]) == (["ann@example.com"], "Resource slow has expired")


def test_a_run_that_is_handed_over_stays_open_until_the_worker_ends_it(stack: Stack) -> None:
    stack.web.status, stack.web.reply = 202, b""
    stack.web.received.clear()
    port = stack.project.port
    started = port("POST", "/v1/actions/enqueue_by_http/runs", json={"properties": {"task": "rotate-keys"}})
    path = f"/v1/actions/runs/{started['run']['id']}"
    eventually(lambda: port("GET", path)["run"].get("statusLabel") == "Handed over", 60)
    run = port("GET", path)["run"]
    assert run["status"] == "IN_PROGRESS"
    assert run["summary"].startswith("Waiting for a worker")
    # The worker does what the message says.
    report = stack.web.received[0].json["report"]
    port(report["method"], report["path"], json={"status": "SUCCESS", "summary": "keys are rotated"})
    run = port("GET", path)["run"]
    assert (run["status"], run["summary"]) == ("SUCCESS", "keys are rotated")

    stack.web.status = 401
    failed = stack.ended("enqueue_by_http", {"task": "rotate-keys"})
    assert (failed["status"], failed["summary"]) == (
        "FAILURE",
        f"{stack.web.url[7:]} answered 401, so nobody goes on with the run.",
    )
