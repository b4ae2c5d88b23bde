"""Whatever goes wrong, a bundled handler ends in a summary that says what, where, and what to do about it.

No error of Python gets through to the run's page, and no secret.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

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
from port_webhook_handlers.bundled.running import what_runs_where
from port_webhook_handlers.bundled.scale_restart import restart_service, scale_service
from port_webhook_handlers.sdk import Success
from port_webhook_handlers.sdk.handler import handler_of
from port_webhook_handlers.sdk.testing import invoke

SECRET = "pl4nted-s3cret"
CART = {"identifier": "cart", "blueprint": "service"}
OLD = {"identifier": "old", "blueprint": "resource", "properties": {"kind": "bucket"}}
DEPLOY = {"inputs": {"version": "1.0.0"}, "entity": CART}
SCALE = {"inputs": {"replicas": 2}, "entity": CART}
CREATE = {"inputs": {"identifier": "new", "kind": "bucket"}}
TASK = {"inputs": {"task": "rotate"}}
TEXT = {"inputs": {"message": "hello"}}
MAIL = {"inputs": {"to": ["ann@example.com"], "subject": "x", "message": "y"}}
POST = {"inputs": {"method": "POST", "url": "https://api.example.com/x"}}
RUN = ["{python}", "server.py"]
SERVER = str(Path(__file__).parents[3] / "examples" / "microservice")
SMTP = {"server": "127.0.0.1", "port": 1, "sender": "port@example.com", "recipients": ["example.com"]}
KAFKA = {"brokers": ["127.0.0.1:1"], "topic": "t", "user": "u"}
SQS = {"queue_url": "https://sqs.eu-west-1.amazonaws.com/123456789012/tasks", "region": "eu-west-1"}
AWS = {"target": "ecs", "services": {"cart": {"cluster": "shop", "image": "cart:{version}"}}}


@dataclass(frozen=True)
class Case:
    """What is run, and what its summary must say."""

    handler: Any
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    says: tuple[str, ...]
    prepare: Callable[[Path], object] = field(default=lambda project: None)
    retryable: bool = False


def local(**spec: Any) -> dict[str, Any]:
    return {"services": {"cart": {"artefact": SERVER, "command": RUN, "health": "/health", **spec}}}


def command(*arguments: str, **further: Any) -> dict[str, Any]:
    return {"kinds": {"bucket": {"command": {"create": [*arguments], "delete": [*arguments]}, **further}}}


def program(project: Path, text: str = "") -> None:
    folder = project / "program"
    folder.mkdir()
    (folder / "__main__.py").write_text(text)
    (folder / "Pulumi.yaml").write_text("name: thing\nruntime: python\n")


def is_no_folder(*names: str) -> Callable[[Path], object]:
    """A file where the handler expects a folder, as a disk that cannot be written does."""

    def prepare(project: Path) -> None:
        place = project.joinpath(".state", "local", *names)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("")

    return prepare


PROGRAM = {"kinds": {"bucket": {"program": {"folder": "program"}}}}

CASES: dict[str, Case] = {
    # Deploy, scale, restart, look
    "no services": Case(deploy_microservice, DEPLOY, {}, ("services.cart", "add command and artefact")),
    "no artefact": Case(
        deploy_microservice, DEPLOY, local(artefact="nothing"), ("nothing does not exist", "build it")
    ),
    "no program": Case(deploy_microservice, DEPLOY, local(command=["./nothing"]), ("cannot be started",)),
    "it ends": Case(
        deploy_microservice,
        DEPLOY,
        local(command=["{python}", "-c", "raise SystemExit('no port')"]),
        ("ended", "no port"),
    ),
    "never healthy": Case(
        deploy_microservice,
        DEPLOY,
        local(health="/nothing", start_seconds=0.3),
        ("/nothing", "did not get healthy"),
    ),
    "deployments cannot be written": Case(
        deploy_microservice, DEPLOY, local(), ("deployments", "cannot be used"), is_no_folder("deployments")
    ),
    "scaled before deployed": Case(
        scale_service, SCALE, local(), ("cart is not deployed", "deploy a version")
    ),
    "out of bounds": Case(
        scale_service, {**SCALE, "inputs": {"replicas": 9}}, local(), ("1 to 3", "bounds.cart")
    ),
    "restarted before deployed": Case(
        restart_service, {"entity": CART}, local(), ("cart is not deployed", "deploy a version")
    ),
    "unknown target": Case(
        deploy_microservice, DEPLOY, {"target": "mars"}, ("target: 'mars' is not known", "use one of")
    ),
    "unknown target of a service": Case(
        restart_service, {"entity": CART}, local(target="mars"), ("services.cart.target: 'mars'",)
    ),
    "no cluster": Case(
        deploy_microservice,
        DEPLOY,
        {"target": "kubernetes", "services": {"cart": {"namespace": "shop", "image": "c:{version}"}}},
        ("cluster.credentials", "holds no token"),
    ),
    "no region": Case(deploy_microservice, DEPLOY, AWS, ("aws.region: is missing",)),
    "no endpoint": Case(
        deploy_microservice,
        DEPLOY,
        {**AWS, "aws": {"region": "eu-west-1", "endpoint": "nowhere"}},
        ("aws.endpoint", "nowhere"),
    ),
    "wrong catalog": Case(
        deploy_microservice,
        DEPLOY,
        {**local(), "catalog": {"deployment": {"properties": {"state": "x"}}}},
        ("catalog.deployment.properties.state", "known: version"),
    ),
    "unknown service": Case(
        what_runs_where, {"inputs": {"service": "shop"}}, local(), ("services.shop", "known: cart")
    ),
    # Resources
    "no kinds": Case(create_resource, CREATE, {}, ("kinds.bucket", "add it there")),
    "no command": Case(create_resource, CREATE, command("./nothing"), ("./nothing cannot be started",)),
    "command fails": Case(
        create_resource,
        CREATE,
        command("sh", "-c", "echo quota >&2; exit 3"),
        ("exit code 3", "quota", "delete the resource"),
    ),
    "command hangs": Case(
        create_resource, CREATE, command("sleep", "60", timeout_seconds=1), ("sleep did not end within 1 s",)
    ),
    "deletion fails": Case(
        delete_resource, {"entity": OLD}, command("false"), ("exit code 1", "may still be there")
    ),
    "records cannot be written": Case(
        create_resource, CREATE, command("true"), ("resources", "cannot be used"), is_no_folder("resources")
    ),
    "no program folder": Case(
        create_resource, CREATE, PROGRAM, ("program.folder", "no Pulumi.yaml and __main__.py")
    ),
    "no pulumi": Case(create_resource, CREATE, PROGRAM, ("pulumi", "PATH", "install"), program),
    "expires without entity": Case(
        expire_resource, {"event": {"diff": {}}}, {}, ("no entity", "nothing was")
    ),
    "expiry fails": Case(
        expire_resource,
        {"event": {"diff": {"after": OLD}}},
        command("false"),
        ("exit code 1", "may still be there", "no owner"),
    ),
    # Notify
    **{
        f"{handler_of(handler).identifier} {name}": Case(handler, TEXT, settings, says)
        for handler in (notify_by_slack, notify_by_teams)
        for name, settings, says in (
            ("elsewhere", {}, ("leads to 127.0.0.1:1", "list the host")),
            ("nobody there", {"hosts": ["127.0.0.1:1"], "private": True}, ("127.0.0.1:1 cannot be reached",)),
        )
    },
    "no smtp server": Case(notify_by_mail, MAIL, {}, ("notify_by_mail.server",)),
    "nobody takes mail": Case(notify_by_mail, MAIL, SMTP, ("127.0.0.1:1 cannot be used",), retryable=True),
    "no ca file": Case(notify_by_mail, MAIL, {**SMTP, "ca_file": "/nothing"}, ("notify_by_mail.ca_file",)),
    "a stranger": Case(
        notify_by_mail,
        {"inputs": {**MAIL["inputs"], "to": ["eve@evil.example"]}},
        SMTP,
        ("inputs.to", "not allowed", "recipients"),
    ),
    # Call and enqueue
    "host not allowed": Case(call_http_api, POST, {}, ("hosts.api.example.com", "add it there")),
    "method not allowed": Case(
        call_http_api, POST, {"hosts": {"api.example.com": {}}}, ("POST is not allowed", "allowed: GET")
    ),
    "nobody answers": Case(
        call_http_api,
        {"inputs": {"method": "GET", "url": "http://127.0.0.1:1/"}},
        {"hosts": {"127.0.0.1:1": {"private": True, "plain": True, "attempts": 1}}},
        ("127.0.0.1:1 cannot be reached",),
    ),
    "no address of the worker": Case(enqueue_by_http, TASK, {}, ("enqueue_by_http.url",)),
    "no worker": Case(
        enqueue_by_http,
        TASK,
        {"url": "http://127.0.0.1:1", "private": True},
        ("127.0.0.1:1",),
        retryable=True,
    ),
    "no queue": Case(enqueue_on_sqs, TASK, {}, ("enqueue_on_sqs.queue_url",)),
    "no endpoint of sqs": Case(enqueue_on_sqs, TASK, {**SQS, "endpoint": "nowhere"}, ("endpoint", "nowhere")),
    "no brokers": Case(enqueue_on_kafka, TASK, {}, ("enqueue_on_kafka.",)),
    "no ca of kafka": Case(
        enqueue_on_kafka,
        TASK,
        {**KAFKA, "ca_file": "/nothing"},
        ("enqueue_on_kafka.ca_file: /nothing does not exist",),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_error_is_a_useful_summary(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    (project / ".state" / "local").mkdir(parents=True)
    case.prepare(project)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    if case.settings is PROGRAM:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
    pause = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(min(seconds, 0.05)))
    monkeypatch.setattr(os, "getcwd", lambda: str(project))
    declared = handler_of(case.handler)
    addresses = dict.fromkeys(("SLACK_URL", "TEAMS_URL"), f"http://127.0.0.1:1/{SECRET}")
    outcome = invoke(
        case.handler,
        settings={"state_dir": str(project / ".state" / "local"), **case.settings},
        secrets={name: addresses.get(name, SECRET) for name in declared.secrets},
        **case.options,
    )
    summary = str(outcome.result.summary)
    assert not isinstance(outcome.result, Success), summary
    assert outcome.retryable == case.retryable, summary
    assert outcome.error_type == ("RetryableError" if case.retryable else None), summary
    assert [part for part in case.says if part not in summary] == [], summary
    assert SECRET not in json.dumps(outcome.messages)


def test_every_bundled_handler_is_in_the_table() -> None:
    import pkgutil

    from port_webhook_handlers import bundled

    found = {
        handler.identifier
        for module in pkgutil.walk_packages(bundled.__path__, f"{bundled.__name__}.")
        for value in vars(__import__(module.name, fromlist=["_"])).values()
        if (handler := getattr(value, "__port_handler__", None)) is not None
    }
    assert {handler_of(case.handler).identifier for case in CASES.values()} == found
