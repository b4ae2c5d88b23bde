"""A stack on the real engine with every bundled handler, and the systems that they call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.engine.project import Project, eventually, fresh
from tests.unit.bundled.smtp_server import PASSWORD, USER, SmtpServer, certificate
from tests.unit.localport.webhook import Webhook

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


SECRETS = {
    "HTTP_API_TOKEN": TOKEN,
    "SLACK_URL": "{web}/services/s3cr3t",
    "TEAMS_URL": "{web}/workflows/s3cr3t",
    "SMTP_PASSWORD": PASSWORD,
    "RESOURCE_SECRET": "passphrase-of-things",
    "ENQUEUE_TOKEN": TOKEN,
    "KAFKA_PASSWORD": "of-no-use-without-sasl",
}
MODULES = (
    *("deploy", "scale_restart", "running", "resource", "expire", "http_call"),
    *("notify.slack", "notify.teams", "notify.mail", "enqueue.sqs", "enqueue.kafka", "enqueue.web"),
)


@contextmanager
def deployed(folder: Path) -> Iterator[Stack]:
    """The stack, in a project of its own."""
    from confluent_kafka import Producer

    pem = certificate(folder)
    credentials = folder / "credentials"
    credentials.write_text("[default]\naws_access_key_id = id\naws_secret_access_key = key\n")
    web, smtp = Webhook(), SmtpServer(pem)
    # A client that brings a broker of its own.
    client = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = client.list_topics(timeout=10).brokers.values()
    try:
        with contextmanager(fresh)(folder) as project:
            program = project.folder / "thing"
            program.mkdir()
            (program / "Pulumi.yaml").write_text("name: thing\nruntime: python\n", encoding="utf-8")
            (program / "__main__.py").write_text(PROGRAM, encoding="utf-8")
            project.environment |= {name: value.format(web=web.url) for name, value in SECRETS.items()}
            settings = _settings(web, smtp, pem)
            settings["enqueue_on_sqs"]["credentials_file"] = str(credentials)
            settings["enqueue_on_kafka"]["brokers"] = [f"{broker.host}:{broker.port}"]
            project.configure(
                {
                    "port-webhook-stack:handlers": [f"{BUNDLED}.{name}" for name in MODULES],
                    "port-webhook-stack:secrets": {name: {"fromEnv": name} for name in SECRETS},
                    "port-webhook-stack:handlerSettings": settings,
                }
            )
            project.cli("up")
            yield Stack(project, web, smtp)
    finally:
        web.close()
        smtp.close()


def _settings(web: Webhook, smtp: SmtpServer, pem: Path) -> dict[str, dict[str, Any]]:
    """Settings by handler."""
    host = web.url[7:]
    service = {
        "artefact": "examples/microservice",
        "command": ["{python}", "server.py"],
        "health": "/health",
    }
    thing = {
        "parameters": {"size": {"default": "small"}},
        "program": {"folder": "thing", "stack": "t-{identifier}", "config": {"thing:size": "{size}"}},
    }
    mail = {
        "server": "127.0.0.1",
        "port": smtp.port,
        "ca_file": str(pem),
        "user": USER,
        "sender": "port@example.com",
        "recipients": ["example.com"],
    }
    api = {
        "methods": ["POST"],
        "private": True,
        "plain": True,
        "token": {"prefix": "Bearer "},
        "summary": "Ticket {key}",
    }
    chat = {"hosts": [host], "private": True}
    return {
        "*": {
            "services": {"cart": service, "shop": service},
            "kinds": {"thing": thing, "hasty": thing | {"timeout_seconds": 4}},
        },
        "scale_service": {"bounds": {"cart": {"maximum": 2}}},
        "call_http_api": {"hosts": {host: api}},
        "enqueue_by_http": {"url": f"{web.url}/tasks", "private": True},
        "enqueue_on_sqs": {
            "queue_url": f"{web.url}/123456789012/tasks",
            "endpoint": web.url,
            "region": "eu-west-1",
        },
        "enqueue_on_kafka": {"topic": "tasks", "security": "plaintext"},
        "notify_by_slack": chat,
        "notify_by_teams": chat,
        "notify_by_mail": mail,
        "expire_resource": mail,
    }
