"""Every asynchronous bundled handler is killed in its middle, with the listener itself, and the listener comes back.

All of them are held at once, so that one SIGKILL of the whole process tree is enough. The stack has the blueprints of
another organisation, so this is also the test of handlers that work under other names.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
from tests.engine.project import Project, eventually, fresh
from tests.unit.bundled.smtp_server import PASSWORD, USER, SmtpServer, certificate
from tests.unit.localport.webhook import Webhook

from port_webhook_handlers.bundled.deploy import deploy_microservice
from port_webhook_handlers.bundled.enqueue.kafka import enqueue_on_kafka
from port_webhook_handlers.bundled.enqueue.sqs import enqueue_on_sqs
from port_webhook_handlers.bundled.enqueue.web import enqueue_by_http
from port_webhook_handlers.bundled.expire import expire_resource
from port_webhook_handlers.bundled.http_call import call_http_api
from port_webhook_handlers.bundled.notify.mail import notify_by_mail
from port_webhook_handlers.bundled.notify.slack import notify_by_slack
from port_webhook_handlers.bundled.notify.teams import notify_by_teams
from port_webhook_handlers.bundled.resource import create_resource, delete_resource
from port_webhook_handlers.bundled.scale_restart import restart_service, scale_service
from port_webhook_handlers.runtime import control
from port_webhook_handlers.sdk.handler import Handler, handler_of

pytestmark = [pytest.mark.engine, pytest.mark.slow]

BUNDLED = "port_webhook_handlers.bundled"
MODULES = (
    *("deploy", "scale_restart", "resource", "expire", "http_call"),
    *("notify.slack", "notify.teams", "notify.mail", "enqueue.web", "enqueue.sqs", "enqueue.kafka"),
)
HANDLERS = {
    handler.identifier: handler
    for handler in map(
        handler_of,
        (
            *(deploy_microservice, scale_service, restart_service, call_http_api),
            *(create_resource, delete_resource, expire_resource),
            *(notify_by_slack, notify_by_teams, notify_by_mail),
            *(enqueue_by_http, enqueue_on_sqs, enqueue_on_kafka),
        ),
    )
}
CATALOG = {
    "service": {"blueprint": "microservice"},
    "environment": {"blueprint": "stage", "entity": "production"},
    "deployment": {
        "blueprint": "release",
        "properties": {"status": "state", "run": None},
        "relations": {"service": "of"},
    },
    "resource": {"blueprint": "asset", "properties": {"status": "state", "expiresAt": "ttl"}},
}
SECRETS = (
    *("HTTP_API_TOKEN", "SLACK_URL", "TEAMS_URL", "SMTP_PASSWORD", "RESOURCE_SECRET", "ENQUEUE_TOKEN"),
    "KAFKA_PASSWORD",
)
# A service, and a command, that wait as long as they are held, and leave a mark.
HELD = """\
import os, pathlib, sys, time
gate, name = pathlib.Path(os.environ["GATE"]), os.environ.get("NAME") or "-".join(sys.argv[1:])
while (gate / "held").exists():
    (gate / name).touch()
    time.sleep(0.02)
"""
MIDDLE = {
    "deploy_microservice": "shop",
    "scale_service": "cart",
    "restart_service": "bill",
    "create_resource": "create-new",
    "delete_resource": "delete-old",
    "expire_resource": "delete-gone",
}


class Hold:
    """A way to another server that lets nothing through while it is closed."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.gate = threading.Event()
        self.waiting = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.waiting += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self.gate.wait()
        with client:
            try:
                server = socket.create_connection(self._address)
            except OSError:
                return
            with server:
                back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
                back.start()
                self._copy(client, server)
                back.join()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self.gate.set()
        self._listener.close()


class Stack:
    """The deployed stack, and the runs that were interrupted in it.

    Attributes:
        runs: how they ended, by action.
    """

    def __init__(self, project: Project, folder: Path) -> None:
        from confluent_kafka import Producer

        self.project = project
        self.gate = folder / "gate"
        self.gate.mkdir()
        self.runs: dict[str, dict[str, Any]] = {}
        pem = certificate(folder)
        self.web, self.smtp = Webhook(), SmtpServer(pem)
        self.web.reply = b'{"MessageId": "m-1"}'
        # A client that brings a broker of its own.
        self._broker = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        (broker,) = self._broker.list_topics(timeout=10).brokers.values()
        self.mail = Hold(("127.0.0.1", self.smtp.port))
        self.kafka = Hold((broker.host, broker.port))
        self._configure(pem, folder)

    def _configure(self, pem: Path, folder: Path) -> None:
        project, web = self.project, self.web.url
        host = web[7:]
        server = project.folder / "held"
        server.mkdir()
        source = (project.folder / "examples" / "microservice" / "server.py").read_text()
        (server / "server.py").write_text(
            f"{HELD}\n{source.replace('from __future__ import annotations', '')}"
        )
        tool = project.folder / "tool.py"
        tool.write_text(HELD)
        credentials = folder / "credentials"
        credentials.write_text("[default]\naws_access_key_id = id\naws_secret_access_key = key\n")
        project.environment |= dict.fromkeys(SECRETS, "s3cr3t-of-a-test") | {
            "SLACK_URL": f"{web}/slack",
            "TEAMS_URL": f"{web}/teams",
            "SMTP_PASSWORD": PASSWORD,
        }
        services = {
            name: {
                "artefact": "held",
                "command": ["{python}", "server.py"],
                "health": "/health",
                "environment": {"GATE": str(self.gate), "NAME": name},
            }
            for name in ("cart", "shop", "bill")
        }
        command = {
            **{key: [sys.executable, str(tool), key, "{identifier}"] for key in ("create", "delete")},
            "environment": {"GATE": str(self.gate)},
        }
        mail = {
            "server": "127.0.0.1",
            "port": self.mail.port,
            "ca_file": str(pem),
            "user": USER,
            "sender": "port@example.com",
            "recipients": ["example.com"],
        }
        reached = {"hosts": [host], "private": True}
        allowed = {host: {"methods": ["POST"], "private": True, "plain": True}}
        brokers = [f"127.0.0.1:{self.kafka.port}"]
        project.configure(
            {
                "port-webhook-stack:handlers": [f"{BUNDLED}.{name}" for name in MODULES],
                "port-webhook-stack:catalog": CATALOG,
                "port-webhook-stack:secrets": {name: {"fromEnv": name} for name in SECRETS},
                "port-webhook-stack:handlerSettings": {
                    "*": {"services": services, "kinds": {"thing": {"command": command}}},
                    "call_http_api": {"hosts": allowed},
                    "enqueue_by_http": {"url": f"{web}/tasks", "private": True},
                    "enqueue_on_sqs": {
                        "queue_url": f"{web}/1/tasks",
                        "endpoint": web,
                        "region": "eu-west-1",
                        "credentials_file": str(credentials),
                    },
                    "enqueue_on_kafka": {"brokers": brokers, "topic": "tasks", "security": "plaintext"},
                    "notify_by_slack": reached,
                    "notify_by_teams": reached,
                    "notify_by_mail": mail,
                    "expire_resource": mail,
                },
            }
        )

    def entities(self, blueprint: str) -> dict[str, dict[str, Any]]:
        found = self.project.port("GET", f"/v1/blueprints/{blueprint}/entities")["entities"]
        return {entity["identifier"]: entity for entity in found}

    def create(self, blueprint: str, identifier: str, **properties: Any) -> None:
        body = {"identifier": identifier, "properties": properties}
        answer = self.project.port("POST", f"/v1/blueprints/{blueprint}/entities", json=body)
        assert answer["ok"], answer

    def start(self, action: str, entity: str | None = None, **properties: Any) -> str:
        body = {"properties": properties, **({"entity": entity} if entity else {})}
        answer = self.project.port("POST", f"/v1/actions/{action}/runs", json=body)
        assert answer["ok"], answer
        return str(answer["run"]["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.project.port("GET", f"/v1/actions/runs/{run_id}")["run"]
        return found

    def is_done(self, run_id: str) -> bool:
        run = self.run(run_id)
        return run["status"] != "IN_PROGRESS" or run.get("statusLabel") == "Handed over"

    def prepare(self) -> None:
        """What the handlers work on."""
        self.project.cli("up")
        for name in ("shop", "bill"):
            self.create("microservice", name)
        for run_id in [self.start("deploy_microservice", name, version="1.0.0") for name in ("cart", "bill")]:
            eventually(lambda run_id=run_id: self.is_done(run_id), 60)
            assert self.run(run_id)["status"] == "SUCCESS", self.run(run_id)
        self.create("asset", "old", kind="thing", state="Ready")

    def interrupt(self) -> None:
        """Starts every handler, waits until each is in its middle, kills the listener, and lets everything go on."""
        (self.gate / "held").touch()
        self.web.gate.clear()
        soon = (datetime.now(UTC) + timedelta(seconds=3)).isoformat().replace("+00:00", "Z")
        self.create("asset", "gone", kind="thing", state="Ready", ttl=soon, owner="ann@example.com")
        text = {"message": "hello"}
        runs = {
            "deploy_microservice": self.start("deploy_microservice", "shop", version="1.0.0"),
            "scale_service": self.start("scale_service", "cart", replicas=2),
            "restart_service": self.start("restart_service", "bill"),
            "create_resource": self.start("create_resource", identifier="new", kind="thing"),
            "delete_resource": self.start("delete_resource", "old"),
            "call_http_api": self.start("call_http_api", method="POST", url=f"{self.web.url}/api"),
            "notify_by_slack": self.start("notify_by_slack", **text),
            "notify_by_teams": self.start("notify_by_teams", **text),
            "notify_by_mail": self.start("notify_by_mail", to=["ann@example.com"], subject="x", **text),
            **{
                name: self.start(name, task="rotate")
                for name in ("enqueue_by_http", "enqueue_on_sqs", "enqueue_on_kafka")
            },
        }
        eventually(self.everything_is_held, 60)
        found = control.status(self.project.state / "listener")
        assert found is not None
        supervisor = psutil.Process(found.pid)
        for process in [supervisor, *supervisor.children(recursive=True)]:
            # One may end with its parent before it is looked at.
            with contextlib.suppress(psutil.NoSuchProcess):
                # What was deployed, and what makes resources, is not of the listener.
                if "port_webhook_handlers" in " ".join(process.cmdline()):
                    process.kill()
        (self.gate / "held").unlink()
        for gate in (self.web.gate, self.mail.gate, self.kafka.gate):
            gate.set()
        control.start(self.project.state / "listener", found.config)
        for action, run_id in runs.items():
            eventually(lambda run_id=run_id: self.is_done(run_id), 60)
            self.runs[action] = self.run(run_id)
        eventually(lambda: "gone" not in self.entities("asset") and len(self.smtp.mails) > 1, 60)
        # The run of an automation is nobody's answer; what it did is what tells.
        self.runs["expire_resource"] = {"status": "SUCCESS", "summary": ""}

    def everything_is_held(self) -> bool:
        paths = [request.path for request in self.web.received]
        return (
            all((self.gate / mark).exists() for mark in MIDDLE.values())
            and {"/api", "/slack", "/teams", "/tasks", "/"} <= set(paths)
            and self.mail.waiting > 0
            and self.kafka.waiting > 0
        )

    def close(self) -> None:
        for server in (self.web, self.smtp, self.mail, self.kafka):
            server.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("interrupted")
    for project in fresh(folder):
        stack = Stack(project, folder)
        try:
            with mock.patch.dict(os.environ, {"XDG_STATE_HOME": str(project.user_state)}):
                stack.prepare()
                stack.interrupt()
            yield stack
        finally:
            stack.close()


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
def test_it_behaves_as_it_declares(handler: Handler, stack: Stack) -> None:
    run = stack.runs[handler.identifier]
    if handler.on_interrupt == "fail":
        assert run["status"] == "FAILURE", run
        assert "interrupted, outcome unknown" in run["summary"]
    elif handler.identifier.startswith("enqueue"):
        assert (run["status"], run["statusLabel"]) == ("IN_PROGRESS", "Handed over"), run
    else:
        assert run["status"] == "SUCCESS", run


def test_what_was_left_is_what_the_docs_say(stack: Stack) -> None:
    posts = [request.path for request in stack.web.received]
    # Not repeated, because it could have taken effect; a message twice is better than none.
    assert posts.count("/api") == 1
    assert all(posts.count(path) == 2 for path in ("/slack", "/teams", "/tasks", "/")), posts
    assets = stack.entities("asset")
    assert set(assets) == {"new"}
    assert assets["new"]["properties"]["state"] == "Creating"
    assert assets["new"]["relations"]["environment"] == "production"
    releases = stack.entities("release")
    assert {entity["relations"]["of"] for entity in releases.values()} == {"cart", "bill"}
    assert {entity["properties"]["state"] for entity in releases.values()} == {"Running"}
    assert all("run" not in entity["properties"] for entity in releases.values())
    # What was interrupted can be deleted and deployed like anything else.
    again = [
        stack.start("delete_resource", "new"),
        stack.start("deploy_microservice", "shop", version="1.0.0"),
    ]
    for run_id in again:
        eventually(lambda run_id=run_id: stack.is_done(run_id), 60)
        assert stack.run(run_id)["status"] == "SUCCESS", stack.run(run_id)
